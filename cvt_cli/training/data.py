"""Samples become batches of uint8 pixels."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from cvt_cli.errors import ImageError
from cvt_cli.images.decode import decode
from cvt_cli.images.find import Source
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.system.cores import DECODE_THREADS
from cvt_cli.training.dataset import Sample

CPU = torch.device("cpu")
# Batches being decoded while one is trained on.
PREFETCH = 3
# Resized images that take up to this many bytes are decoded once and kept; on a GPU those that
# take up to a quarter of its free memory.
CACHE_BYTES = 2**30


class Images:
    """The pixels of samples, as a preprocessing makes them.

    Where all of them fit into the device's memory, or into `CACHE_BYTES`, they are decoded on the
    first use only; else each time, in threads, ahead of their use. What can't be read is left out
    of its batch.

    Args:
        preprocessing: makes images of one size.
        errors: gets the path and the reason of each image that can't be read.
        device: keeps the images, if it is a GPU with room for them.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        errors: dict[str, str],
        *,
        device: torch.device = CPU,
    ) -> None:
        if preprocessing.image_size is None:
            raise ValueError("the preprocessing makes images of differing sizes")
        self.samples = samples
        self._errors = errors
        self._preprocessing = preprocessing
        self._targets = torch.tensor([sample.target for sample in samples])
        self._shape = (*preprocessing.image_size, 3)
        place = _place(len(samples) * math.prod(self._shape), device)
        self._cache: Tensor | None = None
        if place is not None:
            self._cache = torch.empty(len(samples), *self._shape, dtype=torch.uint8, device=place)
            self._targets = self._targets.to(place)
        self._is_cached = torch.zeros(len(samples), dtype=torch.bool)

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (B, H, W, 3) uint8 and class indexes (B,) int64 of each batch of sample indexes,
        in order. B is smaller, possibly 0, where images could not be read."""
        if self._cache is not None and self._is_cached.all():
            yield from (
                (self._cache[chosen], self._targets[chosen]) for chosen in self._near(order)
            )
            return
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

    def _near(self, order: Iterable[Tensor]) -> Iterator[Tensor]:
        """The indexes, beside the images."""
        return (indexes.to(self._targets.device, non_blocking=True) for indexes in order)

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

    def _read(self, source: Source) -> "np.ndarray | str":
        try:
            with source.open() as file:
                # A copy: Pillow's own buffer is read-only.
                return np.array(self._preprocessing.pixels(decode(file)))
        except (ImageError, OSError, MemoryError) as error:
            return str(error) or "out of memory"


def _place(size: int, device: torch.device) -> torch.device | None:
    """Choose where so many bytes of pixels are kept: on the GPU, in main memory, or not at all."""
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4:
        return device
    return CPU if size <= CACHE_BYTES else None
