"""The loop: it learns, and a run that is cut anywhere ends as one that is not."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cvt_cli.errors import CvtError, UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.training import loop, time_limit
from cvt_cli.training import training_run as run_module
from cvt_cli.training.augment import Augmentation
from cvt_cli.training.data import Images
from cvt_cli.training.dataset import find_dataset
from cvt_cli.training.loop import Trainer
from cvt_cli.training.settings import Settings
from cvt_cli.training.start import Start
from cvt_cli.training.state import METRICS, STATE, load_state, save_state
from cvt_cli.training.time_limit import TimeLimit
from cvt_cli.training.training_run import Training
from tests.checkpoint.test_load import Code
from tests.labelled import save_split

SMALL = CvtConfig(
    embed_dim=(16, 16, 32),
    num_heads=(1, 1, 1),
    depth=(1, 1, 1),
    drop_path_rate=(0.0, 0.0, 0.2),
    patch_sizes=(3, 3, 3),
    patch_stride=(2, 2, 2),
    patch_padding=(1, 1, 1),
    initializer_range=0.1,
    num_labels=2,
)
RULE = Preprocessing(resize_to=(16, 16), shortest_edge=None, crop=None)
SETTINGS = Settings(
    epochs=3,
    batch_size=6,
    learning_rate=3e-3,
    weight_decay=0.05,
    warmup_epochs=1.0,
    label_smoothing=0.1,
    clip_norm=1.0,
    ema_decay=0.99,
    seed=0,
    dtype="float32",
    augmentation=Augmentation(mixup=0.3, cutmix=0.3),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return find_dataset(save_split(tmp_path_factory.mktemp("shapes")), None, seed=0)


@pytest.fixture(autouse=True)
def one_thread():
    # So small a network gains nothing from more.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer_for(dataset, config=SMALL, **changes):
    torch.manual_seed(0)
    errors = {}
    return Trainer(
        Cvt(config),
        Images(dataset.train, RULE, errors),
        Images(dataset.val, RULE, errors),
        errors=errors,
        preprocessing=RULE,
        settings=replace(SETTINGS, **changes),
        device=CPU,
    )


def run(trainer, stop_after=None):
    """All epochs; interrupted after so many batches."""
    batches = 0

    def count(progress):
        nonlocal batches
        batches += 1

    while trainer.epochs_done < trainer.settings.epochs:
        trainer.epoch(count, lambda: batches == stop_after)


def without_times(history):
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in metrics.items() if k not in timed} for metrics in history]


def assert_equal_weights(trainer, other):
    for name, value in trainer.average.state.items():
        assert torch.equal(value, other.average.state[name]), name
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def whole_run(dataset):
    trainer = trainer_for(dataset)
    run(trainer)
    return trainer


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_run_that_is_interrupted_and_resumed_equals_one_that_is_not(
    dataset, whole_run, tmp_path, stop_after
):
    first = trainer_for(dataset)
    with pytest.raises(KeyboardInterrupt):
        run(first, stop_after)
    save_state(tmp_path, first)
    second = trainer_for(dataset)
    torch.manual_seed(99)
    second.restore(load_state(tmp_path))
    assert second.epochs_done == stop_after // 4 - (stop_after == 4)
    run(second)
    assert without_times(second.history) == without_times(whole_run.history)
    assert_equal_weights(second, whole_run)


def test_what_could_not_be_read_before_an_interrupt_is_counted_after_it(tmp_path):
    folder = save_split(tmp_path / "data")
    (folder / "train" / "circle" / "00.png").write_bytes(b"")
    damaged = find_dataset(folder, None, seed=0)
    first = trainer_for(damaged)
    with pytest.raises(KeyboardInterrupt):
        run(first, stop_after=4)
    save_state(tmp_path, first)
    second = trainer_for(damaged)
    second.restore(load_state(tmp_path))
    metrics = second.epoch(lambda progress: None, lambda: False)
    assert (metrics["images"], metrics["unreadable"]) == (23, 1)


def test_what_is_not_to_be_trained_stays_as_it_is(dataset):
    trainer = trainer_for(dataset, train_blocks=1, epochs=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    run(trainer)
    # Statistics of batch norms among them.
    moved = {n for n, value in trainer.average.state.items() if not torch.equal(value, before[n])}
    last = ("stages.2.", "norm.", "head.")
    assert {name.rpartition(".")[0] for name in before if name.startswith(last)} == {
        name.rpartition(".")[0] for name in moved
    }


def test_the_seed_decides(dataset, whole_run):
    other = trainer_for(dataset, seed=1)
    run(other)
    assert without_times(other.history) != without_times(whole_run.history)


def test_every_epoch_is_augmented_anew(dataset):
    trainer = trainer_for(dataset, epochs=2)
    seeds = []
    for _ in range(2):
        trainer.epoch(lambda progress: seeds.append(torch.initial_seed()), lambda: False)
    assert seeds == [seeds[0]] * 4 + [seeds[-1]] * 4
    assert seeds[0] != seeds[-1]


def test_it_learns(dataset):
    trainer = trainer_for(dataset, epochs=15, ema_decay=0.5, augmentation=Augmentation())
    run(trainer)
    assert trainer.history[0]["train_loss"] > trainer.history[-1]["train_loss"]
    assert trainer.history[-1]["val_accuracy"] >= 0.9


def test_what_is_validated_are_the_averaged_weights(dataset):
    trainer = trainer_for(dataset, epochs=1, ema_decay=0.5)
    metrics = trainer.epoch(lambda progress: None, lambda: False)
    network = Cvt(SMALL).eval()
    network.load_state_dict(trainer.average.state)
    images = Images(dataset.val, RULE, {})
    (batch,) = images.batches([torch.arange(len(dataset.val))])
    with torch.inference_mode():
        logits = network(RULE.normalize(batch[0]))
    assert metrics["val_loss"] == pytest.approx(F.cross_entropy(logits, batch[1]).item())
    right = (logits.argmax(1) == batch[1]).float().mean().item()
    assert metrics["val_accuracy"] == pytest.approx(right)


def test_the_gradient_is_clipped(dataset):
    def moved(clip_norm):
        # AdamW's first step does not depend on the gradient's length until that is next to none.
        trainer = trainer_for(dataset, epochs=1, clip_norm=clip_norm, weight_decay=0.0)
        before = trainer.model.head.weight.clone()
        with pytest.raises(KeyboardInterrupt):
            trainer.epoch(lambda progress: None, lambda: True)
        return (trainer.model.head.weight - before).abs().max().item()

    assert moved(0.0) < 1e-9
    assert moved(1.0) > 1e-6


def test_the_precision_is_put_back(dataset):
    before = torch.get_float32_matmul_precision()
    trainer = trainer_for(dataset, epochs=1, dtype="bfloat16")
    with pytest.raises(KeyboardInterrupt):
        trainer.epoch(lambda progress: None, lambda: True)
    assert torch.get_float32_matmul_precision() == before


def test_batches_with_one_readable_image_or_none(tmp_path):
    damaged = find_dataset(save_split(tmp_path / "data"), None, seed=0)
    trainer = trainer_for(damaged, epochs=1, batch_size=3)
    # Batch norm has no statistics for a single image.
    lost = [damaged.train[index] for index in trainer._order(0)[0][1:]]
    for sample in (*lost, *damaged.val[:6]):
        Path(sample.source.path).write_bytes(b"")
    metrics = trainer.epoch(lambda progress: None, lambda: False)
    assert (metrics["images"], metrics["unreadable"]) == (21, 8)
    assert 0 <= metrics["val_accuracy"] <= 1


def test_a_resumed_run_may_have_another_number_of_epochs(dataset, tmp_path):
    first = trainer_for(dataset, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run(first, stop_after=5)
    save_state(tmp_path, first)
    second = trainer_for(dataset, epochs=2)
    second.restore(load_state(tmp_path))
    run(second)
    assert second.epochs_done == 2
    assert second.history[-1]["learning_rate"] < first.history[0]["learning_rate"]


def test_metrics_are_a_line_an_epoch(dataset, whole_run, tmp_path):
    save_state(tmp_path, whole_run)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole_run.history
    assert [metrics["epoch"] for metrics in whole_run.history] == [1, 2, 3]
    last = whole_run.history[-1]
    assert last["images"] == 24 and last["unreadable"] == 0
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= last.keys()


def test_a_state_of_other_settings_or_data_is_refused(dataset, whole_run, tmp_path):
    save_state(tmp_path, whole_run)
    state = load_state(tmp_path)
    with pytest.raises(UsageError, match=r"had learning_rate = 0\.003, not 0\.1"):
        trainer_for(dataset, learning_rate=0.1).restore(state)
    wider = replace(SMALL, embed_dim=(16, 32, 32))
    with pytest.raises(UsageError, match="trained another architecture"):
        trainer_for(dataset, config=wider).restore(state)
    fewer = replace(dataset, train=dataset.train[:-1])
    with pytest.raises(UsageError, match="had 24 training images, now there are 23"):
        trainer_for(fewer).restore(state)


def test_a_corrupt_state_is_no_state(tmp_path):
    assert load_state(tmp_path) is None
    (tmp_path / STATE).write_bytes(b"PK\3\4 cut short")
    with pytest.raises(CvtError, match="not the state of a training"):
        load_state(tmp_path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(CvtError, match="not the state of a training"):
        load_state(tmp_path)


def test_a_state_runs_no_code(tmp_path):
    state = {"settings": {}, "history": [], "more": Code(tmp_path / "was-run")}
    torch.save(state, tmp_path / STATE)
    with pytest.raises(CvtError, match="not the state of a training"):
        load_state(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_a_state_is_replaced_whole_or_not_at_all(dataset, whole_run, tmp_path, monkeypatch):
    save_state(tmp_path, whole_run)
    before = (tmp_path / STATE).read_bytes()

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, whole_run)
    assert (tmp_path / STATE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, STATE]


def test_a_loss_that_is_no_number_ends_the_run(dataset):
    trainer = trainer_for(dataset)
    with torch.no_grad():
        trainer.model.head.bias.fill_(float("nan"))
    with pytest.raises(CvtError, match="the loss is nan in epoch 1"):
        run(trainer)


def test_nothing_readable_is_an_error(dataset, tmp_path):
    folder = save_split(tmp_path)
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"")
    said = r"no training image could be read, for example .*\.png: empty file$"
    with pytest.raises(CvtError, match=said):
        run(trainer_for(find_dataset(Path(folder), None, seed=0)))


# In a process of its own: signals that come at another moment would end it.
INTERRUPTS = """
import os, signal, time
from cvt_cli.system.signals import deferred_interrupts

clock = 0.0
time.monotonic = lambda: clock
before = signal.getsignal(signal.SIGTERM)
with deferred_interrupts() as event:
    assert not event.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert event.wait()
    os.kill(os.getpid(), signal.SIGTERM)  # the same, sent on by who started us
    clock = 5.0
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        print("interrupted")
assert signal.getsignal(signal.SIGTERM) is before
"""


def test_the_first_interrupt_waits_and_the_second_does_not(run_python):
    process = run_python(INTERRUPTS)
    assert process.communicate(timeout=300) == ("interrupted\n", "")
    assert process.returncode == 0


class Timed:
    """A trainer for `TimeLimit`, by a clock of its own."""

    def __init__(self, monkeypatch):
        self.settings, self.history, self.now = SETTINGS, [], 1000.0
        monkeypatch.setattr(time_limit.time, "monotonic", lambda: self.now)

    @property
    def epochs_done(self):
        return len(self.history)

    def run(self, limit, seconds, beside):
        self.now += seconds + beside
        self.history.append({"seconds": seconds})
        limit.epoch_done()


def test_a_time_limit_follows_what_epochs_take(monkeypatch):
    trainer = Timed(monkeypatch)
    limit = TimeLimit(trainer, 100.0, None)
    trainer.now += 20  # as compiling
    trainer.run(limit, 10.0, 0.0)
    assert trainer.settings.epochs == 1 + 7
    while trainer.epochs_done < trainer.settings.epochs:
        trainer.run(limit, 2.0, 0.5)  # between epochs the result is written
    assert 95 < trainer.now - 1000 <= 100
    resumed = Timed(monkeypatch)
    resumed.history = [{"seconds": 10.0}] * 4
    TimeLimit(resumed, 100.0, None)
    assert resumed.settings.epochs == 10
    TimeLimit(resumed, 100.0, 7)
    assert resumed.settings.epochs == 7
    TimeLimit(resumed, 30.0, None)
    assert resumed.settings.epochs == 4


def test_a_time_limit_leaves_one_epoch_at_least(monkeypatch):
    trainer = Timed(monkeypatch)
    limit = TimeLimit(trainer, 1.0, 5)
    assert trainer.settings.epochs >= 1
    trainer.run(limit, 10.0, 0.0)
    assert trainer.settings.epochs == 1


def test_images_are_changed_in_full_precision(dataset, monkeypatch):
    reduced = []

    @contextmanager
    def precision(*_):
        reduced.append(True)
        yield
        reduced.clear()

    monkeypatch.setattr(loop, "_precision", precision)
    trainer = trainer_for(dataset)
    augment, network = trainer._augment, trainer.model

    def augmented(*batch):
        assert not reduced
        return augment(*batch)

    def computed(x):
        assert reduced
        return network(x)

    trainer._augment, trainer._network = augmented, computed
    trainer.epoch(lambda _: None, lambda: False)


def test_what_can_not_be_compiled_leaves_the_training_as_it_was(dataset, monkeypatch):
    def refuse(model, **_):
        def compiled(x):
            model(x)
            raise RuntimeError("no compiler\nsome lines of a log")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    trainer = trainer_for(dataset)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    torch.manual_seed(5)
    with pytest.raises(UsageError, match=r"compile this network here: no compiler$"):
        trainer.compile()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    assert all(torch.equal(value, before[k]) for k, value in trainer.model.state_dict().items())
    assert trainer._network is trainer.model
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_states_are_written_for_a_small_part_of_the_time(dataset, tmp_path, monkeypatch):
    now, saved = [0.0], []

    def save(folder, trainer):
        saved.append(trainer.epochs_done)
        now[0] += 1.0

    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_module, "save_state", save)
    start = Start(Cvt(SMALL), RULE, "random weights", new_head=True)
    training = Training(
        tmp_path, dataset, start, settings=replace(SETTINGS, epochs=9), device=CPU, command=["cvt"]
    )
    training.open(overwrite=False)
    for _ in range(8):
        training.trainer.history.append({"val_accuracy": 0.5, "seconds": 1, "unreadable": 0})
        monkeypatch.setattr(training.trainer, "epoch", lambda *_: {})
        training.epoch(lambda _: None, lambda: False)
        now[0] += 5.0
    assert saved == [1, 5]
