"""Statistics of batch norm, computed anew at the end of a training (precise BN, arXiv 2105.07576).

Those that training leaves are of images that were cropped, recoloured and mixed, averaged while the
weights were still changing. The result classifies whole images with averaged weights.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvt_cli.training.dataset import Sample

# Training images that the statistics are computed of at most, and at least: fewer say too little.
MOST_IMAGES = 2048
LEAST_IMAGES = 256


@dataclass(frozen=True)
class StatisticsFit:
    """Effect of new statistics on the validation images.

    Attributes:
        images: how many the statistics are computed of.
        loss_before, loss_after: mean cross-entropy.
        accuracy_before, accuracy_after: share that is right, 0 to 1.
    """

    images: int
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float

    @property
    def is_better(self) -> bool:
        """Whether the loss falls: only then the result has them."""
        return self.loss_after < self.loss_before

    def metrics(self) -> dict[str, float]:
        """Return the figures under their names in `metrics.jsonl`."""
        return {f"batch_norm_{name}": value for name, value in dataclasses.asdict(self).items()}


def chosen_samples(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Choose the samples to compute statistics of, evenly from all of them; empty if they are too
    few."""
    if len(samples) < LEAST_IMAGES:
        return ()
    count = min(MOST_IMAGES, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


@torch.inference_mode()
def compute_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set mean and variance of each batch norm to those of its inputs over all batches.

    Args:
        model: in evaluation mode, as it is afterwards.
        batches: its inputs (B, C, H, W); those of less than two images are left out.

    Returns:
        The number of images.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # each batch counts the same
        norm.train()
    images = 0
    for x in batches:
        if len(x) > 1:
            model(x)
            images += len(x)
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
        norm.eval()
    return images
