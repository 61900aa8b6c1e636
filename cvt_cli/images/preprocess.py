"""Preprocessing: an RGB image becomes uint8 pixels of the input size, and a batch of those becomes
normalised floats on the device.

The steps are those of the image processors of Transformers, pixel for pixel those of their Pillow
backend. `checkpoint/processors.py` reads them from a checkpoint.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from cvt_cli.images.reduction import full_size, resized

if TYPE_CHECKING:
    import torch

CHANNELS = 3  # red, green, blue
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# From this size on, ConvNeXT's rule squeezes the whole picture into the square.
SQUEEZE_FROM = 384

# Above this many pixels after the resize, only the part that the crop keeps is computed: a picture
# of 1 x 60,000 pixels would grow to 256 x 15,360,000 before it is cropped to 224 x 224.
MAX_RESIZED_PIXELS = 2**25


@dataclass(frozen=True)
class Preprocessing:
    """The rule that turns images into the network's input.

    Attributes:
        resize_to: (height, width) in pixels that the picture is resized to, whatever its aspect.
        shortest_edge: length in pixels that its shorter side is resized to instead, the aspect
            kept. Neither: no resize.
        crop: (height, width) in pixels cut from the centre after that, padded with black where
            the picture is smaller.
        resample: a `PIL.Image.Resampling`.
        rescale_factor: what uint8 values are multiplied by.
        mean, std: a number a channel, subtracted and divided by after the rescaling.
        bgr: whether the network takes blue first. No rule that does so has a mean and std.
    """

    resize_to: tuple[int, int] | None = None
    shortest_edge: int | None = 256
    crop: tuple[int, int] | None = (224, 224)
    resample: int = Image.Resampling.BICUBIC
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False

    @classmethod
    def convnext(cls, size: int, crop_pct: float = 0.875, **others: Any) -> Self:
        """Return ConvNeXT's rule, the one of the published checkpoints: below 384 the shorter side
        to `size / crop_pct` and a centre crop, from 384 on the whole picture squeezed."""
        if size >= SQUEEZE_FROM:
            return cls(resize_to=(size, size), shortest_edge=None, crop=None, **others)
        return cls(shortest_edge=int(size / crop_pct), crop=(size, size), **others)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a `preprocessor_config.json` for Transformers."""
        # Before version 5 each type computes its own steps only: ViT's knows no crop.
        squeezes = self.shortest_edge is None and self.crop is None
        values: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor" if squeezes else "CLIPImageProcessor",
            "do_resize": self.resize_to is not None or self.shortest_edge is not None,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.resize_to is not None:
            values["size"] = {"height": self.resize_to[0], "width": self.resize_to[1]}
        elif self.shortest_edge is not None:
            values["size"] = {"shortest_edge": self.shortest_edge}
        if self.crop is not None:
            values["crop_size"] = {"height": self.crop[0], "width": self.crop[1]}
        if self.bgr:
            # The only type that swaps the channels; it never normalises.
            values |= {
                "image_processor_type": "MobileViTImageProcessor",
                "do_flip_channel_order": True,
                "do_normalize": False,
            }
            del values["image_mean"], values["image_std"]
        return values

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Return (height, width) in pixels of every image after `pixels`; None if it varies."""
        return self.crop or self.resize_to

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return (height, width) in pixels after `pixels` of an image of this width and height."""
        return self.image_size or self._resized_size(width, height) or (height, width)

    def scaled_to(self, size: tuple[int, int]) -> Self:
        """Return the same rule for another input size, (height, width) in pixels.

        A rule that crops still keeps the same part of the picture. To a square it keeps the
        picture's aspect as well; a rectangle is taken for the aspect of the pictures, and they are
        squeezed to it.
        """
        height, width = size
        if self.crop is None:
            return replace(self, resize_to=size, shortest_edge=None)
        if self.resize_to is not None:
            (rows, columns), (crop_rows, crop_columns) = self.resize_to, self.crop
        elif self.shortest_edge is not None:
            rows = columns = self.shortest_edge
            crop_rows = crop_columns = max(self.crop)
            if height == width:
                edge = max(1, height * rows // crop_rows)
                return replace(self, shortest_edge=edge, crop=size)
        else:
            return replace(self, crop=size)
        resized = max(1, height * rows // crop_rows), max(1, width * columns // crop_columns)
        return replace(self, resize_to=resized, shortest_edge=None, crop=size)

    def in_words(self) -> str:
        """Describe the resize and the crop: "shorter side to 256, centre crop 224 × 224,
        bicubic"."""
        steps = []
        if self.resize_to is not None:
            steps.append("squeezed to {} × {}".format(*self.resize_to))
        elif self.shortest_edge is not None:
            steps.append(f"shorter side to {self.shortest_edge}")
        if self.crop is not None:
            steps.append("centre crop {} × {}".format(*self.crop))
        if self.resize_to is not None or self.shortest_edge is not None:
            steps.append(Image.Resampling(self.resample).name.lower())
        return ", ".join(steps) or "as it is"

    @property
    def reduce_to(self) -> int | None:
        """Return the shorter side in pixels down to which a decoder may scale a picture: twice what
        the resize needs, so that the result hides how it was done."""
        return 2 * self.resized_edge or None

    @property
    def resized_edge(self) -> int:
        """Return the shorter side in pixels from which on the resize does not enlarge; 0 for
        none."""
        return max(self.resize_to) if self.resize_to is not None else self.shortest_edge or 0

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image of any size to (H, W, 3) uint8."""
        size = self._resized_size(*full_size(image))
        if size is None:
            return self._centre(np.asarray(image))
        height, width = size
        if self.crop is not None and height * width > MAX_RESIZED_PIXELS:
            return self._resize_the_centre(image, height, width)
        return self._centre(np.asarray(resized(image, (width, height), self.resample)))

    def normalize(self, batch: "torch.Tensor") -> "torch.Tensor":
        """Turn (B, H, W, 3) uint8 RGB on any device into (B, 3, H, W) float32 on the same."""
        if self.bgr:
            batch = batch.flip(-1)
        mean, std = (_on_device(values, batch.device) for values in (self.mean, self.std))
        return ((batch.float() * self.rescale_factor - mean) / std).permute(0, 3, 1, 2)

    def visible_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a picture that `pixels` keeps.

        Args:
            width, height: of the picture, in pixels.

        Returns:
            (left, top, right, bottom) in pixels of the picture, which what `pixels` returns is
            spread over evenly. Where the crop pads, it reaches beyond the picture.
        """
        rows, columns = self._resized_size(width, height) or (height, width)
        crop_rows, crop_columns = self.crop or (rows, columns)
        top, left = (rows - crop_rows) // 2, (columns - crop_columns) // 2
        across, down = width / columns, height / rows
        return (
            left * across,
            top * down,
            (left + crop_columns) * across,
            (top + crop_rows) * down,
        )

    def _resized_size(self, width: int, height: int) -> tuple[int, int] | None:
        if self.resize_to is not None:
            return self.resize_to
        if self.shortest_edge is None:
            return None
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        return (long, self.shortest_edge) if width <= height else (self.shortest_edge, long)

    def _resize_the_centre(self, image: Image.Image, height: int, width: int) -> np.ndarray:
        assert self.crop is not None
        rows, columns = min(self.crop[0], height), min(self.crop[1], width)
        top, left = (height - rows) // 2, (width - columns) // 2
        part = (left / width, top / height, (left + columns) / width, (top + rows) / height)
        return self._centre(np.asarray(resized(image, (columns, rows), self.resample, part=part)))

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return pixels
        height, width = pixels.shape[:2]
        rows, columns = self.crop
        if height < rows or width < columns:
            padded = np.zeros((max(rows, height), max(columns, width), 3), pixels.dtype)
            # An odd row or column of padding goes to the top or the left.
            y, x = -((height - len(padded)) // 2), -((width - padded.shape[1]) // 2)
            padded[y : y + height, x : x + width] = pixels
            top, left = (height - rows) // 2 + y, (width - columns) // 2 + x
            return padded[top : top + rows, left : left + columns]
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[top : top + rows, left : left + columns]


@cache
def _on_device(values: tuple[float, ...], device: "torch.device") -> "torch.Tensor":
    """Make a constant on the device once: copying it from ordinary memory would wait for the
    GPU."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
