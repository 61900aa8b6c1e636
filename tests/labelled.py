"""Folders of small labelled pictures that a network can learn to tell apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"circle": (200, 60, 50), "square": (60, 80, 200), "bar": (70, 180, 70)}


def save_shapes(
    folder: Path, labels: Sequence[str] = ("circle", "square"), count: int = 12, seed: int = 0
) -> Path:
    """`folder/<label>/0.png` and so on: a shape of the label's colour, somewhere on noise."""
    random = np.random.default_rng(seed)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            noise = random.integers(60, 200, (32, 32, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
            x, y = (int(value) for value in random.integers(2, 12, 2))
            draw = ImageDraw.Draw(image)
            if label == "circle":
                draw.ellipse((x, y, x + 17, y + 17), fill=COLORS[label])
            elif label == "square":
                draw.rectangle((x, y, x + 15, y + 15), fill=COLORS[label])
            else:
                draw.rectangle((0, y, 31, y + 5), fill=COLORS[label])
            image.save(folder / label / f"{number:02}.png")
    return folder


def save_split(folder: Path, train: int = 12, val: int = 6) -> Path:
    """`folder/train/<label>/` and `folder/val/<label>/` of two labels."""
    save_shapes(folder / "train", count=train)
    save_shapes(folder / "val", count=val, seed=1)
    return folder
