"""Whole runs over the same files, to be timed: by cvt, and by the pipeline of transformers."""

import itertools
import json
import tempfile
from typing import Any, TextIO

import torch

from cvt_cli.benchmark.apart import Apart
from cvt_cli.benchmark.baselines import import_baseline
from cvt_cli.benchmark.engines import transformers_model
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.images.source import Source
from cvt_cli.inference.classifier import Classifier
from cvt_cli.output.jsons import JsonLinesWriter
from cvt_cli.records import RecordShape

TOP_K = 5


class OurRun:
    """`cvt classify --format jsonl` on the files, with a loaded model.

    Attributes:
        labels: the best of each image, of the last pass; None where it has an error.
    """

    def __init__(self, classifier: Classifier, sources: list[Source]) -> None:
        self._classifier, self._sources = classifier, sources
        self.labels: list[str | None] = []

    def __call__(self) -> None:
        """Run one pass."""
        labels: list[str | None] = []
        with _lines() as file:
            writer = JsonLinesWriter(file, RecordShape(TOP_K))
            for batch in self._classifier.classify_batches(self._sources, TOP_K, first_batch=0):
                writer.write(batch)
                best = (record.predictions[:1] for record in batch)
                labels += [first[0].label if first else None for first in best]
        self.labels = labels


def warm_up(classifier: Classifier, sources: list[Source]) -> None:
    """Run a few batches, for the caches of files and of the network. On a GPU all that a run waits
    for but once: each replica computes batches as they are and records a CUDA graph."""
    count = 2 * classifier.batch_size * len(classifier.replicas)
    images = itertools.cycle(sources) if classifier.device.type == "cuda" else sources
    for _ in classifier.classify_batches(itertools.islice(images, count), first_batch=0):
        pass


def peer_run(classifier: Classifier, sources: list[Source], scaled: bool, *, threads: int) -> Apart:
    """Start the pipeline of transformers in a process of its own.

    Args:
        scaled: to another input size than the checkpoint's.
        threads: of torch.
    """
    return Apart(
        _PeerRun,
        classifier.checkpoint,
        classifier.device,
        classifier.dtype,
        batch_size=classifier.batch_size,
        paths=[source.path for source in sources],
        scaled=scaled,
        threads=threads,
    )


class _PeerRun:
    """The image-classification pipeline of transformers on files, with the checkpoint's processor
    in its Pillow form.

    Args:
        scaled: to another input size than the checkpoint's.
        threads: of torch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        batch_size: int,
        paths: list[str],
        scaled: bool,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        import_baseline("transformers")
        import transformers

        self._paths, self._batch_size = paths, batch_size
        self._pipeline = transformers.pipeline(
            "image-classification",
            model=transformers_model(checkpoint).to(dtype),
            image_processor=_processor(checkpoint, scaled),
            device=device,
        )
        self._labels: list[str] = []

    def run(self, warm_up: bool = False) -> None:
        """Run one pass, or only two batches to warm up."""
        paths = self._paths[: 2 * self._batch_size] if warm_up else self._paths
        labels = []
        with _lines() as file:
            found = self._pipeline(paths, batch_size=self._batch_size, top_k=TOP_K)
            for path, predictions in zip(paths, found, strict=True):
                file.write(json.dumps({"path": path, "predictions": predictions}) + "\n")
                labels.append(predictions[0]["label"])
        self._labels = labels

    def best_labels(self) -> list[str]:
        """Return the best label of each image in the last pass."""
        return self._labels


def _processor(checkpoint: Checkpoint, scaled: bool) -> Any:
    import transformers

    file = checkpoint.files.preprocessor
    if file is not None and not scaled:
        find_processor: Any = transformers.AutoImageProcessor.from_pretrained
        return find_processor(str(file.parent), backend="pil")
    return transformers.ViTImageProcessorPil.from_dict(checkpoint.preprocessing.to_dict())


def _lines() -> TextIO:
    return tempfile.TemporaryFile("w", prefix="cvt-", encoding="utf-8", errors="backslashreplace")
