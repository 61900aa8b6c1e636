"""Bytes become an upright RGB image. Untrusted bytes: formats that start another program are not
tried, and the size is checked before a pixel is decoded."""

import logging
import warnings
from typing import BinaryIO

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from cvt_cli.errors import ImageError

FULL_SIZE = "full_size"

# Pillow's own limit above which it takes a picture for a decompression bomb, in pixels.
MAX_PIXELS = 2 * 89_478_485

# What nobody's photograph is and other code reads: EPS starts Ghostscript, the rest are stubs that
# call handlers.
_REFUSED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})

# What a file has wrong is its record's business; Pillow's own words would reach stderr. Not by
# `warnings.catch_warnings`: images are decoded in threads, where it would silence others for good.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(
    file: BinaryIO, max_pixels: int = MAX_PIXELS, reduce_to: int | None = None
) -> Image.Image:
    """The first frame of an image, turned as its EXIF orientation says, in RGB.

    `info[FULL_SIZE]` of the result is the picture's (width, height) before any reduction.

    Args:
        file: the encoded image, seekable.
        max_pixels: width times height above which the image is refused, undecoded.
        reduce_to: lets the JPEG decoder scale down while it decodes, by 2, 4 or 8, to a shorter
            side of no less than this many pixels. None: every pixel is decoded.

    Raises:
        ImageError: if these are no image's bytes, or too many pixels; says which.
    """
    _raise_pillows_limit(max_pixels)
    try:
        with Image.open(file, formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(f"{width}x{height} pixels, more", max_pixels)
            if reduce_to is not None:
                _draft(image, reduce_to)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            turned = upright.size != image.size
            upright.info[FULL_SIZE] = (height, width) if turned else (width, height)
            return upright
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_unidentified(file)) from None
    except Image.DecompressionBombError:
        raise _too_large("more pixels", max_pixels) from None
    # Hostile bytes make Pillow's plug-ins raise nearly anything; each is this image's own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"broken image: {reason}") from error


def _too_large(what: str, limit: int) -> ImageError:
    return ImageError(
        f"{what} than the limit of {limit} (a decompression bomb?)",
        hint="raise --max-pixels if the file is what it should be",
    )


def _raise_pillows_limit(max_pixels: int) -> None:
    """Pillow refuses pictures above twice a limit of its own, whatever ours is."""
    own = Image.MAX_IMAGE_PIXELS
    if own is not None and max_pixels > 2 * own:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _draft(image: Image.Image, shorter: int) -> None:
    width, height = image.size
    scale = shorter / min(width, height)
    if isinstance(image, ImageFile.ImageFile) and scale < 1:
        image.draft(image.mode, (round(width * scale), round(height * scale)))


def _unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(1024)
    if not start:
        return "empty file"
    if b"\0" not in start and _is_text(start):
        return "text, not an image"
    return "not an image, or in a format that is not supported"


def _is_text(start: bytes) -> bool:
    try:
        # A character may be cut in two at the end.
        start[:-3].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
