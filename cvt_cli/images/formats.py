"""Formats that are read, each listed by name. The bytes are untrusted: a list of refused formats
would have a hole for each plug-in that opens another file or program."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Format:
    """A format of images.

    Attributes:
        name: Pillow's.
        module: is imported to register it with Pillow; the format is left out where the package
            is not installed.
        suffixes: that files in folders and archives have to be taken for one.
        extra: of cvt that installs it, where that is not always so.
        package: that has to be there; None for the module's own.
        bytes_per_pixel: of memory at the peak, from the encoded file to RGB (measured; of the
            modes that the format has, the one that takes the most).
    """

    name: str
    module: str
    suffixes: tuple[str, ...]
    bytes_per_pixel: int
    extra: str | None = None
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the format can be read here."""
        return find_spec(self.package or self.module.partition(".")[0]) is not None


_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".jps", ".insp")
_HEIF = (".heic", ".heif", ".hif", ".heics")
_JPEG2000 = (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c")

# In the order in which they are tried: common ones first, and last TGA, which has no signature.
FORMATS = (
    Format("JPEG", "PIL.JpegImagePlugin", _JPEG, 8),
    Format("PNG", "PIL.PngImagePlugin", (".png", ".apng"), 10),
    Format("WEBP", "PIL.WebPImagePlugin", (".webp",), 20),
    Format("GIF", "PIL.GifImagePlugin", (".gif",), 8),
    Format("TIFF", "PIL.TiffImagePlugin", (".tif", ".tiff"), 16),
    Format("BMP", "PIL.BmpImagePlugin", (".bmp",), 8),
    Format("DIB", "PIL.BmpImagePlugin", (".dib",), 8),
    Format("AVIF", "PIL.AvifImagePlugin", (".avif", ".avifs"), 16),
    Format("HEIF", "pi_heif.HeifImagePlugin", _HEIF, 15, "heif"),
    Format("JXL", "cvt_cli.images.jxl", (".jxl",), 24, "jxl", "pillow_jxl"),
    Format("JPEG2000", "PIL.Jpeg2KImagePlugin", _JPEG2000, 24),
    Format("MPO", "PIL.MpoImagePlugin", (".mpo",), 8),
    Format("PPM", "PIL.PpmImagePlugin", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), 12),
    Format("ICO", "PIL.IcoImagePlugin", (".ico",), 20),
    Format("ICNS", "PIL.IcnsImagePlugin", (".icns",), 24),
    Format("PSD", "PIL.PsdImagePlugin", (".psd",), 12),
    Format("DDS", "PIL.DdsImagePlugin", (".dds",), 8),
    Format("SGI", "PIL.SgiImagePlugin", (".sgi",), 8),
    Format("QOI", "PIL.QoiImagePlugin", (".qoi",), 8),
    Format("PCX", "PIL.PcxImagePlugin", (".pcx",), 8),
    Format("FITS", "PIL.FitsImagePlugin", (".fits", ".fit", ".fts"), 16),
    Format("TGA", "PIL.TgaImagePlugin", (".tga",), 8),
)

# Suffixes of cameras' raw files.
RAW_SUFFIXES = (
    ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".raf", ".rw2", ".orf", ".pef",
    ".srw", ".3fr", ".iiq", ".rwl",
)  # fmt: skip

_BY_NAME = {each.name: each for each in FORMATS}
_MOST_BYTES_PER_PIXEL = max(each.bytes_per_pixel for each in FORMATS)
# Where people call a format otherwise than Pillow.
_TITLES = {"HEIF": "HEIC", "JPEG2000": "JPEG 2000", "JXL": "JPEG XL", "WEBP": "WebP"}


def suffixes() -> Iterable[str]:
    """List the suffixes of all formats that are read. They include those of formats whose extra is
    missing, so that a record can say so; except for raw files, which often have a picture beside
    them."""
    yield from (suffix for each in FORMATS for suffix in each.suffixes)
    if find_spec("rawpy") is not None:
        yield from RAW_SUFFIXES


def raw_suffixes() -> tuple[str, ...]:
    """List the suffixes of cameras' raw files, whether or not they can be read."""
    return RAW_SUFFIXES


def extra_of(suffix: str) -> str | None:
    """Name the extra that is needed to read files with a suffix, given in lower case."""
    return "raw" if suffix in RAW_SUFFIXES else None


def title(name: str) -> str:
    """Return what people call the format of this name."""
    return _TITLES.get(name, name)


def is_installed(name: str) -> bool:
    """Tell whether the format of this name can be read here."""
    return _BY_NAME[name].is_installed


def bytes_per_pixel(name: str | None) -> int:
    """Return `Format.bytes_per_pixel` by the format's name; the largest of all for an unknown
    one."""
    found = _BY_NAME.get(name or "")
    return found.bytes_per_pixel if found else _MOST_BYTES_PER_PIXEL


def memory(image: "Image.Image", full_size: tuple[int, int]) -> int:
    """Estimate the peak memory of decoding an open image, in bytes.

    Args:
        full_size: (width, height) of its own, where the decoder scales down.
    """
    width, height = image.size
    needed = width * height * bytes_per_pixel(image.format)
    if image.info.get("progressive"):
        # A progressive JPEG: all of its coefficients are kept.
        needed += 6 * full_size[0] * full_size[1]
    return needed


def register() -> list[str]:
    """Register all installed formats with Pillow.

    Returns:
        The names to open files by, in the order in which to try them.
    """
    from PIL import Image

    for each in FORMATS:
        if each.is_installed:
            import_module(each.module)
    # An MPO is opened as its first picture, a JPEG.
    return [each.name for each in FORMATS if each.is_installed and each.name in Image.OPEN]
