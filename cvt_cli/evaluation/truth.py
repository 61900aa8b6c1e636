"""Evaluation of labels that a run wrote, by the right ones."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from cvt_cli.errors import UsageError
from cvt_cli.evaluation.metrics import Evaluation, compute_metrics
from cvt_cli.records import Prediction, Record, short_label
from cvt_cli.system.text import counted, visible

# In place of a label, where there is none: "none of these" in corrections, or below a threshold.
NO_LABEL = "(none)"


def compare_rows(labels: Iterable[Record], truth: Iterable[Record]) -> Evaluation:
    """Compare the labels of images with the right ones, path by path. Warns of images that only one
    of the two has; they are not counted. A label and the first of its synonyms, which folders are
    named by, are the same where only one of the two is a label of the run; a warning says so.

    Args:
        labels: what a run wrote.
        truth: the first label of each is the right one; without one, no label is right.

    Raises:
        InputsError: if no image in both could be read.
        UsageError: if no image is in both, or an image has two right labels.
    """
    right: dict[str, str] = {}
    for record in truth:
        label = record.predictions[0].label if record.predictions else NO_LABEL
        if right.setdefault(record.path, label) != label:
            raise UsageError(
                f"{record.path} has two right labels: '{right[record.path]}' and '{label}'"
            )
    judged = []
    unknown = 0
    for record in labels:
        if record.path in right:
            judged.append(record)
        else:
            unknown += 1
    missing = len(right) - len({record.path for record in judged})
    if not judged:
        raise UsageError(
            "no image is in both files", hint="paths must be written the same way in both"
        )
    if unknown:
        warnings.warn(f"no right label for {counted(unknown, 'image')}: not counted", stacklevel=2)
    if missing:
        warnings.warn(
            f"{counted(missing, 'image')} with a right label but no other: not counted",
            stacklevel=2,
        )
    right = _as_predicted(right, {each.label for each in chain(*(r.predictions for r in judged))})
    names = sorted(
        {*right.values(), *(each.label for record in judged for each in record.predictions)}
        | {NO_LABEL}
    )
    index = {name: number for number, name in enumerate(names)}
    return compute_metrics(
        (
            replace(
                record,
                predictions=tuple(
                    replace(each, index=index[each.label])
                    for each in record.predictions or (Prediction(NO_LABEL, 0.0, -1),)
                ),
            )
            for record in judged
        ),
        [index[right[record.path]] for record in judged],
        names,
    )


def _as_predicted(right: dict[str, str], labels: set[str]) -> dict[str, str]:
    """Name the right labels as the run does: `bullfrog` is `bullfrog, Rana catesbeiana`, and the
    other way round, unless the run has both, or several that begin so."""
    longer: dict[str, list[str]] = {}
    for label in labels:
        longer.setdefault(short_label(label), []).append(label)
    same = {}
    for label in {*right.values()} - labels - {NO_LABEL}:
        found = [short_label(label)] if short_label(label) in labels else longer.get(label, [])
        if len(found) == 1:
            same[label] = found[0]
    if same:
        label = min(same)
        warnings.warn(
            f"taking {counted(len(same), 'right label')} for synonyms in the other file, as "
            f"'{visible(label)}' for '{visible(same[label])}'",
            stacklevel=3,
        )
    return {path: same.get(label, label) for path, label in right.items()}
