"""What `preprocessor_config.json` says, applied: an RGB image becomes uint8 pixels of the network's
input size here, and a batch of those becomes normalised floats on the device.

The two rules follow the image processors of Transformers (their Pillow backend), which the
published checkpoints name: ConvNeXT's and ViT's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from sys import float_info
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# From this size on, ConvNeXT's rule squeezes the whole picture into the square.
SQUEEZE_FROM = 384

# Above this many pixels after the resize, only the part that the crop keeps is computed. A picture
# of 1 x 60,000 pixels would else grow to 256 x 15,360,000 before it is cropped to 224 x 224.
MAX_RESIZED_PIXELS = 2**25


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the network's input.

    Attributes:
        resize_to: (height, width) in pixels that the picture is resized to, whatever its aspect.
        shortest_edge: length in pixels that its shorter side is resized to instead, the aspect
            kept. Neither: no resize.
        crop: (height, width) in pixels cut from the centre after that, padded with black where
            the picture is smaller.
        resample: a `PIL.Image.Resampling`.
        rescale_factor: what uint8 values are multiplied by.
        mean, std: a number a channel, subtracted and divided by after the rescaling.
    """

    resize_to: tuple[int, int] | None = None
    shortest_edge: int | None = 256
    crop: tuple[int, int] | None = (224, 224)
    resample: int = Image.Resampling.BICUBIC
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def convnext(cls, size: int, crop_pct: float = 0.875, **others: Any) -> Self:
        """ConvNeXT's rule, the one of the published checkpoints: below 384 the shorter side to
        `size / crop_pct` and the centre cropped, from 384 on the whole picture squeezed."""
        if size >= SQUEEZE_FROM:
            return cls(resize_to=(size, size), shortest_edge=None, crop=None, **others)
        return cls(shortest_edge=int(size / crop_pct), crop=(size, size), **others)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the contents of a `preprocessor_config.json`.

        Raises:
            ValueError: if a value is of the wrong kind, or asks for what the two rules lack.
        """
        kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
        convnext = kind.startswith("ConvNext") or (not kind and "crop_pct" in values)
        resample = values.get("resample")
        if resample is None:
            resample = Image.Resampling.BICUBIC if convnext else Image.Resampling.BILINEAR
        rescale_factor = _number(values, "rescale_factor", 1 / 255)
        normalize = values.get("do_normalize") is not False
        common: dict[str, Any] = {
            "resample": int(Image.Resampling(resample)),
            "rescale_factor": rescale_factor if values.get("do_rescale") is not False else 1.0,
            "mean": _channels(values, "image_mean") if normalize else (0.0,) * 3,
            "std": _channels(values, "image_std") if normalize else (1.0,) * 3,
        }
        if values.get("do_resize") is False:
            rule = cls(shortest_edge=None, crop=None, **common)
        elif convnext:
            edge = _size(values.get("size", 384), square=False)
            if not isinstance(edge, int):
                raise ValueError(f"size is {values['size']!r}, without a shortest_edge")
            crop_pct = _number(values, "crop_pct", 224 / 256)
            if edge < SQUEEZE_FROM and not 1 <= edge / crop_pct < 2**16:
                raise ValueError(f"crop_pct is {crop_pct!r}, out of range")
            rule = cls.convnext(edge, crop_pct, **common)
        else:
            size = _size(values.get("size", 224), square=True)
            if isinstance(size, int):
                rule = cls(shortest_edge=size, crop=None, **common)
            else:
                rule = cls(resize_to=size, shortest_edge=None, crop=None, **common)
        if values.get("do_center_crop"):
            crop = _size(values.get("crop_size", 224), square=True)
            if isinstance(crop, int):
                raise ValueError(f"crop_size is {values['crop_size']!r}, without height and width")
            if rule.crop not in (None, crop):
                raise ValueError(f"crop_size is {crop}, but crop_pct crops to {rule.crop} before")
            rule = cls(rule.resize_to, rule.shortest_edge, crop, **common)
        height, width = rule.image_size or (1, 1)
        if height * width > MAX_RESIZED_PIXELS:
            raise ValueError(f"size is {height}x{width}, more pixels than any network takes")
        return rule

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `preprocessor_config.json` that Transformers and `from_dict` read as
        this preprocessing."""
        if self.resize_to is not None:
            size = {"height": self.resize_to[0], "width": self.resize_to[1]}
        else:
            size = {"shortest_edge": self.shortest_edge or 0}
        crop = self.crop or (0, 0)
        values: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": self.resize_to is not None or self.shortest_edge is not None,
            "size": size,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "crop_size": {"height": crop[0], "width": crop[1]},
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        return {
            key: value
            for key, value in values.items()
            if not (key == "size" and not values["do_resize"])
            and not (key == "crop_size" and self.crop is None)
        }

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of every image after `pixels`; None if it varies."""
        return self.crop or self.resize_to

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels after `pixels` of an image of this width and height."""
        return self.image_size or self._resized_size(width, height) or (height, width)

    def scaled_to(self, size: tuple[int, int]) -> Self:
        """The same rule for another input size, (height, width) in pixels.

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
        """The resize and the crop for a reader: "shorter side to 256, centre crop 224 × 224,
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
        """The shorter side in pixels down to which a decoder may reduce a picture beforehand:
        twice what the resize needs, so that the resize hides how it was done."""
        edge = max(self.resize_to) if self.resize_to is not None else self.shortest_edge
        return 2 * edge if edge is not None else None

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop: an RGB image of any size to (H, W, 3) uint8."""
        size = self._resized_size(*image.size)
        if size is None:
            return self._centre(np.asarray(image))
        height, width = size
        if self.crop is not None and height * width > MAX_RESIZED_PIXELS:
            return self._resize_the_centre(image, height, width)
        return self._centre(np.asarray(image.resize((width, height), self.resample)))

    def normalize(self, batch: "torch.Tensor") -> "torch.Tensor":
        """(B, H, W, 3) uint8 on any device to (B, 3, H, W) float32 on the same."""
        mean, std = (_on_device(values, batch.device) for values in (self.mean, self.std))
        return ((batch.float() * self.rescale_factor - mean) / std).permute(0, 3, 1, 2)

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that `pixels` keeps.

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
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
        return self._centre(np.asarray(image.resize((columns, rows), self.resample, box)))

    def _centre(self, pixels: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return pixels
        height, width = pixels.shape[:2]
        rows, columns = self.crop
        if height < rows or width < columns:
            padded = np.zeros((max(rows, height), max(columns, width), 3), pixels.dtype)
            # The odd row and column of black go to the top and the left.
            y, x = -((height - len(padded)) // 2), -((width - padded.shape[1]) // 2)
            padded[y : y + height, x : x + width] = pixels
            top, left = (height - rows) // 2 + y, (width - columns) // 2 + x
            return padded[top : top + rows, left : left + columns]
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[top : top + rows, left : left + columns]


@cache
def _on_device(values: tuple[float, ...], device: "torch.device") -> "torch.Tensor":
    """Made once: a copy to a GPU from ordinary memory waits for what that has to do before."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _size(value: Any, square: bool) -> tuple[int, int] | int:
    """A pair (height, width), or a shortest edge."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping):
        if {"height", "width"} <= value.keys():
            numbers = (value["height"], value["width"])
        elif value.keys() == {"shortest_edge"}:
            numbers, square = (value["shortest_edge"],) * 2, False
        else:
            raise ValueError(f"size is {dict(value)!r}: neither height and width nor shortest_edge")
    else:
        numbers = (value, value)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**16:
            raise ValueError(f"size has {number!r}, not a number of pixels")
    if isinstance(value, Mapping) and "height" in value:
        return numbers
    return numbers if square else numbers[0]


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    value = values.get(name)
    if value is None:
        return default
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} is {value!r}, not a positive number")
    return float(value)


def _channels(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = values.get(name)
    if value is None:
        return (0.5,) * 3  # both processors' default
    numbers = value if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise ValueError(f"{name} is {value!r}, not a number for each of 3 channels")
    if name == "image_std" and not all(numbers):
        raise ValueError(f"{name} has a zero")
    return tuple(map(float, numbers))


def _is_number(value: object) -> bool:
    """Whether it is one that a float holds; JSON's integers may have any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float_info.max
