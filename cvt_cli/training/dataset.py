"""Datasets: folders of images become samples with class indexes. Imports no torch, so that faults
of a folder are reported at once."""

import random
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.images.find import find
from cvt_cli.images.source import Source
from cvt_cli.output.read_back import read_rows
from cvt_cli.system.text import counted

MIN_CLASSES = 2
# Where `cvt sort` puts files without a label.
NO_CLASS = "_uncertain"
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


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
    train_folder = folder / "train"
    whole = not train_folder.is_dir()
    classes = (
        find_classes(folder if whole else train_folder) if folder.is_dir() else read_classes(folder)
    )
    if len(classes) < MIN_CLASSES:
        raise UsageError(
            f"{folder if whole else train_folder}: {len(classes) or 'no'} "
            f"class{'' if len(classes) == 1 else 'es'}, at least two are needed",
            hint="each class is a sub-folder of images, named by its label"
            if folder.is_dir()
            else "each label in the file is a class",
        )
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
    val_folder = next((folder / n for n in VALIDATION_FOLDERS if (folder / n).is_dir()), None)
    if val_folder is None:
        if not needs_val:
            return Dataset(labels, tuple(samples), ())
        raise UsageError(
            f"{folder}: has no val/ or test/ beside train/",
            hint="--val-fraction 0.1 sets a tenth of the training images aside for validation",
        )
    val_classes = find_classes(val_folder)
    unknown = [label for label in val_classes if label not in classes]
    if unknown:
        raise UsageError(f"{val_folder}: training has no class named {', '.join(unknown[:5])}")
    index = {label: target for target, label in enumerate(labels)}
    val = [Sample(source, index[name]) for name, found in val_classes.items() for source in found]
    return Dataset(labels, tuple(samples), tuple(val))


def find_classes(folder: Path) -> dict[str, list[Source]]:
    """List the images of each sub-folder, both sorted by name. Hidden sub-folders are left out.

    Raises:
        UsageError: if a sub-folder has no image.
    """
    classes: dict[str, list[Source]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.is_dir() or path.name.startswith("."):
            continue
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
    """List the images of each label in a file that a run or a report wrote, labels sorted. Warns
    of images without a label.

    Raises:
        UsageError: if it can't be read as that.
    """
    classes: dict[str, list[Source]] = {}
    without = 0
    for record in read_rows(path):
        if record.predictions and record.error is None:
            label = unicodedata.normalize("NFC", record.predictions[0].label)
            classes.setdefault(label, []).extend(find([record.path]))
        else:
            without += 1
    if without:
        warnings.warn(
            f"{path}: {counted(without, 'image')} without a label: left out", stacklevel=2
        )
    return {label: classes[label] for label in sorted(classes)}


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
