"""Greys of more than 8 bits, as the file describes them: which value is white, and whether 0 is."""

from dataclasses import dataclass

from PIL import Image

_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 281, 339  # a TIFF's tags
_MIN_IS_WHITE = 0
_SIGNED = 2
# Greys of a byte, and the most bits that an integer grey may have.
_PLAIN_BITS, _PLAIN_WHITE = 8, 255
_MAX_BITS = 16


@dataclass(frozen=True, slots=True)
class Greys:
    """The scale of an image's greys.

    Attributes:
        white: the value of the brightest grey, where the file says so.
        inverted: the brightest grey is 0.
        unsigned: integers of 32 bits are, which Pillow takes for signed.
    """

    white: int | None = None
    inverted: bool = False
    unsigned: bool = False


def greys_of(image: Image.Image) -> Greys:
    """Read the scale of an open image's greys; the default for anything but a TIFF."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return Greys()

    def value(tag: int, default: int) -> int:
        found = tags.get(tag, default)
        found = found[0] if isinstance(found, tuple) and found else found
        return found if isinstance(found, int) else default

    bits, sample_format = value(_BITS, 1), value(_SAMPLE_FORMAT, 1)
    white = None
    if _PLAIN_BITS < bits <= _MAX_BITS:
        most = 2 ** (bits - (sample_format == _SIGNED)) - 1
        said = value(_MAX_SAMPLE, most)
        # Some programs write the greatest value in this picture, which may be all black.
        white = said if _PLAIN_WHITE < said < most else most
    return Greys(
        white,
        bits > _PLAIN_BITS and value(_PHOTOMETRIC, 1) == _MIN_IS_WHITE,
        image.mode == "I" and sample_format == 1,
    )
