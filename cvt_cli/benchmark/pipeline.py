"""Benchmark of the whole run, from files to records: its time, and that of each stage."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cvt_cli.benchmark.engines import OUT_OF_MEMORY, free_memory
from cvt_cli.benchmark.network import Say, form_record, ratio_record
from cvt_cli.benchmark.pipeline_runs import OurRun, peer_run, warm_up
from cvt_cli.benchmark.stage_times import STAGES, StageTimes, time_stages
from cvt_cli.benchmark.statistics import Ratio, percentile, take_turns, times
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import InputsError
from cvt_cli.images.find import find
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.source import Source
from cvt_cli.inference.classifier import Classifier
from cvt_cli.inference.tuning import Origin, Request, Tune, settle
from cvt_cli.model.form import Form
from cvt_cli.model.memory import is_out_of_memory

MAX_IMAGES = 1000


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
        warm_up_seconds: what the first batches took, before all passes: on a GPU kernels are
            compiled and recorded in them.
    """

    batch_size: int
    dtype: str
    images: int
    stages: StageTimes | None = None
    seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)
    ratio: Ratio | None = None
    labels_agree: float | None = None
    error: str | None = None
    form: Form | None = None
    form_by: Origin = Origin.USUAL
    warm_up_seconds: float | None = None

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
            "warm_up_seconds": case.warm_up_seconds,
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
        ours = OurRun(classifier, sources)
        before = time.perf_counter()
        warm_up(classifier, sources)
        case.warm_up_seconds = time.perf_counter() - before
        case.stages = time_stages(classifier, sources, plan.duration / 2)
        if not plan.with_peer:
            case.seconds = times(ours, plan.duration, at_least=1)
        else:
            scaled = plan.image_size is not None
            with peer_run(
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
