"""Temperature scaling: one divisor for all logits that makes scores match accuracy (arXiv
1706.04599)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_cli.inference.calibration import Calibration

# Range of the temperature's logarithm to base 2, and the steps of the search.
EXPONENTS = (-4.0, 4.0)
COARSE_STEPS = 80
FINE_STEPS = 40
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature that suits the validation images, and its effect on their scores.

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
        """Return the figures under their names in `metrics.jsonl`."""
        return {f"calibration_{name}": value for name, value in dataclasses.asdict(self).items()}


def fit_temperature(logits: Tensor, targets: Tensor) -> TemperatureFit:
    """Find the temperature with the least log loss of the best label's score.

    The cross-entropy over all labels would be dominated by the scores of unlikely labels, which
    training with smoothed and mixed labels leaves too high, at the cost of the score people read.

    Args:
        logits: (N, C) float32 of images that were not trained on, N at least 1.
        targets: (N,) int64, their classes.
    """
    logits = logits.double()

    # At any temperature, the best label's score and the sum of the others depend only on how far
    # the others' logits are below its own.
    top, best = logits.max(1)
    is_right = best == targets
    below = (logits - top[:, None]).scatter(1, best[:, None], -torch.inf)

    def loss(exponent: float) -> float:
        # Log of the ratio of the others' sum to the best one's.
        odds = (below / 2**exponent).logsumexp(1)
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
    """Divide the logits of a network, given by its weights under our names, by a temperature, in
    its last layer. Returns new weights."""
    return {name: value / temperature if name in HEAD else value for name, value in weights.items()}


def _calibration_error(logits: Tensor, targets: Tensor) -> float:
    scores, best = logits.softmax(1).max(1)
    calibration = Calibration()
    for score, is_right in zip(scores.tolist(), (best == targets).tolist(), strict=True):
        calibration.add(score, is_right)
    return calibration.error
