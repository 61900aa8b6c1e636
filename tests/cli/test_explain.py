"""`cvt explain`, as a user types it."""

import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from cvt_cli.cli.options import GlobalOptions
from cvt_cli.errors import UsageError
from tests.conftest import RunCvt
from tests.tiny import KEEPS_ASPECT

command: Any = importlib.import_module("cvt_cli.cli.explain")


@pytest.fixture
def model(tiny_cvt: Callable[..., Path]) -> Path:
    return tiny_cvt()


def test_a_picture_and_a_raw_map(
    tmp_path: Path, model: Path, photos: dict[str, Path], run_cvt: RunCvt
) -> None:
    photo = photos["exif_rotated.jpg"]
    done = run_cvt("explain", photo, "-m", model, "-o", "why.png", expect=0)
    assert done.stdout == ""
    assert "why.png" in done.stderr
    with Image.open(tmp_path / "why.png") as image:
        assert image.width > 600
    arguments = ("--label", "TENCH", "--method", "attention", "--image-size", "96x64")
    arguments += ("--format", "json")
    values = run_cvt("explain", photo, "-m", model, *arguments, expect=0).json()
    assert values["label"] == "tench"
    assert values["method"] == "attention"
    with Image.open(photo) as image:
        # Upright.
        assert [values["height"], values["width"]] == list(image.size)
    assert values["input_size"] == [96, 64]
    assert (len(values["map"]), len(values["map"][0])) == (3, 2)
    assert values["step"] == 32


def test_several_into_a_folder(
    tmp_path: Path, model: Path, photos: dict[str, Path], run_cvt: RunCvt
) -> None:
    for name in ("a/cat.png", "b/Cat.png", "b/od:d?.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photos["grey.png"].read_bytes())
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    done = run_cvt("explain", "a", "b", "-m", model, "-o", "why/", expect=1)
    assert "a/bad.png: text, not an image" in done.stderr
    assert {path.name for path in (tmp_path / "why").iterdir()} == {
        *("cat.png", "Cat-2.png", "od_d_.png")
    }
    numbers = ("-m", model, "-o", "numbers", "-f", "json", "--method", "attention")
    quiet = run_cvt("explain", "a", *numbers, "--quiet", expect=1)
    assert quiet.stderr == "cvt: a/bad.png: text, not an image\n"
    (file,) = (tmp_path / "numbers").iterdir()
    assert file.name == "cat.json"
    assert json.loads(file.read_text())["path"] == "a/cat.png"
    refused = run_cvt("explain", "a", "-m", model, "-o", "why", expect=2)
    assert "not empty" in refused.stderr
    refused = run_cvt("explain", "a", "-m", model, "-o", "why.png", expect=2)
    assert "several images" in refused.stderr


def test_what_can_t_be_done(
    tmp_path: Path, model: Path, photos: dict[str, Path], run_cvt: RunCvt
) -> None:
    photo = photos["grey.png"]
    assert "-o why.png" in run_cvt("explain", photo, "-m", model, expect=2).stderr
    named = run_cvt("explain", photo, "-m", model, "-o", "why.gif", expect=2)
    assert "names no format" in named.stderr
    label = ("--label", "tensh", "-f", "json")
    assert (
        "did you mean --label tench?"
        in run_cvt("explain", photo, "-m", model, *label, expect=2).stderr
    )
    (tmp_path / "why.png").write_bytes(b"mine")
    run_cvt("explain", photo, "-m", model, "-o", "why.png", expect=2)
    assert (tmp_path / "why.png").read_bytes() == b"mine"
    (tmp_path / "photos").mkdir()
    kept = tmp_path / "photos" / "a.png"
    kept.write_bytes(photo.read_bytes())
    for inputs, output, what in (
        ("photos/a.png", "photos/a.png", "is"),
        ("photos", "photos/a.png", "is"),
        ("photos/a.png", "photos", "holds"),
        ("photos", "photos", "holds"),
    ):
        refused = run_cvt("explain", inputs, "-o", output, "--overwrite", expect=2)
        assert f"{output} {what} one of the inputs" in refused.stderr
    # What lies beside an input and is none.
    (tmp_path / "photos" / "why.json").write_text("{}")
    json_output = ("-o", "photos/why.json", "--overwrite")
    run_cvt("explain", "photos", "-m", model, *json_output, expect=0)
    assert kept.read_bytes() == photo.read_bytes()


@pytest.mark.parametrize(
    ("format_", "output", "picked"),
    [
        (None, "a.json", "json"),
        (None, "a.PNG", "picture"),
        (None, "folder", "picture"),
        ("json", "folder", "json"),
        ("json", None, "json"),
        ("json", "a.png", "contradict each other"),
        ("picture", "a.json", "contradict each other"),
        (None, None, "needs a file"),
    ],
)
def test_what_is_written(format_: str | None, output: str | None, picked: str) -> None:
    given = (format_ and command.FormatChoice(format_), output and Path(output))
    if picked in ("json", "picture"):
        assert command._pick_format(*given) == picked
        return
    with pytest.raises(UsageError, match=picked):
        command._pick_format(*given)


def test_options_reach_the_model(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def load(*given: object, **_: object) -> None:
        seen.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "cvt_cli.checkpoint.resolve.resolve", lambda *given, offline, **_: (*given, offline)
    )
    monkeypatch.setattr("cvt_cli.checkpoint.load.load", load)
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        command.explain(
            SimpleNamespace(obj=GlobalOptions(), with_resource=stack.enter_context),
            inputs=[str(photos["grey.png"])],
            **{"model": "m", "revision": "r", "refresh": True, "offline": False, "device": "cpu"},
            **{"activation": "gelu", "output": tmp_path / "why.png"},
        )
    assert seen == [(("m", "r", True, False), "gelu", None)]


def test_without_the_extra(
    tmp_path: Path, model: Path, photos: dict[str, Path], run_cvt: RunCvt
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "real, gone = util.find_spec, ('captum', 'matplotlib')\n"
        "util.find_spec = lambda name, *rest: None if name in gone else real(name, *rest)\n"
    )
    photo = photos["grey.png"]
    missing = run_cvt(
        *("explain", photo, "-m", model, "-f", "json"), env={"PYTHONPATH": str(tmp_path)}, expect=2
    )
    assert (
        'needs captum, which is not installed; pip install "captum>=0.8" "matplotlib>=3.8"'
        in missing.stderr
    )
    json.loads(
        run_cvt(
            *("explain", photo, "-m", model, "-f", "json", "--method", "attention"),
            env={"PYTHONPATH": str(tmp_path)},
            expect=0,
        ).stdout
    )


def test_a_picture_too_large_for_the_network(
    tmp_path: Path, tiny_cvt: Callable[..., Path], run_cvt: RunCvt
) -> None:
    model = tiny_cvt(processor=KEEPS_ASPECT)
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
    done = run_cvt("explain", "thin.png", "-m", model, "-o", "why.png", expect=1)
    assert "thin.png: 640000x32 pixels for the network" in done.stderr
    assert not (tmp_path / "why.png").exists()
