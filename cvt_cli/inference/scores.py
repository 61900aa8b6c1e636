"""Scores: softmax, sigmoid or raw logits, by the rules of Transformers' image-classification
pipeline."""

import math
from typing import TYPE_CHECKING

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import UsageError
from cvt_cli.records import RecordShape, ScoreKind

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TOP_K = 5


def kind_of(checkpoint: Checkpoint) -> ScoreKind:
    """Choose softmax, sigmoid or raw for a checkpoint: raw for a regression, whatever its number of
    logits; sigmoid for several labels at once, or a single one; softmax for all others."""
    if checkpoint.problem_type == "regression":
        return ScoreKind.RAW
    if checkpoint.problem_type == "multi_label_classification" or len(checkpoint.labels) == 1:
        return ScoreKind.SIGMOID
    return ScoreKind.SOFTMAX


def scores_of(logits: "Tensor", kind: ScoreKind) -> "Tensor":
    """Turn logits into scores.

    Args:
        logits: (B, labels), of any floating dtype: those of the labels to choose from.
        kind: softmax, sigmoid or raw.

    Returns:
        (B, labels) float32 on the same device. NaN where a logit is not finite.
    """
    logits = logits.float()
    if kind is ScoreKind.SOFTMAX:
        return logits.softmax(dim=-1)
    if kind is ScoreKind.SIGMOID:
        # An overflow is not certainty: softmax turns it into NaN, but sigmoid into 0 or 1.
        return logits.sigmoid().where(logits.isfinite(), math.nan)
    return logits


def check_threshold(threshold: float | None, kind: ScoreKind, option: str = "--threshold") -> None:
    """Check that a threshold lies within the range of the scores.

    Args:
        threshold: None for none.
        option: what it is called.

    Raises:
        UsageError: if it is not a number, or not in the range of the scores.
    """
    if threshold is None:
        return
    if not math.isfinite(threshold):
        raise UsageError(f"{option} {threshold}: not a number that a score can reach")
    if kind.is_share and not 0 <= threshold <= 1:
        raise UsageError(f"{option} {threshold:g}: the scores here are from 0 to 1")


def record_shape(
    kind: ScoreKind,
    num_labels: int,
    top_k: int | None,
    *,
    threshold: float | None,
    columns: tuple[str, ...] = (),
) -> RecordShape:
    """Return the shape of a run's records. Scores other than the usual softmax are named in each
    record, since a CSV has no other place to say what they are.

    Args:
        num_labels: to choose from.
        top_k: what was asked for; None for what suits: several labels at once that reach a
            threshold are all kept.
        threshold: the least score of a prediction; None for none.
        columns: the facts that were asked for, out of `records.COLUMNS`.

    Raises:
        UsageError: as `check_threshold`.
    """
    check_threshold(threshold, kind)
    shown, is_brief = columns, False
    if top_k is None:
        keeps_all = kind is ScoreKind.SIGMOID and threshold is not None
        is_brief = not keeps_all
        top_k = num_labels if keeps_all else DEFAULT_TOP_K
    if kind is not ScoreKind.SOFTMAX and "scores" not in columns:
        columns = (*columns, "scores")
    shape = RecordShape(top_k, columns, shown=shown, is_brief=is_brief)
    return shape.for_labels(num_labels)
