"""What a folder's search leaves out is said once, at the end."""

import shutil
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cvt_cli.images.find import count_sources, find
from cvt_cli.images.formats import RAW_SUFFIXES
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.source import IMAGE_SUFFIXES, Search
from tests.photos import picture


def searched(*inputs: str, **search: Any) -> tuple[list[str], list[str]]:
    """Paths found, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = [source.path for source in find(inputs, Search(**search))]
        assert count_sources(inputs, Search(**search)) == len(paths)
    return paths, [str(each.message) for each in caught]


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    suffixes = tuple(each for each in IMAGE_SUFFIXES if each not in RAW_SUFFIXES)
    monkeypatch.setattr("cvt_cli.images.source.IMAGE_SUFFIXES", suffixes)


@pytest.mark.usefixtures("no_raw")
def test_files_that_are_no_images_are_counted_by_suffix(here: Path) -> None:
    make(here, "p/a.jpg", "p/1.CR2", "p/2.CR2", "p/in/3.cr2", "p/v.mp4", "p/x", "q/w.MP4", "q/.y")
    paths, said = searched("p", "q")
    assert paths == ["p/a.jpg", "q"]  # q has no image, and says so
    (line,) = said
    assert line == (
        "skipped 6 files that are not images: .CR2 3 (cvt-cli[raw]), .MP4 2, no suffix 1"
    )


def test_one_file(here: Path) -> None:
    make(here, "p/a.jpg", "p/v.mp4")
    assert searched("p")[1] == ["skipped 1 file that is not an image: .mp4 1"]
    assert searched("p", include=("*.jpg",))[1] == []
    assert searched("p", exclude=("*.mp4",))[1] == []
    make(here, *(f"p/{n}.t{n}" for n in range(12)))
    assert searched("p")[1][0].endswith(
        ": .mp4 1, .t0 1, .t1 1, .t10 1, .t11 1, .t2 1, .t3 1, .t4 1, ..."
    )


JUNK = ("@eaDir/a.jpg", "in/@eaDir/b.jpg", "#recycle/c.jpg", "$RECYCLE.BIN/d.jpg", "Thumbs.db")


def test_what_nas_and_trash_leave(here: Path) -> None:
    make(here, "p/a.jpg", "p/.Trash-1000/x/b.jpg", "p/__MACOSX/c.jpg", *(f"p/{j}" for j in JUNK))
    paths, said = searched("p")
    assert paths == ["p/a.jpg"]
    assert said == [
        "left out #recycle 1, $RECYCLE.BIN 1, .Trash-1000 1, @eaDir 2, Thumbs.db 1, __MACOSX 1 "
        "(--no-default-excludes takes them)"
    ]
    paths, said = searched("p", default_excludes=False)
    assert len(paths) == 7
    assert said == ["skipped 1 file that is not an image: .db 1"]


def test_named_outright_it_is_read(here: Path) -> None:
    make(here, "p/@eaDir/a.jpg", "p/b.jpg")
    assert searched("p/@eaDir") == (["p/@eaDir/a.jpg"], [])
    assert searched("p/@eaDir/*.jpg") == (["p/@eaDir/a.jpg"], [])
    for pattern in ("p/**/*.jpg", "p/**", "p/*"):
        paths, said = searched(pattern)
        assert paths == ["p/b.jpg"]
        assert said == ["left out @eaDir 1 (--no-default-excludes takes them)"]
    assert len(searched("p/**/*.jpg", default_excludes=False)[0]) == 2


def test_one_picture_in_two_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cvt_cli.images.source.IMAGE_SUFFIXES", tuple({*IMAGE_SUFFIXES, *RAW_SUFFIXES})
    )
    make(here, "p/IMG_1.CR2", "p/IMG_1.JPG", "p/IMG_2.CR2", "p/q/IMG_2.JPG", "p/q/img_2.cr2")
    paths, said = searched("p")
    assert len(paths) == 5
    assert said == [
        "2 pictures are there twice, as IMG_1.CR2 and IMG_1.JPG: --exclude '*.CR2' leaves the raw "
        "files out"
    ]


def test_a_zip_made_on_a_mac(here: Path) -> None:
    import zipfile

    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
        archive.writestr("__MACOSX/a.jpg", b"")
    paths, said = searched("a.zip")
    assert paths == ["a.zip::a.jpg"]
    assert said == ["left out __MACOSX 1 (--no-default-excludes takes them)"]
    assert len(searched("a.zip", default_excludes=False)[0]) == 2


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("in_a_process", [False, True])
def test_what_an_archive_holds_beside_images(here: Path, kind: str, in_a_process: bool) -> None:
    make(
        here, "p/a.jpg", "p/v.mp4", "p/in/w.mp4", "p/in/x.xcf", "p/@eaDir/a.jpg", "p/.hidden/b.txt"
    )
    format_ = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[kind]
    shutil.make_archive("a", format_, "p")
    left = ["skipped 3 files that are not images: .mp4 2, .xcf 1; left out @eaDir 1"]
    with ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = stack.enter_context(ReaderPool(1)) if in_a_process else None
        found = list(find([f"a.{kind}"], list_members=pool.members if pool else None))
    assert len(found) == 1
    assert [
        str(each.message).replace(" (--no-default-excludes takes them)", "") for each in caught
    ] == left


def test_the_command_says_it_and_resume_knows(
    here: Path, run_cvt: Any, tiny_cvt: Callable[..., Path]
) -> None:
    make(here, "p/@eaDir/a.jpg", "p/v.mp4")
    picture().save("p/b.jpf", "JPEG2000")
    model = tiny_cvt()
    done = run_cvt("classify", "p", "-m", model, expect=0)
    assert done.stderr.count("skipped 1 file that is not an image: .mp4 1; left out @eaDir 1") == 1
    assert run_cvt("-q", "classify", "p", "-m", model, expect=0).stderr == ""
    run_cvt("classify", "p", "-m", model, "-o", "o.csv", "--run-record", "r.json", expect=0)
    assert '"default_excludes": true' in Path("r.json").read_text()
