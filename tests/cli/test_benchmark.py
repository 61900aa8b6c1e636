"""`cvt benchmark` as a user runs it. That the figures fit together, not how fast anything is."""

import csv
import importlib
import io
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from cvt_cli.benchmark.model import find_model
from cvt_cli.benchmark.network import Plan
from cvt_cli.benchmark.pipeline import PipelinePlan
from cvt_cli.cli.compute_options import DecodeChoice, TuneChoice
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.inference.tuning import Tune
from tests.conftest import Completed, RunCvt
from tests.endings import at_call
from tests.hub_server import HubServer
from tests.tiny import KEEPS_ASPECT

MakeCvt = Callable[..., Path]

command: Any = importlib.import_module("cvt_cli.cli.benchmark")

QUICK = ("--duration", 0.05, "--dtype", "float32")


def check_row(row: dict[str, Any]) -> None:
    """That the figures of one case fit together."""
    assert row["error"] is None
    assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
    rate = row["batch_size"] / row["latency_ms_p50"] * 1e3
    assert row["images_per_second"] == pytest.approx(rate)
    assert row["latency_spread"] >= 0
    assert row["repeats"] >= 3
    assert row["tflops"] > 0
    assert row["peak_fraction"] > 0
    assert row["memory_bytes"] > 10**7


def test_network_alone(tiny_cvt: MakeCvt, run_cvt: RunCvt, tmp_path: Path) -> None:
    folder = tiny_cvt()
    plot = tmp_path / "speed.svg"
    done = run_cvt(
        "benchmark", "-m", folder, "-b", "1,3", *QUICK, "-f", "json", "--plot", plot, "--progress",
        expect=0,
    )  # fmt: skip
    found = done.json()
    assert found["complete"] is True
    assert found["model"]["random_weights"] is False
    assert found["model"]["image_size"] == [64, 64]
    flops = found["model"]["needed_flops_per_image"]
    assert 0 < flops < 2 * found["model"]["macs_per_image"]
    assert [row["batch_size"] for row in found["results"]] == [1, 3]
    peak = found["peaks"]["float32"]
    for row in found["results"]:
        check_row(row)
        assert row["tflops"] == pytest.approx(row["images_per_second"] * flops / 1e12)
        assert row["peak_fraction"] == pytest.approx(row["tflops"] / peak["tflops"])
        assert "ratio" not in row
    assert peak["limit_images_per_second"] == pytest.approx(peak["tflops"] * 1e12 / flops)
    machine = found["machine"]
    assert machine["device"] == "cpu"
    assert machine["threads"] >= 1
    assert {"cvt", "torch", "python"} <= machine["versions"].keys()
    assert "cvt: float32, batch size 3 (2 of 2)" in done.stderr
    picture = plot.read_text()
    assert picture.startswith("<?xml")
    assert list(tmp_path.glob(".speed*")) == []


def test_beside_transformers(tiny_cvt: MakeCvt, run_cvt: RunCvt, tmp_path: Path) -> None:
    file = tmp_path / "speed.csv"
    done = run_cvt(
        "benchmark", "-m", tiny_cvt(), "-b", "2", *QUICK, "--baseline", "transformers", "-o", file,
        expect=0,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    (row,) = csv.DictReader(io.StringIO(file.read_text()))
    assert row["baseline"] == "transformers"
    # What the figures hold for, so that files of several machines can be put into one.
    assert row["model"] and row["processor"] and int(row["threads"]) >= 1
    assert (row["device"], row["image_size"]) == ("cpu", "64x64")
    assert float(row["labels_agree"]) == 1
    assert float(row["logit_difference"]) < 1e-4
    assert 0 < float(row["ratio_min"]) <= float(row["ratio"]) <= float(row["ratio_max"])
    assert int(row["rounds"]) >= 3


def test_from_files(tiny_cvt: MakeCvt, run_cvt: RunCvt, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(5):
        Image.effect_noise((90 + index, 120), 90).convert("RGB").save(images / f"{index}.jpg")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    found = run_cvt(
        "benchmark", "-m", tiny_cvt(), "--images", images, "-b", "4", *QUICK,
        "--baseline", "transformers", "-f", "json",
        expect=0,
    ).json()  # fmt: skip
    assert found["method"]["unreadable"] == 1
    (row,) = found["results"]
    assert (row["images"], row["error"]) == (5, None)
    assert row["images_per_second_min"] <= row["images_per_second"] <= row["images_per_second_max"]
    stages = ("decode", "preprocess", "copy", "model", "write")
    assert sum(row[f"{stage}_share"] for stage in stages) == pytest.approx(1)
    assert all(row[f"{stage}_ms"] >= 0 for stage in stages)
    assert row["bound_by"] in stages
    assert row["labels_agree"] == 1
    assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]


def test_pictures_of_any_size_beside_transformers(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    model = tiny_cvt(processor=KEEPS_ASPECT)
    refused = run_cvt(
        "benchmark", "-m", model, "--images", ".", "--baseline", "transformers", expect=2
    )
    check_refusal(refused, "can't batch its images; --image-size")


def test_random_weights_and_no_request(hub: HubServer, run_cvt: RunCvt) -> None:
    done = run_cvt("benchmark", "--image-size", "64", "-b", "1", *QUICK, expect=0)
    assert not hub.requests
    assert done.stdout.startswith("microsoft/cvt-13: random weights")
    assert re.search(r"\npeak +float32 .* at most .* images/s\n", done.stdout)
    assert re.search(r"\nfloat32 +1 +[0-9.]+ ", done.stdout)


def test_a_batch_that_does_not_fit_is_a_row(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    sizes = ("-b", "999999999,1")
    found = run_cvt("benchmark", "-m", tiny_cvt(), *sizes, *QUICK, "-f", "json", expect=0).json()
    first, second = found["results"]
    assert (first["error"], first["images_per_second"]) == ("out of memory", None)
    check_row(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-b", "0"), "'0': not a batch size"),
        (("-b", "x"), "'x': not a batch size"),
        (("-b", "1,,2"), "'': not a batch size"),
        (("-b", "-3"), "'-3': not a batch size"),
        (("--image-size", "x"), "not an image size"),
        (("-o", "speed.txt"), "the suffix names no format"),
        (("--plot", "speed.txt"), "the suffix names no format"),
        (("--images", "nowhere"), "no such folder"),
        (("--images", ".", "--compile"), "leave --images out"),
        (("--decode", "exact"), "needs --images"),
        (("--baseline", "tensorflow"), "tensorflow: no such baseline; one of transformers"),
        (("--images", ".", "--baseline", "openvino"), "measures the network alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_at_once(arguments: tuple[str, ...], message: str, run_cvt: RunCvt) -> None:
    check_refusal(run_cvt("benchmark", *arguments, expect=2), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:7"), "CUDA devices"),
        (("--dtype", "float32,float8"), "float8: no such dtype"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_machine_lacks(arguments: tuple[str, ...], message: str, run_cvt: RunCvt) -> None:
    check_refusal(run_cvt("benchmark", *arguments, expect=2), message)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("transformers", "transformers"),
        ("onnxruntime", "onnxruntime onnx onnxscript"),
        ("openvino", "openvino onnx onnxscript"),
    ],
)
def test_a_baseline_that_is_not_installed(
    name: str, packages: str, run_cvt: RunCvt, tmp_path: Path
) -> None:
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{name}.py").write_text("raise ImportError")
    run_cvt.env["PYTHONPATH"] = str(tmp_path / "stubs")
    done = run_cvt("benchmark", "--baseline", name, expect=2)
    check_refusal(done, f"needs {name}, which is not installed; pip install {packages}")


def check_refusal(done: Completed, message: str) -> None:
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("from_files", [False, True])
def test_options_reach_the_plan(
    from_files: bool, tiny_cvt: MakeCvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    looked_for: list[Any] = []
    monkeypatch.setattr(command, "_write", lambda *given, **more: written.extend([*given, more]))
    monkeypatch.setattr(command, "share_cores", lambda: looked_for.append("cores"))
    checkpoint = find_model(str(tiny_cvt()))
    find = "cvt_cli.benchmark.model.find_model"
    monkeypatch.setattr(find, lambda *given, **_: (looked_for.append(given), checkpoint)[1])
    options: dict[str, Any] = {
        **{"model": "m", "revision": "r", "activation": "gelu", "device": "cpu"},
        **{"image_size": "48x64", "baseline": "transformers", "dtype": "float16,float32"},
        **{"duration": 3, "output": tmp_path / "x.csv", "progress": True},
        "tune": TuneChoice.NOW,
    }
    if from_files:
        options |= {"images": tmp_path, "decode": DecodeChoice.EXACT}
    else:
        options |= {"batch_size": "4,2", "compiled": True, "plot": tmp_path / "x.svg"}
    with pytest.raises(typer.Exit) as ended:
        command.benchmark(SimpleNamespace(obj=GlobalOptions(quiet=True)), **options)
    assert ended.value.exit_code == 4  # not one case has figures
    assert looked_for == [*(["cores"] if from_files else []), ("m", "r", "gelu")]
    measurement, machine, *rest = written
    common = ((48, 64), (16,) if from_files else (4, 2), ("float16", "float32"))
    common += (torch.device("cpu"), 3)
    assert measurement.plan == (
        PipelinePlan(checkpoint, tmp_path, *common, True, True, tune=Tune.NOW)
        if from_files
        else Plan(checkpoint, *common, True, "transformers", tune=Tune.NOW)
    )
    assert "transformers" in machine.versions
    # --quiet goes before --progress.
    assert rest == [
        command._say_nothing,
        {"format_": "csv", "output": tmp_path / "x.csv", "plot": options.get("plot")},
    ]


def test_an_unknown_model_is_not_looked_for(hub: HubServer, run_cvt: RunCvt) -> None:
    done = run_cvt("benchmark", "-m", "someone/food", expect=3)
    assert "not in the cache" in done.stderr
    assert not hub.requests


def test_ctrl_c_prints_what_there_is(tiny_cvt: MakeCvt, run_cvt: RunCvt, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    with run_cvt.start(
        "benchmark", "-m", tiny_cvt(), "-b", "1,2", "--dtype", "float32", "--duration", 0.1,
        "--progress", "-o", file, "--image-size", 96,
        first=at_call("cvt_cli.benchmark.network:_fits", 2, signal.SIGINT),
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert not file.exists()
    found = json.loads(out)
    assert found["complete"] is False
    assert [row["batch_size"] for row in found["results"]] == [1]
    assert "(2 of 2)" in err and "interrupted after 1 of 2 cases" in err
