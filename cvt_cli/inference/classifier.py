"""The classifier: images become predictions in batches, while others are read."""

import copy
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.checkpoint.group_table import GroupedLabel
from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.images.background import Colour
from cvt_cli.images.decode import MAX_PIXELS
from cvt_cli.images.find import find
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Source
from cvt_cli.inference.batch_size import auto_batch_size, usual_size
from cvt_cli.inference.conditions import Conditions
from cvt_cli.inference.devices import pick_devices, pick_dtype, use_exact_float32
from cvt_cli.inference.label_groups import groups_of
from cvt_cli.inference.labels import pick_indexes
from cvt_cli.inference.network_runner import NetworkRunner
from cvt_cli.inference.scores import DEFAULT_TOP_K, kind_of, scores_of
from cvt_cli.model.form import Form
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.memory import is_out_of_memory
from cvt_cli.records import Prediction, Record

TOO_LARGE = "out of memory, by itself; --image-size gives all images one size"
NOT_FINITE = (
    "the network's scores are not numbers: NaN in its weights, or too large for its dtype, where "
    "--dtype float32 helps"
)
ImageLike = str | Path | Image.Image


class Classifier:
    """A checkpoint on a device, ready to classify.

        classifier = Classifier("microsoft/cvt-13")
        classifier("cat.jpg", top_k=3).predictions[0].label

    Args:
        model: a name as `checkpoint.resolve` takes it, or a checkpoint already loaded.
        revision: branch, tag or commit hash on the Hub.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; or several of them, "cuda:0,cuda:1", which
            share the batches of a run.
        dtype: "auto", "float32", "bfloat16" or "float16": what the network computes in.
        batch_size: images through the network at once; None for what suits the network and the
            device. Halved for good if the device's memory does not hold so many.
        hidden_act: "gelu" or "quick_gelu" in place of the checkpoint's own activation.
        refresh, offline, verify: as in `checkpoint.resolve`.
        max_pixels: width times height above which an image is refused.
        image_size: (height, width) in pixels of the network's input in place of the checkpoint's;
            its preprocessing is scaled to it.
        exact_decode: decode every pixel of a JPEG, and cut greys of 16 and 32 bits off at 255, as
            Transformers does. Else the decoder scales large JPEGs down, to no less than twice the
            size that they are resized to next, nor than a thumbnail, and such greys to 8 bits.
        background: red, green and blue, 0 to 255, of what lies behind transparent parts; None for
            the colours that are hidden there, as in Transformers.
        accept_truncated: use the readable part of a JPEG whose end is missing; the rest is grey.
        only: the labels to choose from, instead of all that the model knows, by name or class index
            as `pick_indexes` takes them: where scores are a softmax, it is over these.
        groups: labels that are one answer: "imagenet" or a file, as `group_table.read_groups` takes
            it; its rows; or a map from label to group. `LabelGroups` says what is made of their
            scores.
        class_names: labels by class index, in place of the checkpoint's own.
        weights_key: which network to take from a file that holds several.
        readers: processes that read images, so many or a pool of them, with bounds on time and
            memory for each image; None for threads of this process.
        form: of the network on a CPU, one that this machine can compute; None for the usual one.

    Attributes:
        reader: decodes for this network.
        score_kind: what makes scores of the model's logits.
        indexes: the class indexes of the labels that it chooses from.
        groups: the groups of labels; None for none.
        answers: the class indexes of what it answers with: `indexes`, or where there are groups one
            for each group and each label that stands for itself.
        names: what it calls each class index: the label, or its group.
        replicas: itself and its like, on this device and on others, which share a run's batches.

    Raises:
        ModelError: if the checkpoint can't be found or loaded.
        UsageError: if this machine has no such device, there is no such dtype, or the model knows
            no such label.
    """

    def __init__(  # noqa: PLR0913 (public: callers name the few that they want)
        self,
        model: str | Checkpoint = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | None = None,
        hidden_act: str | None = None,
        refresh: bool = False,
        offline: bool = False,
        max_pixels: int = MAX_PIXELS,
        image_size: tuple[int, int] | None = None,
        exact_decode: bool = False,
        background: tuple[int, int, int] | None = None,
        accept_truncated: bool = False,
        only: Sequence[str | int] = (),
        groups: str | Path | Mapping[str, str] | Sequence[GroupedLabel] | None = None,
        class_names: Sequence[str] | None = None,
        weights_key: str | None = None,
        verify: bool = False,
        readers: int | ReaderPool | None = None,
        form: Form | None = None,
    ) -> None:
        devices = pick_devices(device)
        self.device, *more = devices
        self.dtype = pick_dtype(dtype, self.device)
        use_exact_float32(self.device, self.dtype)
        if isinstance(model, str):
            files = resolve(
                model, revision, refresh, offline=offline, weights_key=weights_key, verify=verify
            )
            model = load(files, hidden_act, class_names)
        if image_size is not None:
            model = model.with_image_size(image_size)
        self.checkpoint = model
        self.score_kind = kind_of(model)
        batch_size = batch_size or auto_batch_size(model, self.device)
        self.max_pixels = max_pixels
        self.reader = ImageReader(
            model.config,
            model.preprocessing,
            max_pixels,
            exact_decode=exact_decode,
            background=None if background is None else Colour(background),
            accept_truncated=accept_truncated,
        )
        self.pool = ReaderPool(readers) if isinstance(readers, int) else readers
        if isinstance(readers, int) and self.pool is not None:
            weakref.finalize(self, self.pool.close)
        self.indexes = pick_indexes(only, model) if only else range(len(model.labels))
        self.groups = groups_of(groups, model)
        self.answers: Sequence[int] = self.indexes
        self.names = model.labels
        if self.groups is not None:
            self.answers, self.names = self.groups.answers(self.indexes), self.groups.names
        self._columns = torch.tensor(self.indexes, device=self.device)
        self._devices = ",".join(map(str, devices))
        if form is not None and form.threads is not None:
            torch.set_num_threads(form.threads)
        self._use(FusedCvt(model.model().to(self.device, self.dtype), form), batch_size)
        self.replicas = [self]
        if self.device.type == "cuda":
            self.replicas.append(self._twin())
        for each in more:
            self.replicas += Classifier(
                model,
                device=str(each),
                dtype=str(self.dtype).removeprefix("torch."),
                batch_size=batch_size,
                only=self.indexes if only else (),
                groups=groups,
            ).replicas

    def _use(self, network: FusedCvt, batch_size: int) -> None:
        self._runner = NetworkRunner(
            network,
            self.checkpoint.preprocessing,
            device=self.device,
            dtype=self.dtype,
            batch_size=batch_size,
            usual_size=usual_size(self.checkpoint),
        )

    @property
    def batch_size(self) -> int:
        """Images through the network at once, the same for all devices at first."""
        return self._runner.batch_size

    @batch_size.setter
    def batch_size(self, count: int) -> None:
        self._runner.batch_size = count

    @property
    def form(self) -> Form:
        """The form of the network."""
        return self._runner.network.form

    def use_form(self, form: Form) -> None:
        """Compute in another form from now on, on the CPU. The threads are those of the whole
        process.

        Args:
            form: one that this machine can compute.

        Raises:
            ModelError: if the weights can't be read once more.
        """
        if form.threads is not None:
            torch.set_num_threads(form.threads)
        if form == self.form:
            return
        network = FusedCvt(self.checkpoint.model().to(self.device, self.dtype), form)
        for each in self.replicas:
            if each.device.type == "cpu":
                each._use(network, each.batch_size)

    def _twin(self) -> "Classifier":
        """Make a copy with the same weights on the same device, on a stream of its own: while one
        computes, the other's batch is copied."""
        twin = copy.copy(self)
        twin._use(self._runner.network, self.batch_size)
        return twin

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels by class index."""
        return self.checkpoint.labels

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.checkpoint.config.embed_dim[-1]

    def description(self, digest: bool = True) -> dict[str, object]:
        """Return the facts that predictions depend on; see `Conditions.facts`."""
        conditions = Conditions(
            checkpoint=self.checkpoint,
            reader=self.reader,
            device=self._devices,
            dtype=str(self.dtype).removeprefix("torch."),
            batch_size=self.batch_size,
            only=[self.labels[index] for index in self.indexes]
            if len(self.indexes) < len(self.labels)
            else None,
            form=self.form if self.device.type == "cpu" else None,
        )
        return conditions.facts(digest=digest) | {"groups": self.groups and self.groups.digest()}

    @overload
    def __call__(self, images: Image.Image, top_k: int = ...) -> Record: ...
    @overload
    def __call__(self, images: str | Path, top_k: int = ...) -> Any: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], top_k: int = ...) -> list[Record]: ...
    def __call__(self, images: ImageLike | Sequence[ImageLike], top_k: int = DEFAULT_TOP_K) -> Any:
        """Classify one image or several: paths, as `images.find.find` takes them, or Pillow images.

        Returns:
            A record for one image; a list of them for a sequence, and for a path that stands for
            others (a folder, a pattern, an archive). What can't be read has an error in place of
            predictions.
        """
        if isinstance(images, bytes):  # bytes are a sequence, too
            raise TypeError("bytes are neither a path nor an image: Image.open(io.BytesIO(…)) is")
        if isinstance(images, ImageLike):
            records = self([images], top_k)
            itself = isinstance(images, Image.Image) or records[0].path == str(images)
            return records[0] if itself else records
        sources: list[Source | Image.Image] = []
        members = self.pool.members if self.pool is not None else None
        for image in images:
            if isinstance(image, Image.Image):
                sources.append(image)
            else:
                sources += find([str(image)], list_members=members)
        return list(self.classify(sources, top_k))

    def classify(
        self,
        sources: Iterable[Source | Image.Image],
        top_k: int = DEFAULT_TOP_K,
        threshold: float | None = None,
        *,
        columns: Sequence[str] = (),
        thumbnails: bool = False,
    ) -> Iterator[Record]:
        """Yield one record for each source, in order.

        Images are decoded in threads, or processes, while the network runs; a few batches are in
        memory at any time, however many sources there are.

        Args:
            sources: what to classify.
            top_k: predictions in a record, at most.
            threshold: the least score that a prediction has; None for any.
            columns: names out of `records.COLUMNS` that each record carries.
            thumbnails: each record carries a thumbnail.
        """
        return _one_by_one(
            self.classify_batches(sources, top_k, threshold, columns=columns, thumbnails=thumbnails)
        )

    def classify_batches(
        self,
        sources: Iterable[Source | Image.Image],
        top_k: int = DEFAULT_TOP_K,
        threshold: float | None = None,
        *,
        columns: Sequence[str] = (),
        thumbnails: bool = False,
        first_batch: int | None = None,
    ) -> Generator[list[Record]]:
        """Yield the records of `classify`, those of a batch together.

        Args:
            first_batch: the number of the first batch in its run, 0 unless it is resumed: scores
                are then the same to their last digits in whatever process a batch is computed.
                None where that does not matter, and a GPU is to be fast from the second batch on.
        """
        batches = self.batches(sources, columns, thumbnails=thumbnails)
        return self._spread(
            batches,
            lambda replica, batch, number: replica.records(
                batch, top_k, threshold, columns=columns, number=number
            ),
            first_batch,
        )

    def batches(
        self,
        sources: Iterable[Source | Image.Image],
        columns: Sequence[str] = (),
        *,
        thumbnails: bool = False,
    ) -> Iterator[list[DecodedImage]]:
        """Yield the sources, read, in the batches that go through the network together: the first
        half of `classify`."""
        size, ahead = self.batch_size, len(self.replicas)
        if self.pool is None:
            return self.reader.batches(sources, size, columns, thumbnails=thumbnails, ahead=ahead)
        return self.pool.batches(
            self.reader, sources, size, columns=columns, thumbnails=thumbnails, ahead=ahead
        )

    def _spread(
        self,
        batches: Iterator[list[DecodedImage]],
        work: Callable[["Classifier", list[DecodedImage], int | None], Iterable[Record]],
        first: int | None,
    ) -> Generator[list[Record]]:
        """Give batches, with their numbers, to the devices in turns, and yield their records in
        order.

        Each replica has a thread that waits for it, while records are written here.
        """
        if len(self.replicas) == 1 and self.device.type == "cpu":
            for index, batch in enumerate(batches):
                yield list(work(self, batch, None if first is None else first + index))
            return
        pending: deque[Future[list[Record]]] = deque()
        try:
            for index, batch in enumerate(batches, first or 0):
                replica = self.replicas[index % len(self.replicas)]
                number = None if first is None else index
                pending.append(
                    replica._runner.thread.submit(
                        lambda r, b, n: list(work(r, b, n)), replica, batch, number
                    )
                )
                if len(pending) > len(self.replicas):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:  # not waiting
                future.cancel()

    def records(
        self,
        images: Sequence[DecodedImage],
        top_k: int = DEFAULT_TOP_K,
        threshold: float | None = None,
        *,
        columns: Sequence[str] = (),
        number: int | None = None,
    ) -> Iterator[Record]:
        """Make a record for each image, decoded or failed, in order: the second half of
        `classify`.

        Args:
            number: of the batch; see `NetworkRunner.run`.
        """
        rows = self._rows(images, lambda pixels: self.scores(pixels, number))
        predictions = iter(self._predictions(rows, top_k))
        for image in images:
            if image.pixels is None:
                yield Record(image.path, error=image.error, columns=image.columns)
                continue
            best = next(predictions)
            if "index" in columns:
                image.columns["index"] = best[0].index
            if "scores" in columns:
                image.columns["scores"] = str(self.score_kind)
            kept = tuple(each for each in best if threshold is None or each.score >= threshold)
            yield Record(image.path, kept, columns=image.columns, thumbnail=image.thumbnail)

    def embed(self, sources: Iterable[Source | Image.Image]) -> Iterator[Record]:
        """Yield one record for each source, in order, with its embedding in place of
        predictions."""
        return _one_by_one(self.embed_batches(sources))

    def embed_batches(
        self, sources: Iterable[Source | Image.Image], first_batch: int | None = None
    ) -> Generator[list[Record]]:
        """Yield the records of `embed`, those of a batch together; `first_batch` as in
        `classify_batches`."""
        batches = self.batches(sources)
        return self._spread(batches, Classifier._embedded, first_batch)

    def _embedded(self, images: Sequence[DecodedImage], number: int | None) -> Iterator[Record]:
        rows = self._rows(images, lambda pixels: self.embeddings(pixels, number))
        vectors = iter(rows.tolist())
        for image in images:
            embedding = None if image.pixels is None else tuple(next(vectors))
            yield Record(image.path, error=image.error, embedding=embedding)

    def _rows(
        self,
        images: Sequence[DecodedImage],
        compute: Callable[[Sequence[np.ndarray]], Tensor],
    ) -> Tensor:
        """Compute a row for each image that has pixels. An image whose row can't be computed gets
        an error."""
        good = [image for image in images if image.pixels is not None]
        rows = None
        try:
            rows = compute(_pixels(good))
        except RuntimeError as error:
            # If all images have the same size, none of them is too large.
            fixed = self.checkpoint.preprocessing.image_size is not None
            if fixed or not is_out_of_memory(error):
                raise
        if rows is None:  # not above: the error holds on to what the network had computed
            rows = torch.cat([self._row(image, compute) for image in good])
            good = [image for image in good if image.pixels is not None]
        finite = rows.isfinite().all(dim=1)
        for image, is_finite in zip(good, finite.tolist(), strict=True):
            if not is_finite:
                image.pixels, image.error = None, NOT_FINITE
        return rows[finite]

    def _row(
        self, image: DecodedImage, compute: Callable[[Sequence[np.ndarray]], Tensor]
    ) -> Tensor:
        """Compute the row of one image: (1, width); (0, width) and an error in the image if the
        device's memory does not suffice."""
        self._runner.free_memory()
        try:
            return compute(_pixels([image]))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        image.pixels, image.error = None, TOO_LARGE
        return compute([])

    def scores(self, images: Sequence[np.ndarray], number: int | None = None) -> Tensor:
        """Compute the scores of all labels, or of those that were chosen, or of their groups.

        Args:
            images: (H, W, 3) uint8 each, as `Preprocessing.pixels` makes them.
            number: of the batch; see `NetworkRunner.run`.

        Returns:
            (len(images), answers) float32 on the CPU; see `scores_of`.
        """
        return self._runner.run(images, len(self.answers), self._forward, number=number)

    def embeddings(self, images: Sequence[np.ndarray], number: int | None = None) -> Tensor:
        """Compute the vectors behind the labels: `Cvt.forward_features`.

        Args:
            images: (H, W, 3) uint8 each, as `Preprocessing.pixels` makes them.
            number: of the batch; see `NetworkRunner.run`.

        Returns:
            (len(images), embedding_dim) float32 on the CPU.
        """
        return self._runner.run(images, self.embedding_dim, self._forward_features, number=number)

    @torch.inference_mode()
    def _forward_features(self, batch: Tensor) -> Tensor:
        return self._runner.features(self._runner.normalized(batch)).float().cpu()

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        logits = self._runner.model(self._runner.normalized(batch))
        if len(self.indexes) < len(self.labels):
            logits = logits[:, self._columns]
        scores = scores_of(logits, self.score_kind).cpu()
        return scores if self.groups is None else self.groups.combine(scores, self.indexes)

    def _predictions(self, scores: Tensor, top_k: int) -> list[tuple[Prediction, ...]]:
        scores, columns = scores.topk(min(top_k, len(self.answers)))
        predictions = []
        for row in zip(scores.tolist(), columns.tolist(), strict=True):
            best = ((score, self.answers[column]) for score, column in zip(*row, strict=True))
            predictions.append(
                tuple(Prediction(self.names[index], score, index) for score, index in best)
            )
        return predictions


def _one_by_one(batches: Generator[list[Record]]) -> Iterator[Record]:
    with closing(batches):
        for batch in batches:
            yield from batch


def _pixels(images: Iterable[DecodedImage]) -> list[np.ndarray]:
    return [image.pixels for image in images if image.pixels is not None]
