"""Small image files in every mode and format that people have."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw

EXIF_ORIENTATION = 0x0112


def picture(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """An RGB picture with gradients, edges and noise: nothing in it is symmetric."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 48, (height, width, 3))
    ramps = np.stack([207 * x / width, 207 * y / height, 207 * (x + y) / (width + height)], -1)
    image = Image.fromarray((ramps + noise).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 8, width // 2, height // 2), fill=(220, 40, 30))
    draw.rectangle((width // 2, height // 2, width * 7 // 8, height * 3 // 4), fill=(20, 60, 200))
    return image


def _alpha(image: Image.Image) -> Image.Image:
    return Image.linear_gradient("L").resize(image.size)


def _transparent(path: Path) -> None:
    image = picture()
    image.putalpha(_alpha(image))
    image.save(path)


def _grey_alpha(path: Path) -> None:
    image = picture().convert("L")
    image.putalpha(_alpha(image))
    image.save(path)


def _palette_transparency(path: Path) -> None:
    picture().quantize(32).save(path, transparency=bytes(range(0, 256, 8)))


def _grey_16(path: Path) -> None:
    values = np.linspace(0, 65535, 96 * 64).astype(np.uint16).reshape(64, 96)
    Image.fromarray(values).save(path)


def _float(path: Path) -> None:
    Image.fromarray(np.linspace(0, 255, 96 * 64, dtype=np.float32).reshape(64, 96)).save(path)


def _animated(path: Path) -> None:
    frames = [picture(seed=seed) for seed in range(3)]
    frames[1] = frames[1].rotate(180)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    picture().save(path, exif=exif)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "rgb.jpg": lambda path: picture().save(path, quality=90),
    "rgb.png": lambda path: picture().save(path),
    "progressive.jpg": lambda path: picture().save(path, progressive=True),
    "grey.jpg": lambda path: picture().convert("L").save(path),
    "grey.png": lambda path: picture().convert("L").save(path),
    "grey_alpha.png": _grey_alpha,
    "one_bit.png": lambda path: picture().convert("1").save(path),
    "palette.png": lambda path: picture().quantize(32).save(path),
    "palette_transparency.png": _palette_transparency,
    "rgba.png": _transparent,
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path),
    "ycbcr.tiff": lambda path: picture().convert("YCbCr").save(path, compression="jpeg"),
    "grey_16.png": _grey_16,
    "grey_16.tiff": _grey_16,
    "float.tiff": _float,
    "animated.gif": _animated,
    "animated.webp": _animated,
    "exif_rotated.jpg": _rotated,
    "lossy.webp": lambda path: picture().save(path),
    "rgb.tiff": lambda path: picture().save(path),
    "rgb.bmp": lambda path: picture().save(path),
    "one_pixel.png": lambda path: picture(1, 1).save(path),
    "one_pixel_wide.png": lambda path: picture(1, 80).save(path),
    "one_pixel_high.png": lambda path: picture(80, 1).save(path),
    "very_wide.png": lambda path: picture(1600, 12).save(path),
    "very_high.jpg": lambda path: picture(12, 1600).save(path),
    "large.jpg": lambda path: picture(1024, 768).save(path),
}

PHOTOS = tuple(_MAKERS)


def make_photo(name: str, folder: Path) -> Path:
    """Write the named one of `PHOTOS` into a folder."""
    path = folder / name
    _MAKERS[name](path)
    return path


@dataclass(frozen=True)
class Opened:
    """A place that a function opens."""

    open: Callable[[], BinaryIO]
    is_local: bool = False
