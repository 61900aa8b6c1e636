"""Random changes of training images, on batches on the device, with kornia."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_cli.errors import UsageError

# Up to this input size in pixels a picture is as large as its object: crops stay close to it.
PADDED_CROP_UP_TO = 64
# RandAugment draws one operation for a whole group of images: small groups mix a batch.
RAND_AUGMENT_GROUP = 32


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch.

    Attributes:
        crop: "padded" (an eighth on each side, then a window of the same size), "resized" (a
            window of another size and aspect, resized) or "none".
        min_scale: the smallest share of the area that a resized crop keeps, 0 to 1.
        flip: mirror every other image, left to right.
        rand_augment: magnitude of RandAugment, 1 (hardly any change) to 29; 0 leaves it out.
        mixup, cutmix: share of the batches, 0 to 1, whose images are blended in pairs, or have
            a rectangle of another pasted in; their sum is at most 1. Ratios are uniform.
    """

    crop: str = "padded"
    min_scale: float = 0.35
    flip: bool = True
    rand_augment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0


def require_kornia() -> Any:
    """The module `kornia.augmentation`.

    Raises:
        UsageError: if it is not installed; names the extra that has it.
    """
    try:
        import kornia.augmentation
    except ImportError:
        raise UsageError(
            "training needs kornia, which is not installed",
            hint='pip install "cvt-cli[train]"',
        ) from None
    return kornia.augmentation


class Augmenter:
    """An `Augmentation` for one input size, ready to apply. Draws from torch's global generator.

    Args:
        size: height and width in pixels of the result.
        num_labels: width of the soft targets.
        label_smoothing: share of each target that is spread over all classes, 0 to below 1.

    Raises:
        UsageError: if kornia is not installed.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        size: tuple[int, int],
        num_labels: int,
        label_smoothing: float,
    ) -> None:
        kornia = require_kornia()
        self._geometry = []
        if augmentation.crop == "padded":
            padding = (max(1, size[0] // 8), max(1, size[1] // 8))
            self._geometry.append(kornia.RandomCrop(size, padding=padding))
        elif augmentation.crop == "resized":
            scale = (augmentation.min_scale, 1.0)
            self._geometry.append(kornia.RandomResizedCrop(size, scale=scale))
        if augmentation.flip:
            self._geometry.append(kornia.RandomHorizontalFlip())
        magnitude = augmentation.rand_augment
        self._rand_augment = _rand_augment(kornia, magnitude / 30) if magnitude else None
        keys = ["input", "class"]
        self._mixup = kornia.RandomMixUpV2(data_keys=keys)
        self._cutmix = kornia.RandomCutMixV2(data_keys=keys, use_correct_lambda=True)
        self._shares = (augmentation.mixup, augmentation.cutmix)
        self._num_labels = num_labels
        self._label_smoothing = label_smoothing

    def __call__(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, H, W, 3) uint8 and class indexes (B,) int64 become pixels (B, h, w, 3)
        float32, 0 to 255, and soft targets (B, num_labels) float32, each row with a sum of 1."""
        x = pixels.permute(0, 3, 1, 2).float() / 255
        for change in self._geometry:
            x = change(x)
        if self._rand_augment is not None:
            groups = x.split(RAND_AUGMENT_GROUP)
            x = torch.cat([self._rand_augment(group) for group in groups]).clamp(0, 1)
        x, soft = self._mix(x, targets)
        soft = soft * (1 - self._label_smoothing) + self._label_smoothing / self._num_labels
        return (x * 255).permute(0, 2, 3, 1), soft

    def _mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mixup, cutmix = self._shares
        drawn = torch.rand(()).item() if mixup or cutmix else 1.0
        if drawn >= mixup + cutmix:
            return x, self._one_hot(targets)
        blends = drawn < mixup
        x, mixed = (self._mixup if blends else self._cutmix)(x, targets)
        first, second, ratio = mixed.reshape(-1, 3).unbind(dim=1)
        # The second one's share; of what is pasted kornia tells what is left of the first.
        ratio = (ratio if blends else 1 - ratio)[:, None]
        return x, self._one_hot(first) * (1 - ratio) + self._one_hot(second) * ratio

    def _one_hot(self, targets: Tensor) -> Tensor:
        return F.one_hot(targets.long(), self._num_labels).float()


def _rand_augment(kornia: Any, strength: float) -> Any:
    """RandAugment (arXiv 1909.13719): two operations drawn for the group, an amount for each image,
    uniform up to `strength` (0 to 1) of the range that torchvision's RandAugment has.

    kornia's own RandAugment starts its two-sided operations at the dark, grey or inverted end of
    their ranges: there a small magnitude changes a picture most.
    """
    around_one = (1 - 0.9 * strength, 1 + 0.9 * strength)
    degrees = 17.0 * strength
    return kornia.ImageSequential(
        kornia.RandomAffine(0.0, shear=(-degrees, degrees, 0.0, 0.0), p=1.0),
        kornia.RandomAffine(0.0, shear=(0.0, 0.0, -degrees, degrees), p=1.0),
        kornia.RandomAffine(0.0, translate=(0.45 * strength, 0.0), p=1.0),
        kornia.RandomAffine(0.0, translate=(0.0, 0.45 * strength), p=1.0),
        kornia.RandomAffine(30.0 * strength, p=1.0),
        # Is added, where the others multiply.
        kornia.RandomBrightness((1 - 0.5 * strength, 1 + 0.5 * strength), p=1.0),
        kornia.RandomSaturation(around_one, p=1.0),
        kornia.RandomContrast(around_one, p=1.0),
        kornia.RandomSharpness(around_one, p=1.0),
        kornia.RandomPosterize((8 - 4 * strength, 8.0), p=1.0),
        kornia.RandomSolarize((1 - strength, 1.0), (0.0, 0.0), p=1.0),
        kornia.RandomAutoContrast(p=1.0),
        kornia.RandomEqualize(p=1.0),
        random_apply=2,
    )
