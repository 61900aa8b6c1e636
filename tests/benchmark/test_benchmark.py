"""Figures of repeats against NumPy and by hand, needed multiply-adds against torch's counter."""

import csv
import io
import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cvt_cli.benchmark import machine, network, pipeline, pipeline_runs, stage_times
from cvt_cli.benchmark import peak as peaks
from cvt_cli.benchmark.apart import Apart
from cvt_cli.benchmark.benchmark_tables import benchmark_report
from cvt_cli.benchmark.engines import Engine, _peer, baseline, check_baseline, ours
from cvt_cli.benchmark.machine import Machine, describe_machine, peak_memory, reset_peak_memory
from cvt_cli.benchmark.model import RandomCheckpoint, find_model, pick_dtypes
from cvt_cli.benchmark.network import Case, Comparison, Measurement, Plan, synthetic_images
from cvt_cli.benchmark.peak import Peak, measure_peak
from cvt_cli.benchmark.pipeline import PipelineCase, PipelineMeasurement, PipelinePlan
from cvt_cli.benchmark.plot import plot
from cvt_cli.benchmark.stage_times import StageTimes
from cvt_cli.benchmark.statistics import (
    MIN_ROUNDS,
    ROUNDS,
    Latency,
    Ratio,
    take_turns,
    times,
)
from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import CvtError, ModelError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.source import Source
from cvt_cli.inference import tuning
from cvt_cli.inference.classifier import Classifier
from cvt_cli.inference.tuning import Tune
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cost import count_cost, needed_macs
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.form import Form
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.graphs import Graphed
from cvt_cli.output.report_tables import as_text, si_unit
from cvt_cli.system.cores import SPIN_COUNT, share_cores
from tests.inference.test_tuning import ODD
from tests.model.test_cost import ARCHITECTURES
from tests.odd import Odd
from tests.photos import Opened, picture
from tests.tiny import KEEPS_ASPECT

CPU = torch.device("cpu")
TINY = CvtConfig(embed_dim=(16, 32, 64), num_heads=(1, 1, 1), depth=(1, 2, 3), num_labels=5)


def tiny_checkpoint() -> RandomCheckpoint:
    files = ResolvedFiles("tiny", None, None, ())
    labels = tuple(f"LABEL_{index}" for index in range(5))
    return RandomCheckpoint(files, TINY, labels, Preprocessing.convnext(64))


def plan(**others: Any) -> Plan:
    return Plan(tiny_checkpoint(), (64, 64), (1, 2), ("float32",), CPU, 0.01, **others)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 101])
def test_the_figures_of_a_latency(length: int) -> None:
    values = np.random.default_rng(length).exponential(size=length).tolist()
    latency = Latency.of(values)
    assert latency.repeats == length
    assert latency.p50 <= latency.p90 <= latency.p99 <= max(values)
    quartiles = np.percentile(values, [25, 75])
    assert latency.spread == pytest.approx((quartiles[1] - quartiles[0]) / np.median(values))


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    # The machine slows down fourfold in the second round: the ratio of that round is the same.
    ratio = Ratio.of([[1, 1, 9], [4, 4], [1]], [[2, 2], [8, 8, 8], [3]])
    assert (ratio.median, ratio.least, ratio.greatest, ratio.rounds) == (2, 2, 3, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], None]]:
    """Makes calls that take so many seconds, of a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def make(seconds: float) -> Callable[[], None]:
        def call() -> None:
            now[0] += seconds

        return call

    return make


def test_repeats_until_the_time_is_up(clock: Callable[[float], Callable[[], None]]) -> None:
    assert times(clock(0.25), 1) == [0.25] * 4
    assert times(clock(10), 1) == [10] * 3
    assert times(clock(10), 1, at_least=1) == [10]


def test_turns(clock: Callable[[float], Callable[[], None]]) -> None:
    ours_, theirs = take_turns(clock(0.125), clock(0.25), 10)
    assert len(ours_) == len(theirs) == ROUNDS
    # Of a turn of a second the first repeat does not count.
    assert ours_[0] == [0.125] * 7
    assert theirs[0] == [0.25] * 3
    assert Ratio.of(ours_, theirs).median == 2
    # Where one repeat takes longer than all the turns, it is the turn.
    ours_, theirs = take_turns(clock(5), clock(20), 1)
    assert ours_ == [[5]] * MIN_ROUNDS
    assert theirs == [[20]] * MIN_ROUNDS


def test_turns_alternate(clock: Callable[[float], Callable[[], None]]) -> None:
    order: list[str] = []
    wait = clock(1)

    def side(name: str) -> Callable[[], None]:
        return lambda: (order.append(name), wait())[1]

    take_turns(side("a"), side("b"), 0.5)
    assert "".join(order) == "abbaab"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_needed_is_what_the_inference_form_computes(name: str) -> None:
    config = ARCHITECTURES[name]
    with torch.device("meta"):
        network = FusedCvt(Cvt(config).eval())
    images = torch.empty(2, config.num_channels, 96, 128, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(images)
    needed = needed_macs(config, (96, 128), 2)
    assert 2 * needed == counter.get_total_flops()
    total = count_cost(config, (96, 128), 2).total.macs
    assert needed < total if config.cls_token[-1] else needed == total


def test_the_dead_work_of_cvt_13() -> None:
    config = CvtConfig()
    whole = count_cost(config, (224, 224)).total.macs
    assert 0.05 < 1 - needed_macs(config, (224, 224)) / whole < 0.08


def test_stages_on_a_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvt_cli.benchmark.stage_times.cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    stages = StageTimes(decode=0.02, preprocess=0.01, copy=0.001, model=0.069, write=0)
    assert stages.limit(CPU) == pytest.approx(10)
    # One thread writes.
    assert replace(stages, write=0.05).limit(CPU) == pytest.approx(8)
    assert stages.limit(torch.device("mps")) == pytest.approx(1 / 0.07)
    assert stages.limit(torch.device("cuda")) == pytest.approx(1 / 0.069)  # copied meanwhile
    assert stages.bound_by(CPU) == stages.bound_by(torch.device("cuda")) == "model"
    # With one thread for the network, the other core decodes meanwhile.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert stages.limit(CPU) == pytest.approx(1 / 0.07)
    slow_decode = StageTimes(decode=0.05, preprocess=0.01, copy=0.02, model=0.03, write=0)
    assert slow_decode.limit(torch.device("cuda")) == pytest.approx(1 / 0.06)
    assert slow_decode.bound_by(torch.device("cuda")) == "decode"
    slow_resize = replace(slow_decode, decode=0.01, preprocess=0.05)
    assert slow_resize.bound_by(torch.device("cuda")) == "preprocess"
    assert slow_resize.bound_by(CPU) == "preprocess"
    # In a group that is in the way though none of its stages is the slowest.
    together = StageTimes(decode=0.03, preprocess=0.02, copy=0.01, model=0.04, write=0)
    assert together.bound_by(torch.device("cuda")) == "decode"
    # Decoding has both cores for as long as it takes, the network one for a little longer.
    assert together.bound_by(CPU) == "decode"
    assert replace(together, model=0.07).bound_by(CPU) == "model"


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_bounds_a_run_is_what_gains_most_where_it_goes(
    device: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvt_cli.benchmark.stage_times.cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    numbers = np.random.default_rng(threads).exponential(0.01, (50, 5))
    for stages in (StageTimes(*map(float, row)) for row in numbers):
        named = stages.bound_by(torch.device(device))
        gains = {
            name: replace(stages, **{name: 0.0}).limit(torch.device(device))
            for name in stage_times.STAGES
        }
        assert gains[named] == max(gains.values())
    nothing = StageTimes(0, 0, 0, 0, 0)
    assert nothing.limit(torch.device(device)) > 0


class Timed(Engine):
    """Takes so many seconds a run, the first two many more, and `more` is in each first logit."""

    def __init__(
        self, make: Callable[[float], Callable[[], None]], seconds: float, more: float
    ) -> None:
        self._more = more
        self._waits = [make(50), make(50)]
        self._wait = make(seconds)
        self.sizes: set[int] = set()

    def feed(self, images: torch.Tensor) -> None:
        self.images = images

    def run(self) -> None:
        self.sizes.add(len(self.images))
        (self._waits.pop() if self._waits else self._wait)()

    def logits(self) -> torch.Tensor:
        logits = self.images[:, 0, 0, :5].clone()
        logits[:, 0] += self._more
        return logits


@pytest.fixture
def sides(
    clock: Callable[[float], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """Sides that take an eighth and a quarter of a second, and what happens to them in order."""
    events: list[Any] = []

    def start(name: str, *arguments: Any) -> Timed:
        events.append((name, *arguments))
        engine = Timed(clock, *{"ours": (0.125, 0.0), "peer": (0.25, 0.5)}[name])
        events.append(engine)
        return engine

    def memory(device: torch.device) -> int:
        events.append("memory")
        return 7

    def ours(*given: Any, form: object, **more: Any) -> Timed:
        assert (form is None) == more["compiled"]
        return start("ours", *given, *more.values())

    monkeypatch.setattr(network, "ours", ours)
    monkeypatch.setattr(
        network, "baseline", lambda *given, **more: start("peer", *given, *more.values())
    )
    monkeypatch.setattr(network, "reset_peak_memory", lambda _: events.append("reset"))
    monkeypatch.setattr(network, "peak_memory", memory)
    peaks = iter([Peak(1e-9, "a"), Peak(2e-9, "b"), Peak(4e-9, "c"), Peak(3e-9, "d")])
    monkeypatch.setattr(
        network, "measure_peak", lambda *arguments: (events.append(arguments), next(peaks))[1]
    )
    return events


def test_figures_of_both_sides(sides: list[Any]) -> None:
    dtypes = ("bfloat16", "float32")
    checkpoint = tiny_checkpoint()
    measurement = Measurement(Plan(checkpoint, (64, 64), (3,), dtypes, CPU, 10, peer="openvino"))
    measurement.run(lambda _: None)
    for dtype, peak, case in zip(dtypes, (2e-9, 4e-9), measurement.cases, strict=True):
        torch_dtype = getattr(torch, dtype)
        # The peak is measured before and after; ours has its memory before there is a peer.
        before, _, start, ours_, _, start_peer, peer, after = sides[:8]
        del sides[:8]
        assert before == after == (CPU, torch_dtype, 1)
        assert start == ("ours", checkpoint, CPU, torch_dtype, False)
        assert start_peer == ("peer", "openvino", checkpoint, CPU, torch_dtype)
        assert ours_.sizes == peer.sizes == {3}
        found = measurement.record(case)
        for prefix, seconds in (("", 0.125), ("baseline_", 0.25)):
            for percent in (50, 90, 99):
                assert found[f"{prefix}latency_ms_p{percent}"] == seconds * 1e3
            assert found[f"{prefix}images_per_second"] == 3 / seconds
        assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (2, 2, 2)
        assert (found["rounds"], found["repeats"], found["latency_spread"]) == (ROUNDS, 70, 0)
        assert found["memory_bytes"] == 7
        flops = 2 * needed_macs(TINY, (64, 64))
        assert found["tflops"] == pytest.approx(24 * flops / 1e12)
        assert found["peak_fraction"] == pytest.approx(24 * flops / 1e12 / peak)
        assert measurement.limit(dtype) == pytest.approx(peak * 1e12 / flops)
        # Over nine different images.
        logits = torch.cat([synthetic_images(3, (64, 64), seed)[:, 0, 0, :5] for seed in range(3)])
        theirs = logits + torch.tensor([0.5, 0, 0, 0, 0])
        same = (logits.argmax(dim=1) == theirs.argmax(dim=1)).sum() / 9
        assert same == pytest.approx(7 / 9)
        assert found["labels_agree"] == pytest.approx(7 / 9)
        assert found["logit_difference"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (NotImplementedError("conv"), "not supported on this device"),
        (RuntimeError("a bug"), None),
    ],
    ids=str,
)
def test_a_peer_that_fails_leaves_our_figures(
    error: Exception, said: str | None, sides: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(network, "baseline", fail)
    plan_ = Plan(tiny_checkpoint(), (64, 64), (3,), ("float32",), CPU, 10, peer="x")
    measurement = Measurement(plan_)
    if said is None:
        with pytest.raises(RuntimeError, match="a bug"):
            measurement.run(lambda _: None)
        return
    measurement.run(lambda _: None)
    found = measurement.record(*measurement.cases)
    assert (found["latency_ms_p99"], found["repeats"]) == (125, 80)
    assert (found["ratio"], found["error"]) == (None, f"x: {said}")


def test_the_start_of_what_is_compiled(sides: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_compile_anew", lambda: sides.append("anew"))
    plan_ = Plan(tiny_checkpoint(), (64, 64), (3,), ("float32",), CPU, 10, compiled=True)
    measurement = Measurement(plan_)
    measurement.run(lambda _: None)
    start = sides.index("anew") + 1
    assert sides[start] == ("ours", plan_.checkpoint, CPU, torch.float32, True)
    found = measurement.record(*measurement.cases)
    assert (found["compile_seconds"], found["latency_ms_p99"]) == (50, 125)
    text = as_text(benchmark_report(measurement, MACHINE), "table")
    assert rows_of(text)[0].endswith(" 50.0 s")
    assert "the plain network, by torch.compile" in text


def test_a_batch_beyond_the_memory_is_not_tried(
    sides: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = count_cost(TINY, (64, 64), 3, dtype="float32")
    needed = cost.peak_activation_bytes + cost.weight_bytes
    for available, error in ((needed, "out of memory"), (needed + 1, None), (None, None)):
        monkeypatch.setattr(network, "available_memory", lambda: available)  # noqa: B023
        case = network._measure_case(
            Plan(tiny_checkpoint(), (64, 64), (3,), ("float32",), CPU, 1), 3, "float32", say=print
        )
        assert (case.error, case.latency is None) == (error, error is not None)


def test_the_peak_is_the_fastest_product(
    clock: Callable[[float], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def products(_: object, __: object, size: int) -> list[tuple[str, Callable[[], None]]]:
        sizes.append(size)
        found = []
        for name, rate in (("a", 1e12), ("b", 2e12 if size == 2048 else 0.5e12)):
            repeats = iter([100, *[2, 1, 3] * 999])  # the first reads the matrices

            def product(rate: float = rate, repeats: Any = repeats) -> None:
                clock(2 * size**3 / rate * next(repeats))()

            found.append((name, product))
        return found

    monkeypatch.setattr(peaks, "_products", products)
    peak = measure_peak(CPU, torch.float32, 0.2)
    assert (peak.product, sizes) == ("b, 2048 × 2048", [1024, 2048, 4096])
    assert peak.tflops == pytest.approx(2)
    # The largest take minutes on a slow machine.
    sizes.clear()
    measure_peak(CPU, torch.float32, 0.05)
    assert sizes == [1024, 2048]


def test_the_peak_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def products(_: object, __: object, size: int) -> list[tuple[str, Callable[[], None]]]:
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [("a", lambda: None)]

    monkeypatch.setattr(peaks, "_products", products)
    room = 2048
    peak = measure_peak(CPU, torch.float32, 0.01)
    assert peak is not None and peak.product.startswith("a, ")
    room = 0
    assert measure_peak(CPU, torch.float32, 0.01) is None
    measurement = Measurement(plan())
    measurement.run(lambda _: None)
    assert measurement.peaks == {}
    assert [measurement.record(case)["peak_fraction"] for case in measurement.cases] == [None] * 2
    assert rows_of(as_text(benchmark_report(measurement, MACHINE), "table"))


def test_memory_is_counted_without_what_the_peak_left(
    sides: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "free_memory", lambda _: sides.append("freed"))
    Measurement(plan()).run(lambda _: None)
    resets = [index for index, event in enumerate(sides) if event == "reset"]
    assert len(resets) == 2
    assert [sides[index - 1] for index in resets] == ["freed"] * 2


def test_what_is_compiled_on_a_gpu_is_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(torch, "compile", lambda f, **o: (asked.append((f, o)), f)[1])
    monkeypatch.setattr(Cvt, "to", lambda model, *_: model)
    engine: Any = ours(tiny_checkpoint(), torch.device("cuda"), torch.float16, compiled=True)
    ((compiled, options),) = asked
    assert isinstance(compiled.__self__, FusedCvt) and options["fullgraph"]
    assert isinstance(engine._network, Graphed) and engine._network._network == compiled


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch_size: int, image_size: tuple[int, int], seed: int = 0) -> torch.Tensor:
        if batch_size == 1:
            raise torch.OutOfMemoryError("no more")
        return synthetic_images(batch_size, image_size, seed)

    monkeypatch.setattr("cvt_cli.benchmark.network.synthetic_images", fail)
    measurement = Measurement(plan())
    measurement.run(lambda _: None)
    assert [case.error for case in measurement.cases] == ["out of memory", None]
    first, second = map(measurement.record, measurement.cases)
    assert first.keys() == second.keys()
    assert first["latency_ms_p50"] is None
    assert second["latency_ms_p50"] > 0


def test_an_interruption_leaves_what_is_done() -> None:
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if "2 of 2" in message:
            raise KeyboardInterrupt

    measurement = Measurement(plan())
    with pytest.raises(KeyboardInterrupt):
        measurement.run(say)
    (case,) = measurement.cases
    assert measurement.record(case)["peak_fraction"] > 0
    assert measurement.planned == 2


def test_the_same_network_in_both_hands() -> None:
    images = synthetic_images(2, (64, 64))
    logits = []
    for engine in (
        ours(tiny_checkpoint(), CPU, torch.float32),
        baseline("transformers", tiny_checkpoint(), CPU, dtype=torch.float32),
    ):
        engine.feed(images)
        engine.run()
        logits.append(engine.logits())
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


def test_each_side_computes_in_the_dtype() -> None:
    sides: list[Any] = [
        ours(tiny_checkpoint(), CPU, torch.bfloat16),
        _peer("transformers", tiny_checkpoint(), CPU, dtype=torch.bfloat16),
    ]
    assert isinstance(sides[0]._network, FusedCvt)  # as a run does
    for engine in sides:
        engine.feed(synthetic_images(2, (64, 64)))
        engine.run()
        assert engine._logits.dtype == torch.bfloat16
    torch.testing.assert_close(*(engine.logits() for engine in sides), rtol=0, atol=0.05)


def test_a_peer_on_the_cpu_is_apart_with_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def apart(make: Callable[..., object], *arguments: object, **named: object) -> None:
        started.append((*arguments, named))
        make(*arguments, **named)

    monkeypatch.setattr("cvt_cli.benchmark.engines.Apart", apart)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", started.append)
    checkpoint = tiny_checkpoint()
    baseline("transformers", checkpoint, CPU, dtype=torch.float16)
    assert started == [("transformers", checkpoint, torch.float16, {"threads": 3}), 3]


def test_openvino_computes_the_same_for_every_shape() -> None:
    pytest.importorskip("openvino")
    peer: Any = _peer("openvino", tiny_checkpoint(), CPU, dtype=torch.float32)
    expected = ours(tiny_checkpoint(), CPU, torch.float32)
    for batch_size, seed in ((2, 0), (2, 1), (1, 2)):
        for engine in (peer, expected):
            engine.feed(synthetic_images(batch_size, (64, 64), seed))
            engine.run()
        torch.testing.assert_close(peer.logits(), expected.logits(), rtol=0, atol=1e-3)
    # It would take bfloat16 of itself where the processor has it.
    assert "float32" in str(peer._network.get_property("INFERENCE_PRECISION_HINT"))
    other: Any = _peer("openvino", tiny_checkpoint(), CPU, dtype=torch.bfloat16)
    assert other._precision == "bf16"


@pytest.mark.parametrize(
    ("name", "changes", "device", "dtypes", "message"),
    [
        ("transformers", {}, "cuda", "bfloat16", ""),
        ("transformers", {"hidden_act": "quick_gelu"}, "cpu", "float32", "no quick_gelu"),
        ("transformers", {"depth": (1, 1, 3)}, "cpu", "float32", "different network"),
        (
            *("transformers", {"qkv_projection_method": ("dw_bn", "dw_bn", "avg")}),
            *("cpu", "float32", "dw_bn projections only"),
        ),
        ("openvino", {"hidden_act": "quick_gelu"}, "cpu", "float32,bfloat16,float16", ""),
        ("openvino", {}, "cuda", "float32", "on the CPU, not on cuda"),
        ("onnxruntime", {"depth": (1, 1, 1)}, "cpu", "float32", ""),
        ("onnxruntime", {}, "cpu", "float32,bfloat16", "does not support bfloat16"),
    ],
)
def test_what_a_peer_can_run(
    name: str, changes: dict[str, Any], device: str, dtypes: str, message: str
) -> None:
    checkpoint = replace(tiny_checkpoint(), config=replace(TINY, **changes))
    given = (name, checkpoint, torch.device(device))
    if not message:
        check_baseline(*given, dtypes=dtypes.split(","))
        return
    with pytest.raises(UsageError, match=message):
        check_baseline(*given, dtypes=dtypes.split(","))


def measured() -> Measurement:
    """By hand: figures of a peer in the first case alone."""
    comparison = Comparison(Latency(6, 0.25, 0.5, 1.0, 0.02), Ratio(2.5, 2, 3, 7), 0.75, 0.013)
    cases = [
        Case(8, "float32", Latency(5, 0.1, 0.2, 0.4, 0.015), 5 * 10**8, None, comparison),
        Case(2, "float32", Latency(9, 0.05, 0.06, 0.07, 0), 4 * 10**8, error="x: out of memory"),
        Case(4, "float32", error="out of memory"),
    ]
    plan_ = replace(plan(peer="openvino"), batch_sizes=(8, 2, 4, 1))
    return Measurement(plan_, {"float32": Peak(40e-12 * plan_.flops_per_image, "p")}, cases)


MACHINE = Machine(
    *("Linux 9", "A Chip", 4, ("avx2",), 8 * 10**9, 3.0, "cpu", "A Chip", "", 2, "highest"),
    {"cvt": "1", "torch": "2"},
)


def rows_of(text: str, first: str = "float32") -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(first)]


def test_the_table_of_figures() -> None:
    report = benchmark_report(measured(), MACHINE)
    text = as_text(report, "table")
    per_image = measured().plan.flops_per_image / 1e12
    ours_, other, failed, beside = rows_of(text)
    assert failed == "float32 4 out of memory"
    assert ours_ == f"float32 8 100 200 400 15% 80.0 {80 * per_image:.4f} 200% 500 MB"
    assert other.endswith("100% 400 MB x: out of memory")
    assert beside == "float32 8 250 32.0 2.50 (2.00 to 3.00) 7 75% 1.3e-02"
    assert "Beside openvino" in text
    rate = si_unit(40 * measured().plan.flops_per_image, "FLOP/s")
    assert rows_of(text, "peak ")[0] == f"peak float32 {rate}, p: at most 40.0 images/s"
    assert "differ by rounding" not in text
    assert rows_of(text, "machine") == ["machine A Chip, 4 cores, 8.00 GB, avx2"]
    assert rows_of(text, "device") == ["device cpu, 2 threads"]
    assert "busy at the start (load 3.0)" in text
    first, second, _ = csv.DictReader(io.StringIO(as_text(report, "csv")))
    assert first.keys() == second.keys()
    assert (first["latency_ms_p90"], first["baseline_latency_ms_p90"]) == ("200.0", "500.0")
    assert (second["batch_size"], second["error"]) == ("2", "x: out of memory")
    measurement = measured()
    measurement.plan = replace(measurement.plan, dtypes=("float32", "bfloat16"))
    text = as_text(
        benchmark_report(measurement, replace(MACHINE, float32_precision="high")), "table"
    )
    assert rows_of(text, "device")[0].endswith("float32 products in precision high")
    assert "differ by rounding" in " ".join(text.split())
    assert report.document["complete"] is False
    assert report.document["model"]["random_weights"] is True


def test_the_table_of_a_run_from_files(checkpoint: Checkpoint) -> None:
    plan_ = PipelinePlan(
        *(checkpoint, Path("photos"), None, (2,), ("float32",), CPU, 1, True), with_peer=True
    )
    stages = StageTimes(decode=0.5, preprocess=0.25, copy=0.125, model=1, write=0.125)
    case = PipelineCase(2, "float32", 4, stages, [2], [8], Ratio(4, 3, 5, 6), 0.75)
    failed = PipelineCase(2, "float32", 4, error="out of memory")
    measurement = PipelineMeasurement(plan_, [case, failed], unreadable=3, left_out=True)
    text = as_text(benchmark_report(measurement, replace(MACHINE, load=None)), "table")
    ours_, out_of_memory, beside = rows_of(text)
    limit = stages.limit(CPU)
    assert ours_ == (f"float32 2 2.00 500 250 125 1,000 125 {limit:.2f} {2 / limit:.0%} model")
    assert "25% 12% 6.2% 50% 6.2%" in " ".join(text.split())
    assert out_of_memory == "float32 2 out of memory"
    assert beside == "float32 2 0.50 4.00 (3.00 to 5.00) 6 75%"
    assert rows_of(text, "input") == [
        "input photos, 4 images a pass, the first 1,000 files, without 3 that can't be read"
    ]
    assert rows_of(text, "decode ") == ["decode exact"]
    assert "busy" not in text


def test_the_start_on_a_gpu_is_said_apart(checkpoint: Checkpoint) -> None:
    common = (checkpoint, Path("photos"), None, (2,), ("float16",))
    plan_ = PipelinePlan(*common, torch.device("cuda"), 1)
    stages = StageTimes(decode=0.5, preprocess=0.25, copy=0.125, model=1, write=0.125)
    case = PipelineCase(2, "float16", 4, stages, [2], warm_up_seconds=3.21)
    text = as_text(benchmark_report(PipelineMeasurement(plan_, [case]), MACHINE), "table")
    (row,) = rows_of(text, "float16")
    assert row == "float16 2 2.00 500 250 125 1,000 125 1.00 200% 3.2 s model"
    assert "which kernels are compiled" in " ".join(text.split())


def test_the_picture_shows_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure_class, "savefig", lambda self, *_, **__: drawn.append(self))
    plot(measured(), io.BytesIO(), ".png")
    throughput, latency = drawn[0].axes
    lines = {line.get_label(): list(map(list, line.get_data())) for line in throughput.lines}
    assert lines == {
        "float32": [[2, 8], [40, 80]],
        "openvino float32": [[8], [32]],
        "limit, float32": [[0, 1], [pytest.approx(40)] * 2],
    }
    ours_, theirs = (list(map(list, line.get_data())) for line in latency.lines)
    assert (ours_, theirs) == ([[2, 8], [50, 100]], [[8], [250]])
    shaded = {tuple(each) for each in latency.collections[0].get_paths()[0].vertices.tolist()}
    assert shaded == {(2, 50), (2, 0.07 * 1e3), (8, 100), (8, 400)}


def test_what_our_threads_do_is_not_for_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for theirs, set_here in ((None, "1000"), ("7", "7")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv(SPIN_COUNT, raising=False)
        if theirs is not None:
            monkeypatch.setenv(SPIN_COUNT, theirs)
        share_cores()
        with Apart(Odd) as odd:
            assert odd.call("spins") == theirs
        assert os.environ[SPIN_COUNT] == set_here


def test_a_process_of_its_own() -> None:
    with Apart(Odd) as odd:
        process = odd.call("process")
        assert process != os.getpid()
        with pytest.raises(ValueError, match="seven") as caught:
            odd.call("fail")
        assert caught.value.args == ("seven", 7)
        with pytest.raises(RuntimeError, match="odd"):
            odd.call("fail_oddly")
        os.kill(process, signal.SIGINT)  # is for the process that asks
        assert odd.call("process") == process
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        Apart(Odd, True)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("by", "kind"), [(9, MemoryError), (15, RuntimeError)])
def test_a_process_that_ends(by: int, kind: type[Exception]) -> None:
    with Apart(Odd) as odd, pytest.raises(kind):
        odd.call("die", by)


def test_a_process_that_ended_before_it_was_asked() -> None:
    with Apart(Odd) as odd:
        process = odd.call("process")
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        with pytest.raises(MemoryError):
            odd.call("process")


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (tiny_checkpoint().model().state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_published_name_needs_no_file(tiny_cvt: Callable[..., Path]) -> None:
    found = find_model("microsoft/cvt-21", hidden_act="quick_gelu")
    assert isinstance(found, RandomCheckpoint)
    assert (found.name, found.config.hidden_act) == ("microsoft/cvt-21", "quick_gelu")
    for others in (("someone/food",), ("microsoft/cvt-21", "v2")):
        with pytest.raises(ModelError):
            find_model(*others)
    here = find_model(str(tiny_cvt()), hidden_act="quick_gelu")
    assert not isinstance(here, RandomCheckpoint)
    assert here.config.hidden_act == "quick_gelu"


def test_dtypes_come_once() -> None:
    assert pick_dtypes("float32, float16,float32", CPU) == ("float32", "float16")
    assert len(pick_dtypes("auto,float32,bfloat16", CPU)) == 2


def test_the_peak_and_the_machine() -> None:
    peak = measure_peak(CPU, torch.float32, 0.01)
    assert peak.tflops > 0
    assert "1024 × 1024" in peak.product
    described = describe_machine(CPU, "transformers")
    assert described.cores >= 1
    assert {"cvt", "torch", "transformers"} <= described.versions.keys()
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    # Not of what the process keeps of earlier networks.
    with mmap.mmap(-1, 2**28) as big:
        np.frombuffer(big, np.uint8).fill(1)
        after = peak_memory(CPU)
    assert before is not None
    assert after is not None
    assert after - before > 2**27


def test_what_linux_says_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "CPUINFO": "processor\t: 0\nmodel name\t: A Chip 9\nflags\t\t: sse amx_tile avx2 avx2x\n",
        "MEMINFO": "MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:    6000 kB\n",
        "CGROUP_LIMIT": "max\n",
        "CGROUP_USED": "1000000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine, name, tmp_path / name)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.004, 7.0, 8.0))
    monkeypatch.setattr(machine, "cores", lambda: 4)
    found = describe_machine(CPU)
    assert (found.cpu, found.flags, found.load) == ("A Chip 9", ("avx2", "amx_tile"), 1)
    assert found.versions.keys() == {"cvt", "python", "torch"}
    assert not found.is_busy
    assert replace(found, load=1.1).is_busy
    assert (found.memory_bytes, machine.available_memory()) == (8000 * 1024, 6000 * 1024)
    (tmp_path / "CGROUP_LIMIT").write_text("5000000\n")
    assert (machine.total_memory(), machine.available_memory()) == (5_000_000, 4_000_000)
    for name in files:
        (tmp_path / name).unlink()
    assert (machine.total_memory(), machine.available_memory()) == (None, None)
    assert describe_machine(CPU).cpu


def test_the_form_that_is_measured_is_used_and_said(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path / "forms")
    monkeypatch.setattr(tuning, "fastest", lambda *_: ODD)
    picture().save(tmp_path / "a.png")
    folder = PipelinePlan(checkpoint, tmp_path, None, (2,), ("float32",), CPU, 0.01, tune=Tune.AUTO)
    threads = torch.get_num_threads()
    for measurement, by in (
        (Measurement(plan(tune=Tune.NOW)), "measured now"),
        (Measurement(plan(tune=Tune.AUTO)), "measured in an earlier run"),
        (PipelineMeasurement(folder), "measured in an earlier run"),  # of the same network
        (Measurement(plan()), "the usual one"),
    ):
        measurement.run(lambda _: None)
        form = Form.usual(3, CPU, torch.float32) if "usual" in by else ODD
        for case in measurement.cases:
            record = measurement.record(case)  # type: ignore[arg-type]
            assert record["form"] == str(form) and record["images_per_second"] > 0
        text = " ".join(as_text(benchmark_report(measurement, MACHINE), "table").split())
        assert f": {form}; {by}" in text
        assert torch.get_num_threads() == threads
    assert Measurement(plan()).record(Case(1, "float32"))["form"] is None


@pytest.fixture(scope="module")
def checkpoint(tiny_cvt: Callable[..., Path]) -> Checkpoint:
    return load(resolve(str(tiny_cvt())))


def test_options_reach_the_run_from_files(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "cat.jpg")
    seen = []

    def measure_case(
        plan: PipelinePlan,
        classifier: Classifier,
        sources: list[Source],
        *,
        dtype: str,
        threads: int,
    ) -> PipelineCase:
        size = classifier.checkpoint.preprocessing.image_size
        reader = classifier.reader
        seen.append((classifier.dtype, classifier.batch_size, size, reader.exact, len(sources)))
        return PipelineCase(classifier.batch_size, dtype, 1)

    monkeypatch.setattr(pipeline, "_measure_case", measure_case)
    for size, exact in (((32, 64), True), (None, False)):
        plan_ = PipelinePlan(
            *(checkpoint, tmp_path, size, (3, 2), ("bfloat16", "float32"), CPU, 1.0, exact)
        )
        measurement = PipelineMeasurement(plan_)
        measurement.run(lambda _: None)
        assert seen == [
            (dtype, batch_size, size or (64, 64), exact, 1)
            for dtype in (torch.bfloat16, torch.float32)
            for batch_size in (3, 2)
        ]
        assert len(measurement.cases) == measurement.planned
        seen.clear()


@pytest.mark.parametrize("count", [3, 4])
def test_more_files_than_are_taken(
    count: int, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(count):
        picture().save(tmp_path / f"{index}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"no image")
    monkeypatch.setattr(pipeline, "MAX_IMAGES", 3)
    monkeypatch.setattr(
        pipeline, "_measure_case", lambda *given, **_: PipelineCase(1, "float32", len(given[2]))
    )
    plan_ = PipelinePlan(checkpoint, tmp_path, None, (1,), ("float32",), CPU, 1.0)
    measurement = PipelineMeasurement(plan_)
    measurement.run(lambda _: None)
    assert (measurement.cases[0].images, measurement.unreadable) == (2, 1)
    assert measurement.left_out == (count > 3)


def test_a_picture_too_large_for_the_network_is_left_out(
    tiny_cvt: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "a.png")
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
    monkeypatch.setattr(
        pipeline, "_measure_case", lambda *given, **_: PipelineCase(1, "float32", len(given[2]))
    )
    checkpoint = load(resolve(str(tiny_cvt(processor=KEEPS_ASPECT))))
    measurement = PipelineMeasurement(
        PipelinePlan(checkpoint, tmp_path, None, (1,), ("float32",), CPU, 1.0)
    )
    measurement.run(lambda _: None)
    assert (measurement.cases[0].images, measurement.unreadable) == (1, 1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(CvtError, match="no image in it can be read"):
        measurement.run(lambda _: None)


class TimedRun:
    """A pass over the files that takes so many seconds, the first one many more."""

    def __init__(
        self, make: Callable[[float], Callable[[], None]], seconds: list[float], labels: list[str]
    ) -> None:
        self._waits = [make(each) for each in seconds]
        self.labels, self.calls = labels, []  # type: ignore[var-annotated]

    def __call__(self) -> None:
        (self._waits.pop(0) if len(self._waits) > 1 else self._waits[0])()

    def __enter__(self) -> "TimedRun":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, method: str, *arguments: object) -> list[str] | None:
        self.calls.append((method, *arguments))
        if method == "best_labels":
            return self.labels
        if not arguments:
            self()
        return None


def test_figures_of_a_run_from_files(
    checkpoint: Checkpoint,
    clock: Callable[[float], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[None] = []
    sources = [
        Source(str(index), Opened(lambda: (opened.append(None), io.BytesIO())[1]))
        for index in range(4)
    ]
    classifier = Classifier(checkpoint, device="cpu", dtype="float32", batch_size=1)
    stages = StageTimes(decode=0.5, preprocess=0.25, copy=0.125, model=1, write=0.125)

    def time_stages(*given: object) -> StageTimes:
        assert len(opened) == 2  # two batches to warm up
        assert given == (classifier, sources, 0.25)
        return stages

    monkeypatch.setattr(pipeline, "time_stages", time_stages)
    ours_ = TimedRun(clock, [4, 2, 1, 2], list("aabb"))
    peer = TimedRun(clock, [8, 8, 3, 8], list("abbb"))
    started: list[Any] = []
    monkeypatch.setattr(pipeline, "OurRun", lambda *_: ours_)
    monkeypatch.setattr(pipeline, "peer_run", lambda *given, **_: (started.append(given), peer)[1])
    common = (checkpoint, Path(), (32, 32), (1,), ("float32",), CPU, 0.5, False)
    measurement = PipelineMeasurement(PipelinePlan(*common, with_peer=True))
    case = pipeline._measure_case(measurement.plan, classifier, sources, dtype="float32")
    found = measurement.record(case)
    assert started == [(classifier, sources, True)]
    assert peer.calls[0] == ("run", True)
    assert (found["images"], found["passes"], found["error"]) == (4, 3, None)
    assert found["warm_up_seconds"] == case.warm_up_seconds is not None
    assert (found["images_per_second_min"], found["images_per_second_max"]) == (1, 4)
    assert (found["images_per_second"], found["baseline_images_per_second"]) == (2, 0.5)
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (3, 2, 4)
    assert (found["rounds"], found["labels_agree"]) == (3, 0.75)
    assert [found[f"{name}_ms"] for name in stage_times.STAGES] == [500, 250, 125, 1000, 125]
    assert [found[f"{name}_share"] for name in stage_times.STAGES] == [
        *(0.25, 0.125, 0.0625, 0.5, 0.0625)
    ]
    limit = stages.limit(CPU)
    assert found["limit_images_per_second"] == limit
    assert found["limit_fraction"] == pytest.approx(2 / limit)
    alone = TimedRun(clock, [0.25], list("aabb"))
    monkeypatch.setattr(pipeline, "OurRun", lambda *_: alone)
    opened.clear()
    measurement = PipelineMeasurement(PipelinePlan(*common))
    case = pipeline._measure_case(measurement.plan, classifier, sources, dtype="float32")
    assert measurement.record(case)["passes"] == 2  # half a second

    def fill(*_: object) -> None:
        classifier.batch_size = 1  # as it does where the memory holds no more
        raise errors.pop()

    classifier.batch_size = 4
    errors = [RuntimeError("a bug"), MemoryError()]
    monkeypatch.setattr(pipeline, "time_stages", fill)
    found = measurement.record(
        pipeline._measure_case(measurement.plan, classifier, sources, dtype="float32")
    )
    assert (found["batch_size"], found["error"]) == (1, "out of memory")
    assert found["images_per_second"] is found["bound_by"] is None
    with pytest.raises(RuntimeError, match="a bug"):
        pipeline._measure_case(measurement.plan, classifier, sources, dtype="float32")


def test_a_stage_s_share_of_an_image(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        picture(seed=index).save(tmp_path / f"{index}.jpg")
    sources = list(find([str(tmp_path)]))
    classifier = Classifier(checkpoint, device="cpu", dtype="float32", batch_size=2)
    # Read by all, decoded by one, that with the resize, copied, scored, written.
    timings = iter([24.0, 16.0, 24.0, 1.0, 5.0, 0.5])
    shares = []

    def timed(work: Callable[[], object], seconds: float, at_least: int) -> list[float]:
        shares.append(seconds)
        work()
        return [next(timings)]

    monkeypatch.setattr(stage_times, "times", timed)
    monkeypatch.setattr(stage_times, "SAMPLE", 2)
    monkeypatch.setattr(stage_times, "PER_CORE", 0)
    stages = stage_times.time_stages(classifier, sources, 10)
    assert stages == StageTimes(decode=8, preprocess=4, copy=0.5, model=2, write=0.25)
    assert shares == [2] * 6


@pytest.mark.parametrize(
    ("files", "batch_size", "batches"),
    [(5, 4, [4]), (5, 3, [3]), (3, 4, [2])],  # of two in the sample
    ids=["more files than a batch has", "not even so many twice", "fewer"],
)
def test_the_network_is_timed_in_batches_as_full_as_those_of_the_run(
    files: int,
    batch_size: int,
    batches: list[int],
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for index in range(files):
        picture(seed=index).save(tmp_path / f"{index}.jpg")
    classifier = Classifier(checkpoint, device="cpu", dtype="float32", batch_size=batch_size)
    seen: list[int] = []
    model = classifier._runner.model
    monkeypatch.setattr(classifier._runner, "model", lambda x: (seen.append(len(x)), model(x))[1])
    monkeypatch.setattr(
        stage_times, "times", lambda work, *_, **__: (seen.append(-1), work(), [1.0])[2]
    )
    monkeypatch.setattr(stage_times, "SAMPLE", 2)
    stages = stage_times.time_stages(classifier, list(find([str(tmp_path)])), 10)
    # Between the marks of what is timed; afterwards the sample, for records.
    assert seen[5:-2] == batches and seen[:5] == [-1] * 5
    assert stages.copy + stages.model == 1 / sum(batches)


def test_an_image_that_has_an_error_has_no_label(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its scores are too large for float16."""
    for index in range(3):
        picture(seed=index).save(tmp_path / f"{index}.png")
    classifier = Classifier(checkpoint, device="cpu", dtype="float32", batch_size=3)
    model = classifier._runner.model

    def overflows(x: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        logits[1] = float("inf")
        return logits

    monkeypatch.setattr(classifier._runner, "model", overflows)
    run = pipeline_runs.OurRun(classifier, list(find([str(tmp_path)])))
    run()
    assert [label is None for label in run.labels] == [False, True, False]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_peer_sees_what_we_see(scaled: bool, checkpoint: Checkpoint) -> None:
    ours_ = checkpoint.with_image_size((48, 32)) if scaled else checkpoint
    image = picture(200, 150)
    pixels = torch.from_numpy(ours_.preprocessing.pixels(image).copy())[None]
    theirs = pipeline_runs._processor(ours_, scaled)(image, return_tensors="pt")["pixel_values"]
    # A pixel's rounding apart, where the resampling is done in another order.
    torch.testing.assert_close(theirs, ours_.preprocessing.normalize(pixels), atol=0.1, rtol=0)


def test_a_pass_of_the_peer(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        picture(seed=index).save(tmp_path / f"{index}.png")
    sources = list(find([str(tmp_path)]))
    classifier = Classifier(checkpoint, device="cpu", dtype="bfloat16", batch_size=2)
    ours_ = pipeline_runs.OurRun(classifier, sources)
    ours_()
    monkeypatch.setattr(pipeline_runs, "Apart", lambda make, *given, **named: make(*given, **named))
    peer: Any = pipeline_runs.peer_run(classifier, sources, False, threads=torch.get_num_threads())
    assert peer._pipeline.model.dtype == torch.bfloat16
    peer.run(True)
    assert len(peer.best_labels()) == 4
    peer.run()
    assert peer.best_labels() == ours_.labels
    assert len(ours_.labels) == 5
