"""The installed command on a GPU: its labels beside the CPU's, resumed runs, what it measures."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import RunCvt
from tests.endings import at_call
from tests.labelled import save_split

# Not forks: who forks may have asked for the GPU, which its children can't use then.
pytestmark = [pytest.mark.cuda, pytest.mark.real_start]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float16", 0.01), ("bfloat16", 0.05)]
)
def test_the_labels_of_the_cpu(dtype: str, tolerance: float, run_cvt: RunCvt) -> None:
    options = (
        "--model",
        "cvt-tiny-cifar10",
        "--format",
        "jsonl",
        "--top-k",
        "10",
        "--batch-size",
        "4",
    )
    sides = []
    for device in (("cpu", "float32"), ("cuda", dtype)):
        done = run_cvt("classify", EXAMPLES, *options, "--device", device[0], "--dtype", device[1])
        assert done.returncode == 0 and "without CUDA graphs" not in done.stderr, done.stderr
        sides.append(done.jsonl())
    assert len(sides[0]) > 8
    for expected, found in zip(*sides, strict=True):
        scores = [
            {each["label"]: each["score"] for each in r["predictions"]} for r in (expected, found)
        ]
        assert scores[1] == pytest.approx(scores[0], abs=tolerance)
        best = [r["predictions"][0]["label"] for r in (expected, found)]
        runner_up = expected["predictions"][1]["score"]
        if expected["predictions"][0]["score"] - runner_up > 2 * tolerance:
            assert best[0] == best[1]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """71 files, one of which is no image: with a batch size of 4 the last batch has three."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    examples = sorted(EXAMPLES.glob("*.jpg"))
    for index in range(71):
        shutil.copy(examples[index % len(examples)], folder / f"{index:02}.jpg")
    (folder / "41.jpg").write_text("no image")
    return folder


several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def run_code(run_cvt: RunCvt, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that runs the code first, and is no fork."""
    code += "\nfrom cvt_cli.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        env=run_cvt.env,
        cwd=run_cvt.cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("command", "devices", "moments"),
    [
        ("classify", "cuda", (2, 3, 13)),  # the last time only the last batch is left
        ("embed", "cuda", (4,)),
        pytest.param("classify", "cuda:0,cuda:1", (2, 5), marks=several),
    ],
)
def test_a_resumed_run_ends_byte_for_byte_the_same(
    command: str,
    devices: str,
    moments: Sequence[int],
    pictures: Path,
    run_cvt: RunCvt,
    tmp_path: Path,
) -> None:
    name = "jsonl" if command == "classify" else "parquet"
    options = ["--model", "cvt-tiny-cifar10", "--device", devices, "--dtype", "float16", "-b", "4"]

    def run(output: Path, *more: str, then: str = "") -> int:
        done = run_code(run_cvt, then, command, pictures, *options, "-o", output, *more)
        assert "continuing without" not in done.stderr, done.stderr  # graphs, or kernels
        return done.returncode

    whole, output = tmp_path / f"whole.{name}", tmp_path / f"labels.{name}"
    assert run(whole) == 1
    more: list[str] = []
    for batches in moments:
        killed = at_call("cvt_cli.output.journal:Journal.write", batches)
        assert run(output, *more, then=killed) == -signal.SIGKILL
        part = output.with_name(f"{output.name}.part")
        part.write_bytes(part.read_bytes()[:-1])
        more = ["--resume"]
    assert run(output, *more) == 1
    assert output.read_bytes() == whole.read_bytes()


@several
def test_several_gpus_give_the_labels_of_one(pictures: Path, run_cvt: RunCvt) -> None:
    options = ("--model", "cvt-tiny-cifar10", "--dtype", "float16", "-b", "4", "-f", "jsonl")
    one, two = (
        run_cvt("classify", pictures, *options, "--device", device, expect=1).stdout
        for device in ("cuda", "cuda:0,cuda:1")
    )
    assert two == one


def test_a_resumed_training(run_cvt: RunCvt, tmp_path: Path) -> None:
    """Killed in the third epoch of eight steps."""
    data = save_split(tmp_path / "data", train=32)
    options = ("--arch", "cvt-tiny", "--batch-size", "8", "--epochs", "4", "--device", "cuda")
    saving = "from cvt_cli.training import training_run\ntraining_run.SAVING_SHARE = float('inf')\n"
    killed = saving + at_call("cvt_cli.training.loop:Trainer._step", 20)
    done = run_code(run_cvt, killed, "train", data, *options, "-o", "out")
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = run_code(run_cvt, "", "train", data, *options, "-o", "out", "--resume")
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 2 of 4" in done.stderr
    assert "without CUDA graphs" not in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_no_pass_from_files_waits_for_what_another_does_not(
    pictures: Path, run_cvt: RunCvt
) -> None:
    """The last batch of a pass is short; it is not recorded when it comes for the second time."""
    done = run_cvt(
        *("benchmark", "--images", pictures, "--model", "cvt-tiny-cifar10", "--device", "cuda"),
        *("--dtype", "float16", "-b", "8", "--duration", "2", "--format", "json"),
    )
    assert done.returncode == 0, done.stderr
    (row,) = done.json()["results"]
    assert row["error"] is None and row["passes"] >= 3 and row["warm_up_seconds"] > 0
    assert row["images_per_second_min"] > row["images_per_second_max"] / 8


def test_the_benchmark(run_cvt: RunCvt) -> None:
    done = run_cvt(
        *("benchmark", "--device", "cuda", "--dtype", "float16,bfloat16", "--batch-size", "1,16"),
        *("--baseline", "transformers", "--duration", "0.2", "--format", "json"),
    )
    assert done.returncode == 0, done.stderr
    for row in done.json()["results"]:
        assert row["error"] is None
        assert row["ratio"] > 1 and row["labels_agree"] >= 0.75
