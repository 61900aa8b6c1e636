"""Decoding: encoded bytes become an upright RGB image. The bytes are untrusted: only the formats in
`FORMATS` are tried, and the size is checked before a pixel is decoded."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import BinaryIO, TypedDict, Unpack

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.IcoImagePlugin import IcoFile

from cvt_cli.errors import ImageError
from cvt_cli.images import diagnosis, formats, jpeg2000, psd, truncated
from cvt_cli.images.background import Colour, laid_on
from cvt_cli.images.greys import Greys, greys_of
from cvt_cli.images.raw import ENOUGH, is_raw, open_raw
from cvt_cli.images.reduction import set_reduction

# Pillow's own limit above which it takes a picture for a decompression bomb, in pixels.
MAX_PIXELS = 2 * 89_478_485

# Candidates for the white of 32-bit greys.
_WHITES = (1.0, 255.0, 65535.0)
_BLOCK = 2**20
# What makes a picture upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ICO = b"\0\0\1\0"

# A fault of a file belongs in its record, and Pillow's warnings would reach stderr. Threads decode
# images, and there `warnings.catch_warnings` could silence other warnings for good.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ToRgb(TypedDict, total=False):
    """Parameters of `to_rgb`, which `decode` passes on."""

    reduce_to: int | None
    exact: bool
    background: Colour | None
    checked: Callable[[Image.Image, tuple[int, int]], None] | None


def decode(
    file: BinaryIO,
    max_pixels: int = MAX_PIXELS,
    *,
    enough: int = ENOUGH,
    accept_truncated: bool = False,
    **options: Unpack[ToRgb],
) -> Image.Image:
    """Decode the first frame of an image, as `to_rgb` does.

    Args:
        file: the encoded image, seekable.
        max_pixels: width times height above which the image is refused, undecoded.
        enough: pixels that the shorter side of the picture embedded in a raw file must have.
        accept_truncated: decode the readable part of a JPEG whose end is missing; the rest is grey.
        options: parameters of `to_rgb`.

    Raises:
        ImageError: if the bytes are not an image, or it has too many pixels; says which.
    """
    _raise_pillows_limit(max_pixels)
    with _image_errors(max_pixels, file):
        file.seek(0)
        if not file.read(1):  # Pillow would try every format
            raise ImageError("empty file")
        try:
            if is_raw(file):
                image = open_raw(file, enough, partial(_check_pixels, limit=max_pixels))
            else:
                image = open_checked(file, max_pixels)
        except UnidentifiedImageError:
            raise ImageError(diagnosis.unidentified(file)) from None
        with image:
            try:
                return to_rgb(image, max_pixels, **options)
            except ImageError as error:
                if not truncated.is_cut(image, error.__cause__):
                    raise
        if not accept_truncated:
            raise ImageError(
                "a truncated JPEG", hint="--truncated accept takes what there is of it"
            )
        with open_checked(truncated.completed(file), max_pixels) as image:
            return truncated.mark_incomplete(to_rgb(image, max_pixels, **options))


def to_rgb(
    image: Image.Image,
    max_pixels: int = MAX_PIXELS,
    *,
    reduce_to: int | None = None,
    exact: bool = False,
    background: Colour | None = None,
    checked: Callable[[Image.Image, tuple[int, int]], None] | None = None,
) -> Image.Image:
    """Convert an open image to RGB, turned as its EXIF orientation says.

    What is upright and RGB already is returned itself. `reduction_of` the result says whether it
    was scaled down.

    Args:
        max_pixels: as in `decode`.
        reduce_to: lets the JPEG decoder scale down while it decodes, by 2, 4 or 8, to a shorter
            side of no less than this many pixels. None: every pixel is decoded.
        exact: cut greys of 16 or 32 bits off at 255, as Pillow and so Transformers do; they are
            scaled to 8 bits otherwise, those of 32 as `_scaled` says.
        background: what lies behind transparent parts; None for the colours that are hidden there,
            as in Transformers.
        checked: is called with the open image and its full (width, height), which are within the
            limit, before a pixel of it is decoded.

    Raises:
        ImageError: as `decode`.
    """
    with _image_errors(max_pixels, image):
        _check_size(image, max_pixels)
        image, narrow = (image, False) if exact else jpeg2000.without_overflow(image)
        size = image.size
        reduced = _draft(image, reduce_to) if reduce_to is not None else None
        if checked is not None:
            checked(image, size)
        sixteen, greys = _has_16_bits(image), greys_of(image)
        upright, orientation = _upright(image)
        if narrow:
            upright = jpeg2000.stretched(upright)
        if not exact and sixteen:
            scale = 255 / (greys.white or 65535)
            if greys.inverted:
                upright = upright.convert("I").point(lambda grey: grey * -scale + 255.5)
            else:
                upright = upright.convert("I").point(lambda grey: grey * scale + 0.5)
        elif not exact and upright.mode in ("I", "F"):
            upright = _scaled(upright, greys)
        if background is not None:
            upright = laid_on(upright, background)
        # `convert` would copy a picture that is RGB already: half a GB for a large one.
        rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
        if reduced is not None:
            set_reduction(rgb, size, reduced, orientation=orientation)
        return rgb


def _check_size(image: Image.Image, max_pixels: int) -> None:
    """Check the number of pixels. Raises: ImageError if there are too many."""
    if image.format == "FITS" and image.tile[0][0] == "fits_gzip":  # type: ignore[attr-defined]
        raise ImageError("a FITS whose pixels are compressed, which is not supported")
    if image.format == "ICNS":
        _check_icns(image, max_pixels)
    _check_pixels(*image.size, max_pixels)


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise _too_large(f"{width}x{height} pixels, more", limit)


def _upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Turn an image as EXIF says, and return the orientation too; the image itself if it is
    upright."""
    image.load()  # PNG may have its EXIF at the end
    # JPEG XL is turned by its decoder, unless a JPEG's own data is in it.
    if image.format == "JXL" and not image.jpeg:  # type: ignore[attr-defined]
        return image, 1
    orientation = _orientation(image)
    return (image.transpose(_TURNS[orientation]), orientation) if orientation != 1 else (image, 1)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(Base.Orientation, 1)
    except MemoryError:
        raise
    # A picture is none the worse for broken EXIF, of which Pillow raises nearly anything.
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


@contextmanager
def _image_errors(max_pixels: int, image: Image.Image | BinaryIO) -> Iterator[None]:
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large("more pixels", max_pixels) from None
    # Hostile bytes make Pillow's plug-ins raise nearly anything; it concerns this image only.
    except Exception as error:
        raise ImageError(diagnosis.undecodable(error, image)) from error


def _too_large(what: str, limit: int) -> ImageError:
    return ImageError(
        f"{what} than the limit of {limit} (a decompression bomb?)",
        hint="raise --max-pixels if you trust the file",
    )


def _raise_pillows_limit(max_pixels: int) -> None:
    """Raise the limit above twice which Pillow refuses pictures to ours."""
    own = Image.MAX_IMAGE_PIXELS
    if own is not None and max_pixels > 2 * own:
        Image.MAX_IMAGE_PIXELS = max_pixels


@cache
def _formats() -> list[str]:
    return formats.register()


def open_checked(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Open an image other than a raw file, check its size, and decode no pixel yet.

    Raises:
        ImageError, and what Pillow raises.
    """
    _check_icon(file, max_pixels)
    image = _open(file, max_pixels)
    _check_size(image, max_pixels)
    return image


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    if diagnosis.OTHERS["JPEG XL"][0].match(file.read(12)) and formats.is_installed("JXL"):
        from cvt_cli.images import jxl

        file.seek(0)
        facts = jxl.facts_of(file)
        if facts is not None:
            _check_pixels(*facts.size, max_pixels)
            if facts.is_animated:
                raise ImageError("a JPEG XL of a kind that is not supported: an animation")
            # The messages tell how to build libjxl, or nothing.
            with suppress(RuntimeError, ValueError):
                return Image.open(file, formats=["JXL"])
        raise ImageError("a broken JPEG XL, or of a kind that is not supported")
    file.seek(0)
    image = Image.open(file, formats=_formats())
    if image.format == "PSD":
        psd.mend_channels(image, file)
    return image


def _check_icon(file: BinaryIO, max_pixels: int) -> None:
    """Check the true sizes of the pictures in an ICO: Pillow decodes one when it opens the file,
    and the file's directory may claim any size.

    Raises:
        ImageError: if one is too large.
    """
    if file.read(4) == _ICO:
        file.seek(0)
        for entry in IcoFile(file).entry:
            file.seek(entry.offset)
            _check_inner(file, max_pixels, icon=True)
    file.seek(0)


def _check_icns(image: Image.Image, max_pixels: int) -> None:
    """Check the true sizes of the pictures in an open ICNS. Raises: ImageError."""
    icns, file = image.icns, image.fp  # type: ignore[attr-defined]
    for start, _ in icns.dct.values():
        file.seek(start)
        _check_inner(file, max_pixels)


def _check_inner(file: BinaryIO, max_pixels: int, icon: bool = False) -> None:
    """Check the picture in a container, if one starts at the current position."""
    start = file.tell()
    signature = file.read(12)
    file.seek(start)
    # The decoder reports what is broken.
    with suppress(SyntaxError, OSError, ValueError, IndexError, TypeError):
        if signature.startswith(b"\x89PNG"):
            width, height = PngImagePlugin.PngImageFile(file).size
        elif signature.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP", b"\r\n\x87\n")):
            from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

            width, height = Jpeg2KImageFile(file).size
        elif icon:
            width, height = BmpImagePlugin.DibImageFile(file).size
            height //= 2  # the other half is its mask
        else:
            return
        if width * height > max_pixels:
            raise _too_large(f"{width}x{height} pixels, more", max_pixels)


def _draft(image: Image.Image, shorter: int) -> tuple[float, float] | None:
    """Make the decoder scale down; returns the (width, height) that it will decode."""
    size = width, height = image.size
    scale = shorter / min(width, height)
    if not isinstance(image, ImageFile.ImageFile) or scale >= 1:
        return None
    drafted = image.draft(image.mode, (round(width * scale), round(height * scale)))
    if drafted is None or image.size == size:
        return None
    return drafted[1][2:]


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")


def _scaled(image: Image.Image, said: Greys) -> Image.Image:
    """Scale greys of 32 bits, integers or floats, to 8.

    Signed greys of 16 bits have the greatest such number for white, unless some are below 0. Of
    others the file does not say what white is. Greys that all fit 0..1, 0..255 or 0..65535 have the
    narrowest of these for black and white, as programs of the trade write them; others are
    stretched from the least to the greatest, as viewers do it. NaN is black.
    """
    greys = np.asarray(image).reshape(-1)
    if said.unsigned:
        greys = greys.view(np.uint32)
    finite = greys[np.isfinite(greys)] if image.mode == "F" else greys
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    whites = (float(said.white),) if said.white else _WHITES
    if least >= 0 and most <= whites[-1]:
        least, most = 0.0, next(white for white in whites if most <= white)
    scaled = np.empty(greys.shape, np.uint8)
    for start in range(0, greys.size, _BLOCK):
        # In doubles, because the extremes of floats may lie further apart than any float.
        block = np.subtract(greys[start : start + _BLOCK], least, dtype=np.float64)
        block *= 255 / (most - least or 1)
        block = np.clip(np.nan_to_num(block, copy=False), 0, 255)
        scaled[start : start + _BLOCK] = np.rint(255 - block if said.inverted else block)
    return Image.fromarray(scaled.reshape(image.size[::-1]))
