"""Geometry of pictures that a decoder scaled down."""

from dataclasses import dataclass

from PIL import Image

# Key in `Image.info`, which stays with the picture through a change of its mode.
_KEY = "cvt_reduction"


@dataclass(frozen=True, slots=True)
class Reduction:
    """The reduction of a picture while it was decoded.

    A JPEG decoder makes whole pixels of what may be part of a block: of a side of 2561 pixels,
    reduced by 8, it makes 321, of which the picture has 320.125. Whoever resizes the 321 as if
    they were the picture moves all that is in it.

    Attributes:
        size: (width, height) in pixels of the whole picture, upright.
        box: (left, top, right, bottom) of the picture within the pixels that were decoded.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]


def set_reduction(
    image: Image.Image, size: tuple[int, int], reduced: tuple[float, float], *, orientation: int
) -> None:
    """Record how an upright picture was scaled down.

    Args:
        image: decoded and turned.
        size: (width, height) in pixels of the whole picture, before it was turned.
        reduced: (width, height) that it has in the decoded pixels, before they were turned.
        orientation: the EXIF orientation by which it was turned.
    """
    turned = orientation in (5, 6, 7, 8)
    width, height = reduced[::-1] if turned else reduced
    # Pixels beyond the picture were at the right and the bottom before it was turned.
    left = image.width - width if orientation in (2, 3, 6, 7) else 0.0
    top = image.height - height if orientation in (3, 4, 7, 8) else 0.0
    image.info[_KEY] = Reduction(
        size[::-1] if turned else size, (left, top, left + width, top + height)
    )


def reduction_of(image: Image.Image) -> Reduction | None:
    """Return how an image was scaled down; None if it was not."""
    found = image.info.get(_KEY)
    return found if isinstance(found, Reduction) else None


def full_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) in pixels of the picture before any reduction."""
    reduction = reduction_of(image)
    return reduction.size if reduction else image.size


def resized(
    image: Image.Image,
    size: tuple[int, int],
    resample: int,
    *,
    part: tuple[float, float, float, float] | None = None,
    reducing_gap: float | None = None,
) -> Image.Image:
    """Resize the whole picture, or a part of it.

    Args:
        image: as `decode` returns it.
        size: (width, height) in pixels of the result.
        resample: a `PIL.Image.Resampling`.
        part: (left, top, right, bottom) as shares of the picture's width and height.
        reducing_gap: as Pillow takes it.
    """
    reduction = reduction_of(image)
    if reduction is None and part is None:
        box = None
    else:
        left, top, right, bottom = reduction.box if reduction else (0, 0, *image.size)
        if part is not None:
            width, height = right - left, bottom - top
            right, bottom = left + part[2] * width, top + part[3] * height
            left, top = left + part[0] * width, top + part[1] * height
        box = (left, top, min(right, image.width), min(bottom, image.height))
    result = image.resize(size, resample, box, reducing_gap)
    result.info.pop(_KEY, None)
    return result
