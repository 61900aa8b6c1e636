"""Training data: samples become batches of uint8 pixels."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from cvt_cli.images.background import Colour
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Source
from cvt_cli.training.dataset import Sample

CPU = torch.device("cpu")
# Batches being decoded while one is trained on.
PREFETCH = 3
# Bytes of resized images up to which they are decoded once and kept; on a GPU up to a quarter of
# its free memory.
CACHE_BYTES = 2**30


class Images:
    """The pixels of samples, after preprocessing.

    Where all of them fit into the device's memory, or into `CACHE_BYTES`, they are decoded on the
    first use only; else each time, ahead of their use. What can't be read is left out
    of its batch.

    Args:
        preprocessing: makes images of one size.
        errors: gets the path and the reason of each image that can't be read.
        device: keeps the images, if it is a GPU with room for them.
        readers: processes that read; None for threads.
        background, accept_truncated: as in `ImageReader`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        errors: dict[str, str],
        *,
        device: torch.device = CPU,
        readers: ReaderPool | None = None,
        background: Colour | None = None,
        accept_truncated: bool = False,
    ) -> None:
        if preprocessing.image_size is None:
            raise ValueError("the preprocessing makes images of differing sizes")
        self.samples = samples
        self._errors = errors
        self._reader = ImageReader(
            None, preprocessing, background=background, accept_truncated=accept_truncated
        )
        self._reader.reduce_to = None  # augmentation would make it visible
        self._readers = readers
        self._targets = torch.tensor([sample.target for sample in samples])
        self._shape = (*preprocessing.image_size, 3)
        place = _place(len(samples) * math.prod(self._shape), device)
        self._cache: Tensor | None = None
        if place is not None:
            self._cache = torch.empty(len(samples), *self._shape, dtype=torch.uint8, device=place)
            self._targets = self._targets.to(place)
        self._is_cached = torch.zeros(len(samples), dtype=torch.bool)

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels (B, H, W, 3) uint8 and class indexes (B,) int64 for each batch of sample
        indexes, in order. B is smaller, possibly 0, if images could not be read."""
        if self._cache is not None and self._is_cached.all():
            yield from (
                (self._cache[chosen], self._targets[chosen]) for chosen in self._near(order)
            )
            return
        plan = [(indexes, indexes[~self._is_cached[indexes]].tolist()) for indexes in order]
        sources = (self.samples[index].source for _, unread in plan for index in unread)
        # One by one, with the images of some batches read ahead.
        ahead = PREFETCH * max((len(indexes) for indexes in order), default=1)
        with closing(self._read(sources, ahead)) as images:
            for indexes, unread in plan:
                yield self._collect(indexes, [(index, next(images)) for index in unread])

    def _read(self, sources: Iterable[Source], ahead: int) -> Generator[DecodedImage, None, None]:
        if self._readers is None:
            read = self._reader.batches(sources, 1, ahead=ahead)
        else:
            read = self._readers.batches(self._reader, sources, 1, ahead=ahead)
        for (image,) in read:
            yield image

    def _near(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """Move the indexes to the device of the images."""
        return (indexes.to(self._targets.device, non_blocking=True) for indexes in order)

    def _collect(
        self, indexes: Tensor, reads: list[tuple[int, DecodedImage]]
    ) -> tuple[Tensor, Tensor]:
        fresh = {}
        for index, image in reads:
            if image.pixels is None:
                self._errors[image.path] = image.error or ""
            else:
                # A copy, because Pillow's own buffer is read-only.
                fresh[index] = torch.from_numpy(np.array(image.pixels))
        unreadable = {index for index, _ in reads} - fresh.keys()
        if unreadable:
            indexes = torch.tensor([i for i in indexes.tolist() if i not in unreadable]).long()
        if self._cache is not None:
            if fresh:
                (places,) = self._near([torch.tensor(list(fresh))])
                self._cache[places] = torch.stack(list(fresh.values())).to(places.device)
                self._is_cached[list(fresh)] = True
            (chosen,) = self._near([indexes])
            return self._cache[chosen], self._targets[chosen]
        images = torch.empty(len(indexes), *self._shape, dtype=torch.uint8)
        for row, index in enumerate(indexes.tolist()):
            images[row] = fresh[index]
        return images, self._targets[indexes]


def _place(size: int, device: torch.device) -> torch.device | None:
    """Choose where to keep this many bytes of pixels: on the GPU, in main memory, or nowhere."""
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4:
        return device
    return CPU if size <= CACHE_BYTES else None
