"""Metrics of a model of several labels at once: how well each label's scores rank the images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cvt_cli.errors import UsageError
from cvt_cli.evaluation.metrics import (
    LabelFigures,
    LabelledSource,
    UnknownLabel,
    find_labels,
    nothing_read,
)
from cvt_cli.images.source import Source
from cvt_cli.inference.label_groups import LabelGroups
from cvt_cli.records import Record

# Score from which an image counts as having the label.
LEAST_SCORE = 0.5


@dataclass(frozen=True)
class RankedLabel(LabelFigures):
    """Figures of a label; `predicted` counts the images whose score reaches `LEAST_SCORE`.

    Attributes:
        average_precision: over all thresholds, 0 to 1; None where no image has the label.
    """

    average_precision: float | None


@dataclass(frozen=True)
class RankedEvaluation:
    """All figures of one evaluation of several labels at once.

    Attributes:
        count: images that were judged.
        mean_average_precision: the mean over the labels that images have, 0 to 1.
        labels: every label of the model, by class index.
        unknown: names that mean no class of the model.
        errors: images that could not be read; not counted.
    """

    count: int
    mean_average_precision: float
    labels: tuple[RankedLabel, ...]
    unknown: tuple[UnknownLabel, ...]
    errors: tuple[Record, ...]


def match_several(
    labelled: Sequence[LabelledSource],
    labels: Sequence[str],
    model: str,
    *,
    groups: LabelGroups | None = None,
) -> tuple[list[tuple[Source, frozenset[int]]], tuple[UnknownLabel, ...]]:
    """Give each image the class indexes of its labels: none, one or several. Rows with the same
    path belong to one image. An unknown label is reported, and its image keeps the others.

    Args:
        labels: the model's.
        model: its name, for the advice.
        groups: the model's, as in `metrics.match`.

    Raises:
        UsageError: if no label is known.
    """
    named = [each for each in labelled if each.label]
    found, unknown = find_labels(named, labels, model, groups=groups)
    sources: dict[str, Source] = {}
    indexes: dict[str, set[int]] = {}
    for each in labelled:
        path = each.source.path
        sources.setdefault(path, each.source)
        index = found.get(each.label)
        indexes.setdefault(path, set()).update(() if index is None else (index,))
    return [(sources[path], frozenset(indexes[path])) for path in sources], unknown


def rank(
    records: Iterable[Record],
    targets: Sequence[frozenset[int]],
    labels: Sequence[str],
    *,
    unknown: tuple[UnknownLabel, ...] = (),
) -> RankedEvaluation:
    """Compare scores with the truth.

    Args:
        records: one for each target, in order, each with a prediction for every label.
        targets: the class indexes that each image has.
        labels: the model's.
        unknown: is passed on.

    Raises:
        InputsError: if no image could be read.
        UsageError: if none of those that could has a label.
    """
    rows, truths, errors = [], [], []
    for record, target in zip(records, targets, strict=True):
        if record.error is not None:
            errors.append(record)
            continue
        row = np.zeros(len(labels), np.float32)
        for each in record.predictions:
            row[each.index] = each.score
        rows.append(row)
        truths.append([index in target for index in range(len(labels))])
    if not rows:
        raise nothing_read(errors)
    scores, truth = np.stack(rows), np.array(truths, bool)
    figures = tuple(
        _ranked(label, index, scores[:, index], truth=truth[:, index])
        for index, label in enumerate(labels)
    )
    precisions = [each.average_precision for each in figures if each.average_precision is not None]
    if not precisions:
        raise UsageError(f"none of {len(rows)} images that could be read has a label")
    mean = sum(precisions) / len(precisions)
    return RankedEvaluation(len(rows), mean, figures, unknown=unknown, errors=tuple(errors))


def _ranked(label: str, index: int, scores: np.ndarray, *, truth: np.ndarray) -> RankedLabel:
    predicted = scores >= LEAST_SCORE
    return RankedLabel(
        label,
        index=index,
        count=int(truth.sum()),
        predicted=int(predicted.sum()),
        correct=int((predicted & truth).sum()),
        average_precision=average_precision(scores, truth),
    )


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Sum the precision at each threshold, weighted with the recall that it adds. Images with the
    same score pass a threshold together. Without interpolation, like scikit-learn and unlike VOC.

    Args:
        scores: (images,) of one label.
        truth: (images,) bool: which have the label.

    Returns:
        0 to 1; None if none has it.
    """
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of its score
    hits = np.cumsum(truth[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)
