"""Scores that mean what they say: one temperature for all logits (arXiv 1706.04599)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_cli.inference.calibration import Calibration

# Powers of 2 between which the temperature is looked for, and how finely at first.
EXPONENTS = (-4.0, 4.0)
COARSE_STEPS = 80
FINE_STEPS = 40
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature that suits validation images, and what it does to their scores.

    Attributes:
        temperature: what logits are to be divided by.
        images: how many there were.
        accuracy: share of them that is right; no temperature changes it.
        loss_before, loss_after: mean log loss of the best label's score, as the probability that
            it is the true one, with the logits as they are, and divided.
        ece_before, ece_after: expected calibration error, 0 to 1, likewise.
    """

    temperature: float
    images: int
    accuracy: float
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float

    def metrics(self) -> dict[str, float]:
        """The figures by the names that `metrics.jsonl` has them under."""
        return {f"calibration_{name}": value for name, value in dataclasses.asdict(self).items()}


def fit_temperature(logits: Tensor, targets: Tensor) -> TemperatureFit:
    """Find the temperature of the least log loss of the best label's score.

    Not of the cross-entropy over all labels: that is ruled by how little is left for the unlikely
    ones, of which training with smoothed and mixed labels leaves too much, at the cost of the
    score that people read.

    Args:
        logits: (N, C) float32 of images that were not trained on, N at least 1.
        targets: (N,) int64, their classes.
    """
    logits = logits.double()

    # Of the best label, the logarithms of its score and of the others' sum at any temperature need
    # how far the others are below it.
    top, best = logits.max(1)
    is_right = best == targets
    below = (logits - top[:, None]).scatter(1, best[:, None], -torch.inf)

    def loss(exponent: float) -> float:
        odds = (below / 2**exponent).logsumexp(1)  # log of the others' sum by the best one's
        return torch.where(is_right, F.softplus(odds), F.softplus(-odds)).mean().item()

    first, last = EXPONENTS
    step = (last - first) / COARSE_STEPS
    middle = min((first + step * number for number in range(COARSE_STEPS + 1)), key=loss)
    low, high = middle - step, middle + step
    for _ in range(FINE_STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    exponent = (low + high) / 2
    temperature = 2**exponent
    return TemperatureFit(
        temperature=temperature,
        images=len(targets),
        accuracy=is_right.double().mean().item(),
        loss_before=loss(0.0),
        loss_after=loss(exponent),
        ece_before=_calibration_error(logits, targets),
        ece_after=_calibration_error(logits / temperature, targets),
    )


def with_temperature(weights: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Divide the logits of a network, under our names, by a temperature: its last layer's weight
    and bias are. Returns others; those given stay as they are."""
    return {name: value / temperature if name in HEAD else value for name, value in weights.items()}


def _calibration_error(logits: Tensor, targets: Tensor) -> float:
    scores, best = logits.softmax(1).max(1)
    calibration = Calibration()
    for score, is_right in zip(scores.tolist(), (best == targets).tolist(), strict=True):
        calibration.add(score, is_right)
    return calibration.error
