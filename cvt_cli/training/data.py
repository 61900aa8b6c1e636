"""Folders of images become samples, and samples become batches of uint8 pixels."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvt_cli.errors import ImageError, UsageError
from cvt_cli.images.decode import decode
from cvt_cli.images.find import Source, find
from cvt_cli.images.preprocess import Preprocessing

VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
DECODE_THREADS = 4
# Batches being decoded while one is trained on.
PREFETCH = 3
# Resized images that take up to this many bytes are decoded once and kept.
CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and its class index."""

    source: Source
    target: int


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and to validate on, and the label of each class index."""

    labels: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


def find_dataset(folder: Path, val_fraction: float | None, seed: int) -> Dataset:
    """List a folder in the ImageFolder convention; no image is opened.

    Args:
        folder: has `train/` and `val/` (or `test/`), each with a sub-folder for each class; or
            has the classes' sub-folders itself.
        val_fraction: share of each class's training images that is set aside for validation, 0
            to below 1. None: `val/` is the validation set.
        seed: decides which images those are.

    Raises:
        UsageError: if there are fewer than two classes, a class without an image, a validation
            class that training does not have, or no validation set.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    train_folder = folder / "train"
    whole = not train_folder.is_dir()
    classes = find_classes(folder if whole else train_folder)
    if len(classes) < 2:
        raise UsageError(
            f"{folder if whole else train_folder}: {len(classes) or 'no'} "
            f"class{'' if len(classes) == 1 else 'es'}, two are the least to tell apart",
            hint="a class is a sub-folder with its images, named by its label",
        )
    labels = tuple(classes)
    samples = [
        Sample(source, target) for target, label in enumerate(labels) for source in classes[label]
    ]
    if val_fraction is not None:
        return Dataset(labels, *_split(samples, val_fraction, seed))
    if whole:
        raise UsageError(
            f"{folder}: has no train/ and val/",
            hint="--val-fraction 0.1 sets a tenth of the images aside for validation",
        )
    val_folder = next((folder / n for n in VALIDATION_FOLDERS if (folder / n).is_dir()), None)
    if val_folder is None:
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
    """The images of each sub-folder, both sorted by name. Hidden sub-folders are left out.

    Raises:
        UsageError: if a sub-folder has no image.
    """
    classes = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.is_dir() or path.name.startswith("."):
            continue
        sources = [source for source in find([str(path)]) if source.path != str(path)]
        if not sources:
            raise UsageError(f"{path}: a class without images")
        classes[path.name] = sources
    return classes


def _split(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The same share of every class, at least one image if the fraction is not 0, never all."""
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


class Images:
    """The pixels of samples, as a preprocessing makes them.

    Where all of them fit into `CACHE_BYTES` they are decoded on the first use only; else each
    time, in threads, ahead of their use. What can't be read is left out of its batch.

    Args:
        preprocessing: makes images of one size.
        errors: gets the path and the reason of each image that can't be read.
    """

    def __init__(
        self, samples: Sequence[Sample], preprocessing: Preprocessing, errors: dict[str, str]
    ) -> None:
        if preprocessing.image_size is None:
            raise ValueError("the preprocessing makes images of differing sizes")
        self.samples = samples
        self._errors = errors
        self._preprocessing = preprocessing
        self._targets = torch.tensor([sample.target for sample in samples])
        self._shape = (*preprocessing.image_size, 3)
        cached = len(samples) * int(np.prod(self._shape)) <= CACHE_BYTES
        self._cache = torch.empty(len(samples), *self._shape, dtype=torch.uint8) if cached else None
        self._is_cached = torch.zeros(len(samples), dtype=torch.bool)

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (B, H, W, 3) uint8 and class indexes (B,) int64 of each batch of sample indexes,
        in order. B is smaller, possibly 0, where images could not be read."""
        with ThreadPoolExecutor(DECODE_THREADS, "decode") as pool:
            pending: deque[tuple[Tensor, list[tuple[int, Future[np.ndarray | str]]]]] = deque()
            try:
                for indexes in order:
                    pending.append((indexes, self._submit(pool, indexes)))
                    if len(pending) > PREFETCH:
                        yield self._collect(*pending.popleft())
                while pending:
                    yield self._collect(*pending.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, indexes: Tensor
    ) -> list[tuple[int, Future[np.ndarray | str]]]:
        unread = indexes[~self._is_cached[indexes]].tolist()
        return [(i, pool.submit(self._read, self.samples[i].source)) for i in unread]

    def _collect(
        self, indexes: Tensor, reads: list[tuple[int, "Future[np.ndarray | str]"]]
    ) -> tuple[Tensor, Tensor]:
        fresh = {}
        for index, future in reads:
            pixels = future.result()
            if isinstance(pixels, str):
                self._errors[self.samples[index].source.path] = pixels
            else:
                fresh[index] = torch.from_numpy(pixels)
        unreadable = {index for index, _ in reads} - fresh.keys()
        if unreadable:
            indexes = torch.tensor([i for i in indexes.tolist() if i not in unreadable]).long()
        if self._cache is not None:
            for index, image in fresh.items():
                self._cache[index] = image
                self._is_cached[index] = True
            return self._cache[indexes], self._targets[indexes]
        images = torch.empty(len(indexes), *self._shape, dtype=torch.uint8)
        for row, index in enumerate(indexes.tolist()):
            images[row] = fresh[index]
        return images, self._targets[indexes]

    def _read(self, source: Source) -> "np.ndarray | str":
        try:
            with source.open() as file:
                # A copy: Pillow's own buffer is read-only.
                return np.array(self._preprocessing.pixels(decode(file)))
        except (ImageError, OSError, MemoryError) as error:
            return str(error) or "out of memory"
