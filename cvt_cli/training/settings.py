"""Settings of a training."""

from dataclasses import dataclass

from cvt_cli.images.background import Colour
from cvt_cli.training.augment import Augmentation


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        epochs: passes over the training images.
        warmup_epochs: epochs, or a part of one, over which the learning rate rises.
        label_smoothing: share of each target that is spread over all classes.
        clip_norm: gradients are scaled down to this norm.
        ema_decay: weight of the past in the moving average of the weights, which is the result.
        background: what lies behind transparent parts of images; None for the colours hidden there.
        train_blocks: train only so many of the last blocks, with what comes after them; None for
            the whole network.
        accept_truncated: train on what there is of a JPEG whose end is missing.
        dtype: "bfloat16" computes matrix products in it, by autocast on CUDA and inside the
            operations on a CPU that has instructions for it; "float32" does not.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    clip_norm: float
    ema_decay: float
    seed: int
    dtype: str
    augmentation: Augmentation
    background: Colour | None = None
    accept_truncated: bool = False
    train_blocks: int | None = None
