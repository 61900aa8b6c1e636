"""`cvt sort`, as a user runs it."""

import json
import os
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

from cvt_cli.cli import sort as module
from cvt_cli.cli.labels_file import LabelsFile
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.output import open_text, writer_class
from cvt_cli.output.journal import Journal
from cvt_cli.records import Prediction, Record, RecordShape
from tests.cli.test_failures import AS_ANYBODY
from tests.conftest import RunCvt

SHAPE = RecordShape(top_k=2)


def record(path: str, label: str, score: float = 0.75) -> Record:
    return Record(path, (Prediction(label, score, 0), Prediction("other", 0.1, 1)))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Of `photos/0.jpg` to `photos/3.jpg`, the last with a low score, and one that is an error."""
    (tmp_path / "photos").mkdir()
    for i in range(5):
        (tmp_path / f"photos/{i}.jpg").write_text(str(i))
    labels = ["cat", "a/b", "cat", "dog"]
    good = [record(f"photos/{i}.jpg", label, 0.9 - i / 5) for i, label in enumerate(labels)]
    return [*good, Record("photos/4.jpg", error="broken")]


def save(path: Path, records: list[Record]) -> None:
    journal = Journal(path, writer_class(path.suffix[1:]), SHAPE, run={}, resume=False)
    journal.write(records)
    journal.finish()


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".cvt-moved.jsonl"
    }


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format(run_cvt: RunCvt, tmp_path: Path, records: list[Record], suffix: str) -> None:
    save(tmp_path / f"labels.{suffix}", records)
    options = (f"labels.{suffix}", "sorted", "--min-score", 0.4)
    done = run_cvt("sort", *options, expect=0)
    slash = next((tmp_path / "sorted").glob("a_b-*")).name
    assert files(tmp_path / "sorted") == {
        f"{slash}/1.jpg": "1",
        "_uncertain/3.jpg": "3",
        "cat/0.jpg": "0",
        "cat/2.jpg": "2",
    }
    assert done.stdout == f"_uncertain\t1\t1\n{slash}\t1\t1\ncat\t2\t2\n"
    assert done.stderr == (
        "cvt: sorted: copied 4 files into 3 folders; 1 without a result stay where they are\n"
    )
    again = run_cvt("sort", *options, expect=0)
    assert again.stdout == f"_uncertain\t1\t0\n{slash}\t1\t0\ncat\t2\t0\n"
    assert "copied 0 files" in again.stderr
    assert len(files(tmp_path / "photos")) == 5


def test_what_jq_makes_of_it_on_standard_input(
    run_cvt: RunCvt, tmp_path: Path, records: list[Record]
) -> None:
    save(tmp_path / "labels.json", records)
    values = json.loads((tmp_path / "labels.json").read_text())
    text = "\n".join(json.dumps(value, indent=2) for value in values if value["error"] is None)
    run_cvt("sort", "-", "sorted", "--format", "json", stdin=text, expect=0)
    assert len(files(tmp_path / "sorted")) == 4


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="pipes without a name")
def test_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as file:
        file.write("path,label,score\r\na.jpg,cat,0.5\r\n")
    labels = LabelsFile(f"/dev/fd/{reading}", "csv")
    assert labels.count() is None  # would take what is to be sorted
    assert [each.path for each in labels.records()] == ["a.jpg"]
    os.close(reading)


def test_dry_run(run_cvt: RunCvt, tmp_path: Path, records: list[Record]) -> None:
    (tmp_path / "photos/\x1b[31mred.jpg").touch()
    more = [record(f"photos/{name}.jpg", "cat") for name in ("line\nbreak", "\x1b[31mred")]
    save(tmp_path / "labels.csv", [*records, *more])
    done = run_cvt("sort", "labels.csv", "sorted", "--dry-run", "--move", expect=1)
    assert done.stdout.splitlines()[0] == "photos/0.jpg -> sorted/cat/0.jpg"
    assert len(done.stdout.splitlines()) == 5
    assert "\x1b" not in done.stdout
    assert done.stderr.splitlines() == [
        "cvt: photos/line break.jpg: no such file",
        "cvt: sorted: would move 5 files into 3 folders; 1 without a result stay where they are; "
        "1 failed",
    ]
    assert not (tmp_path / "sorted").exists()


def test_move_then_move_the_rest(run_cvt: RunCvt, tmp_path: Path, records: list[Record]) -> None:
    save(tmp_path / "labels.csv", records[:2])
    run_cvt("sort", "labels.csv", "sorted", "--move", expect=0)
    (tmp_path / "labels.csv").unlink()
    save(tmp_path / "labels.csv", records)
    (tmp_path / "photos/2.jpg").unlink()
    done = run_cvt("sort", "labels.csv", "sorted", "--move", expect=1)
    assert "photos/2.jpg: no such file" in done.stderr
    assert sorted(files(tmp_path / "sorted").values()) == ["0", "1", "3"]
    assert files(tmp_path / "photos") == {"4.jpg": "4"}


@pytest.mark.parametrize("option", ["--link", "--symlink"])
def test_links(run_cvt: RunCvt, tmp_path: Path, records: list[Record], option: str) -> None:
    save(tmp_path / "labels.csv", records)
    run_cvt("sort", "labels.csv", "sorted", option, expect=0)
    link = tmp_path / "sorted/cat/0.jpg"
    assert link.samefile(tmp_path / "photos/0.jpg")
    assert link.is_symlink() == (option == "--symlink")


def test_a_table_on_a_terminal(run_cvt: RunCvt, tmp_path: Path, records: list[Record]) -> None:
    save(tmp_path / "labels.csv", [record("photos/0.jpg", "[red]cat")])
    done = run_cvt("sort", "labels.csv", "sorted", tty=True, no_color=True, expect=0)
    header, line = done.stdout.splitlines()
    assert all(name in header for name in ("folder", "files", "new"))
    assert line.split() == ["[red]cat", "1", "1"]


def test_many_failures_are_not_all_named(run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "there.jpg").write_bytes(b"a picture")
    names = [*(f"{i}.jpg" for i in range(21)), "there.jpg"]
    save(tmp_path / "labels.csv", [record(name, "cat") for name in names])
    done = run_cvt("sort", "labels.csv", "sorted", expect=1)
    assert len(done.stderr.splitlines()) == 21
    assert done.stderr.endswith("21 failed, 1 of them not named here\n")
    quiet = run_cvt("--quiet", "sort", "labels.csv", "sorted", expect=1)
    assert quiet.stdout == "cat\t1\t0\n"
    assert quiet.stderr.splitlines() == done.stderr.splitlines()[:20]


def test_the_bar_counts_what_failed(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[bool] = []
    bar = SimpleNamespace(add=failed.append, paused=nullcontext, close=lambda: None)
    monkeypatch.setattr(module, "Progress", lambda *_: bar)
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "labels.csv", [*records[3:], record("gone.jpg", "cat")])
    context: Any = SimpleNamespace(obj=GlobalOptions(quiet=True))
    with pytest.raises(typer.Exit):
        module.sort(context, labels="labels.csv", folder=tmp_path / "sorted")
    assert failed == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels.csv", "sorted", "--move", "--link"], "exclude each other"),
        (["nowhere.csv", "sorted"], "nowhere.csv can't be read: no such file"),
        (["nowhere", "sorted"], "nowhere can't be read: no such file"),
        (["labels", "sorted"], "the suffix names no format"),
        (["page.html", "sorted"], "page.html: html can't be used here"),
        (["photos", "sorted"], "photos is a folder, not a file of labels; cvt classify photos -o"),
        (["photos/0.jpg", "x"], "photos/0.jpg is an image, not a file of labels; cvt classify"),
        (["labels.csv", *["photos/photograph.jpg"] * 9], "photos/photograph.jpg …) (see cvt sort"),
        (["labels.csv", ""], "no name is given for a file or folder; is a variable empty?"),
        (["", "sorted"], "no name is given"),
        (["--undo", ""], "no name is given"),
        (["labels.csv", "sorted", "--format", "table"], "table can't be read back"),
        (["labels.csv", "sorted", "--format", "parquet"], "it is no Parquet file"),
        (["labels.csv", "sorted", "--format", "json"], "it is not JSON"),
        (["labels.csv", "labels.csv"], "labels.csv is not a folder"),
        (["labels.csv", "x" * 300], "x can't be made: file name too long"),
        (["-", "sorted"], "need --format"),
        (["-", "sorted", "-f", "parquet"], "from standard input"),
    ],
)
def test_what_can_not_be_done(
    run_cvt: RunCvt, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for name in ("0.jpg", "labels", "page.html"):
        (tmp_path / name).touch()
    (tmp_path / "photos").mkdir()
    save(tmp_path / "labels.csv", [record("0.jpg", "cat")])
    done = run_cvt("sort", *arguments, expect=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sorted").exists()


def test_ctrl_c_and_again(run_cvt: RunCvt, tmp_path: Path) -> None:
    records = []
    for i in range(400):
        (tmp_path / f"{i}.jpg").write_bytes(os.urandom(2**16))
        records.append(record(f"{i}.jpg", "cat"))
    # Labels that come slowly: the command is sure to be at work.
    with run_cvt.start("sort", "-", "sorted", "-f", "jsonl") as process:
        assert process.stdin is not None
        with open_text(tmp_path / "labels.jsonl", "w") as stream:
            writer_class("jsonl")(stream, SHAPE).write(records)
        process.stdin.write((tmp_path / "labels.jsonl").read_text())
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while not (tmp_path / "sorted/cat").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 130
    assert "run the same command again to continue" in said
    for path in (tmp_path / "sorted/cat").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    done = run_cvt("sort", "labels.jsonl", "sorted", expect=0)
    assert done.stdout.startswith("cat\t400\t")
    assert len(list((tmp_path / "sorted/cat").iterdir())) == 400


def test_a_folder_that_is_not_for_this_user_is_named(
    run_cvt: RunCvt, tmp_path: Path, records: list[Record]
) -> None:
    save(tmp_path / "labels.csv", records)
    (tmp_path / "sorted/cat").mkdir(parents=True)
    (tmp_path / "sorted/cat").chmod(0o500)
    process = run_cvt.start("sort", "labels.csv", "sorted", first=AS_ANYBODY)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.count("sorted/cat can't be written: permission denied\n") == 2
    (tmp_path / "photos").chmod(0o500)
    process = run_cvt.start("sort", "labels.csv", "moved", "--move", first=AS_ANYBODY)
    _, err = process.communicate(timeout=300)
    (tmp_path / "photos").chmod(0o700)
    assert "photos/0.jpg: photos can't be written: permission denied\n" in err
    assert [path.name for path in (tmp_path / "moved").iterdir()] == [".cvt-moved.jsonl"]
    # That no folder can be made is said once, and where something was done it is no wrong usage.
    (tmp_path / "sorted/cat").chmod(0o700)
    shutil.rmtree(tmp_path / "sorted/dog")
    (tmp_path / "sorted").chmod(0o500)
    process = run_cvt.start("sort", "labels.csv", "sorted", first=AS_ANYBODY)
    _, err = process.communicate(timeout=300)
    (tmp_path / "sorted").chmod(0o700)
    assert (process.returncode, err) == (
        4,
        "cvt: error: sorted/dog can't be made: permission denied\n",
    )


def test_a_missing_file_before_a_record_without_a_result(run_cvt: RunCvt, tmp_path: Path) -> None:
    """None of the files is here, whatever the last record is."""
    rows = "path,label,score,error\ngone.png,cat,0.9,\nbad.png,,,no image\n"
    (tmp_path / "labels.csv").write_text(rows)
    done = run_cvt("sort", "labels.csv", "sorted", expect=1)
    assert done.stderr.startswith("cvt: error: gone.png: no such file; the paths in labels.csv")


def test_what_to_look_at_first(run_cvt: RunCvt, tmp_path: Path, records: list[Record]) -> None:
    save(tmp_path / "labels.csv", records)
    done = run_cvt("sort", "labels.csv", "--order", "uncertain", expect=0)
    assert done.stdout == "".join(f"photos/{i}.jpg\n" for i in (3, 2, 1, 0))
    assert done.stderr == "" and not (tmp_path / "sorted").exists()
    save(tmp_path / "corrections.csv", [record("photos/2.jpg", "dog")])
    options = ("--order", "uncertain", "--labelled", "corrections.csv", "--first", 2)
    text = (tmp_path / "labels.csv").read_bytes()
    done = run_cvt("sort", "-", "-f", "csv", "-0", *options, stdin=text, expect=0)
    assert done.stdout == "photos/3.jpg\0photos/1.jpg\0"


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_the_most_different_first(
    run_cvt: RunCvt, tiny_cvt: Any, tmp_path: Path, suffix: str
) -> None:
    """Embed, order, and look at those."""
    for name, colour in (("a", 0), ("b", 3), ("c", 255), ("new\nline", 128)):
        Image.new("RGB", (32, 32), (colour, 90, 255 - colour)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_text("no image")
    run_cvt("embed", ".", "-m", tiny_cvt(), "-o", f"x.{suffix}", expect=1)
    done = run_cvt("sort", f"x.{suffix}", "--order", "diverse", expect=0)
    paths = done.stdout.splitlines()
    assert (
        sorted(paths) == ["./a.png", "./b.png", "./c.png"]
        and "1 name with a line break" in done.stderr
    )
    save(tmp_path / "known.csv", [record("./a.png", "dark")])
    options = ("--order", "diverse", "--labelled", "known.csv", "--first", 1)
    done = run_cvt("sort", f"x.{suffix}", *options, expect=0)
    assert done.stdout == "./c.png\n"  # b is like a
    listed = ("classify", "-m", tiny_cvt(), "--files-from", "-", "-o", "labels.csv")
    run_cvt(*listed, stdin=done.stdout.encode(), expect=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("labels.csv", "no folder to sort into is named; cvt sort LABELS DIR, or use --order"),
        ("labels.csv sorted --first 3", "--first needs --order"),
        ("labels.csv sorted --order uncertain", "sorts into no folder; leave DIR out"),
        ("labels.csv --order uncertain --move -n", "can't be combined with --move, --dry-run"),
        ("labels.csv --order diverse", "labels.csv: csv can't be used here; one of .parquet .npy"),
        ("labels.csv --order diverse -f csv", "reads no csv; the output of `cvt embed`"),
        ("- --order diverse", "embeddings can't be read from standard input"),
        ("missing.npy --order diverse", "missing.npy can't be read: no such file"),
        ("labels.parquet --order diverse", "it has no columns `path`, `embedding` and `error`"),
        ("raw.jsonl --order uncertain", "raw.jsonl can't be ordered: the values of a regression"),
    ],
)
def test_an_order_that_can_not_be(
    run_cvt: RunCvt, tmp_path: Path, records: list[Record], options: str, words: str
) -> None:
    for suffix in ("csv", "parquet"):
        save(tmp_path / f"labels.{suffix}", records)
    row = {"path": "a.jpg", "predictions": [{"label": "x", "score": 3.5, "index": 0}]}
    (tmp_path / "raw.jsonl").write_text(json.dumps({**row, "error": None, "scores": "raw"}))
    failed = run_cvt("sort", *options.split(), expect=2)
    assert words in failed.stderr and failed.stderr.count("\n") == 1 and not failed.stdout


def test_undo_puts_back_what_was_moved(
    run_cvt: RunCvt, tmp_path: Path, records: list[Record]
) -> None:
    before = files(tmp_path / "photos")
    (tmp_path / "photos/0.jpg.xmp").write_text("keywords")
    save(tmp_path / "labels.csv", records)
    run_cvt("sort", "labels.csv", "sorted", "--move", expect=0)
    assert (tmp_path / "sorted/cat/0.jpg.xmp").read_text() == "keywords"
    assert list(files(tmp_path / "photos")) == ["4.jpg"]

    would = run_cvt("sort", "--undo", "sorted", "-n", expect=0)
    assert would.stdout.splitlines()[-1] == f"sorted/cat/0.jpg -> {tmp_path}/photos/0.jpg"
    assert would.stderr == "cvt: sorted: would move 5 files back\n"
    # What came there meanwhile is not replaced; what was added by hand stays.
    (tmp_path / "photos/2.jpg").write_text("new")
    (tmp_path / "sorted/cat/mine.jpg").write_text("mine")
    done = run_cvt("sort", "--undo", "sorted", expect=1)
    assert done.stderr.splitlines() == [
        f"cvt: sorted/cat/2.jpg: {tmp_path}/photos/2.jpg exists",
        "cvt: sorted: moved 4 files back; 1 stay",
    ]
    (tmp_path / "photos/2.jpg").unlink()
    done = run_cvt("sort", "--undo", "sorted", expect=0)
    assert done.stderr == "cvt: sorted: moved 1 file back\n"
    assert files(tmp_path / "photos") == {**before, "0.jpg.xmp": "keywords"}
    assert files(tmp_path / "sorted") == {"cat/mine.jpg": "mine"}
    nothing = run_cvt("sort", "--undo", "sorted", expect=2)
    assert "nothing to undo" in nothing.stderr


def test_undo_of_two_paths_that_became_one_file(
    run_cvt: RunCvt, tmp_path: Path, records: list[Record]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/0.jpg").write_text("0")
    for name in ("photos/0.jpg", "more/0.jpg"):
        save(tmp_path / "labels.csv", [record(name, "cat")])
        run_cvt("sort", "labels.csv", "sorted", "--move", expect=0)
        (tmp_path / "labels.csv").unlink()
    assert not (tmp_path / "more/0.jpg").exists()
    run_cvt("sort", "--undo", "sorted", expect=0)
    assert (tmp_path / "more/0.jpg").read_text() == (tmp_path / "photos/0.jpg").read_text() == "0"
    assert not (tmp_path / "sorted").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labels.csv", "sorted"), "cvt sort --undo sorted"),
        (("sorted", "--move"), "can't be combined with --move"),
        (("sorted", "--order", "uncertain"), "can't be combined with --order"),
        (("labels.csv",), "labels.csv: not a folder"),
        (("gone",), "gone: no such folder"),
        (("sorted",), "sorted/.cvt-moved.jsonl: line 2 is no move"),
    ],
)
def test_what_can_not_be_undone(
    run_cvt: RunCvt, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "labels.csv").touch()
    (tmp_path / "sorted/cat").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("mine")
    lines = [{"from": str(tmp_path / "a"), "to": place} for place in ("cat/a", "../secret.txt")]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "sorted/.cvt-moved.jsonl").write_text(log)
    done = run_cvt("sort", "--undo", *arguments, expect=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "secret.txt").exists()


def test_undo_of_a_folder_from_somebody_else(run_cvt: RunCvt, tmp_path: Path) -> None:
    for folder in ("sorted/cat", "private"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("sorted/cat/a", "sorted/cat/b.jpg", "private/c.jpg"):
        (tmp_path / file).write_text(file)
    (tmp_path / "sorted/dog").symlink_to(tmp_path / "private")
    moves = {"start.desktop": "cat/a", "start.sh": "cat/b.jpg", "public.jpg": "dog/c.jpg"}
    log = (json.dumps({"from": f"{tmp_path}/{to}", "to": place}) for to, place in moves.items())
    (tmp_path / "sorted/.cvt-moved.jsonl").write_text("\n".join([*log, ""]))
    before = files(tmp_path)
    done = run_cvt("sort", "--undo", "sorted", expect=1)
    assert files(tmp_path) == before
    assert done.stderr.splitlines() == [
        "cvt: sorted/dog/c.jpg: sorted/dog is a link",
        *(
            f"cvt: sorted/cat/{file}: not named like a picture: move it to {tmp_path}/{origin} "
            "yourself, if you trust it"
            for file, origin in (("b.jpg", "start.sh"), ("a", "start.desktop"))
        ),
        "cvt: sorted: moved 0 files back; 3 stay",
    ]


@pytest.mark.parametrize("action", ["--copy", "--move", "--link", "--symlink"])
def test_sidecars_go_with_their_picture(run_cvt: RunCvt, tmp_path: Path, action: str) -> None:
    beside = {
        "a_1.jpg": ["a_1.jpg.xmp", "a_1.jpg.PP3", "a_1_01.jpg.xmp"],
        "b.nef": ["b.xmp", "b.nef.dop"],
        "b.jpg": [],  # b.xmp is of the raw file
        "c.HEIC": ["c.AAE", "c.xmp"],
        "d::e.jpg": ["d::e.jpg.xmp"],
    }
    sidecars = {name for names in beside.values() for name in names}
    for name in {*beside, *sidecars, "other.xmp"}:
        (tmp_path / name).write_text(name)
    (tmp_path / "sorted/cat").mkdir(parents=True)
    (tmp_path / "sorted/cat/a_1.jpg").write_text("another")
    (tmp_path / "sorted/cat/b.nef.dop").write_text("another")
    save(tmp_path / "labels.csv", [record(picture, "cat") for picture in sorted(beside)])
    before = files(tmp_path)
    how = () if action == "--copy" else (action,)
    command = ("sort", "labels.csv", "sorted", *how)

    told = run_cvt(*command, "--dry-run", expect=0).stdout.splitlines()
    done = run_cvt(*command, expect=0).stderr.splitlines()
    renamed = {name: name.replace("a_1", "a_1-2") for name in {*beside, *sidecars}}
    places = {**renamed, "a_1_01.jpg.xmp": "a_1-2_01.jpg.xmp"}
    expected = {place: name for name, place in places.items()}
    expected |= {"a_1.jpg": "another", "b.nef.dop": "another"}
    assert files(tmp_path / "sorted/cat") == expected
    assert sorted(told) == sorted(
        f"{name} -> sorted/cat/{place}" for name, place in places.items() if name != "b.nef.dop"
    )
    assert done[0] == (
        "cvt: warning: b.nef.dop stays where it is: sorted/cat/b.nef.dop is another file"
    )
    assert " 5 files and 7 sidecars into 1 folder" in done[1]
    left = {"other.xmp", "b.nef.dop"}
    assert {name for name in sidecars | left if (tmp_path / name).exists()} == (
        left if action == "--move" else sidecars | left
    )
    if action == "--move":
        # What a run that was killed between the two has left.
        (tmp_path / "sorted/cat/c.AAE").rename(tmp_path / "c.AAE")
        save(tmp_path / "again.csv", [record("c.HEIC", "cat")])
        again = run_cvt("sort", "again.csv", "sorted", "--move", expect=0)
        assert "moved 0 files and 1 sidecar into" in again.stderr
        run_cvt("sort", "--undo", "sorted", expect=0)
        (tmp_path / "again.csv").unlink()
        (tmp_path / "again.csv.run.json").unlink(missing_ok=True)
        assert files(tmp_path) == before
