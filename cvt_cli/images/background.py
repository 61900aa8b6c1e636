"""Backgrounds for transparent pictures."""

from typing import NewType

from PIL import Image, ImageColor

from cvt_cli.errors import UsageError

Colour = NewType("Colour", tuple[int, int, int])


def parse_colour(text: str) -> Colour:
    """Parse a colour as CSS writes it, `white` or `#808080`, into red, green and blue, 0 to 255.

    Raises:
        UsageError: if it is not a colour, or not opaque.
    """
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text.strip())
    except ValueError:
        red, green, blue, alpha = 0, 0, 0, [0]
    if alpha and alpha != [255]:
        raise UsageError(
            f"--background {text[:40]!r}: not an opaque colour",
            hint="a name or red, green and blue: white, '#808080'",
        )
    return Colour((red, green, blue))


def laid_on(image: Image.Image, colour: Colour) -> Image.Image:
    """Lay an image on a plain background; one without transparency is returned itself."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, (*colour, 255))
    canvas.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return canvas.convert("RGB")
