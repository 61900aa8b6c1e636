"""Figures of repeats against NumPy and by hand, needed multiply-adds against torch's counter."""

import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cvt_cli.benchmark.apart import Apart
from cvt_cli.benchmark.engines import baseline, ours
from cvt_cli.benchmark.machine import describe, peak_memory, reset_peak_memory
from cvt_cli.benchmark.model import RandomCheckpoint, find_model, pick_dtypes
from cvt_cli.benchmark.network import Measurement, Plan, measure_peak, synthetic_images
from cvt_cli.benchmark.pipeline import Stages
from cvt_cli.benchmark.statistics import (
    MIN_ROUNDS,
    ROUNDS,
    Latency,
    Ratio,
    percentile,
    take_turns,
    times,
)
from cvt_cli.checkpoint.resolve import ResolvedFiles
from cvt_cli.cores import SPIN_COUNT, share_cores
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cost import count, needed_macs
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.fused import FusedCvt
from tests.model.test_cost import ARCHITECTURES

CPU = torch.device("cpu")
TINY = CvtConfig(embed_dim=(16, 32, 64), num_heads=(1, 1, 1), depth=(1, 2, 3), num_labels=5)


def tiny_checkpoint() -> RandomCheckpoint:
    files = ResolvedFiles("tiny", None, None, ())
    labels = tuple(f"class {index}" for index in range(5))
    return RandomCheckpoint(files, TINY, labels, Preprocessing.convnext(64))


def plan(**others: Any) -> Plan:
    return Plan(tiny_checkpoint(), (64, 64), (1, 2), ("float32",), CPU, 0.01, **others)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(length: int) -> None:
    values = np.random.default_rng(length).exponential(size=length).tolist()
    for percent in (0, 25, 50, 75, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
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
    total = count(config, (96, 128), 2).total.macs
    assert needed < total if config.cls_token[-1] else needed == total


def test_the_dead_work_of_cvt_13() -> None:
    config = CvtConfig()
    whole = count(config, (224, 224)).total.macs
    assert 0.05 < 1 - needed_macs(config, (224, 224)) / whole < 0.08


def test_stages_on_a_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvt_cli.benchmark.pipeline.cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    stages = Stages(decode=0.02, preprocess=0.01, copy=0.001, model=0.069, write=0)
    assert stages.limit(CPU) == pytest.approx(10)
    assert stages.limit(torch.device("mps")) == pytest.approx(1 / 0.07)
    assert stages.limit(torch.device("cuda")) == pytest.approx(1 / 0.069)  # copied meanwhile
    assert stages.bound_by(CPU) == stages.bound_by(torch.device("cuda")) == "model"
    # With one thread for the network, the other core decodes meanwhile.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert stages.limit(CPU) == pytest.approx(1 / 0.07)
    slow_decode = Stages(decode=0.05, preprocess=0.01, copy=0.02, model=0.03, write=0)
    assert slow_decode.limit(torch.device("cuda")) == pytest.approx(1 / 0.06)
    assert slow_decode.bound_by(torch.device("cuda")) == "decode"


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
        baseline("transformers", tiny_checkpoint(), CPU, torch.float32),
    ):
        engine.feed(images)
        engine.run()
        logits.append(engine.logits())
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


class Odd:
    def __init__(self, fails: bool = False) -> None:
        if fails:
            raise torch.OutOfMemoryError("no more")

    def process(self) -> int:
        return os.getpid()

    def spins(self) -> str | None:
        return os.environ.get(SPIN_COUNT)

    def fail(self) -> None:
        raise ValueError("seven", 7)

    def fail_oddly(self) -> None:
        error = ValueError("odd")
        error.add_note("")
        error.function = lambda: None  # type: ignore[attr-defined]
        raise error

    def die(self, by: int) -> None:
        os.kill(os.getpid(), by)


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


def test_a_published_name_needs_no_file() -> None:
    found = find_model("microsoft/cvt-21", hidden_act="quick_gelu")
    assert isinstance(found, RandomCheckpoint)
    assert (found.name, found.config.hidden_act) == ("microsoft/cvt-21", "quick_gelu")
    with pytest.raises(ModelError):
        find_model("someone/food")


def test_dtypes_come_once() -> None:
    assert pick_dtypes("float32, float16,float32", CPU) == ("float32", "float16")
    assert len(pick_dtypes("auto,float32,bfloat16", CPU)) == 2


def test_the_peak_and_the_machine() -> None:
    peak = measure_peak(CPU, torch.float32, 0.01)
    assert peak.tflops > 0
    assert "1024 × 1024" in peak.product
    machine = describe(CPU, "transformers")
    assert machine.cores >= 1
    assert {"cvt", "torch", "transformers"} <= machine.versions.keys()
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    # Not of what the process keeps of earlier networks.
    with mmap.mmap(-1, 2**28) as big:
        np.frombuffer(big, np.uint8).fill(1)
        after = peak_memory(CPU)
    assert before is not None
    assert after is not None
    assert after - before > 2**27
