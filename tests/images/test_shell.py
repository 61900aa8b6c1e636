"""What a shell would have expanded had it not been quoted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvt_cli.cli.home import with_home
from cvt_cli.images.find import find
from tests.photos import picture


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("dog/a.jpg", "cat/b.jpg", "emu/c.jpg", "cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def paths(*inputs: str) -> list[str]:
    return [source.path for source in find(inputs)]


def test_braces() -> None:
    assert paths("{dog,cat}/*.jpg") == ["dog/a.jpg", "cat/b.jpg"]
    assert paths("{cat,dog}/{1..2}.png")[:1] == ["cat/1.png"]
    assert paths("cat/b.{jpg,png}")[:1] == ["cat/b.jpg"]
    assert paths("{emu}/c.jpg") == ["{emu}/c.jpg"]


def test_a_file_of_that_very_name(home: Path) -> None:
    (home / "{dog,cat}.jpg").touch()
    (home / "~x.jpg").touch()
    assert paths("{dog,cat}.jpg", "~x.jpg") == ["{dog,cat}.jpg", "~x.jpg"]


def test_a_tilde(home: Path) -> None:
    assert paths("~/cat/b.jpg") == [f"{home}/cat/b.jpg"]
    assert paths("~/*/*.jpg", "~/emu")[2:] == [f"{home}/emu/c.jpg"]


def test_outputs(home: Path, run_cvt: Any, tiny_cvt: Callable[..., Path]) -> None:
    picture().save(home / "x.png")
    run_cvt.env["HOME"] = str(home)
    run_cvt(
        *("classify", "~/x.png", "-m", tiny_cvt(), "--output=~/o.csv", "--run-record=~/r.json"),
        expect=0,
    )
    assert {"o.csv", "r.json"} <= {each.name for each in home.iterdir()}
    (home / "list.txt").write_text("x.png\nnone.png\n")
    run_cvt(
        *("embed", "--files-from=~/list.txt", "-m", tiny_cvt(), "-o", "~/e.npy"),
        "--errors=~/failed.txt",
        expect=1,
    )
    assert (home / "failed.txt").read_text() == "none.png\n"
    run_cvt("sort", "~/o.csv", "~/sorted", expect=0)
    assert [each.name for each in home.glob("sorted/*/*")] == ["x.png"]
    assert (home / "e.npy").exists() and not (home / "~").exists()


def test_every_name_of_a_file(home: Path) -> None:
    """One place does it for all commands, by what the value is a name of."""
    (home / "~there").touch()
    assert with_home("FILE", "~/a") == f"{home}/a"
    assert with_home(None, Path("~/a")) == home / "a"
    assert with_home("FOLDER|FILE", ["~/a", "b~", "~there"]) == [f"{home}/a", "b~", "~there"]
    assert with_home("A,B,...|@FILE", "@~/a") == f"@{home}/a"
    assert with_home("LABEL", "~/a") == "~/a"
    assert with_home("FILE", None) is None and with_home("FILE", 3) == 3
