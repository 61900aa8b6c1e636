"""Benchmark of the network alone, on synthetic input: latency, throughput, share of the device's
peak."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cvt_cli.benchmark.engines import OUT_OF_MEMORY, Engine, baseline, free_memory, limit_of, ours
from cvt_cli.benchmark.machine import available_memory, peak_memory, reset_peak_memory
from cvt_cli.benchmark.peak import Peak, measure_peak
from cvt_cli.benchmark.statistics import Latency, Ratio, take_turns, times
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.inference.devices import DTYPES
from cvt_cli.inference.tuning import Kind, Origin, Request, Tune, choose
from cvt_cli.model.cost import count_cost, needed_macs
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.form import Form

CHECKED_IMAGES = 8
PEAK_SECONDS = 1.0
WARM_UP = 0.1  # share of a case's duration
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The cases to measure.

    Attributes:
        image_size: (height, width) in pixels.
        dtypes: names out of `DTYPES`.
        duration: seconds for each case, and for each side if there are two.
        compiled: through torch.compile.
        peer: one of `BASELINES`, or None.
        tune: when the form of the network is measured, on a CPU.
    """

    checkpoint: Checkpoint
    image_size: tuple[int, int]
    batch_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    device: torch.device
    duration: float
    compiled: bool = False
    peer: str | None = None
    tune: Tune = Tune.NEVER

    @property
    def flops_per_image(self) -> int:
        """Necessary floating-point operations per image: two for each multiply-add."""
        return 2 * needed_macs(self.checkpoint.config, self.image_size)


@dataclass
class Comparison:
    """The peer's figures, measured in turns with ours.

    Attributes:
        latency: the peer's.
        ratio: of throughputs; above 1 where ours is the greater.
        labels_agree: share of images for which both have the same best label.
        logit_difference: the largest, absolute.
    """

    latency: Latency
    ratio: Ratio
    labels_agree: float
    logit_difference: float


@dataclass
class Case:
    """The figures of one batch size in one dtype.

    Attributes:
        latency: from the call to the logits on the device; None if there is an error.
        memory_bytes: the most at once; see `machine.peak_memory`.
        compile_seconds: the first call, where torch.compile works in it.
        error: why figures are missing, ours or the peer's.
        form: of our network, where there are several: on a CPU, without torch.compile.
        form_by: how it was chosen.
    """

    batch_size: int
    dtype: str
    latency: Latency | None = None
    memory_bytes: int | None = None
    compile_seconds: float | None = None
    comparison: Comparison | None = None
    error: str | None = None
    form: Form | None = None
    form_by: Origin = Origin.USUAL

    @property
    def images_per_second(self) -> float | None:
        """Throughput by the median latency."""
        return self.batch_size / self.latency.p50 if self.latency else None


@dataclass
class Measurement:
    """The figures of a plan; those so far if it was interrupted."""

    plan: Plan
    peaks: dict[str, Peak] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    @property
    def planned(self) -> int:
        """Number of cases in the plan."""
        return len(self.plan.dtypes) * len(self.plan.batch_sizes)

    def run(self, say: Say) -> None:
        """Measure the plan's cases in order; after an interruption the finished ones remain.

        Args:
            say: is told what is measured next.
        """
        plan, seconds = self.plan, min(self.plan.duration, PEAK_SECONDS)
        for dtype in plan.dtypes:
            say(f"{dtype}: matrix products, for the peak")
            self._take(dtype, measure_peak(plan.device, DTYPES[dtype], seconds))
            for batch_size in plan.batch_sizes:
                say(f"{dtype}, batch size {batch_size} ({len(self.cases) + 1} of {self.planned})")
                self.cases.append(_measure_case(plan, batch_size, dtype, say=say))
                free_memory(plan.device)
            # Measured again, as other processes may have slowed the first measurement.
            self._take(dtype, measure_peak(plan.device, DTYPES[dtype], seconds))

    def _take(self, dtype: str, peak: Peak | None) -> None:
        known = self.peaks.get(dtype)
        if peak is not None and (known is None or peak.tflops > known.tflops):
            self.peaks[dtype] = peak

    def tflops(self, case: Case) -> float | None:
        """Necessary floating-point operations per second, in 10^12."""
        rate = case.images_per_second
        return None if rate is None else rate * self.plan.flops_per_image / 1e12

    def peak_fraction(self, case: Case) -> float | None:
        """Share of the device's peak in that dtype."""
        tflops, peak = self.tflops(case), self.peaks.get(case.dtype)
        return None if tflops is None or peak is None else tflops / peak.tflops

    def limit(self, dtype: str) -> float:
        """Images per second if the whole network ran at the peak."""
        return self.peaks[dtype].tflops * 1e12 / self.plan.flops_per_image

    def record(self, case: Case) -> dict[str, Any]:
        """Return a flat record; the peer's values are included if the plan has one."""
        latency, comparison = case.latency, case.comparison
        values: dict[str, Any] = {
            "batch_size": case.batch_size,
            "dtype": case.dtype,
            **latency_record("", latency),
            "latency_spread": latency.spread if latency else None,
            "repeats": latency.repeats if latency else None,
            "images_per_second": case.images_per_second,
            "tflops": self.tflops(case),
            "peak_fraction": self.peak_fraction(case),
            "memory_bytes": case.memory_bytes,
            **form_record(case.form, case.form_by),
        }
        if self.plan.compiled:
            values["compile_seconds"] = case.compile_seconds
        if self.plan.peer is not None:
            theirs = comparison.latency if comparison else None
            values |= {
                "baseline": self.plan.peer,
                **latency_record("baseline_", theirs),
                "baseline_images_per_second": case.batch_size / theirs.p50 if theirs else None,
                **ratio_record(comparison.ratio if comparison else None),
                "labels_agree": comparison.labels_agree if comparison else None,
                "logit_difference": comparison.logit_difference if comparison else None,
            }
        return values | {"error": case.error}


def latency_record(prefix: str, latency: Latency | None) -> dict[str, float | None]:
    """Return the percentiles in milliseconds, each None without any."""
    names = ("p50", "p90", "p99")
    return {
        f"{prefix}latency_ms_{name}": getattr(latency, name) * 1e3 if latency else None
        for name in names
    }


def form_record(form: Form | None, by: Origin) -> dict[str, str | None]:
    """Return the form and how it was chosen, each None without any."""
    if form is None:
        return {"form": None, "form_by": None}
    return {"form": str(form), "form_by": str(by)}


def ratio_record(ratio: Ratio | None) -> dict[str, float | int | None]:
    """Return the ratio and its range, each None without any."""
    return {
        "ratio": ratio.median if ratio else None,
        "ratio_min": ratio.least if ratio else None,
        "ratio_max": ratio.greatest if ratio else None,
        "rounds": ratio.rounds if ratio else None,
    }


def _measure_case(plan: Plan, batch_size: int, dtype: str, *, say: Say) -> Case:
    case = Case(batch_size, dtype)
    try:
        if _fits(plan, batch_size, dtype):
            _measure_ours(plan, case, say)
        else:
            case.error = OUT_OF_MEMORY
    except (RuntimeError, MemoryError) as error:
        case.latency, case.comparison = None, None
        case.error = limit_of(error)
    return case


def _measure_ours(plan: Plan, case: Case, say: Say) -> None:
    images = synthetic_images(case.batch_size, plan.image_size)
    dtype = DTYPES[case.dtype]
    free_memory(plan.device)  # the cache of the products that measured the peak
    if plan.device.type == "cpu" and not plan.compiled:
        kind = Kind(
            plan.checkpoint.config, plan.image_size, batch_size=case.batch_size, dtype=dtype
        )
        model = partial(_model, plan.checkpoint, dtype)
        case.form, case.form_by = choose(kind, model, Request(plan.tune))
    reset_peak_memory(plan.device)
    if plan.compiled:
        say("compiling")
        _compile_anew()
    engine = ours(plan.checkpoint, plan.device, dtype, compiled=plan.compiled, form=case.form)
    engine.feed(images)
    start = time.perf_counter()
    engine.run()
    if plan.compiled:
        case.compile_seconds = time.perf_counter() - start
    _warm_up(engine, plan.duration)
    case.memory_bytes = peak_memory(plan.device)  # before the peer uses memory
    if plan.peer is not None:
        try:
            _compare(plan, case, engine, images=images)
        except (RuntimeError, MemoryError) as error:
            case.comparison, case.error = None, f"{plan.peer}: {limit_of(error)}"
    if case.comparison is None:
        if plan.peer is not None:  # after the except block, whose error refers to the peer
            free_memory(plan.device)
            engine.feed(images)
        case.latency = Latency.of(times(engine.run, plan.duration))


def _model(checkpoint: Checkpoint, dtype: torch.dtype) -> Cvt:
    return checkpoint.model().to(dtype)


def _compare(plan: Plan, case: Case, engine: Engine, *, images: Tensor) -> None:
    assert plan.peer is not None
    peer = baseline(plan.peer, plan.checkpoint, plan.device, dtype=DTYPES[case.dtype])
    with closing(peer):
        peer.feed(images)
        peer.run()
        _warm_up(peer, plan.duration)
        turns = take_turns(engine.run, peer.run, plan.duration)
        agree, difference = _check(engine, peer, plan, batch_size=case.batch_size)
    case.latency, theirs = (Latency.of([s for each in side for s in each]) for side in turns)
    case.comparison = Comparison(
        theirs, Ratio.of(*turns), labels_agree=agree, logit_difference=difference
    )


def _check(engine: Engine, peer: Engine, plan: Plan, *, batch_size: int) -> tuple[float, float]:
    """Compare both sides' logits over at least `CHECKED_IMAGES` images: the share of equal best
    labels, and the largest difference."""
    agree, difference, images = 0, 0.0, 0
    for seed in range(-(-CHECKED_IMAGES // batch_size)):
        batch = synthetic_images(batch_size, plan.image_size, seed)
        found = []
        for side in (engine, peer):
            side.feed(batch)
            side.run()
            found.append(side.logits())
        agree += int((found[0].argmax(dim=1) == found[1].argmax(dim=1)).sum())
        difference = max(difference, float((found[0] - found[1]).abs().max()))
        images += batch_size
    return agree / images, difference


def synthetic_images(batch_size: int, image_size: tuple[int, int], seed: int = 0) -> Tensor:
    """Make normalised noise, the same each time: (batch_size, 3, *image_size) float32 on the
    CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 3, *image_size, generator=generator)


def _warm_up(engine: Engine, duration: float) -> None:
    times(engine.run, duration * WARM_UP, at_least=1)


def _fits(plan: Plan, batch_size: int, dtype: str) -> bool:
    """Tell whether the case may fit into memory. On a CPU the system would kill the process if
    not."""
    if plan.device.type == "cuda":
        return True  # the call reports a lack of memory itself
    cost = count_cost(plan.checkpoint.config, plan.image_size, batch_size, dtype=dtype)
    available = available_memory()
    return available is None or cost.peak_activation_bytes + cost.weight_bytes < available


def _compile_anew() -> None:
    """Forget what was compiled before, so that the whole cost is measured."""
    from torch import _dynamo
    from torch._inductor import config

    _dynamo.reset()
    config.force_disable_caches = True
