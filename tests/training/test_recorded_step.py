"""Which steps go through a CUDA graph, and that weights end as they do without one.

Without a CUDA device, a stand-in takes the place of the graph: it does the step anew, but reads the
batch from the one place that it was recorded with, as a graph does.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.training.augment import Augmentation
from cvt_cli.training.data import Images
from cvt_cli.training.dataset import find_dataset
from cvt_cli.training.loop import Trainer
from cvt_cli.training.recorded_step import STEPS_BEFORE, RecordedStep
from cvt_cli.training.state import load_state, save_state
from tests.labelled import save_split
from tests.training.test_loop import RULE, SETTINGS, SMALL

CPU = torch.device("cpu")


class Summed:
    """A step: adds what it is given to a sum; notes how."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.calls = 0

    def __call__(self, images: Tensor, targets: Tensor) -> None:
        self.calls += 1
        self.sum += float(images.sum() * targets.sum())


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    step: RecordedStep
    replays = 0

    def replay(self) -> None:
        self.replays += 1
        assert self.step._inputs is not None
        self.step._step(*self.step._inputs)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[RecordedStep, Summed]:
    summed = Summed()
    step = RecordedStep(summed, CPU)
    step._records = True

    @contextlib.contextmanager
    def record(graph: Graph, **_options: Any) -> Any:
        graph.step = step
        before = summed.sum
        yield
        summed.sum = before  # recording computes nothing

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return step, summed


def batch(value: float, count: int = 4) -> tuple[Tensor, Tensor]:
    return torch.full((count, 2), value), torch.ones(count)


def test_one_shape_is_recorded_after_some_steps(recorded: tuple[RecordedStep, Summed]) -> None:
    step, summed = recorded
    expected = 0.0
    for number in range(STEPS_BEFORE + 4):
        images, targets = batch(number)
        step(images, targets)
        expected += float(images.sum() * targets.sum())
    assert summed.sum == expected
    assert isinstance(step._graph, Graph) and step._graph.replays == 4
    step(*batch(1.0, count=3))  # an image could not be read
    assert step._graph.replays == 4
    step(*batch(2.0))
    assert step._graph.replays == 5
    assert summed.sum == expected + 6 * 3 + 16 * 4


def test_what_can_not_be_recorded_runs_as_it_is(
    recorded: tuple[RecordedStep, Summed], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, summed = recorded

    @contextlib.contextmanager
    def fails(_graph: Graph, **_options: Any) -> Any:
        raise RuntimeError("operation not permitted\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "graph", fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS_BEFORE + 4):
            step(*batch(1.0))
    assert [str(each.message) for each in caught] == [
        "training without CUDA graphs, slower: operation not permitted"
    ]
    assert summed.calls == STEPS_BEFORE + 4


def test_a_restored_state_is_recorded_anew(recorded: tuple[RecordedStep, Summed]) -> None:
    step, summed = recorded
    for _ in range(STEPS_BEFORE + 1):
        step(*batch(1.0))
    assert step._graph is not None
    step.forget()
    before = summed.calls
    for _ in range(STEPS_BEFORE):
        step(*batch(1.0))
    assert step._graph is None and summed.calls == before + STEPS_BEFORE


class Places(Graph):
    """A graph of a trainer's step: reads and writes where its tensors lay when it was recorded."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.step = trainer._update
        self.places = self.now()

    def now(self) -> list[int]:
        optimizer = self.trainer._optimizer
        states = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [*self.trainer.model.state_dict().values(), *states, self.trainer._sums]
        return [each.data_ptr() for each in tensors]

    def replay(self) -> None:
        assert self.now() == self.places
        super().replay()


def trainer_of(
    folder: Path, device: torch.device = CPU, *, config: CvtConfig = SMALL, **changes: Any
) -> Trainer:
    torch.manual_seed(0)
    dataset = find_dataset(folder, None, seed=0)
    errors: dict[str, str] = {}
    return Trainer(
        Cvt(config),
        Images(dataset.train, RULE, errors, device=device),
        Images(dataset.val, RULE, errors, device=device),
        errors=errors,
        preprocessing=RULE,
        settings=replace(SETTINGS, **changes),
        device=device,
    )


def train(trainer: Trainer, stop_after: int | None = None) -> None:
    """Do all epochs, or so many batches."""
    batches: list[object] = []
    with contextlib.suppress(KeyboardInterrupt):
        while not trainer.is_done:
            trainer.epoch(batches.append, lambda: len(batches) == stop_after)
    assert trainer.is_done == (stop_after is None)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], Trainer]:
    """Has a trainer on the CPU record its steps, by stand-ins."""

    def prepare(trainer: Trainer) -> Trainer:
        def record(images: Tensor, targets: Tensor) -> None:
            trainer._update._inputs = (images.clone(), targets.clone())
            trainer._update._graph = Places(trainer)  # type: ignore[assignment]

        trainer._update._records = True
        monkeypatch.setattr(trainer._update, "_record", record)
        return trainer

    return prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_split(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path) -> Trainer:
    """A training that nothing has interrupted or recorded."""
    trainer = trainer_of(data)
    train(trainer)
    return trainer


@pytest.mark.parametrize("stop_after", [2, 6])
@pytest.mark.parametrize("same_process", [False, True])
def test_a_resumed_training_records_anew_and_ends_the_same(
    stop_after: int,
    same_process: bool,
    data: Path,
    whole: Trainer,
    records: Callable[[Trainer], Trainer],
    tmp_path: Path,
) -> None:
    first = records(trainer_of(data))
    train(first, stop_after)
    save_state(tmp_path, first)
    second = first if same_process else records(trainer_of(data))
    second.restore(load_state(tmp_path) or {})
    assert second._update._graph is None
    train(second)
    graph = second._update._graph
    assert isinstance(graph, Places) and graph.replays == 12 - stop_after - STEPS_BEFORE
    for name, value in whole.average.state.items():
        assert torch.equal(value, second.average.state[name]), name


def test_the_state_of_a_gpu_is_taken_up_on_a_cpu(
    data: Path, whole: Trainer, tmp_path: Path
) -> None:
    """There the learning rate is a tensor and the optimizer one that can be recorded."""
    first = trainer_of(data)
    train(first, 5)
    for group in first._optimizer.param_groups:
        group.update(lr=torch.tensor(float(group["lr"])), capturable=True)
    save_state(tmp_path, first)
    second = trainer_of(data)
    second.restore(load_state(tmp_path) or {})
    train(second)
    assert second.average.state["head.weight"].equal(whole.average.state["head.weight"])


@pytest.mark.cuda
@pytest.mark.parametrize("then", ["cuda", "cpu"])
@pytest.mark.parametrize("before", ["cuda", "cpu"])
def test_a_training_is_resumed_on_cuda(before: str, then: str, data: Path, tmp_path: Path) -> None:
    """The same but for rounding: other kernels compute other last digits."""
    # Graphs draw other random numbers.
    changes = {
        "config": replace(SMALL, drop_path_rate=(0.0, 0.0, 0.0)),
        "augmentation": Augmentation(crop="none", flip=False),
    }
    whole = trainer_of(data, **changes)
    train(whole)
    first = trainer_of(data, torch.device(before), **changes)
    train(first, 6)
    save_state(tmp_path, first)
    second = trainer_of(data, torch.device(then), **changes)
    second.restore(load_state(tmp_path) or {})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training without CUDA graphs")
        train(second)
    assert (second._update._graph is not None) == (then == "cuda")
    losses = [[each["train_loss"] for each in trainer.history] for trainer in (whole, second)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    weights = [trainer.average.state["head.weight"].cpu() for trainer in (whole, second)]
    torch.testing.assert_close(*weights, rtol=0, atol=2e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_weights_end_as_without_a_graph(compiled: bool, tmp_path: Any) -> None:
    device = torch.device("cuda")
    dataset = find_dataset(save_split(tmp_path), None, seed=0)
    config = replace(SMALL, drop_path_rate=(0.0, 0.0, 0.0))  # graphs draw other random numbers
    rule: Preprocessing = RULE
    histories, sides = [], []
    for records in (True, False):
        torch.manual_seed(0)
        errors: dict[str, str] = {}
        trainer = Trainer(
            Cvt(config),
            Images(dataset.train, rule, errors, device=device),
            Images(dataset.val, rule, errors, device=device),
            errors=errors,
            preprocessing=rule,
            settings=replace(SETTINGS, epochs=4, augmentation=Augmentation(cutmix=0.5)),
            device=device,
        )
        trainer._update._records = records
        if compiled and records:
            trainer.compile()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="training without CUDA graphs")
            while not trainer.is_done:
                trainer.epoch(lambda _progress: None, lambda: False)
        assert (trainer._update._graph is not None) == records
        histories.append([each["train_loss"] for each in trainer.history])
        sides.append(trainer.average.state["head.weight"].cpu())
    assert histories[0] == pytest.approx(histories[1], rel=2e-3)
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=2e-3)
