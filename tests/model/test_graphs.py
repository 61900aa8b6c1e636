"""CUDA graphs: when one is recorded, which batches go through it, and that results stay the same.

Without a CUDA device, a stand-in takes the place of the recording: it computes anew, but reads its
input from one place and gives as many rows as it was recorded with, as a graph does.
"""

import contextlib
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from cvt_cli.model import graphs
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.graphs import Graphed
from tests.model.test_cvt import randomise, tiny


class Network:
    """A row for each image; notes the sizes of batches that it is called with."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return images.sum(dim=(2, 3)) + 1


class Recorded:
    """In place of what `graphs._Recorder` records; all that were made are in `made`."""

    made: list["Recorded"]
    error = 0.0

    def __init__(self, _network: Any, images: torch.Tensor) -> None:
        self.input = images.clone()
        self.calls = 0
        self.made.append(self)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.input[: len(images)].copy_(images)
        return (self.input.sum(dim=(2, 3)) + 1 + self.error)[: len(images)].clone()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(Recorded, "made", [], raising=False)
    monkeypatch.setattr(Recorded, "error", 0.0)
    monkeypatch.setattr(graphs, "_Recorder", lambda: Recorded)
    return Recorded


def images(count: int, size: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, size, size)


def through(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    torch.testing.assert_close(network(x), Network()(x))


def test_the_second_batch_of_a_shape_is_recorded(recorded: type[Recorded]) -> None:
    network = Network()
    graphed = Graphed(network)
    through(graphed, images(4))
    assert not recorded.made  # one image from the shell gains nothing
    for _ in range(3):
        through(graphed, images(4))
    through(graphed, images(4, size=5))
    assert [len(each.input) for each in recorded.made] == [4]
    assert recorded.made[0].calls == 4  # the first beside the network, to see that it is right
    assert network.sizes == [4, 4, 4]


def test_a_smaller_batch_is_padded_to_no_more_than_twice_its_size(recorded: type[Recorded]) -> None:
    network = Network()
    graphed = Graphed(network)
    for size in (8, 8):
        through(graphed, images(size))
    network.sizes.clear()
    for size in (7, 5, 4, 5):  # however often: to record it would cost more
        through(graphed, images(size))
    assert network.sizes == []
    assert [each.calls for each in recorded.made] == [6]
    for size in (3, 3, 9):
        through(graphed, images(size))
    through(graphed, images(2))  # to the smallest that takes it
    assert [len(each.input) for each in recorded.made] == [8, 3]
    assert network.sizes == [3, 3, 9]


def test_what_is_planned_does_not_depend_on_what_came_before(recorded: type[Recorded]) -> None:
    """A recording that differs in its last digits shows which of the two it was."""
    recorded.error = 1e-5
    for before in ([], [8], [8, 8], [6, 6], [3, 3, 5, 8, 8]):
        graphed = Graphed(Network())
        for size in before:
            graphed(images(size))
        for size, count, by_graph in ((8, 8, True), (8, 5, True), (0, 8, False), (8, 1, True)):
            x = images(count)
            with graphed.planned(size), warnings.catch_warnings():
                warnings.simplefilter("error")
                difference = graphed(x) - Network()(x)
            assert difference.shape == (count, 3)
            assert bool((difference > 5e-6).all()) == by_graph
            assert by_graph or not difference.any()
        x = images(3, size=5)  # as usual outside
        assert graphed(x).equal(Network()(x))


def test_the_first_batch_of_a_plan_that_is_padded_to_be_recorded(
    recorded: type[Recorded],
) -> None:
    graphed = Graphed(Network())
    x = images(5).contiguous(memory_format=torch.channels_last)
    with graphed.planned(8):
        torch.testing.assert_close(graphed(x), Network()(x))
    (made,) = recorded.made
    assert made.input.shape == (8, 3, 4, 4)
    assert made.input.is_contiguous(memory_format=torch.channels_last)  # as full ones are


def test_no_more_graphs_than_memory_is_meant_for(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    graphed = Graphed(Network())
    for size in (4, 5, 6, 7):
        for _ in range(3):
            through(graphed, images(2, size))
    assert len(recorded.made) == 2


def test_where_memory_is_short_there_are_no_graphs(recorded: type[Recorded]) -> None:
    graphed = Graphed(Network())
    through(graphed, images(4))
    assert not graphed.stop()  # it takes no memory yet
    for _ in range(2):
        through(graphed, images(4))
    calls = recorded.made[0].calls
    assert graphed.stop() and not graphed.stop()
    for size in (4, 4, 3, 5, 5):
        through(graphed, images(size))
    assert len(recorded.made) == 1 and recorded.made[0].calls == calls


def test_numbers_that_are_none_in_one_image(recorded: type[Recorded]) -> None:
    graphed = Graphed(Network())
    for number in (float("nan"), float("inf")):
        x = images(4, size=4 + len(recorded.made))
        x[1, 0, 0, 0] = number
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                torch.testing.assert_close(graphed(x), Network()(x), equal_nan=True)
    assert [each.calls for each in recorded.made] == [3, 3]


def test_infinity_in_one_image_hides_nothing(recorded: type[Recorded]) -> None:
    recorded.error = 0.5
    graphed = Graphed(Network())
    x = images(4)
    x[1] = float("inf")
    graphed(x)
    with pytest.warns(UserWarning, match="they give other results"):
        graphed(x)


def test_a_recording_that_gives_other_results_is_not_used(recorded: type[Recorded]) -> None:
    recorded.error = 0.5
    graphed = Graphed(Network())
    through(graphed, images(4))
    with pytest.warns(UserWarning, match="without CUDA graphs, slower: they give other results"):
        through(graphed, images(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        through(graphed, images(4))
        through(graphed, images(3))
    assert recorded.made[0].calls == 1


@pytest.mark.parametrize(
    ("error", "words", "again"),
    [
        # Torch's state is unknown then.
        (RuntimeError("not permitted when stream is capturing\nand more"), "not .* capturing", 0),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", 1),
    ],
)
def test_what_cannot_be_recorded_runs_as_it_is(
    error: Exception, words: str, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def fails(*_: Any) -> None:
        nonlocal tried
        tried += 1
        raise error

    monkeypatch.setattr(graphs, "_Recorder", lambda: fails)
    graphed = Graphed(Network())
    through(graphed, images(4))
    with pytest.warns(UserWarning, match=f"slower: {words}$"):
        through(graphed, images(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if again else "error")
        through(graphed, images(4))
        for _ in range(2):
            through(graphed, images(9))
    assert tried == 1 + again


def test_nobody_else_records_or_sets_up_meanwhile(recorded: type[Recorded]) -> None:
    graphed = Graphed(Network())
    for size in (4, 4, 4):
        thread = threading.Thread(target=graphed, args=(images(size),), daemon=True)
        with graphs.recording:
            thread.start()
            thread.join(0.1)
            assert thread.is_alive() == (len(recorded.made) == 0)
        thread.join(60)
        assert not thread.is_alive()


class Captured:
    """In place of a `torch.cuda.CUDAGraph`, of which `alive` has those that are referred to."""

    alive: ClassVar["weakref.WeakSet[Captured]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    def replay(self) -> None:
        pass


class Stream:
    def wait_stream(self, _: object) -> None:
        pass


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> "weakref.WeakSet[Captured]":
    """The real recorder on stand-ins for torch.cuda: graphs that replay nothing."""
    nothing = lambda *_, **__: contextlib.nullcontext()  # noqa: E731
    for name, value in {
        "CUDAGraph": Captured,
        "Stream": Stream,
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": Stream,
        "device": nothing,
        "stream": nothing,
        "graph": nothing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Captured, "alive", weakref.WeakSet())
    return Captured.alive


class Fails(Network):
    """Fails in the call of that number, counted among those with so many images."""

    def __init__(self, size: int, number: int, error: Exception) -> None:
        super().__init__()
        self.size, self.number, self.error = size, number, error

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        result = super().__call__(images)
        if len(images) == self.size and self.sizes.count(self.size) == self.number:
            raise self.error
        return result


@pytest.mark.parametrize("number", [2, 3, 4], ids=["warm-up", "recording", "comparison"])
@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("not permitted when stream is capturing"), False),
    ],
    ids=["torch's memory", "cuDNN's memory", "no memory's fault"],
)
def test_a_failed_recording_leaves_nothing_behind(
    error: Exception, full: bool, number: int, captured: "weakref.WeakSet[Captured]"
) -> None:
    """Nor does it leave graphs without the workspaces of their stream, which go with it."""
    graphed = Graphed(Fails(4, number, error))
    x, y = images(9), images(4)  # too many to pad the four to
    for _ in range(2):
        through(graphed, x)
    assert len(captured) == 1
    through(graphed, y)
    reason = "out of memory" if full else "not permitted"
    with pytest.warns(UserWarning, match=f"slower: {reason}"):
        through(graphed, y)
    error.__traceback__ = None  # the test holds it, nobody else does
    gc.collect()
    assert len(captured) == 0
    assert not graphed.stop()
    for _ in range(2):
        through(graphed, x)
        through(graphed, y)
    assert len(captured) == 0 if not full else 1


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_on_cuda(dtype: torch.dtype) -> None:
    network = FusedCvt(randomise(Cvt(tiny())).eval().to("cuda", dtype))
    graphed = Graphed(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        for size in (4, 4, 4, 3, 4, 2, 1, 1, 1):
            x = torch.randn(size, 3, 64, 64, device="cuda", dtype=dtype)
            expected = network(x)
            tolerance = 0.01 * float(expected.abs().max())
            torch.testing.assert_close(graphed(x), expected, rtol=0, atol=tolerance)
    assert len(graphed._graphs) == 2


@pytest.mark.cuda
def test_two_threads_with_a_stream_each_on_cuda() -> None:
    network = FusedCvt(randomise(Cvt(tiny())).eval().cuda())
    wrong: list[str] = []

    def work(seed: int) -> None:
        graphed, stream = Graphed(network), torch.cuda.Stream()
        generator = torch.Generator().manual_seed(seed)
        with torch.cuda.stream(stream):
            for _ in range(30):
                x = torch.randn(4, 3, 64, 64, generator=generator).pin_memory()
                on_device = x.to("cuda", non_blocking=True)
                if not torch.allclose(
                    graphed(on_device).cpu(), network(on_device).cpu(), atol=1e-3
                ):
                    wrong.append(f"thread {seed}")

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
