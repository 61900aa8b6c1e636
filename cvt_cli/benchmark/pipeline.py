"""Benchmark of the whole run, from files to records: its time, the time of each stage, and what
bounds it."""

import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvt_cli.benchmark.apart import Apart
from cvt_cli.benchmark.baselines import import_baseline
from cvt_cli.benchmark.engines import free_memory, synchronize, transformers_model
from cvt_cli.benchmark.network import OUT_OF_MEMORY, Say, form_record, ratio_record
from cvt_cli.benchmark.statistics import Ratio, percentile, take_turns, times
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import InputsError
from cvt_cli.images.decode import decode
from cvt_cli.images.find import Source, find
from cvt_cli.images.pool import ReaderPool
from cvt_cli.inference.classifier import Classifier
from cvt_cli.inference.tuning import Origin, Request, Tune, settle
from cvt_cli.model.form import Form
from cvt_cli.model.memory import is_out_of_memory
from cvt_cli.output.jsons import JsonLinesWriter
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.cores import DECODE_THREADS, cores

MAX_IMAGES = 1000
PER_CORE = 64  # images per core, if all cores read
SAMPLE = 64  # images that the stages are timed on
TOP_K = 5
STAGES = ("decode", "preprocess", "copy", "model", "write")


@dataclass(frozen=True)
class Stages:
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
        """The stage without which the limit would be the greatest, one of `STAGES`; where that is
        several, the longest of them."""
        return max(
            STAGES,
            key=lambda name: (self.without(name).limit(device), getattr(self, name)),
        )

    def without(self, name: str) -> Self:
        """The same, but that stage takes no time."""
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


@dataclass(frozen=True)
class PipelinePlan:
    """The cases to measure.

    Attributes:
        folder: searched for images; at most `MAX_IMAGES` are taken.
        image_size: (height, width) in pixels in place of the checkpoint's.
        duration: seconds for each case, and for each side if there are two; every pass is finished.
        with_peer: beside the image-classification pipeline of transformers.
        tune: when the form of the network is measured, on a CPU.
    """

    checkpoint: Checkpoint
    folder: Path
    image_size: tuple[int, int] | None
    batch_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    device: torch.device
    duration: float
    exact_decode: bool = False
    with_peer: bool = False
    tune: Tune = Tune.NEVER


@dataclass
class PipelineCase:
    """The figures of one batch size in one dtype.

    Attributes:
        images: files in a pass.
        seconds: what each pass took, the model loaded before.
        peer_seconds: likewise.
        labels_agree: share of images for which both have the same best label.
        error: why figures are missing, ours or the peer's.
        form: of the network, on a CPU.
        form_by: how it was chosen.
    """

    batch_size: int
    dtype: str
    images: int
    stages: Stages | None = None
    seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)
    ratio: Ratio | None = None
    labels_agree: float | None = None
    error: str | None = None
    form: Form | None = None
    form_by: Origin = Origin.USUAL

    @property
    def images_per_second(self) -> float | None:
        """Throughput by the median pass."""
        return self.images / percentile(self.seconds, 50) if self.seconds else None


@dataclass
class PipelineMeasurement:
    """The figures of a plan.

    Attributes:
        unreadable: files that are not images, which are left out of all passes.
        left_out: images beyond `MAX_IMAGES`.
    """

    plan: PipelinePlan
    cases: list[PipelineCase] = field(default_factory=list)
    unreadable: int = 0
    left_out: bool = False

    @property
    def planned(self) -> int:
        """Number of cases in the plan."""
        return len(self.plan.dtypes) * len(self.plan.batch_sizes)

    def run(self, say: Say) -> None:
        """Measure the plan's cases in order; after an interruption the finished ones remain.

        Args:
            say: is told what is measured next.

        Raises:
            CvtError: if there is no image to measure with.
        """
        with ReaderPool() as readers:
            self._run(readers, say)

    def _run(self, readers: ReaderPool, say: Say) -> None:
        plan = self.plan
        sources: list[Source] | None = None
        threads = torch.get_num_threads()
        for dtype, batch_size in itertools.product(plan.dtypes, plan.batch_sizes):
            classifier = Classifier(
                plan.checkpoint,
                device=str(plan.device),
                dtype=dtype,
                batch_size=batch_size,
                image_size=plan.image_size,
                exact_decode=plan.exact_decode,
                readers=readers,
            )
            if sources is None:
                say(f"reading {plan.folder}")
                sources = self._find(classifier)
            what = f"{dtype}, batch size {batch_size}, {len(sources)} images"
            say(f"{what} ({len(self.cases) + 1} of {self.planned})")
            origin = settle(classifier, Request(plan.tune))
            case = _measure_case(plan, classifier, sources, dtype=dtype, threads=threads)
            case.form_by = origin
            if plan.device.type == "cpu":
                case.form = classifier.form
            self.cases.append(case)
            del classifier
            torch.set_num_threads(threads)  # what a form of this case may have changed
            free_memory(plan.device)

    def _find(self, classifier: Classifier) -> list[Source]:
        found = list(itertools.islice(find([str(self.plan.folder)]), MAX_IMAGES + 1))
        self.left_out = len(found) > MAX_IMAGES
        sources = _readable(classifier, found[:MAX_IMAGES])
        self.unreadable = len(found[:MAX_IMAGES]) - len(sources)
        if not sources:
            raise InputsError(f"{self.plan.folder}: no image in it can be read")
        return sources

    def record(self, case: PipelineCase) -> dict[str, Any]:
        """Return a flat record; the peer's values are included if the plan has one."""
        stages, device = case.stages, self.plan.device
        rate = case.images_per_second
        limit = stages.limit(device) if stages else None
        values: dict[str, Any] = {
            "batch_size": case.batch_size,
            "dtype": case.dtype,
            "images": case.images,
            "passes": len(case.seconds),
            "images_per_second": rate,
            "images_per_second_min": case.images / max(case.seconds) if rate else None,
            "images_per_second_max": case.images / min(case.seconds) if rate else None,
            **{f"{name}_ms": getattr(stages, name) * 1e3 if stages else None for name in STAGES},
            **{
                f"{name}_share": getattr(stages, name) / stages.total if stages else None
                for name in STAGES
            },
            "limit_images_per_second": limit,
            "limit_fraction": rate / limit if rate and limit else None,
            "bound_by": stages.bound_by(device) if stages else None,
            **form_record(case.form, case.form_by),
        }
        if self.plan.with_peer:
            theirs = case.peer_seconds
            values |= {
                "baseline": "transformers",
                "baseline_images_per_second": case.images / percentile(theirs, 50)
                if theirs
                else None,
                **ratio_record(case.ratio),
                "labels_agree": case.labels_agree,
            }
        return values | {"error": case.error}


def _readable(classifier: Classifier, sources: list[Source]) -> list[Source]:
    images = (image for batch in classifier.batches(sources) for image in batch)
    return [source for source, image in zip(sources, images, strict=True) if image.error is None]


def _measure_case(
    plan: PipelinePlan,
    classifier: Classifier,
    sources: list[Source],
    *,
    dtype: str,
    threads: int | None = None,
) -> PipelineCase:
    """Measure a case.

    Args:
        threads: of the peer; None for as many as torch has now.
    """
    case = PipelineCase(classifier.batch_size, dtype, len(sources))
    try:
        ours = _OurRun(classifier, sources)
        # Warms up the caches of files and of the network. Each replica records its CUDA graph at
        # its second batch.
        count = 2 * classifier.batch_size * len(classifier.replicas)
        images = itertools.cycle(sources) if plan.device.type == "cuda" else sources
        list(classifier.classify(itertools.islice(images, count)))
        case.stages = _time_stages(classifier, sources, plan.duration / 2)
        if not plan.with_peer:
            case.seconds = times(ours, plan.duration, at_least=1)
        else:
            scaled = plan.image_size is not None
            with _peer(
                classifier, sources, scaled, threads=threads or torch.get_num_threads()
            ) as peer:
                peer.call("run", True)
                turns = take_turns(ours, lambda: peer.call("run"), plan.duration)
                their_labels = peer.call("best_labels")
            case.seconds, case.peer_seconds = ([s for each in side for s in each] for side in turns)
            case.ratio = Ratio.of(*turns)
            pairs = zip(ours.labels, their_labels, strict=True)
            case.labels_agree = sum(a == b for a, b in pairs) / len(sources)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        case.error = OUT_OF_MEMORY
    case.batch_size = classifier.batch_size  # smaller if the memory did not suffice
    return case


class _OurRun:
    """`cvt classify --format jsonl` on the files, with a loaded model.

    Attributes:
        labels: the best of each image, of the last pass; None where it has an error.
    """

    def __init__(self, classifier: Classifier, sources: list[Source]) -> None:
        self._classifier, self._sources = classifier, sources
        self.labels: list[str | None] = []

    def __call__(self) -> None:
        labels: list[str | None] = []
        with _lines() as file:
            writer = JsonLinesWriter(file, RecordShape(TOP_K))
            for record in self._classifier.classify(self._sources, TOP_K):
                writer.write([record])
                best = record.predictions[:1]
                labels.append(best[0].label if best else None)
        self.labels = labels


def _peer(classifier: Classifier, sources: list[Source], scaled: bool, *, threads: int) -> Apart:
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


def _time_stages(classifier: Classifier, sources: list[Source], seconds: float) -> Stages:
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
    return Stages(
        decoded, both - decoded, copied, max(0.0, scored - copied), per_image(_writes(records))
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
