"""JPEG XL for Pillow, and the size of a picture, which the plug-in decodes all of to find."""

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from pillow_jxl import JpegXLImagePlugin

# Threads per image: images are decoded in parallel already.
JpegXLImagePlugin.DECODE_THREADS = 0

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_MAX_BOXES = 64
_BOX_BYTES = 8
_HEADER_BYTES = 12
# Ratios of width to height, by their number in the file.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class Facts(NamedTuple):
    """Facts at the start of a JPEG XL.

    Attributes:
        size: (width, height) in pixels, as stored.
        is_animated: the plug-in would decode its last picture in place of the first.
    """

    size: tuple[int, int]
    is_animated: bool


def facts_of(file: BinaryIO) -> Facts | None:
    """Read a file's start; None if it is not JPEG XL or does not say. The file's position is
    restored."""
    start = file.tell()
    try:
        header = _codestream(file)
    finally:
        file.seek(start)
    if header is None or len(header) < _HEADER_BYTES:
        return None
    take = _reader(header[len(_CODESTREAM) :])
    return Facts(_size(take), _is_animated(take))


def _is_animated(take: Callable[[int], int]) -> bool:
    """Read the fields that follow the size."""
    all_default = take(1)
    if all_default or not take(1):  # no more fields
        return False
    take(3)  # orientation
    if take(1):
        _size(take)  # to be shown at
    # A preview has a size of another form; nobody writes any.
    return not take(1) and take(1) == 1


def _reader(data: bytes) -> Callable[[int], int]:
    """Return what takes so many bits from the front of the data; after their end, zeros."""
    bits = int.from_bytes(data, "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    return take


def _size(take: Callable[[int], int]) -> tuple[int, int]:
    in_eights = take(1) == 1
    height = _side(take, in_eights)
    ratio = take(3)
    if ratio == 0:
        return _side(take, in_eights), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _side(take: Callable[[int], int], in_eights: bool) -> int:
    if in_eights:
        return 8 * (1 + take(5))
    return 1 + take((9, 13, 18, 30)[take(2)])


def _codestream(file: BinaryIO) -> bytes | None:
    """Return the first bytes of the picture itself."""
    start = file.read(12)
    if start.startswith(_CODESTREAM):
        return start + file.read(12)
    if start != _CONTAINER:
        return None
    for _ in range(_MAX_BOXES):
        box = file.read(_BOX_BYTES)
        if len(box) < _BOX_BYTES:
            return None
        size, header = int.from_bytes(box[:4], "big"), _BOX_BYTES
        if size == 1:
            size, header = int.from_bytes(file.read(8), "big"), 16
        if box[4:] in (b"jxlc", b"jxlp"):
            file.seek(4 if box[4:] == b"jxlp" else 0, 1)
            return file.read(24)
        if size < header:
            return None
        file.seek(size - header, 1)
    return None
