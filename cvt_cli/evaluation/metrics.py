"""Metrics of a model on labelled images, from records and the true classes."""

import csv
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import InputsError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.source import Search, Source
from cvt_cli.inference.calibration import Calibration
from cvt_cli.inference.label_groups import LabelGroups
from cvt_cli.inference.labels import LabelMatcher
from cvt_cli.records import Record
from cvt_cli.system.text import reason_of

TOP_K = 5


@dataclass(frozen=True, slots=True)
class LabelledSource:
    """An image and its label, as a folder or a table gives it.

    Attributes:
        label: empty for none.
        where: the line of the table.
    """

    source: Source
    label: str
    where: str = ""


@dataclass(frozen=True)
class LabelFigures:
    """Figures of a class.

    Attributes:
        index: its class index.
        count: images of it.
        predicted: images taken for it.
        correct: images of it that were taken for it.
    """

    label: str
    index: int
    count: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """Share of right images among those taken for the class; None if there are none."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the class's images that were recognised; None if there are none."""
        return self.correct / self.count if self.count else None


@dataclass(frozen=True)
class Confusion:
    """Number of images of one class that were taken for another."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True)
class UnknownLabel:
    """A label that is not the model's: its images are not counted."""

    label: str
    count: int
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation.

    Attributes:
        count: images that were judged.
        top1, top5: share of them whose class was the first, or among the first five.
        ece: expected calibration error: the mean distance of the best score from the accuracy of
            images with such a score, 0 to 1.
        labels: the classes of which there are images or predictions, by class index.
        confusions: every pair of classes that were confused, most frequent first.
        unknown: names that mean no class of the model.
        errors: images that could not be read; not counted.
    """

    count: int
    top1: float
    top5: float
    ece: float
    labels: tuple[LabelFigures, ...]
    confusions: tuple[Confusion, ...]
    unknown: tuple[UnknownLabel, ...]
    errors: tuple[Record, ...]


def from_folders(folder: Path) -> list[LabelledSource]:
    """List the images of a folder with a sub-folder for each class, named by its label. Warns of
    images beside the sub-folders.

    Raises:
        UsageError: if there is no such folder, or no image in a sub-folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    labelled = [
        LabelledSource(source, path.name)
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.is_dir() and not path.name.startswith(".")
        for source in find([str(path)])
        if source.path != str(path)
    ]
    if not labelled:
        raise UsageError(
            f"{folder}: no images in sub-folders",
            hint="each class is a sub-folder named by its label; or --labels names a CSV file",
        )
    # Only this folder, not its sub-folders: images beside those have no class.
    here = find([str(folder)], Search(recursive=False))
    loose = sum(source.path != str(folder) for source in here)
    if loose:
        images = "1 image lies" if loose == 1 else f"{loose} images lie"
        warnings.warn(f"{images} in no sub-folder of {folder}: not counted", stacklevel=2)
    return labelled


def from_csv(folder: Path, table: Path) -> list[LabelledSource]:
    """List the images that a CSV file names, in its order.

    Args:
        folder: what the paths are relative to.
        table: has a header with the columns `path` and `label`. A row without a label is of an
            image that has none.

    Raises:
        UsageError: if it can't be read as that, or names no image.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise UsageError(f"{table}: its first line does not name the columns path,label")
            pairs = []
            for row in rows:
                where = f"{table}, line {rows.line_num}"
                if not row["path"]:
                    raise UsageError(f"{where}: without a path")
                pairs.append((row["path"], row["label"] or "", where))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{table}: not readable as CSV: {reason_of(error)}") from None
    if not pairs:
        raise UsageError(f"{table}: names no image")
    return [
        LabelledSource(source, label, where)
        for path, label, where in pairs
        for source in find([str(folder / path)])
    ]


def match(
    labelled: Sequence[LabelledSource],
    labels: Sequence[str],
    model: str,
    *,
    groups: LabelGroups | None = None,
) -> tuple[list[tuple[Source, int]], tuple[UnknownLabel, ...]]:
    """Give each image the class index of its label; images with unknown labels are left out.

    Args:
        labels: the model's.
        model: its name, for the advice.
        groups: the model's; None for none. A name may be a group's, or a label's in it.

    Raises:
        UsageError: if an image has no label, or none is known.
    """
    for each in labelled:
        if not each.label:
            raise UsageError(f"{each.where}: without a label")
    indexes, unknown = find_labels(labelled, labels, model, groups=groups)
    known = [(each.source, indexes[each.label]) for each in labelled if each.label in indexes]
    return known, unknown


def find_labels(
    labelled: Sequence[LabelledSource],
    labels: Sequence[str],
    model: str,
    *,
    groups: LabelGroups | None = None,
) -> tuple[dict[str, int], tuple[UnknownLabel, ...]]:
    """Find the class index of each label, and the labels that the model does not have.

    Args:
        labels: the model's.
        model: its name, for the advice.
        groups: the model's; None for none. A name means the group's class index then.

    Raises:
        UsageError: if no name is a label of the model.
    """
    matcher = LabelMatcher(labels)
    found: dict[str, int | str] = {}
    for name in {each.label for each in labelled}:
        group = groups.find(name) if groups is not None else None
        index = matcher.find(name) if group is None else group
        found[name] = groups.first[index] if groups and isinstance(index, int) else index
    counts = Counter(each.label for each in labelled)
    unknown = tuple(
        UnknownLabel(name, counts[name], reason)
        for name, reason in sorted(found.items())
        if isinstance(reason, str)
    )
    if len(unknown) == len(found):
        raise UsageError(
            f"none of the {len(found)} labels is the model's: {unknown[0].label}: "
            f"{unknown[0].reason}",
            hint="name the folder whose sub-folders are the labels, such as data/val; "
            f"`cvt inspect {shlex.quote(model)} --labels` lists the model's",
        )
    return {name: index for name, index in found.items() if isinstance(index, int)}, unknown


def compute_metrics(
    records: Iterable[Record],
    targets: Sequence[int],
    labels: Sequence[str],
    *,
    unknown: tuple[UnknownLabel, ...] = (),
) -> Evaluation:
    """Compare predictions with the truth.

    Args:
        records: one for each target, in order, each with `TOP_K` predictions or as many as the
            model has classes.
        targets: the true class indexes.
        labels: the model's.
        unknown: is passed on.

    Raises:
        InputsError: if no image could be read.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    in_top_k = 0
    calibration = Calibration()
    errors = []
    for record, target in zip(records, targets, strict=True):
        if record.error is not None:
            errors.append(record)
            continue
        best = record.predictions[0]
        pairs[target, best.index] += 1
        in_top_k += any(each.index == target for each in record.predictions[:TOP_K])
        calibration.add(best.score, best.index == target)
    count = sum(pairs.values())
    if count == 0:
        raise nothing_read(errors)
    wrong = [(n, pair) for pair, n in pairs.items() if pair[0] != pair[1]]
    return Evaluation(
        count=count,
        top1=sum(n for (target, index), n in pairs.items() if target == index) / count,
        top5=in_top_k / count,
        ece=calibration.error,
        labels=tuple(_label_figures(pairs, labels)),
        confusions=tuple(
            Confusion(labels[target], labels[index], n)
            for n, (target, index) in sorted(wrong, key=lambda item: (-item[0], item[1]))
        ),
        unknown=unknown,
        errors=tuple(errors),
    )


def nothing_read(errors: Sequence[Record]) -> InputsError:
    """Make the error of an evaluation in which no image could be read."""
    first = errors[0]
    of = f"none of {len(errors)} images could be read, for example " if len(errors) > 1 else ""
    return InputsError(f"{of}{first.path}: {first.error}")


def _label_figures(
    pairs: Counter[tuple[int, int]], labels: Sequence[str]
) -> Iterator[LabelFigures]:
    counts: Counter[int] = Counter()
    predicted: Counter[int] = Counter()
    for (target, index), n in pairs.items():
        counts[target] += n
        predicted[index] += n
    for index in sorted(counts.keys() | predicted.keys()):
        correct = pairs[index, index]
        yield LabelFigures(
            labels[index], index, counts[index], predicted=predicted[index], correct=correct
        )
