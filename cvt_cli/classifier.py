"""Images become predictions: batches through the network, and the overlapped pipeline around it."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.devices import is_out_of_memory, pick_device, pick_dtype
from cvt_cli.errors import ImageError
from cvt_cli.images.decode import MAX_PIXELS, decode
from cvt_cli.images.find import Source, find
from cvt_cli.records import Prediction, Record

DEFAULT_TOP_K = 5
DEFAULT_BATCH_SIZE = 16
DECODE_THREADS = 4

ImageLike = str | Path | Image.Image


class Classifier:
    """A checkpoint on a device, ready to classify.

        classifier = Classifier("microsoft/cvt-13")
        classifier("cat.jpg", top_k=3).predictions[0].label

    Args:
        model: a name as `checkpoint.resolve` takes it, or a checkpoint already loaded.
        revision: branch, tag or commit hash on the Hub.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: "auto", "float32", "bfloat16" or "float16": what the network computes in.
        batch_size: images through the network at once. Halved for good if the device's memory
            does not hold so many.
        hidden_act: "gelu" or "quick_gelu" in place of the checkpoint's own activation.
        refresh, offline: as in `checkpoint.resolve`.
        max_pixels: width times height above which an image is refused.

    Raises:
        ModelError: if the checkpoint can't be had.
        UsageError: if this machine has no such device, or there is no such dtype.
    """

    def __init__(
        self,
        model: str | Checkpoint = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = DEFAULT_BATCH_SIZE,
        hidden_act: str | None = None,
        refresh: bool = False,
        offline: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if isinstance(model, str):
            model = load(resolve(model, revision, refresh, offline), hidden_act)
        self.checkpoint = model
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self._model = model.model().to(self.device, self.dtype)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each class index."""
        return self.checkpoint.labels

    def description(self) -> dict[str, object]:
        """What the predictions depend on, for a record of the run."""
        return {
            "model": self.checkpoint.name,
            "commit": self.checkpoint.files.commit,
            "weights_sha256": self.checkpoint.files.weights_digest(),
            "activation": self.checkpoint.config.hidden_act,
            "preprocessing": self.checkpoint.preprocessing.to_dict(),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }

    @overload
    def __call__(self, images: ImageLike, top_k: int = ...) -> Record: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[ImageLike], top_k: int = ...) -> list[Record]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], top_k: int = DEFAULT_TOP_K
    ) -> Record | list[Record]:
        """Classify one image or several: paths (of files; folders are walked) or Pillow images.

        Returns:
            A record for one image, a list of them for a sequence. What can't be read has an
            error in place of predictions.
        """
        if isinstance(images, ImageLike):
            return next(iter(self([images], top_k)))
        sources: list[Source | Image.Image] = []
        for image in images:
            sources += [image] if isinstance(image, Image.Image) else find([str(image)])
        return list(self.classify(sources, top_k))

    def classify(
        self, sources: Iterable[Source | Image.Image], top_k: int = DEFAULT_TOP_K
    ) -> Iterator[Record]:
        """One record for each source, in order.

        Images are decoded in threads while the network runs; a few batches are in memory at any
        time, however many sources there are.
        """
        for paths, images in self._batches(sources):
            good = [image for image in images if isinstance(image, np.ndarray)]
            predictions = iter(self._predictions(good, top_k))
            for path, image in zip(paths, images, strict=True):
                if isinstance(image, np.ndarray):
                    yield Record(path, next(predictions))
                else:
                    yield Record(path, error=str(image))

    def probabilities(self, images: Sequence[np.ndarray]) -> Tensor:
        """Softmax over the classes.

        Args:
            images: (H, W, 3) uint8 each, as `Preprocessing.pixels` makes them.

        Returns:
            (len(images), classes) float32 on the CPU.
        """
        result = torch.empty(len(images), len(self.labels))
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        for indexes in by_size.values():
            start = 0
            while start < len(indexes):
                chunk = indexes[start : start + self.batch_size]
                batch = np.stack([images[index] for index in chunk])
                try:
                    result[chunk] = self._forward(torch.from_numpy(batch))
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.batch_size == 1:
                        raise
                    self._halve_batch()
                else:
                    start += len(chunk)
        return result

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        x = self.checkpoint.preprocessing.normalize(batch.to(self.device))
        logits: Tensor = self._model(x.to(self.dtype))
        return logits.float().softmax(dim=-1).cpu()

    def _halve_batch(self) -> None:
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory: going on with batches of {self.batch_size} "
            f"(--batch-size {self.batch_size} avoids this)",
            stacklevel=2,
        )

    def _predictions(
        self, images: Sequence[np.ndarray], top_k: int
    ) -> list[tuple[Prediction, ...]]:
        if not images:
            return []
        scores, indexes = self.probabilities(images).topk(min(top_k, len(self.labels)))
        return [
            tuple(
                Prediction(self.labels[index], score, index)
                for score, index in zip(row_scores, row_indexes, strict=True)
            )
            for row_scores, row_indexes in zip(scores.tolist(), indexes.tolist(), strict=True)
        ]

    def _batches(
        self, sources: Iterable[Source | Image.Image]
    ) -> Iterator[tuple[list[str], list[np.ndarray | ImageError]]]:
        """Every `batch_size` sources, decoded: their paths and their pixels or errors.

        The last of a batch may be errors: a batch's members depend on the order of the sources
        only, so that a run which is taken up later computes the same batches.
        """
        batch_size = self.batch_size
        stream = iter(sources)
        pending: deque[tuple[str, Future[np.ndarray | ImageError]]] = deque()
        with ThreadPoolExecutor(DECODE_THREADS, "decode") as pool:
            try:
                while True:
                    # One batch for the network, one being decoded meanwhile.
                    for source in islice(stream, 2 * batch_size - len(pending)):
                        path = source.path if isinstance(source, Source) else ""
                        pending.append((path, pool.submit(partial(self._read, source))))
                    if not pending:
                        return
                    batch = [pending.popleft() for _ in range(min(batch_size, len(pending)))]
                    yield [path for path, _ in batch], [future.result() for _, future in batch]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, source: Source | Image.Image) -> np.ndarray | ImageError:
        try:
            if isinstance(source, Source):
                with source.open() as file:
                    image = decode(file, self.max_pixels)
            else:
                image = ImageOps.exif_transpose(source).convert("RGB")
            pixels = self.checkpoint.preprocessing.pixels(image)
            self.checkpoint.config.tokens(*pixels.shape[:2])
            return pixels
        except ImageError as error:
            return error
        except (ValueError, MemoryError) as error:
            return ImageError(str(error) or "out of memory")
