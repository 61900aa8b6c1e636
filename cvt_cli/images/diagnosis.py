"""Diagnosis of bytes that can't be read as an image: what they are, and what is wrong with them."""

import codecs
import dis
import re
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin
from PIL.PsdImagePlugin import MODES as PSD_MODES
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from cvt_cli.images import formats
from cvt_cli.images.source import TEXT, one_line
from cvt_cli.system.extras import install_hint

# Formats that Pillow does not read by itself: first bytes, name in `formats`, and extra.
OTHERS = {
    "HEIC": (
        re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
        ("HEIF", "heif"),
    ),
    "JPEG XL": (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), ("JXL", "jxl")),
}

# First bytes that leave no doubt about a file's format.
_BEGINNINGS = (
    (re.compile(rb"\x89PNG"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG2000"),
    (re.compile(rb"BM....\0\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"P[1-7f][\s#]|PF\s"), "PPM"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"DDS "), "DDS"),
    (re.compile(rb"qoif"), "QOI"),
    (re.compile(rb"icns"), "ICNS"),
    (re.compile(rb"SIMPLE  ="), "FITS"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"\x01\xda[\0\x01][\x01\x02]"), "SGI"),
    # An intact one is among `OTHERS`.
    (re.compile(rb"(?!\0\0\0\x0cJXL \r\n\x87\n)....JXL", re.DOTALL), "JXL"),
)

# Bytes by which a file that is not an image is judged.
_START = 1024

# A TIFF's tags.
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 259, 262, 339
_KINDS = {1: "", 2: " signed", 3: " float", 4: "", 5: " complex", 6: " complex float"}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
# Those that Pillow's own libtiff reads, 1 being none, and the names of others.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
_OTHER_COMPRESSIONS = {
    6: "old-style JPEG",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34887: "LERC",
    34933: "PNG",
    22610: "JPEG XR",
    34934: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}

# A PSD's header: bits of a channel, and colours.
_PSD_HEADER = struct.Struct(">22sHH")
_PSD_BITS = (1, 8, 16, 32)
_PSD_COLOURS = {
    0: "bitmap",
    1: "grey",
    2: "palette",
    3: "RGB",
    4: "CMYK",
    7: "multichannel",
    8: "duotone",
    9: "Lab",
}

# Markers of a picture in a JPEG, and the kind that each stands for.
_JPEG_KINDS = {0xC3: "lossless", 0xF7: "JPEG-LS"}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_MAX_SEGMENTS = 2000
_SEGMENT, _MARKER, _PLAIN_BITS = struct.Struct(">BBH"), 0xFF, 8

# Beginnings of messages about files that may be intact.
_UNREAD = ("unsupported", "unimplemented", "unknown")
# First bytes that nearly any file may have.
_HARDLY_SIGNED = ("TGA", "PCX")
# Packages that read images, whose messages are meant for people.
_READERS = ("PIL", "pi_heif", "pillow_heif", "pillow_jxl", "cvt_cli")
_BYTES = re.compile(r"\bb'([^']*)'")
# Messages in terms of programs, and in plain ones.
_IN_OTHER_WORDS = (
    (re.compile(r"^broken PNG file \((chunk \S*|(.*))\)$"), r"\2"),
    (re.compile(r"^decoder error -?\d+$|^could not create decoder object$"), ""),
    (re.compile(r"^cannot load this image$"), "it holds no picture"),
    (re.compile(r"^Truncated File Read$"), "the file is truncated"),
    (re.compile(r"^image file is truncated \(0 bytes not processed\)$"), "the file is truncated"),
    (
        re.compile(r"^Decompressed data too large for PngImagePlugin.*"),
        "its text expands to more than a MiB (a decompression bomb?)",
    ),
)


def unidentified(file: BinaryIO) -> str:
    """Describe bytes that no reader takes for an image."""
    file.seek(0)
    start = file.read(_START)
    if b"\0" not in start and _is_text(start):
        is_svg = b"<svg" in start
        return "SVG is not supported: convert it to PNG" if is_svg else TEXT
    if (name := _name_of(start)) is not None:
        return _unsupported(name, _kind_of(name, file)) or broken(
            name, _why_no_png(file) if name == "PNG" else ""
        )
    for title, (signature, (format_, extra)) in OTHERS.items():
        if signature.match(start):
            if formats.is_installed(format_):
                return f"a broken {title}, or of a kind that is not supported"
            return f"{title} needs a package: {install_hint(extra)}"
    return "not an image, or in a format that is not supported"


def undecodable(error: BaseException, image: Image.Image | BinaryIO) -> str:
    """Describe why an image or its pixels can't be decoded.

    Args:
        error: what its reader raised.
        image: what was opened; its file if that is what could not be.
    """
    if not isinstance(image, Image.Image):
        image.seek(0)
        return broken(_name_of(image.read(_START)), words_of(error))
    kind = _kind_by_tags(getattr(image, "tag_v2", {}))
    unsupported = _unsupported("TIFF", kind) if "compressed" in kind else ""
    return unsupported or broken(image.format, words_of(error))


def _unsupported(name: str, kind: str) -> str:
    title = formats.title(name) if name else "image"
    what = f"{'an' if title[0] in 'AIiMS' else 'a'} {title}"
    return f"{what} of a kind that is not supported: {kind}" if kind else ""


def broken(name: str | None, why: str = "") -> str:
    """Name the format of a broken file, and its fault if that is known."""
    if why.lower().startswith(_UNREAD):
        return _unsupported(name or "", why)
    what = "broken image" if name is None else f"a broken {formats.title(name)}"
    if name in _HARDLY_SIGNED:
        what = f"not an image, or {what}"
    return f"{what}: {why}" if why else what


def words_of(error: BaseException) -> str:
    """Return a reader's message about a fault; empty for messages of Python itself, about an index
    or a struct, which tell nobody anything."""
    if not (str(error).strip() and _is_said(error)):
        return ""
    # Names of chunks are written as Python's repr of bytes.
    words = _BYTES.sub(r"\1", one_line(error))
    for pattern, other in _IN_OTHER_WORDS:
        words = pattern.sub(other, words)
    return words


def _is_said(error: BaseException) -> bool:
    """Tell whether the author of a reader chose the message: in a `raise` of its own, or in a C
    library, whose errors are different from Python's own."""
    here = error.__traceback__
    if here is None:
        return True
    while here.tb_next is not None:
        here = here.tb_next
    package = here.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    if package not in _READERS or isinstance(error, KeyError | AssertionError | UnicodeError):
        return False
    return _raises(here) or isinstance(error, OSError | RuntimeError | SyntaxError)


def _raises(traceback: TracebackType) -> bool:
    code = traceback.tb_frame.f_code.co_code
    return dis.opname[code[traceback.tb_lasti]] == "RAISE_VARARGS"


def _kind_of(name: str, file: BinaryIO) -> str:
    """Name the kind of a file that may be intact but is not supported; empty if it is another."""
    kinds = {"TIFF": _kind_of_tiff, "JPEG": _kind_of_jpeg, "PSD": _kind_of_psd, "PPM": _kind_of_ppm}
    return kinds[name](file) if name in kinds else ""


def _kind_of_psd(file: BinaryIO) -> str:
    """Describe a PSD by its header, if it is none of the kinds that Pillow reads: "16-bit RGB"."""
    file.seek(0)
    header = file.read(_PSD_HEADER.size)
    if len(header) < _PSD_HEADER.size:
        return ""
    _, bits, mode = _PSD_HEADER.unpack(header)
    if bits not in _PSD_BITS or mode not in _PSD_COLOURS or (mode, bits) in PSD_MODES:
        return ""
    return f"{bits}-bit {_PSD_COLOURS[mode]}"


def _kind_of_ppm(file: BinaryIO) -> str:
    """Describe a PFM with colours."""
    file.seek(0)
    return "32-bit float RGB" if file.read(2) == b"PF" else ""


def _kind_of_tiff(file: BinaryIO) -> str:
    """Describe the pixels of a TIFF's first directory, "32-bit float RGB"; empty if there is
    none."""
    file.seek(0)
    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        return _kind_by_tags(tags)
    # The bytes may be hostile, and the caller knows already that they can't be read.
    except Exception:
        return ""


def _kind_by_tags(tags: Mapping[int, Any]) -> str:
    """Describe the pixels of a directory, likewise."""
    try:
        bits, formats_ = tags[_BITS], tags.get(_SAMPLE_FORMAT, (1,))
        colours = _COLOURS.get(tags[_PHOTOMETRIC], "of unknown colours")
        packed = tags.get(_COMPRESSION, 1)
        if not (isinstance(packed, int) and isinstance(bits[0], int)):
            return ""
        by = _OTHER_COMPRESSIONS.get(packed) or COMPRESSION_INFO.get(packed, f"method {packed}")
        compressed = "" if packed in _COMPRESSIONS else f", compressed as {by}"
        return f"{bits[0]}-bit{_KINDS.get(formats_[0], '')} {colours}{compressed}"
    except (LookupError, TypeError):
        return ""


def _kind_of_jpeg(file: BinaryIO) -> str:
    """Describe a JPEG with more than 8 bits or without cosine transform by its header: "12-bit",
    "lossless"; else empty."""
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        head = file.read(_SEGMENT.size)
        if len(head) < _SEGMENT.size:
            return ""
        begin, marker, size = _SEGMENT.unpack(head)
        if begin != _MARKER:
            return ""
        if marker in _JPEG_FRAMES:
            bits = file.read(1)
            kind = _JPEG_KINDS.get(marker, "")
            depth = f"{bits[0]}-bit" if bits and bits[0] != _PLAIN_BITS else ""
            return " ".join(filter(None, (depth, kind)))
        file.seek(max(0, size - 2), 1)
    return ""


def _name_of(start: bytes) -> str | None:
    """Name the format of bytes that plainly are in one."""
    return next((name for begin, name in _BEGINNINGS if begin.match(start)), None)


def _why_no_png(file: BinaryIO) -> str:
    """Return the PNG reader's reason, which `Image.open` drops; the other readers' reasons tell
    nobody anything."""
    file.seek(0)
    try:
        PngImagePlugin.PngImageFile(file)
    except SyntaxError as error:
        return words_of(error) if str(error).startswith("broken") else ""
    except Exception:
        return ""
    return ""


def _is_text(start: bytes) -> bool:
    try:
        # The excerpt may end within a character.
        codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < _START)
    except UnicodeDecodeError:
        return False
    return True
