"""JPEGs whose end is missing, as on cards that were pulled out."""

import io
from typing import BinaryIO

from PIL import Image

# Of `Image.info`.
_KEY = "cvt_truncated"
# Where a decoder finds this it takes what is missing for grey.
_END = b"\xff\xd9"
# Longer than what a decoder wants in one piece.
_ENDS = 2**16


def is_cut(image: Image.Image, error: BaseException | None) -> bool:
    """Whether an error says that a JPEG ends before its picture does."""
    jpeg = image.format in ("JPEG", "MPO")
    return jpeg and isinstance(error, OSError) and "truncated" in str(error)


def completed(file: BinaryIO) -> BinaryIO:
    """The bytes of a JPEG with an end: what there is decodes, the rest is grey."""
    file.seek(0)
    return io.BytesIO(file.read() + _END * (_ENDS // len(_END)))


def mark(image: Image.Image) -> Image.Image:
    """Note that a part of the picture was missing."""
    image.info[_KEY] = True
    return image


def is_marked(image: Image.Image) -> bool:
    """Whether a part of the picture was missing."""
    return _KEY in image.info
