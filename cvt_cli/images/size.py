"""Image sizes as users type them. Imports nothing, so that the command line can check them at
once."""

import re

from cvt_cli.errors import UsageError

MAX_SIDE = 2**16 - 1


def parse_image_size(text: str) -> tuple[int, int]:
    """Parse `320` or `512x384` (height x width) into (height, width) in pixels.

    Raises:
        UsageError: if it is neither, zero, or more than `MAX_SIDE` pixels.
    """
    match = re.fullmatch(r"\s*([0-9]+)(?:\s*[xX×]\s*([0-9]+))?\s*", text, re.ASCII)
    if not match:
        raise UsageError(
            f"{text[:40]!r}: not an image size",
            hint="a number of pixels, or height x width: 320, 512x384",
        )
    height = _side(text, match[1])
    return height, _side(text, match[2]) if match[2] else height


def _side(text: str, digits: str) -> int:
    # Very long numbers are caught here: Python refuses to convert them with an error of its own.
    number = int(digits) if len(digits) <= len(str(MAX_SIDE)) else MAX_SIDE + 1
    if not 1 <= number <= MAX_SIDE:
        raise UsageError(f"image size {text[:40]}: each side must have 1 to {MAX_SIDE:,} pixels")
    return number
