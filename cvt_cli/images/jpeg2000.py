"""JPEG 2000 with colours of more than 8 bits, in which Pillow's reader turns white into black.

It rounds each value to 8 bits, and the greatest become 256, of which the last 8 bits are 0.
"""

import io
import struct

from PIL import Image

# The beginning of what is encoded: marker of the start, and of the sizes.
_START = b"\xff\x4f\xff\x51"
_SIZES_AT, _COMPONENTS_AT = 4, 42  # from the start: the length of the sizes, the components
_COMPONENT_BYTES = 3
_CODING, _TILE = 0x52, 0x90  # markers: how it is encoded, and of the first tile
_MARKER = struct.Struct(">BBH")
_REVERSIBLE_AT = 13  # from the marker of the coding
_PLAIN_BITS, _MOST_BITS = 8, 16
_COLOURS = 3
_MAX_MARKERS = 100


def without_overflow(image: Image.Image) -> tuple[Image.Image, bool]:
    """Open a JPEG 2000 anew so that no colour overflows; another image is returned itself.

    The new one's header says other numbers of bits. What was encoded with loss is scaled to them,
    and gets 8. What was not lies around their middle, so that one more bit makes room: its values
    are 64 to 192, and `stretched` makes them 0 to 255.

    Returns:
        The image, and whether it is to be stretched.
    """
    if image.format != "JPEG2000" or len(image.getbands()) < _COLOURS:
        return image, False
    file = image.fp  # type: ignore[attr-defined]
    if file is None or file.closed:  # it is decoded already
        return image, False
    file.seek(0)
    data = bytearray(file.read())
    start = data.find(_START)
    bits = _bits_of(data, start)
    reversible = _is_reversible(data, start)
    if reversible is None or not _PLAIN_BITS < bits <= _MOST_BITS:
        return image, False
    length = _length(data, start)
    for at in range(start + _COMPONENTS_AT, start + _SIZES_AT + length, _COMPONENT_BYTES):
        data[at] = bits if reversible else _PLAIN_BITS - 1
    return Image.open(io.BytesIO(data), formats=["JPEG2000"]), reversible


def stretched(image: Image.Image) -> Image.Image:
    """Scale what `without_overflow` says to."""
    return image.point(lambda value: (value - 64) * 255 / 128 + 0.5)


def _length(data: bytearray, start: int) -> int:
    return int.from_bytes(data[start + _SIZES_AT : start + _SIZES_AT + 2], "big")


def _bits_of(data: bytearray, start: int) -> int:
    """Return the bits of a component; 0 unless all are without a sign and have the same number."""
    if start < 0:
        return 0
    end = start + _SIZES_AT + _length(data, start)
    kinds = {*data[start + _COMPONENTS_AT : end : _COMPONENT_BYTES]}
    return kinds.pop() + 1 if len(kinds) == 1 else 0


def _is_reversible(data: bytearray, start: int) -> bool | None:
    """Tell whether the wavelets are those of integers; None if it is not said once for all."""
    at = start + 2
    for _ in range(_MAX_MARKERS):
        if at < 0 or at + _MARKER.size > len(data):
            return None
        _, marker, length = _MARKER.unpack_from(data, at)
        if marker == _CODING and at + _REVERSIBLE_AT < len(data):
            return data[at + _REVERSIBLE_AT] == 1
        if marker == _TILE:
            return None
        at += 2 + length
    return None
