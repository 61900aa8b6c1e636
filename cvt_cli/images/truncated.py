"""JPEGs whose end is missing, as on cards that were pulled out too early."""

import io
from typing import BinaryIO

from PIL import Image

# Key in `Image.info`.
_KEY = "cvt_truncated"
# The end marker, at which a decoder fills the rest with grey.
_END = b"\xff\xd9"
# More bytes than a decoder wants in one piece.
_ENDS = 2**16


def is_cut(image: Image.Image, error: BaseException | None) -> bool:
    """Tell whether an error means that a JPEG ends before its picture does."""
    jpeg = image.format in ("JPEG", "MPO")
    return jpeg and isinstance(error, OSError) and "truncated" in str(error)


def completed(file: BinaryIO) -> BinaryIO:
    """Return the bytes of a JPEG with an end added: the missing part decodes to grey."""
    file.seek(0)
    return io.BytesIO(file.read() + _END * (_ENDS // len(_END)))


def mark_incomplete(image: Image.Image) -> Image.Image:
    """Mark a picture as incomplete."""
    image.info[_KEY] = True
    return image


def is_incomplete(image: Image.Image) -> bool:
    """Tell whether a picture is incomplete."""
    return _KEY in image.info
