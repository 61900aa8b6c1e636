"""Training of the last layer alone: multinomial logistic regression on embeddings that are computed
once."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvt_cli.training.features import Embedded

# Powers of 10 tried as the penalty, the strongest first, and the half step to both sides of the
# best that is tried after them.
EXPONENTS = (2, 1, 0, -1, -2, -3, -4, -5, -6)
HALF_STEP = 0.5
# Where there are no other images to choose by.
DEFAULT_PENALTY = 0.01
# Iterations that suffice to compare penalties; the result has as many as it needs.
TRIAL_ITERATIONS = 60
ITERATIONS = 1000
# Parts of a cross-validation, and the images from which on a single part suffices.
FOLDS = 5
MANY_IMAGES = 10_000
# Bytes of logits that are in memory at a time.
CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Trial:
    """Results of a penalty on images that were held out.

    Attributes:
        penalty: of the squared weights, beside the mean loss of an image.
        loss: mean cross-entropy.
        accuracy: share of the images whose label was the most likely one.
        images: how many there were.
    """

    penalty: float
    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class HeadFit:
    """A last layer that was fitted.

    Attributes:
        weight, bias: (C, D) and (C,) float32.
        best: the penalty that was chosen, and how good it was.
        trials: all that were tried.
        folds: parts of the cross-validation that chose; 0 where validation images did.
        train_loss, train_accuracy: of the images that were learnt from.
    """

    weight: Tensor
    bias: Tensor
    best: Trial
    trials: tuple[Trial, ...]
    folds: int
    train_loss: float
    train_accuracy: float

    def logits(self, features: Tensor) -> Tensor:
        """Compute (N, C) of (N, D)."""
        return F.linear(features, self.weight, self.bias)


def class_weights(targets: Tensor, num_classes: int) -> Tensor:
    """Compute weights that make every class count alike, however many images it has: (num_classes,)
    float32; their mean over the images is 1."""
    counts = targets.bincount(minlength=num_classes)
    # A class that only held-out images have gets no weight.
    return len(targets) / (counts.clamp(min=1) * (counts > 0).sum()).float() * (counts > 0)


def fit_head(
    train: Embedded,
    val: Embedded | None,
    num_classes: int,
    *,
    balanced: bool = True,
    seed: int = 0,
    device: torch.device | None = None,
) -> HeadFit:
    """Find the last layer with the least penalised cross-entropy, by L-BFGS.

    The penalty is half the sum of squared weights times a number, which is chosen by the
    validation images; the bias bears none. It is scikit-learn's logistic
    regression with C = 1 / (penalty * N) on features that are centred and divided by one number,
    so that their mean square is 1.

    Args:
        val: images to choose the penalty by; None for a cross-validation on those of training.
        num_classes: C, of which `train` has at least one image each.
        balanced: whether every class counts alike, however many images it has.
        seed: deals images to the parts of a cross-validation.
        device: where it computes; None for the CPU.
    """
    device = device or torch.device("cpu")
    centre = train.features.mean(0)
    scale = (train.features - centre).square().mean().sqrt().clamp(min=1e-12)

    def scaled(part: Embedded) -> Embedded:
        return Embedded(
            ((part.features - centre) / scale).to(device),
            part.targets.to(device),
        )

    learn = scaled(train)
    if val is None:
        parts = list(_folds(learn, seed))
        problems = [
            (_Problem(learn.take(~held_out), num_classes, balanced), learn.take(held_out))
            for held_out in parts
        ]
    else:
        problems = [(_Problem(learn, num_classes, balanced), scaled(val))]
    trials = _search(problems)
    best = pick_trial(trials) if len(trials) > 1 else trials[0]
    problem = problems[0][0] if val is not None else _Problem(learn, num_classes, balanced)
    problem.solve(best.penalty, ITERATIONS)
    loss, right = problem.judge(learn)
    weight = (problem.weight / scale.to(device)).cpu()
    return HeadFit(
        weight=weight,
        bias=problem.bias.cpu() - weight @ centre,
        best=best,
        trials=tuple(sorted(trials, key=lambda trial: -trial.penalty)),
        folds=0 if val is not None else len(problems),
        train_loss=loss / len(learn),
        train_accuracy=right / len(learn),
    )


def _folds(embedded: Embedded, seed: int) -> Iterator[Tensor]:
    """Yield masks of images that are held out in turn: a part of each class, but never all of
    it."""
    chooser = random.Random(seed)
    numbers = torch.full((len(embedded),), -1)
    by_class: dict[int, list[int]] = {}
    for index, target in enumerate(embedded.targets.tolist()):
        by_class.setdefault(target, []).append(index)
    first = 0
    for indexes in by_class.values():
        if len(indexes) <= 1:
            continue
        chooser.shuffle(indexes)
        for place, index in enumerate(indexes):
            # Each class continues where the last one ended: small classes fill all parts alike.
            numbers[index] = (first + place) % FOLDS
        first += len(indexes)
    numbers = numbers.to(embedded.targets.device)
    held_out = [numbers == number for number in range(FOLDS)]
    held_out = [mask for mask in held_out if mask.any()]
    yield from held_out[: 1 if len(embedded) > MANY_IMAGES else FOLDS]


def pick_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the least loss among those as accurate as any, but for one standard
    error: among few images one more or less that is right is chance."""
    most = max(trial.accuracy for trial in trials)
    error = math.sqrt(most * (1 - most) / max(1, trials[0].images))
    return min(
        (trial for trial in trials if trial.accuracy >= most - error),
        key=lambda trial: trial.loss,
    )


def _search(problems: Sequence[tuple["_Problem", Embedded]]) -> list[Trial]:
    """Try penalties from strong to weak, each starting from the solution of the one before."""

    def trial(exponent: float) -> Trial:
        loss = right = 0.0
        count = 0
        for problem, held_out in problems:
            problem.solve(10.0**exponent, TRIAL_ITERATIONS)
            more_loss, more_right = problem.judge(held_out)
            loss, right, count = loss + more_loss, right + more_right, count + len(held_out)
        return Trial(10.0**exponent, loss=loss / count, accuracy=right / count, images=count)

    if not problems:  # one image a class: nothing to choose by
        return [Trial(DEFAULT_PENALTY, loss=math.nan, accuracy=math.nan, images=0)]
    trials = {exponent: trial(exponent) for exponent in map(float, EXPONENTS)}
    best = round(math.log10(pick_trial(list(trials.values())).penalty))
    for exponent in (best + HALF_STEP, best - HALF_STEP):
        trials[exponent] = trial(exponent)
    return list(trials.values())


class _Problem:
    """A logistic regression, whose minimum `solve` finds from the present weights.

    Attributes:
        weight, bias: (C, D) and (C,).
    """

    def __init__(self, data: Embedded, num_classes: int, balanced: bool) -> None:
        features = data.features
        self._data = data
        weights = class_weights(data.targets, num_classes) if balanced else torch.ones(num_classes)
        self._class_weights = weights.to(features.device)
        self.weight = torch.zeros(num_classes, features.shape[1], device=features.device)
        self.bias = torch.zeros(num_classes, device=features.device)
        self._rows = max(1, CHUNK_BYTES // (4 * num_classes))

    def solve(self, penalty: float, iterations: int) -> None:
        """Minimise the mean loss plus the penalty times half the sum of squared weights."""
        parameters = [self.weight.requires_grad_(), self.bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=20,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros((), device=self.weight.device)
            for part in self._chunks(self._data):
                logits = F.linear(part.features, self.weight, self.bias)
                mean = F.cross_entropy(
                    logits, part.targets, weight=self._class_weights, reduction="sum"
                ) / len(self._data)
                mean.backward()
                total += mean.detach()
            squares = penalty / 2 * self.weight.square().sum()
            squares.backward()
            return total + squares.detach()

        optimizer.step(loss)
        self.weight, self.bias = self.weight.detach(), self.bias.detach()

    def judge(self, data: Embedded) -> tuple[float, int]:
        """Compute the sum of the losses of images, all classes alike, and how many are right."""
        loss, right = 0.0, 0
        for part in self._chunks(data):
            logits = F.linear(part.features, self.weight, self.bias)
            loss += F.cross_entropy(logits, part.targets, reduction="sum").item()
            right += int((logits.argmax(1) == part.targets).sum())
        return loss, right

    def _chunks(self, data: Embedded) -> Iterator[Embedded]:
        for start in range(0, len(data), self._rows):
            chosen = slice(start, start + self._rows)
            yield Embedded(data.features[chosen], data.targets[chosen])
