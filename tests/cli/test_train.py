"""`cvt train` as a user runs it."""

import errno
import json
import os
import signal
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from cvt_cli.checkpoint.catalog import CIFAR10_MODEL
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.train import TrainCompute, _folder_alone
from cvt_cli.errors import CvtError, ExitCode
from cvt_cli.system.cores import SPIN_COUNT
from cvt_cli.system.locks import locked_folder
from tests.endings import at_call
from tests.labelled import save_shapes, save_split

FROM_SCRATCH = ("--arch", "cvt-tiny", "--batch-size", 8, "--dtype", "float32", "--device", "cpu")
RESULT = {
    "README.md",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "preprocessor_config.json",
}
# Every epoch is saved, however long that takes; the process ends in the second batch of the third.
KILLED_IN_THE_THIRD_EPOCH = """
import os, signal
from cvt_cli.training import training_run
from cvt_cli.training.loop import Trainer

training_run.SAVING_SHARE = float("inf")
step = Trainer._step

def killing_step(self, *batch):
    step(self, *batch)
    if self.epochs_done == 2:
        self.steps_of_the_third = getattr(self, "steps_of_the_third", 0) + 1
        if self.steps_of_the_third == 2:
            os.kill(os.getpid(), signal.SIGKILL)

Trainer._step = killing_step
"""


def metrics(folder):
    """The epochs' metrics, without what no two runs have in common."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=16)
    options = ("train", data, *FROM_SCRATCH, "--epochs", 3, "--rand-augment", 5, "--cutmix", 0.2)
    run_cvt(*options, "-o", "whole", expect=0)
    killed = tmp_path / "killed"
    process = run_cvt.start(*options, "-o", killed, first=KILLED_IN_THE_THIRD_EPOCH)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(metrics(killed)) == 2 and (killed / "training.pt").exists()
    done = run_cvt(*options, "-o", killed, "--resume", expect=0)
    assert "continuing after epoch 2 of 3" in done.stderr
    whole = tmp_path / "whole"
    assert metrics(killed) == metrics(whole)
    weights = "model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_130(run_cvt, tmp_path, number):
    data = save_split(tmp_path / "data", train=8, val=2)
    options = ("train", data, *FROM_SCRATCH, "--epochs", 5)
    # After the first batch of the second epoch.
    interrupted = at_call("cvt_cli.training.loop:Trainer._step", 3, number)
    with run_cvt.start(*options, "-o", "out", first=interrupted) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "--resume to continue" in errors and "Traceback" not in errors
    assert len(metrics(tmp_path / "out")) == 1 and (tmp_path / "out" / "training.pt").exists()


def test_two_that_train_into_one_folder(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=8, val=2)
    options = ("train", data, *FROM_SCRATCH, "--epochs", 1, "-o", "out")
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out"):
        done = run_cvt(*options, expect=2)
    said = "cvt: error: out is being written by another run; wait for it to finish, or name another"
    assert done.stderr == f"{said} --output\n"
    assert not any((tmp_path / "out").iterdir())
    # One that has been quicker.
    filled = at_call(
        "cvt_cli.training.training_run:Training.__init__", 1, "open('out/weights', 'w').close()"
    )
    with run_cvt.start(*options, first=filled) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "out: not empty; --resume" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]


def test_a_process_that_can_not_be_started_is_no_other_run(tmp_path):
    run = SimpleNamespace(resume=False, overwrite=False, epochs=1)
    # As `fork` raises it where a user may have no more processes: a BlockingIOError.
    full = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    with pytest.raises(CvtError) as raised, _folder_alone(tmp_path / "out", run):
        raise full
    assert str(raised.value) == f"{tmp_path}/out: resource temporarily unavailable"
    assert raised.value.exit_code is ExitCode.RUN_FAILED


def test_a_disk_too_full_for_the_state(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=8, val=2)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}  # Python would cut its own caches, too
    options = ("--epochs", 1, "-o", "out")
    with run_cvt.start(
        *("train", data, *FROM_SCRATCH, *options), env=environment, first=limited
    ) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 4
    assert errors.splitlines()[-1] == "cvt: error: out: file too large"
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_fine_tuning_the_bundled_model_on_two_labels(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=20, val=20)
    (data / "train" / "circle" / "broken.png").write_bytes(b"\x89PNG broken")
    done = run_cvt(
        *("train", data, "-o", "mine", "--model", CIFAR10_MODEL, "--epochs", 4),
        *("--batch-size", 10, "--lr", 0.001),
        expect=0,
    )
    assert done.stdout == "mine\n"
    assert "41 images to train on, 40 to validate on, 2 labels" in done.stderr
    assert "circle/broken.png" in done.stderr and "1 image could not be read" in done.stderr
    assert done.stderr.count("images/s") == 4
    result = tmp_path / "mine"
    assert {path.name for path in result.iterdir()} == RESULT
    # 40 coins land so often on one side once in a thousand times.
    assert metrics(result)[-1]["val_accuracy"] > 0.75
    evaluation = run_cvt("evaluate", data / "val", "--model", "mine", "-f", "json", expect=0).json()
    assert evaluation["count"] == 40
    assert evaluation["top1"] == pytest.approx(metrics(result)[-1]["val_accuracy"], abs=0.03)
    card = (result / "README.md").read_text()
    assert "cvt train" in card and "`circle`, `square`" in card


def test_a_learning_rate_of_zero_is_no_default(run_cvt, tmp_path):
    data = save_shapes(tmp_path / "data", ("circle", "square"), count=3)
    options = ("--val-fraction", 0, "--epochs", 1, "--lr", 0)
    run_cvt("train", data, "-o", "out", *FROM_SCRATCH, *options, expect=0)
    assert metrics(tmp_path / "out")[-1]["learning_rate"] == 0


def test_transformers_reads_the_result_with_equal_logits(run_cvt, tmp_path):
    import torch
    from PIL import Image
    from transformers import pipeline

    from cvt_cli.inference.classifier import Classifier

    data = save_shapes(tmp_path / "data", ("circle", "square", "bar"), count=5)
    run_cvt("train", data, "-o", "out", *FROM_SCRATCH, "--val-fraction", 0, "--epochs", 1, expect=0)
    theirs = pipeline("image-classification", str(tmp_path / "out"), device="cpu")
    classifier = Classifier(str(tmp_path / "out"), device="cpu", dtype="float32")
    for path in sorted(data.glob("*/00.png")):
        with Image.open(path) as image:
            expected = {each["label"]: each["score"] for each in theirs(image.convert("RGB"))}
        found = {each.label: each.score for each in classifier(path).predictions}
        assert found.keys() == expected.keys() == {"circle", "square", "bar"}
        for label, score in found.items():
            torch.testing.assert_close(score, expected[label], atol=1e-5, rtol=1e-4)
    assert "val_accuracy" not in metrics(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--model or --arch"),
        (("--model", CIFAR10_MODEL, "--arch", "cvt-tiny"), "--model or --arch"),
        (("--arch", "cvt-99"), "cvt-99: no such architecture; one of cvt-13, cvt-21"),
        (("--arch", "cvt-tiny", "--crop", "square"), "square: no such crop; one of auto, padded"),
        (("--arch", "cvt-tiny", "--dtype", "int8"), "int8: no such dtype"),
        (("--arch", "cvt-tiny", "--mixup", 0.7, "--cutmix", 0.7), "their sum is at most 1"),
        (("--arch", "cvt-tiny", "--resume", "--overwrite"), "--resume and --overwrite exclude"),
        (("--arch", "cvt-tiny", "--train-blocks", 1), "--train-blocks needs a trained network"),
        (("--model", CIFAR10_MODEL, "--head-only", "--train-blocks", 1), "can't be combined with"),
        (("--arch", "cvt-tiny"), "data: no such folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run_cvt, tmp_path, options, message):
    done = run_cvt("train", "data", "-o", "out", *options, expect=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "train" / "none").mkdir(), "train/none: a class without images"),
        (lambda data: (data / "val" / "square").rename(data / "val" / "oval"), "named oval"),
        (lambda data: (data / "train" / "square").rename(data / "x"), "1 class, at least two"),
    ],
)
def test_data_that_can_not_be_trained_on_is_refused(run_cvt, tmp_path, damage, message):
    data = save_split(tmp_path / "data", train=2, val=2)
    damage(data)
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, expect=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_needs_a_word(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=4, val=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, expect=2)
    assert "out: not empty" in done.stderr
    assert "--resume" in done.stderr and "--overwrite" in done.stderr
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, "--resume", expect=2)
    assert "nothing to resume: no training wrote it" in done.stderr
    twice = ("--epochs", 2, "--overwrite")
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, *twice, expect=0)
    assert [line.endswith("s left") for line in done.stderr.splitlines()[1:]] == [True, False]
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULT | {"notes.txt"}
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, "--resume", expect=0)
    assert "out: finished, nothing to resume" in done.stderr
    more = ("--epochs", 3, "--resume")
    done = run_cvt("train", data, "-o", "out", *FROM_SCRATCH, *more, expect=2)
    assert "out is finished after 2 epochs, and its training state is gone" in done.stderr
    assert "--model out" in done.stderr


def test_minutes_end_a_run_after_the_epochs_that_fit(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=4, val=2)
    options = ("train", data, "-o", "out", *FROM_SCRATCH)
    run_cvt(*options, "--minutes", 0.01, expect=0)
    assert 1 <= len(metrics(tmp_path / "out")) < 30
    run_cvt(*options, "--minutes", 5, "--epochs", 2, "--overwrite", expect=0)
    assert len(metrics(tmp_path / "out")) == 2


def test_calibration_moves_scores_and_no_label(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=10, val=10)
    run_cvt("train", data, "-o", "raw", *FROM_SCRATCH, "--epochs", 2, expect=0)
    done = run_cvt("train", data, "-o", "calibrated", "-m", "raw", "--epochs", 0, "--calibrate")
    assert (done.returncode, done.stdout) == (0, "calibrated\n")
    assert "calibrated on 20 images: temperature " in done.stderr
    raw, result = tmp_path / "raw", tmp_path / "calibrated"
    (fit,) = metrics(result)
    assert (fit["epoch"], fit["calibration_images"]) == (0, 20)
    assert fit["calibration_accuracy"] == metrics(raw)[-1]["val_accuracy"]
    assert fit["calibration_loss_after"] < fit["calibration_loss_before"]
    card = (result / "README.md").read_text()
    assert f"{fit['calibration_ece_after']:.4f} on these" in card and "--calibrate" in card
    # What is measured afterwards is what was foretold.
    command = ("evaluate", data / "val", "--dtype", "float32", "--device", "cpu", "-f", "json")
    before, after = (run_cvt(*command, "-m", each, expect=0).json() for each in (raw, result))
    assert before["ece"] == pytest.approx(fit["calibration_ece_before"], abs=1e-3)
    assert after["ece"] == pytest.approx(fit["calibration_ece_after"], abs=1e-3)
    assert after["top1"] == before["top1"] == fit["calibration_accuracy"]


def test_a_training_is_calibrated_at_its_end(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=4, val=2)
    options = ("train", data, *FROM_SCRATCH, "--epochs", 1)
    run_cvt(*options, "-o", "raw", expect=0)
    run_cvt(*options, "-o", "calibrated", "--calibrate", expect=0)
    *epochs, fit = metrics(tmp_path / "calibrated")
    assert epochs == metrics(tmp_path / "raw") and fit["epoch"] == 1
    from safetensors.torch import load_file

    raw, calibrated = (
        load_file(tmp_path / each / "model.safetensors") for each in ("raw", "calibrated")
    )
    changed = {name for name in raw if not raw[name].equal(calibrated[name])}
    assert changed == {"classifier.weight", "classifier.bias"} or (
        changed == {"classifier.weight"} and not raw["classifier.bias"].any()
    )
    ratio = raw["classifier.weight"] / calibrated["classifier.weight"]
    assert ratio.mean().item() == pytest.approx(fit["calibration_temperature"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arch", "cvt-tiny", "--epochs", 0, "--calibrate"), "--epochs 0 trains nothing; with"),
        (("--model", CIFAR10_MODEL, "--epochs", 0), "--epochs 0 trains nothing; with"),
        (("--model", CIFAR10_MODEL, "--epochs", 0, "--calibrate"), "are not those of data"),
        (("--arch", "cvt-tiny", "--calibrate", "--val-fraction", 0), "needs validation images"),
    ],
)
def test_what_can_not_be_calibrated_is_refused(run_cvt, tmp_path, options, message):
    save_split(tmp_path / "data", train=2, val=2)
    done = run_cvt("train", "data", "-o", "out", *options, expect=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_network_shares_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv(SPIN_COUNT, "")  # to be put back
    monkeypatch.delenv(SPIN_COUNT)
    with ExitStack() as stack:
        context = SimpleNamespace(obj=GlobalOptions(), with_resource=stack.enter_context)
        TrainCompute(readers=1).start(context)
        assert os.environ[SPIN_COUNT] == "1000"
