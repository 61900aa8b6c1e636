"""Jobs that nobody watches: nothing finished that was not done, nothing replaced that was good."""

import gzip
import http.server
import json
import os
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cvt_cli.output import writer_class
from cvt_cli.records import as_written
from tests.cli.test_failures import check_line
from tests.conftest import RunCvt
from tests.photos import picture

COMMAND = ("classify", "-m", "cvt-tiny-cifar10", "-b", 1)


def make(folder: Path, *names: str) -> Path:
    """A folder of pictures of these names that differ."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(16, 16, sum(map(ord, name))).save(folder / name)
    return folder


def names(folder: Path) -> set[str]:
    return {
        path.name
        for path in folder.iterdir()
        if path.name[0] != "." and not path.name.endswith(".run.json")
    }


def paths(file: Path) -> list[str]:
    with file.open("rb") as stream:
        return [record.path for record in writer_class(file.suffix[1:]).documents(stream)]  # type: ignore[attr-defined]


def test_a_folder_that_is_filled_later(run_cvt: RunCvt, tmp_path: Path) -> None:
    command = (*COMMAND, "inbox", "-o", "a.csv", "-o", "a.jsonl", "--resume")
    (tmp_path / "inbox").mkdir()
    empty = run_cvt(*command, "--run-record", "run.json")
    check_line(empty, 1, "inbox: a folder without images; a.csv, a.jsonl are not written")
    assert names(tmp_path) == {"inbox", "run.json"}
    assert json.loads((tmp_path / "run.json").read_text())["outcome"] == "failed"
    (tmp_path / "inbox" / "bad.png").write_text("no image")
    (tmp_path / "inbox" / "worse.png").write_text("no image")
    broken = run_cvt(*command)
    check_line(
        broken, 1, "none of 2 inputs could be read, for example inbox/bad.png: text, not an image"
    )
    assert names(tmp_path) == {"inbox", "run.json"}
    make(tmp_path / "inbox", "a.png")
    run_cvt(*command, expect=1)
    assert paths(tmp_path / "a.csv") == paths(tmp_path / "a.jsonl")
    assert paths(tmp_path / "a.csv") == [f"inbox/{name}.png" for name in ("a", "bad", "worse")]


def test_a_mistyped_name_replaces_nothing(run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("good")
    for typed, words in (("inbx", "inbx: no such file"), ("x/*.jpg", "nothing matches")):
        failed = run_cvt(*COMMAND, typed, "-o", "b.csv", "--overwrite")
        check_line(failed, 1, words, "b.csv stays as it is")
    listed = run_cvt(*COMMAND, "--files-from", "-", "-o", "b.csv", "--overwrite")
    assert listed.returncode == 1
    assert listed.stderr.splitlines()[-1] == "cvt: error: there is no input; b.csv stays as it is"
    assert (tmp_path / "b.csv").read_text() == "good"
    assert names(tmp_path) == {"b.csv"}


def test_a_disk_that_goes_between_two_runs(run_cvt: RunCvt, tmp_path: Path) -> None:
    share = make(tmp_path / "share", "a.png", "b.png", "c.png")
    run_cvt(*COMMAND, "share", "-o", "a.csv", expect=0)
    whole = (tmp_path / "a.csv").read_bytes()
    run_cvt(*COMMAND, "share/a.png", "-o", "a.csv", "--overwrite", expect=0)
    (tmp_path / "a.csv").rename(tmp_path / "a.csv.part")
    recorded = ("--run-record", "run.json", "-o", "x.csv")
    run_cvt(*COMMAND, "share/a.png", *recorded, expect=0)
    run = json.loads((tmp_path / "run.json").read_text())
    outside = ("command", "versions", "machine", "start", "end", "outcome", "seconds", "counts")
    made_with = {key: run[key] for key in run if key not in (*outside, "images_per_second")}
    made_with["version"] = run["versions"]["cvt"]
    (tmp_path / "a.csv.part.json").write_text(json.dumps(made_with))
    before = (tmp_path / "a.csv.part").read_bytes()

    share.rename(tmp_path / "elsewhere")
    gone = run_cvt(*COMMAND, "share", "-o", "a.csv", "--resume")
    assert gone.returncode == 1
    last = gone.stderr.splitlines()[-1]
    assert last == "cvt: error: share: no such file; a.csv.part stays as it is"
    assert (tmp_path / "a.csv.part").read_bytes() == before
    (tmp_path / "elsewhere").rename(share)
    run_cvt(*COMMAND, "share", "-o", "a.csv", "--resume", expect=0)
    assert (tmp_path / "a.csv").read_bytes() == whole


@pytest.mark.parametrize("inputs", ["page_files", "page_files/000000000131.jpg", "."])
def test_the_users_own_pictures_are_no_thumbnails(
    run_cvt: RunCvt, tmp_path: Path, inputs: str
) -> None:
    folder = make(tmp_path / "page_files", "000000000131.jpg")
    before = (folder / "000000000131.jpg").read_bytes()
    refused = run_cvt(*COMMAND, inputs, "-o", "page.html", "--overwrite")
    why = "holds other files" if inputs == "." else "is one of the inputs"
    check_line(refused, 2, f"page_files, where the thumbnails go, {why}", "another name")
    assert (folder / "000000000131.jpg").read_bytes() == before
    # Of another page they are inputs like others.
    run_cvt(*COMMAND, ".", "-o", "other.html", "-o", "other.csv", expect=0)
    assert paths(tmp_path / "other.csv") == ["./page_files/000000000131.jpg"]


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)])
def test_a_link_where_the_journal_goes_is_not_followed(
    run_cvt: RunCvt, tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "c.csv.part").symlink_to("precious.txt")
    make(tmp_path / "photos", "a.png")
    refused = run_cvt(*COMMAND, "photos", "-o", "c.csv", *more)
    check_line(refused, 2, "c.csv.part is a link", "delete it")
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert not os.path.lexists(tmp_path / "c.csv")


def test_folders_that_can_not_be_flushed(run_cvt: RunCvt, tmp_path: Path) -> None:
    """As on SMB and some FUSE file systems."""
    (tmp_path / "usercustomize.py").write_text(
        "import errno, os, stat\n"
        "fsync = os.fsync\n"
        "def refuse(handle):\n"
        "    if stat.S_ISDIR(os.fstat(handle).st_mode):\n"
        "        raise OSError(errno.EINVAL, 'Invalid argument')\n"
        "    fsync(handle)\n"
        "os.fsync = refuse\n"
    )
    make(tmp_path / "photos", "a.png")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    outputs = ("-o", "d.csv", "-o", "d.parquet", "--run-record", "run.json")
    run_cvt(*COMMAND, "photos", *outputs, env=env, expect=0)
    assert {"d.csv", "d.parquet", "run.json"} <= names(tmp_path)
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob(".cvt*"))


def test_which_inputs_failed_and_a_list_of_them(run_cvt: RunCvt, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", "a.png")
    bad = [f"bad {number}.png" for number in range(4)] + [os.fsdecode(b"caf\xe9.png"), "x\ny.png"]
    for name in bad:
        (folder / name).write_text("no image")
    command = (*COMMAND, "-o", "a.csv", "--errors", "failed.txt")
    done = run_cvt(*command, "photos", "photos/gone.png", expect=1)
    said = done.stderr.splitlines()
    assert "warning: failed.txt: 1 name with a line break left out; with --null" in said[0]
    assert said[1] == "cvt: a.csv: 8 inputs, " + said[1].split(", ")[1]
    bad_ones = "".join(f"photos/bad {number}.png, " for number in range(4))
    assert said[2:] == [
        f"cvt: 6 inputs: text, not an image: {bad_ones}photos/caf\\udce9.png, …",
        "cvt: photos/gone.png: no such file",
        "cvt: 7 of 8 inputs could not be read, 1 of them not named here; each has its error in "
        "the output",
    ]
    listed = (tmp_path / "failed.txt").read_bytes().splitlines()
    assert listed == [os.fsencode(f"photos/{name}") for name in (*bad[:5], "gone.png")]

    refused = run_cvt(*command, "photos", "--overwrite", "--files-from", "failed.txt")
    check_line(refused, 2, "failed.txt is one of the inputs")
    refused = run_cvt(*COMMAND, "photos", "-o", "b.csv", "--errors", "failed.txt")
    check_line(refused, 2, "failed.txt exists")
    refused = run_cvt(*COMMAND, "photos", "-o", "b.csv", "--errors", "b.csv")
    check_line(refused, 2, "b.csv is one of the outputs")

    for name in bad:
        picture(16, 16).save(folder / name)
    again = ("--files-from", "failed.txt", "-o", "b.csv", "--errors", "still.txt")
    run_cvt(*COMMAND, *again, expect=1)
    assert (tmp_path / "still.txt").read_text() == "photos/gone.png\n"
    assert paths(tmp_path / "b.csv") == [as_written(os.fsdecode(name)) for name in listed]


def test_the_list_with_null_and_after_a_resume(run_cvt: RunCvt, tmp_path: Path) -> None:
    """Also of those of which only the journal tells."""
    names_ = ["a.png", os.fsdecode(b"caf\xe9.png"), "x\ny.png", "z.png"]
    folder = make(tmp_path / "photos", "a.png", "z.png")
    for name in names_[1:3]:
        (folder / name).write_text("no image")
    listed = b"".join(os.fsencode(f"photos/{name}") + b"\0" for name in names_)
    command = (*COMMAND, "--files-from", "-", "--null", "-o", "a.csv", "--errors", "failed.txt")
    with run_cvt.start(*command, encoding=None, errors=None) as process:
        assert process.stdin is not None
        process.stdin.write(listed)
        process.stdin.flush()
        part = tmp_path / "a.csv.part"
        deadline = time.monotonic() + 300
        while not part.exists() or part.read_bytes().count(b"\r\n") < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert not (tmp_path / "failed.txt").exists()
    done = run_cvt(*command, "--resume", stdin=listed, expect=1)
    assert "cvt: photos/x\\ny.png: text, not an image" in done.stderr
    expected = [os.fsencode(f"photos/{name}") for name in names_[1:3]]
    assert (tmp_path / "failed.txt").read_bytes().split(b"\0") == [*expected, b""]


def test_the_folder_of_an_output_is_made(run_cvt: RunCvt, tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png")
    check_line(run_cvt(*COMMAND, "gone", "-o", "new/part-3.csv"), 1, "gone: no such file")
    assert names(tmp_path) == {"photos"}
    run_cvt(*COMMAND, "photos", "-o", "labels/of/part-3.csv", expect=0)
    assert names(tmp_path / "labels" / "of") == {"part-3.csv"}
    run_cvt("merge", "labels/of", "-o", "merged/all.csv", expect=0)
    assert paths(tmp_path / "merged" / "all.csv") == ["photos/a.png"]
    refused = run_cvt(*COMMAND, "photos", "-o", "merged/all.csv/x.csv")
    check_line(refused, 2, "merged/all.csv/x.csv can't be written: not a directory")


def test_labels_that_are_sorted_from_another_folder(run_cvt: RunCvt, tmp_path: Path) -> None:
    rows = "".join(f"photos/{n}.png,cat,0.9,\n" for n in range(30))
    (tmp_path / "labels.csv").write_text("path,label,score,error\n" + rows)
    said = check_line(
        run_cvt("sort", "labels.csv", "sorted"), 1, "none of the 30 files exists here"
    )
    assert (
        "for example photos/0.png; the paths in labels.csv are relative to the folder where" in said
    )
    make(tmp_path / "photos", "2.png")
    some = run_cvt("sort", "labels.csv", "sorted", expect=1)
    assert "cvt: photos/0.png: no such file" in some.stderr.splitlines()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An image that waits in a temporary file, and those in front of it: by where it is, inputs."""
    make(tmp_path, "a.png")
    picture(1800, 1800).save(tmp_path / "large.bmp")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(tmp_path / "large.bmp", "large.bmp")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(tmp_path / "large.bmp", "large.bmp")
    (tmp_path / "some.tar.gz").write_bytes(gzip.compress((tmp_path / "some.tar").read_bytes(), 1))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "zip": "some.zip",
            "tar": "some.tar",
            "stream": "some.tar.gz",
            "download": f"http://127.0.0.1:{server.server_port}/large.bmp",
            "stdin": "-",
        }
        server.shutdown()


@pytest.mark.parametrize("where", ["zip", "tar", "stream", "download", "stdin"])
def test_a_disk_of_temporary_files_that_is_full(
    run_cvt: RunCvt, tmp_path: Path, small_disk: Path, large: dict[str, str], where: str
) -> None:
    """It is no image's fault, wherever the file is written: the run ends, and goes on later."""
    env = {"TMPDIR": str(small_disk)}
    command = (*COMMAND, "a.png", large[where], "-o", "a.csv")
    stdin = tmp_path / "large.bmp"
    full = run_cvt(*command, env=env, stdin=stdin)
    words = (f"temporary files can't be written in {small_disk}: no space left on device; ",)
    check_line(full, 4, *words, "TMPDIR", "then run the same command with --resume")
    assert names(tmp_path) >= {"a.csv.part", "a.csv.part.json"} and "a.csv" not in names(tmp_path)
    assert not list(small_disk.iterdir())
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    run_cvt(*command, "--resume", env=env, stdin=stdin, expect=0)
    assert paths(tmp_path / "a.csv")[0] == "a.png"
    assert len(paths(tmp_path / "a.csv")) == 2
