"""Several labels at once, against figures that were worked out by hand."""

from typing import Any

import numpy as np
import pytest

from cvt_cli.errors import InputsError, UsageError
from cvt_cli.evaluation.metrics import LabelledSource, UnknownLabel
from cvt_cli.evaluation.ranking import average_precision, match_several, rank
from cvt_cli.images.source import Source
from cvt_cli.records import Prediction, Record

LABELS = ("cat", "dog", "newt")


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 0], (1 / 2 + 2 / 4) / 2),
        ([0.1, 0.2, 0.3], [1, 1, 1], 1),
        # Those of one score are above a threshold together, in whatever order they come.
        ([0.5, 0.5], [1, 0], 1 / 2),
        ([0.5, 0.5], [0, 1], 1 / 2),
        ([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 1], (1 + 2 / 3 + 3 / 4) / 3),
        ([0.9, 0.1], [0, 0], None),
    ],
)
def test_average_precision(scores: Any, truth: Any, expected: float | None) -> None:
    found = average_precision(np.array(scores, np.float32), np.array(truth, bool))
    assert found == (None if expected is None else pytest.approx(expected))


def record(*scores: float) -> Record:
    pairs = sorted(enumerate(scores), key=lambda pair: -pair[1])
    return Record("x", tuple(Prediction(LABELS[index], score, index) for index, score in pairs))


def test_figures_by_hand() -> None:
    records = [record(0.9, 0.2, 0.6), record(0.4, 0.7, 0.1), Record("bad", error="empty file")]
    records.append(record(0.8, 0.5, 0.3))
    targets = [frozenset({0}), frozenset({0, 1}), frozenset({2}), frozenset[int]()]
    found = rank(records, targets, LABELS)
    assert found.count == 3 and [each.path for each in found.errors] == ["bad"]
    cat, dog, newt = found.labels
    assert (cat.count, cat.predicted, cat.correct) == (2, 2, 1)
    assert cat.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (dog.count, dog.predicted, dog.correct, dog.average_precision) == (1, 2, 1, 1)
    # What no image has is no part of the mean.
    assert (newt.count, newt.predicted, newt.average_precision) == (0, 1, None)
    assert found.mean_average_precision == pytest.approx((5 / 6 + 1) / 2)


@pytest.mark.parametrize("target", [frozenset[int](), frozenset({2})])
def test_nothing_to_measure(target: frozenset[int]) -> None:
    records = [record(0.9, 0.2, 0.6), Record("bad", error="empty file")]
    with pytest.raises(UsageError, match="none of 1 images"):
        rank(records, [frozenset(), target], LABELS)
    with pytest.raises(InputsError, match="bad: empty file"):
        rank(records[1:], [target], LABELS)


def test_rows_of_one_path_are_of_one_image() -> None:
    def row(path: str, label: str) -> LabelledSource:
        return LabelledSource(Source(path, None), label)  # type: ignore[arg-type]

    rows = [row("a", "CAT"), row("b", ""), row("a", "dog"), row("c", "unicorn"), row("a", "cat")]
    known, unknown = match_several(rows, LABELS, "org/model")
    assert [(source.path, set(found)) for source, found in known] == [
        *(("a", {0, 1}), ("b", set()), ("c", set()))
    ]
    assert unknown == (UnknownLabel("unicorn", 1, "not one of the model's labels"),)
    with pytest.raises(UsageError, match="none of the 1 labels") as caught:
        match_several(rows[3:4], LABELS, "a model")
    assert "cvt inspect 'a model' --labels" in str(caught.value.hint)
