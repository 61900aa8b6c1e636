"""Values that the shell completes."""

import json
from pathlib import Path

import pytest

from cvt_cli.checkpoint.catalog import known_names
from cvt_cli.cli import completion
from cvt_cli.cli.output_options import REPORT_FORMATS
from cvt_cli.output.report_tables import FORMATS
from tests.conftest import RunCvt


def cache(folder: Path) -> None:
    """A Hub's cache with a CvT, another model, a damaged one and a data set."""
    for name, config in {
        "models--someone--cvt-food": json.dumps({"model_type": "cvt"}),
        "models--google--vit": json.dumps({"model_type": "vit"}),
        "models--someone--broken": "[",
        "datasets--someone--data": json.dumps({"model_type": "cvt"}),
    }.items():
        path = folder / name / "snapshots/0123/config.json"
        path.parent.mkdir(parents=True)
        path.write_text(config)


@pytest.mark.parametrize(
    ("variable", "below"),
    [("HF_HUB_CACHE", "."), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    cache(tmp_path / below)
    assert completion.complete_models("") == [*known_names(), "someone/cvt-food"]
    assert completion.complete_models("some") == ["someone/cvt-food"]
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    assert completion.complete_models("some") == []


def test_lists() -> None:
    complete = completion.list_of("width", "height", "bytes")
    assert complete("") == ["width", "height", "bytes"]
    assert complete("width,") == ["width,height", "width,bytes"]
    assert complete("width,h") == ["width,height"]
    assert completion.one_of("csv", "tsv")("c") == ["csv"]


def test_formats_are_those_of_reports() -> None:
    assert REPORT_FORMATS == FORMATS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cvt classify --model some", ["someone/cvt-food"]),
        ("cvt inspect cvt-t", ["cvt-tiny-cifar10"]),
        ("cvt evaluate --format h", ["html"]),
        ("cvt sort --format j", ["json", "jsonl"]),
        ("cvt classify --columns width,hei", ["width,height"]),
        ("cvt explain --method grad", ["gradcam"]),
        ("cvt benchmark --dtype float32,b", ["float32,bfloat16"]),
        ("cvt classify --device c", ["cpu", "cuda"]),
    ],
)
def test_in_the_shell(run_cvt: RunCvt, line: str, found: list[str]) -> None:
    cache(run_cvt.hf_home / "hub")
    env = {
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        "_CVT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    assert run_cvt(env=env, expect=0).stdout.split() == found
