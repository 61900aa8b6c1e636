"""The time of each stage of a run, measured alone, and what bounds the run by it."""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvt_cli.benchmark.engines import synchronize
from cvt_cli.benchmark.pipeline_runs import TOP_K
from cvt_cli.benchmark.statistics import percentile, times
from cvt_cli.images.decode import decode
from cvt_cli.images.source import Source
from cvt_cli.inference.classifier import Classifier
from cvt_cli.output.jsons import JsonLinesWriter
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.cores import DECODE_THREADS, cores

PER_CORE = 64  # images per core, if all cores read
SAMPLE = 64  # images that the stages are timed on
STAGES = ("decode", "preprocess", "copy", "model", "write")


@dataclass(frozen=True)
class StageTimes:
    """Seconds per image in each stage, measured alone.

    Attributes:
        decode, preprocess: file to RGB, and to the network's size; by all readers together.
        copy: to the device, normalised there.
        model: logits and scores.
        write: the record, as a line of JSON.
    """

    decode: float
    preprocess: float
    copy: float
    model: float
    write: float

    @property
    def total(self) -> float:
        """Seconds per image if the stages run one after the other."""
        return self.decode + self.preprocess + self.copy + self.model + self.write

    def limit(self, device: torch.device) -> float:
        """Images per second if the stages overlapped perfectly. With a device the slowest stage
        counts; on a CPU they also share the cores."""
        apart = self._apart(device)
        slowest = max(*apart.values(), 1e-12)
        if device.type != "cpu":
            return 1 / slowest
        threads = {"decode+preprocess": DECODE_THREADS, "copy+model": torch.get_num_threads()}
        available = cores()
        work = sum(
            seconds * min(available, threads.get(name, 1)) for name, seconds in apart.items()
        )
        return min(1 / slowest, available / max(work, 1e-12))

    def bound_by(self, device: torch.device) -> str:
        """Return the stage without which the limit would be the greatest, one of `STAGES`; where
        that is several, the longest of them."""
        return max(
            STAGES,
            key=lambda name: (self.without(name).limit(device), getattr(self, name)),
        )

    def without(self, name: str) -> Self:
        """Return the same times, but with none for that stage."""
        return replace(self, **{name: 0.0})

    def _apart(self, device: torch.device) -> dict[str, float]:
        """Return the times that overlap if the network is not on the CPU."""
        copy_and_model = {"copy+model": self.copy + self.model}
        if device.type == "cuda":  # on two streams
            copy_and_model = {"copy": self.copy, "model": self.model}
        return {
            "decode+preprocess": self.decode + self.preprocess,
            **copy_and_model,
            "write": self.write,
        }


def _decoded(classifier: Classifier, source: Source) -> Image.Image:
    with source.open() as file:
        reader = classifier.reader
        return decode(
            file,
            classifier.max_pixels,
            enough=reader.preprocessing.resized_edge,
            reduce_to=reader.reduce_to,
            exact=reader.exact,
        )


def time_stages(classifier: Classifier, sources: list[Source], seconds: float) -> StageTimes:
    """Time each stage alone, over a sample of the files.

    Args:
        seconds: of which each measurement has a fifth; it passes over the whole sample once at
            least.
    """
    step = max(1, len(sources) // SAMPLE)
    sample = sources[::step][:SAMPLE]
    preprocessing = classifier.checkpoint.preprocessing
    share = seconds / len(STAGES)

    def per_image(work: Callable[[], object], images: int = len(sample)) -> float:
        return percentile(times(work, share, at_least=1), 50) / images

    # Enough to keep all readers busy until near the end.
    several = list(itertools.islice(itertools.cycle(sample), max(len(sample), PER_CORE * cores())))
    both = per_image(lambda: all(True for _ in classifier.batches(several)), len(several))
    # One thread shows how much of that is decoding.
    alone = per_image(lambda: all(_decoded(classifier, source) for source in sample))
    with_resize = per_image(
        lambda: [preprocessing.pixels(_decoded(classifier, source)) for source in sample]
    )
    decoded = both * min(1.0, alone / with_resize)
    pixels = [preprocessing.pixels(_decoded(classifier, source)) for source in sample]
    if len(sources) >= classifier.batch_size:  # in batches as full as in the run
        full = -(-len(pixels) // classifier.batch_size) * classifier.batch_size
        pixels = list(itertools.islice(itertools.cycle(pixels), full))
    batches = list(_batches(pixels, classifier.batch_size))
    copied = per_image(lambda: [_copy(classifier, batch) for batch in batches], len(pixels))
    scored = per_image(lambda: classifier.scores(pixels), len(pixels))
    records = list(classifier.classify(sample, TOP_K))
    return StageTimes(
        decode=decoded,
        preprocess=both - decoded,
        copy=copied,
        model=max(0.0, scored - copied),
        write=per_image(_writes(records)),
    )


def _batches(pixels: list[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Yield (B, H, W, 3) uint8 batches of images of the same size."""
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in pixels:
        by_size.setdefault(image.shape, []).append(image)
    for images in by_size.values():
        for start in range(0, len(images), batch_size):
            yield np.stack(images[start : start + batch_size])


@torch.inference_mode()
def _copy(classifier: Classifier, batch: np.ndarray) -> Tensor:
    images = torch.from_numpy(batch)
    if classifier.device.type == "cuda":
        images = images.pin_memory()
    on_device = images.to(classifier.device, non_blocking=True)
    result = classifier.checkpoint.preprocessing.normalize(on_device).to(classifier.dtype)
    synchronize(classifier.device)
    return result


def _writes(records: list[Record]) -> Callable[[], None]:
    return lambda: JsonLinesWriter(io.StringIO(), RecordShape(TOP_K)).write(records)
