"""The tables of an evaluation: accuracy, labels, confusions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cvt_cli.evaluation.metrics import Evaluation, LabelFigures, UnknownLabel
from cvt_cli.evaluation.ranking import LEAST_SCORE, RankedEvaluation
from cvt_cli.output.report_tables import Cell, Column, Report, Section
from cvt_cli.records import as_written
from cvt_cli.system.text import counted

# Rows shown to people; documents have all rows.
MAX_CONFUSIONS = 10
MAX_LABELS = 50

_LABEL_COLUMNS = (
    Column("label", wraps=True),
    Column("images", right=True),
    Column("precision", right=True),
    Column("recall", right=True),
)
_RANKED_COLUMNS = (
    *_LABEL_COLUMNS[:2],
    Column("average precision", right=True),
    *_LABEL_COLUMNS[2:],
)
_CONFUSION_COLUMNS = (
    Column("label", wraps=True),
    Column("taken for", wraps=True),
    Column("images", right=True),
)


def evaluation_report(evaluation: Evaluation, run: Mapping[str, Any]) -> Report:
    """Build the report of an evaluation: summary, labels and confusions; its CSV has a row per
    label.

    Args:
        run: what the figures were measured with.
    """
    labels = [_label_values(each) for each in evaluation.labels]
    document = {
        "count": evaluation.count,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "ece": evaluation.ece,
        "labels": labels,
        "confusions": [asdict(confusion) for confusion in evaluation.confusions],
        **_left_out(evaluation),
        "run": dict(run),
    }
    return Report(document, labels, lambda width: list(_sections(evaluation)))


def _label_values(figures: LabelFigures, **own: float | None) -> dict[str, str | float | None]:
    """Return the figures of a label as JSON has them, with those of its kind of evaluation."""
    return {
        "label": figures.label,
        "index": figures.index,
        "count": figures.count,
        **own,
        "predicted": figures.predicted,
        "correct": figures.correct,
        "precision": figures.precision,
        "recall": figures.recall,
    }


def _left_out(evaluation: Evaluation | RankedEvaluation) -> dict[str, list[dict[str, Any]]]:
    """Return what is not in the figures: images with labels unknown to the model, and errors."""
    return {
        "unknown": [asdict(unknown) for unknown in evaluation.unknown],
        "errors": [
            {"path": as_written(record.path), "error": record.error} for record in evaluation.errors
        ],
    }


def _sections(evaluation: Evaluation) -> Iterator[Section]:
    figures: list[tuple[str, str]] = [
        ("images", str(evaluation.count)),
        ("top-1 accuracy", f"{evaluation.top1:.2%}"),
        ("top-5 accuracy", f"{evaluation.top5:.2%}"),
        ("expected calibration error", f"{evaluation.ece:.4f}"),
    ]
    if evaluation.errors:
        figures.append(("could not be read", str(len(evaluation.errors))))
    yield Section("", (Column(), Column(right=True)), figures)
    # If there are many labels, the worst ones are the ones to look at.
    by_recall = sorted(evaluation.labels, key=_recall)
    shown = evaluation.labels if len(by_recall) <= MAX_LABELS else by_recall[:MAX_LABELS]
    lowest = f"Labels of the lowest recall, of {len(by_recall)}"
    title = "Labels" if len(by_recall) <= MAX_LABELS else lowest
    yield Section(title, _LABEL_COLUMNS, [_row(each) for each in shown])
    confusions = evaluation.confusions
    if confusions:
        rows = [(c.label, c.predicted, str(c.count)) for c in confusions[:MAX_CONFUSIONS]]
        more = len(confusions) - len(rows)
        note = f"{counted(more, 'more pair')}, all of them in JSON" if more else ""
        yield Section("Most confused", _CONFUSION_COLUMNS, rows, note=note)
    yield from _unknown(evaluation.unknown)


def ranked_report(evaluation: RankedEvaluation, run: Mapping[str, Any]) -> Report:
    """Build the report of an evaluation of several labels at once."""
    labels = [
        _label_values(each, average_precision=each.average_precision) for each in evaluation.labels
    ]
    document = {
        "count": evaluation.count,
        "mean_average_precision": evaluation.mean_average_precision,
        "labels": labels,
        **_left_out(evaluation),
        "run": dict(run),
    }
    return Report(document, labels, lambda width: list(_ranked_sections(evaluation)))


def _ranked_sections(evaluation: RankedEvaluation) -> Iterator[Section]:
    measured = [each for each in evaluation.labels if each.average_precision is not None]
    figures: list[tuple[str, str]] = [
        ("images", str(evaluation.count)),
        ("mean average precision", f"{evaluation.mean_average_precision:.2%}"),
        ("over", counted(len(measured), "label")),
    ]
    if evaluation.errors:
        figures.append(("could not be read", str(len(evaluation.errors))))
    yield Section("", (Column(), Column(right=True)), figures)
    shown, title = measured, "Labels"
    if len(measured) > MAX_LABELS:
        by_precision = sorted(measured, key=lambda each: each.average_precision or 0.0)
        shown, title = by_precision[:MAX_LABELS], f"Labels that rank worst, of {len(measured)}"
    rows = [(each.label, str(each.count), _share(each.average_precision),
             _share(each.precision), _share(each.recall)) for each in shown]  # fmt: skip
    note = f"precision and recall: of scores from {LEAST_SCORE:.0%} on"
    yield Section(title, _RANKED_COLUMNS, rows, note=note)
    yield from _unknown(evaluation.unknown)


def _unknown(unknown: Sequence[UnknownLabel]) -> Iterator[Section]:
    if unknown:
        yield Section(
            "Unknown labels, not counted",
            (Column("label", wraps=True), Column("images", right=True), Column("why", wraps=True)),
            [(each.label, str(each.count), each.reason) for each in unknown],
        )


def _recall(figures: LabelFigures) -> float:
    return 2.0 if figures.recall is None else figures.recall


def _row(figures: LabelFigures) -> tuple[Cell, ...]:
    return (
        figures.label,
        str(figures.count),
        _share(figures.precision),
        _share(figures.recall),
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
