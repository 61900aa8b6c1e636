"""Metrics of a model on labelled images, from records and the true classes."""

import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import InputsError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.label_table import locate, metadata_in, named_images, read_label_table
from cvt_cli.images.source import Search, Source, kind_of_archive
from cvt_cli.images.split_folders import find_split, label_folders
from cvt_cli.inference.calibration import Calibration
from cvt_cli.inference.label_groups import LabelGroups
from cvt_cli.inference.labels import LabelMatcher
from cvt_cli.records import Record
from cvt_cli.system.text import counted, visible

TOP_K = 5
# Digits that any class index has, at most.
_INDEX_DIGITS = 18


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
        raise _no_folder(folder)
    train, val = find_split(folder) or (folder, None)
    if val is not None:
        raise UsageError(
            f"{folder}: its sub-folders are no labels, but {train.name} and {val.name}",
            hint=f"did you mean {val}?",
        )
    labelled = [
        LabelledSource(source, path.name)
        for path in label_folders(folder)
        for source in find([str(path)])
        if source.path != str(path)
    ]
    if not labelled:
        hint = "each class is a sub-folder named by its label; or --labels names a CSV file"
        metadata = metadata_in(folder)
        if metadata is not None:
            hint = f"did you mean --labels {shlex.quote(str(metadata))}?"
        raise UsageError(f"{folder}: no images in sub-folders", hint=hint)
    # Only this folder, not its sub-folders: images beside those have no class.
    here = find([str(folder)], Search(recursive=False))
    loose = sum(source.path != str(folder) for source in here)
    if loose:
        images = "1 image lies" if loose == 1 else f"{loose} images lie"
        warnings.warn(f"{images} in no sub-folder of {folder}: not counted", stacklevel=2)
    return labelled


def from_table(folder: Path, table: Path) -> list[LabelledSource]:
    """List the images that a table names, in its order; see `read_label_table`.

    Args:
        folder: what the paths are relative to.
        table: has the columns `path` and `label`, or others that tell them. A row without a label
            is of an image that has none.

    Raises:
        UsageError: if it can't be read as that, or names no image, or none that is there.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    rows = read_label_table(table)
    labelled = [
        LabelledSource(source, row.label, row.where)
        for row, path in zip(rows, locate(folder, rows, table), strict=True)
        for source in named_images(str(path))
    ]
    # One that is repeated is not to count twice.
    once: dict[tuple[str, str], LabelledSource] = {}
    for each in labelled:
        once.setdefault((each.source.path, each.label), each)
    repeated = len(labelled) - len(once)
    if repeated:
        warnings.warn(
            f"{table}: {counted(repeated, 'row')} as an earlier one: left out", stacklevel=2
        )
    return [*once.values()]


def _no_folder(folder: Path) -> UsageError:
    """Make the error for something in place of a folder of images."""
    if not folder.exists():
        return UsageError(f"{folder}: no such folder")
    if kind_of_archive(str(folder)) is not None:
        return UsageError(
            f"{folder}: an archive, and labels are read from folders or --labels",
            hint="unpack it first",
        )
    return UsageError(
        f"{folder}: a file, not a folder",
        hint=f"cvt evaluate FOLDER --labels {shlex.quote(str(folder))}, with the folder that its "
        "paths are relative to",
    )


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
        UsageError: if an image has no label or two, or none is known.
    """
    for each in labelled:
        if not each.label:
            raise UsageError(f"{each.where}: without a label")
    indexes, unknown = find_labels(labelled, labels, model, groups=groups)
    known: dict[str, tuple[Source, int]] = {}
    for each in labelled:
        if each.label not in indexes:
            continue
        index = indexes[each.label]
        # By two names for one label it is still one image.
        _, other = known.setdefault(each.source.path, (each.source, index))
        if other != index:
            raise UsageError(
                f"{each.source.path} has two labels: '{labels[other]}' and '{labels[index]}'",
                hint="the model gives one to each image",
            )
    return [*known.values()], unknown


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
    names = {each.label for each in labelled}
    as_index = "#" if groups is None and _are_indexes(names, matcher, labels) else ""
    for name in names:
        group = groups.find(name) if groups is not None else None
        index = matcher.find(as_index + name) if group is None else group
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


def _are_indexes(names: set[str], matcher: LabelMatcher, labels: Sequence[str]) -> bool:
    """Tell whether labels are class indexes: numbers, none of which is a label of the model. Warns
    then.

    Raises:
        UsageError: if they count from 1.
    """
    names = names - {""}
    if not all(each.isascii() and each.isdigit() for each in names):
        return False
    if any(map(matcher.classes, names)):
        return False
    numbers = sorted(int(each) for each in names if len(each) <= _INDEX_DIGITS)
    if not numbers:
        return False
    count = len(labels)
    if numbers[0] == 1 and numbers[-1] == count:
        hint = "subtract 1 from each"
        if matcher.is_imagenet:
            hint += "; the numbers of ImageNet's development kit have another order: take the "
            hint += "WordNet ids of LOC_val_solution.csv, or of sub-folders"
        raise UsageError(
            f"the labels are numbers from 1 to {count}, and class indexes begin with 0", hint=hint
        )
    first = next((each for each in numbers if each < count), None)
    if first is None:
        return False
    warnings.warn(
        f"taking labels that are numbers for class indexes, as {first} for "
        f"'{visible(labels[first])}'",
        stacklevel=4,
    )
    return True


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
