"""Judgements: truth and prediction of each image of an evaluation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cvt_cli.output.report_tables import Report
from cvt_cli.records import Prediction, Record, as_written

HEADER = ("path", "truth", "predicted", "score", "truth_score", "correct", "in_top_5", "error")


@dataclass(frozen=True, slots=True)
class Judgement:
    """An image, its true label and its predictions.

    Attributes:
        path: as the record has it.
        truth: the true class index.
        predictions: best first; empty if the image could not be read.
        error: why it could not be read.
        thumbnail: a small JPEG, for a page.
    """

    path: str
    truth: int
    predictions: tuple[Prediction, ...]
    error: str | None = None
    thumbnail: bytes | None = None

    @classmethod
    def of(cls, record: Record, truth: int) -> "Judgement":
        """Return the judgement of a record."""
        return cls(
            record.path,
            truth,
            record.predictions,
            error=record.error,
            thumbnail=record.thumbnail,
        )

    @property
    def is_correct(self) -> bool:
        """Whether the best label is the true one."""
        return bool(self.predictions) and self.predictions[0].index == self.truth

    @property
    def truth_score(self) -> float | None:
        """Return the score of the true label; None if it is not among the predictions."""
        return next((each.score for each in self.predictions if each.index == self.truth), None)


def worst_first(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Order images for people: mistakes first, by falling score, as sure mistakes tell most; then
    those that could not be read; then right ones, the least sure first."""

    def key(judgement: Judgement) -> tuple[int, float]:
        if not judgement.predictions:
            return 1, 0.0
        score = judgement.predictions[0].score
        return (2, score) if judgement.is_correct else (0, -score)

    return sorted(judgements, key=key)


def judgements_report(judgements: Sequence[Judgement], names: Sequence[str]) -> Report:
    """Build the table of one row per image, in the order of the evaluation.

    Args:
        names: the label of each class index.
    """
    rows: list[dict[str, Any]] = []
    for each in judgements:
        best = each.predictions[0] if each.predictions else None
        score = each.truth_score
        values = (
            as_written(each.path),
            names[each.truth],
            best.label if best else "",
            f"{best.score:.6f}" if best else "",
            "" if score is None else f"{score:.6f}",
            int(each.is_correct) if best else "",
            int(score is not None) if best else "",
            each.error or "",
        )
        rows.append(dict(zip(HEADER, values, strict=True)))
    return Report(rows, rows, lambda width: (), header=HEADER)
