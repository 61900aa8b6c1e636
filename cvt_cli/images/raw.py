"""Raw files of cameras: the picture that the camera embedded, or else a quick development.

LibRaw reads them, which needs the package rawpy.
"""

import io
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image
from PIL.ExifTags import Base

from cvt_cli.errors import ImageError
from cvt_cli.images import formats
from cvt_cli.images.reduction import set_reduction
from cvt_cli.images.source import one_line
from cvt_cli.system.extras import install_hint

if TYPE_CHECKING:
    import rawpy

# Pixels of the shorter side that a preview must have by default.
ENOUGH = 512

# First bytes of raw files other than plain TIFF, by maker.
_SIGNATURES = (
    b"FUJIFILMCCD-RAW",
    b"IIU\0",  # Panasonic, Leica
    b"IIRO",  # Olympus
    b"IIRS",
    b"MMOR",
    b"II\x1a\0\0\0HEAPCCDR",  # Canon's before 2004
)
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}
# What follows a TIFF's first eight bytes in raw files of Canon, and of Phase One.
_TIFF_MARKS = (b"CR", b"IIII", b"MMMM")
_LIKE_TIFF = {b"IIU\0": "<", b"IIRO": "<", b"IIRS": "<", b"MMOR": ">"}
_PHOTOMETRIC, _STRIP_BYTES, _SUB_IFDS, _DNG_VERSION = 262, 279, 330, 50706
_COLOUR_FILTER_ARRAY, _LINEAR_RAW = 32803, 34892
_SHORT, _LONG, _IFD = 3, 4, 13  # types of a TIFF's values
_TIFF_HEADER_BYTES = 8
_MAX_IFDS = 16
_MAX_ENTRIES = 512
# The part of a sensor's rows that are missing if its last ones are all zero.
_LAST = 64
# EXIF orientations by LibRaw's code for the rotation.
_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}
_TRUNCATED = "a truncated raw file"


def is_raw(file: BinaryIO) -> bool:
    """Tell whether a file holds sensor data, whatever its name. The file is left at its start."""
    file.seek(0)
    start = file.read(32)
    found = (
        start.startswith(_SIGNATURES)
        or start[4:11] == b"ftypcrx"
        or (
            start[:4] in _TIFF
            and (start[8:].startswith(_TIFF_MARKS) or _has_sensor_data(file, start))
        )
    )
    file.seek(0)
    return found


def _has_sensor_data(file: BinaryIO, start: bytes) -> bool:
    order = _TIFF[start[:4]]
    return any(
        tag == _DNG_VERSION
        or (
            tag == _PHOTOMETRIC
            and kind == _SHORT
            and _number(value[:2], order) in (_COLOUR_FILTER_ARRAY, _LINEAR_RAW)
        )
        for tag, kind, _, value in _entries(file, start, order)
    )


def _entries(file: BinaryIO, start: bytes, order: str) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the entries of a TIFF's directories, those in others too: tag, type, number of values,
    and the four bytes of the value or its place."""
    waiting: list[int] = []
    if len(start) >= _TIFF_HEADER_BYTES:
        waiting += struct.unpack(order + "L", start[4:8])
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_IFDS:
        at = waiting.pop(0)
        if not at or at in seen:
            continue
        seen.add(at)
        file.seek(at)
        count = min(_number(file.read(2), order), _MAX_ENTRIES)
        entries = file.read(12 * count)
        waiting.append(_number(file.read(4), order))
        for tag, kind, many, value in struct.iter_unpack(
            order + "HHL4s", entries[: len(entries) // 12 * 12]
        ):
            yield tag, kind, many, value
            if tag == _SUB_IFDS and kind in (_LONG, _IFD):
                waiting += _offsets(file, order, many, value=value)


def _offsets(file: BinaryIO, order: str, many: int, *, value: bytes) -> list[int]:
    if many > 1:
        file.seek(_number(value, order))
        value = file.read(4 * min(many, _MAX_IFDS))
    return [each for (each,) in struct.iter_unpack(order + "L", value[: len(value) // 4 * 4])]


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")


def open_raw(file: BinaryIO, enough: int, check_size: Callable[[int, int], None]) -> Image.Image:
    """Open the largest picture that the camera embedded, without decoding it; if it is too small,
    develop one of half the sensor's width and height.

    Args:
        file: for which `is_raw` holds.
        enough: pixels that the shorter side of the embedded picture must have.
        check_size: is called with the sensor's width and height before its pixels are read.

    Raises:
        ImageError: if it can't be read, or rawpy is not installed.
    """
    try:
        import rawpy
    except ImportError:
        raise ImageError("a raw file needs rawpy", hint=install_hint("raw")) from None
    try:
        with rawpy.imread(file) as raw:
            preview = _preview(raw)
            if preview is not None and min(preview.size) >= enough:
                return preview
            check_size(raw.sizes.width, raw.sizes.height)
            if _is_cut(raw, file):
                raise ImageError(_TRUNCATED)
            return _developed(raw)
    # The bytes are in memory: only their end can be an error of reading.
    except rawpy.LibRawIOError:
        raise ImageError(_TRUNCATED) from None
    except (rawpy.LibRawFileUnsupportedError, rawpy.LibRawDataError):
        raise ImageError("a raw file of a kind that is not supported, or a broken one") from None
    except rawpy.LibRawError as error:
        raise ImageError(f"a broken raw file: {_reason(error)}") from None


def _preview(raw: "rawpy.RawPy") -> Image.Image | None:
    import rawpy

    try:
        thumb = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    if not isinstance(thumb.data, bytes):
        image = Image.fromarray(thumb.data)
    else:
        formats.register()
        try:
            image = Image.open(io.BytesIO(thumb.data), formats=["JPEG"])
        except OSError:
            return None
    exif = image.getexif()
    # Few previews have an orientation; they are turned like the sensor.
    if Base.Orientation not in exif:
        exif[Base.Orientation] = _ORIENTATIONS.get(raw.sizes.flip, 1)
    return image


def _developed(raw: "rawpy.RawPy") -> Image.Image:
    size = raw.sizes.width, raw.sizes.height
    pixels = raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8)
    image = Image.fromarray(pixels)
    half = size[0] / 2, size[1] / 2
    turned = _ORIENTATIONS.get(raw.sizes.flip, 1)
    expected = (-(-size[0] // 2), -(-size[1] // 2))
    if image.size in (expected, expected[::-1]):  # not if pixels are not square
        set_reduction(image, size, half, orientation=turned)
    return image


def _is_cut(raw: "rawpy.RawPy", file: BinaryIO) -> bool:
    """Tell whether a file ends before the sensor's data: it says that it has more bytes than it
    has, or the last rows are missing. LibRaw leaves zeros there without a word, or anything, and a
    lens cap's black has noise."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(_TIFF_HEADER_BYTES)
    order = (_TIFF | _LIKE_TIFF).get(start[:4])
    if order is not None and any(
        tag == _STRIP_BYTES and kind == _LONG and many == 1 and _number(value, order) > size
        for tag, kind, many, value in _entries(file, start, order)
    ):
        return True
    sizes = raw.sizes
    end = sizes.top_margin + sizes.height
    last = raw.raw_image[end - max(1, sizes.height // _LAST) : end]
    return last.size > 0 and not last.any()


def _reason(error: Exception) -> str:
    # LibRaw's messages are bytes.
    words = error.args[0] if error.args else ""
    return words.decode(errors="replace") if isinstance(words, bytes) else one_line(error)
