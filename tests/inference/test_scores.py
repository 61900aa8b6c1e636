"""What a logit becomes, with the pipeline of Transformers as the reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_cli import Classifier
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.inference.scores import check_threshold, record_shape, scores_of
from cvt_cli.records import ScoreKind
from tests.photos import picture
from tests.tiny import LABELS

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"


@pytest.mark.parametrize(
    ("problem_type", "labels", "kind"),
    [
        (None, LABELS, "softmax"),
        (SINGLE, LABELS, "softmax"),
        (SEVERAL, LABELS, "sigmoid"),
        ("regression", LABELS, "raw"),
        (None, ["good"], "sigmoid"),
        (SEVERAL, ["good"], "sigmoid"),
        ("regression", ["age"], "raw"),
    ],
)
def test_scores_are_those_of_the_pipeline(
    problem_type: str | None, labels: Any, kind: str, tiny_cvt: Callable[..., Path]
) -> None:
    from transformers import pipeline

    folder = tiny_cvt(labels=labels, problem_type=problem_type)
    image = picture(90, 70)
    classify = Classifier(str(folder), device="cpu", dtype="float32", exact_decode=True)
    found = {each.label: each.score for each in classify(image, top_k=9).predictions}
    theirs = pipeline("image-classification", str(folder), device="cpu", dtype=torch.float32)
    expected = {each["label"]: each["score"] for each in theirs(image, top_k=9)}
    assert found == pytest.approx(expected, abs=1e-4)
    assert list(found) == list(expected)
    assert classify.score_kind == kind
    assert classify.description(digest=False)["scores"] == kind


@pytest.mark.parametrize(
    ("problem_type", "labels", "message"),
    [
        ("classification", LABELS, "problem_type is 'classification'"),
        ("", LABELS, "problem_type is ''"),
        (["regression"], LABELS, r"problem_type is \['regression'\]"),
        (SINGLE, ["good"], "only one label"),
    ],
)
def test_a_problem_that_transformers_does_not_know(
    problem_type: Any, labels: Any, message: str, tiny_cvt: Callable[..., Path]
) -> None:
    import json

    folder = tiny_cvt(labels=labels)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem_type}))
    with pytest.raises(ModelError, match=message):
        load(resolve(str(folder)))


@pytest.mark.parametrize("kind", ScoreKind)
def test_what_is_no_number_is_no_score(kind: ScoreKind) -> None:
    """Sigmoid would make a certain answer of an overflow."""
    logits = torch.tensor([[1.0, 2.0], [float("inf"), 0.0], [float("nan"), 0.0]])
    finite = scores_of(logits.half(), kind).isfinite().all(dim=1)
    assert finite.tolist() == [True, False, False]


@pytest.mark.parametrize("problem_type", [SEVERAL, "regression"])
def test_labels_to_choose_from_change_no_score(
    problem_type: str, tiny_cvt: Callable[..., Path]
) -> None:
    folder = tiny_cvt(problem_type=problem_type)
    options: Any = {"device": "cpu", "dtype": "float32"}
    every = Classifier(str(folder), **options)(picture(), top_k=9)
    some = Classifier(str(folder), only=LABELS[:2], **options)(picture(), top_k=9)
    assert {p.index for p in some.predictions} == {0, 1}
    for each in some.predictions:
        (same,) = [p for p in every.predictions if p.index == each.index]
        assert each.score == pytest.approx(same.score, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "threshold", "fits"),
    [
        ("softmax", 0.5, True),
        ("sigmoid", 1.5, False),
        ("softmax", -0.1, False),
        ("raw", -7.5, True),
        ("raw", float("nan"), False),
        ("raw", float("inf"), False),
        ("sigmoid", None, True),
    ],
)
def test_thresholds(kind: str, threshold: float | None, fits: bool) -> None:
    if fits:
        check_threshold(threshold, ScoreKind(kind))
    else:
        with pytest.raises(UsageError, match="--threshold"):
            check_threshold(threshold, ScoreKind(kind))


def test_all_labels_that_reach_a_threshold_have_room() -> None:
    def shape(kind: str, top_k: int | None, threshold: float | None) -> tuple[int, tuple[str, ...]]:
        found = record_shape(ScoreKind(kind), 80, top_k, threshold=threshold, columns=("width",))
        return found.top_k, found.columns

    assert shape("softmax", None, 0.1) == (5, ("width",))
    assert shape("sigmoid", None, 0.1) == (80, ("width", "scores"))
    assert shape("sigmoid", None, None) == (5, ("width", "scores"))
    assert shape("sigmoid", 3, 0.1) == (3, ("width", "scores"))
    assert shape("raw", 99, 0.1) == (80, ("width", "scores"))
