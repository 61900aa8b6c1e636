"""Datasets: folders of images become samples with class indexes. Imports no torch, so that faults
of a folder are reported at once."""

import csv
import json
import random
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cvt_cli.errors import UsageError
from cvt_cli.images.find import find
from cvt_cli.images.label_table import locate, metadata_in, named_images, read_label_table
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Source, kind_of_archive
from cvt_cli.images.split_folders import find_split, label_folders, left_out
from cvt_cli.output.read_back import read_rows
from cvt_cli.system.text import counted

MIN_CLASSES = 2
# Where `cvt sort` puts files without a label.
NO_CLASS = "_uncertain"
# Folders for training and validation that go without saying.
_USUAL = {"train", "val", "test"}
# Names in a message, at most.
_MOST_NAMES = 5
# What every record has that a run wrote, as columns or as keys.
_COLUMNS_OF_A_RUN = {"path", "label", "score"}
_KEYS_OF_A_RUN = {"path", "predictions"}
# Bytes to tell by whose a table is.
_MOST_OF_A_LINE = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file and its class index."""

    source: Source
    target: int


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and to validate on, and the label of each class index."""

    labels: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


def find_dataset(
    folder: Path, val_fraction: float | None, seed: int, *, needs_val: bool = True
) -> Dataset:
    """List a folder in the ImageFolder convention; no image is opened.

    Args:
        folder: has `train/` and `val/` (or `test/`), each with a sub-folder for each class; or
            has the classes' sub-folders itself.
        val_fraction: share of each class's training images that is set aside for validation, 0
            to below 1. None: `val/` is the validation set.
        seed: decides which images those are.
        needs_val: whether there has to be a validation set where no share is named.

    Raises:
        UsageError: if there are fewer than two classes, a class without an image, a validation
            class that training does not have, or no validation set that is needed.
    """
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder or file of labels")
    if folder.is_file() and kind_of_archive(str(folder)) not in (None, "parquet"):
        raise UsageError(
            f"{folder}: an archive, and labels are read from folders or tables",
            hint="unpack it first",
        )
    split = find_split(folder) if folder.is_dir() else None
    whole = split is None
    train_folder, val_folder = split or (folder, None)
    classes = find_classes(train_folder) if folder.is_dir() else read_classes(folder)
    if len(classes) < MIN_CLASSES:
        raise UsageError(
            f"{train_folder}: {len(classes) or 'no'} "
            f"class{'' if len(classes) == 1 else 'es'}, at least two are needed",
            hint=_hint_for_too_few(train_folder),
        )
    if split is not None:
        _tell_left_out(folder, split)
    labels = tuple(classes)
    samples = [
        Sample(source, target) for target, label in enumerate(labels) for source in classes[label]
    ]
    if val_fraction is not None:
        return Dataset(labels, *_split(samples, val_fraction, seed))
    if whole:
        if not needs_val:
            return Dataset(labels, tuple(samples), ())
        raise UsageError(
            f"{folder}: has no train/ and val/" if folder.is_dir() else f"{folder}: no val/ there",
            hint="--val-fraction 0.1 sets a tenth of the images aside for validation",
        )
    if val_folder is None:
        if not needs_val:
            return Dataset(labels, tuple(samples), ())
        raise UsageError(
            f"{folder}: has no val/ or test/ beside {train_folder.name}/",
            hint="--val-fraction 0.1 sets a tenth of the training images aside for validation",
        )
    val_classes = find_classes(val_folder)
    unknown = [label for label in val_classes if label not in classes]
    if unknown:
        raise UsageError(f"{val_folder}: training has no class named {', '.join(unknown[:5])}")
    if {train_folder.name, val_folder.name} - _USUAL:
        warnings.warn(f"training on {train_folder}, validating on {val_folder}", stacklevel=2)
    index = {label: target for target, label in enumerate(labels)}
    val = [Sample(source, index[name]) for name, found in val_classes.items() for source in found]
    return Dataset(labels, tuple(samples), tuple(val))


def _tell_left_out(folder: Path, split: tuple[Path, Path | None]) -> None:
    """Warn of folders of images beside those of a split: they may be labels, and `train` one."""
    names = [
        path.name
        for path in left_out(folder, split)
        if any(each.error is None for each in find([str(path)], skipped=Skipped()))
    ]
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        warnings.warn(
            f"{folder}: left out: {', '.join(names[:_MOST_NAMES])}{more}: labels are read from "
            f"{split[0].name}/",
            stacklevel=3,
        )


def _hint_for_too_few(folder: Path) -> str:
    """Say what a folder without classes may be instead."""
    if not folder.is_dir():
        return "each label in the file is a class"
    inner = label_folders(folder)
    if len(inner) == 1 and (find_split(inner[0]) or len(label_folders(inner[0])) >= MIN_CLASSES):
        return f"did you mean {inner[0]}?"
    metadata = metadata_in(folder)
    if metadata is not None:
        return f"did you mean {metadata}?"
    return "each class is a sub-folder of images, named by its label"


def find_classes(folder: Path) -> dict[str, list[Source]]:
    """List the images of each sub-folder, both sorted by name. Hidden sub-folders are left out.

    Raises:
        UsageError: if a sub-folder has no image.
    """
    classes: dict[str, list[Source]] = {}
    for path in label_folders(folder):
        if path.name == NO_CLASS:
            warnings.warn(f"{path}: files without a label: left out", stacklevel=2)
            continue
        sources = [source for source in find([str(path)]) if source.path != str(path)]
        if not sources:
            raise UsageError(f"{path}: a class without images")
        # In composed form, as people type it: macOS decomposes accents.
        classes.setdefault(unicodedata.normalize("NFC", path.name), []).extend(sources)
    return classes


def read_classes(path: Path) -> dict[str, list[Source]]:
    """List the images of each label in a file: one that a run or a report wrote, or another table
    of labels (see `read_label_table`); labels sorted. Warns of images without a label.

    Raises:
        UsageError: if it can't be read as that, or an image has two labels.
    """
    classes: dict[str, list[Source]] = {}
    labels: dict[str, str] = {}
    without: set[str] = set()
    repeated = 0
    here = Path.cwd()
    for image, named, where in _others(path) if _is_others(path) else _of_a_run(path):
        label = unicodedata.normalize("NFC", named)
        if not label:
            without.add(str(PurePath(here, image)))
            continue
        for source in named_images(image):
            key = str(PurePath(here, source.path))
            other = labels.get(key)
            if other is None:
                labels[key] = label
                classes.setdefault(label, []).append(source)
            elif other == label:
                repeated += 1
            else:
                raise UsageError(
                    f"{where}: {image} has two labels: '{other}' and '{label}'",
                    hint="cvt train learns one label for each image",
                )
    if repeated:
        warnings.warn(
            f"{path}: {counted(repeated, 'row')} as an earlier one: left out", stacklevel=2
        )
    missing = len(without - labels.keys())
    if missing:
        warnings.warn(
            f"{path}: {counted(missing, 'image')} without a label: left out", stacklevel=2
        )
    return {label: classes[label] for label in sorted(classes)}


def _of_a_run(path: Path) -> Iterator[tuple[str, str, str]]:
    for record in read_rows(path):
        labelled = record.predictions and record.error is None
        yield record.path, record.predictions[0].label.strip() if labelled else "", str(path)


def _is_others(path: Path) -> bool:
    """Tell whether a table is not one that a run or a report wrote."""
    suffix = path.suffix.lower()
    if suffix in (".txt", ".jsonl", ".ndjson"):
        return suffix == ".txt" or not _keys(path) >= _KEYS_OF_A_RUN
    if suffix not in (".csv", ".tsv"):
        return False
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","), [])
    except (OSError, ValueError, csv.Error):
        names = []
    named = [name for name in names if name]
    return not {*named} >= _COLUMNS_OF_A_RUN or len({*named}) < len(named)


def _keys(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            line = file.readline(_MOST_OF_A_LINE)
            while line and not line.strip():
                line = file.readline(_MOST_OF_A_LINE)
        first = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return _KEYS_OF_A_RUN  # reading it reports the error
    return {*first} if isinstance(first, dict) else set()


def _others(path: Path) -> Iterator[tuple[str, str, str]]:
    """Read image, label and line from a table. Its paths are relative to the current folder, or
    that of the table, or a folder there of the table's name (Kaggle's `train.csv` and `train/`):
    the first that has the first image.

    Raises:
        UsageError: as `read_label_table` and `locate` do.
    """
    rows = read_label_table(path)
    here = Path()
    for folder in (here, path.parent, path.parent / path.stem):
        try:
            locate(folder, rows[:1], path)
        except UsageError:
            continue
        if folder != here:
            warnings.warn(f"{path}: its paths are relative to {folder}", stacklevel=2)
        break
    else:
        folder = here
    for row, image in zip(rows, locate(folder, rows, path), strict=True):
        yield str(image), row.label, row.where


def _split(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Take the same share of every class: at least one image if the fraction is not 0, but never
    all."""
    by_class: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        by_class.setdefault(sample.target, []).append(index)
    chooser = random.Random(seed)
    chosen: set[int] = set()
    for indexes in by_class.values():
        count = max(1, round(fraction * len(indexes))) if fraction else 0
        chosen.update(chooser.sample(indexes, min(count, len(indexes) - 1)))
    train = tuple(sample for index, sample in enumerate(samples) if index not in chosen)
    return train, tuple(samples[index] for index in sorted(chosen))
