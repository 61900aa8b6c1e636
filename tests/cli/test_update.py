"""`cvt classify --update`: a labelling that is repeated on a folder that grows."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cvt_cli.output import embedding_writer_class, writer_class
from cvt_cli.output.npy import NpyWriter
from cvt_cli.output.run_file import difference, last_digits
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system import files
from tests.cli.test_failures import check_line
from tests.cli.test_unattended import make
from tests.conftest import RunCvt
from tests.endings import at_call
from tests.photos import picture

COMMAND = ("classify", "-m", "cvt-tiny-cifar10", "-b", 1)
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")


def read(file: Path) -> list[Record]:
    with file.open("rb") as stream:
        return list(writer_class(file.suffix[1:]).documents(stream))  # type: ignore[attr-defined]


def check_equal(file: Path, other: Path) -> None:
    """The same paths in the same order, the same labels and errors, and scores but for the last
    digit, which depends on what else is in a batch."""
    ours, theirs = read(file), read(other)
    assert [record.path for record in ours] == [record.path for record in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.error == two.error
        assert [each.label for each in one.predictions] == [each.label for each in two.predictions]
        for a, b in zip(one.predictions, two.predictions, strict=True):
            assert a.score == pytest.approx(b.score, abs=3e-6)


def change(path: Path, seed: int) -> None:
    """Another picture, of another time whatever the clock's steps are."""
    before = path.stat().st_mtime_ns
    picture(16, 16, seed).save(path)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_year_of_a_growing_folder(run_cvt: RunCvt, tmp_path: Path) -> None:
    """18 runs with files added, changed, removed, broken and mended between them, and a third of
    them killed."""
    chance = random.Random(18)
    folder = tmp_path / "photos"
    folder.mkdir()
    output = tmp_path / "labels.csv"
    command = (*COMMAND, "photos", "-o", output, "--update", "--prune")
    number = 0
    broken: list[Path] = []
    mended: set[str] = set()
    for week in range(18):
        for _ in range(chance.randint(1, 2)):
            number += 1
            picture(16, 16, number).save(folder / f"{chance.randint(0, 9)}-{number}.png")
        there = sorted(path for path in folder.iterdir() if path not in broken)
        chance.shuffle(there)
        if week:
            change(there[0], 1000 + week)
            if week % 4 == 0:
                there[1].write_text("no image")
                broken.append(there[1])
            elif week % 4 == 2 and broken:
                change(broken[0], 2000 + week)
                mended.add(f"photos/{broken.pop(0).name}")
            if week % 3 == 0:
                there[2].unlink()
        if week % 3 != 1:
            run_cvt(*command)
            continue
        killed = at_call("cvt_cli.output.journal:Journal.write", chance.randint(1, 2))
        with run_cvt.start(*command, first=killed) as process:
            _, said = process.communicate(timeout=300)
        assert process.returncode == -9, said
    last = run_cvt(*command)
    assert last.returncode in (0, 1)
    run_cvt(*COMMAND, "photos", "-o", "whole.csv")
    assert {record.path for record in read(output)} == {
        f"photos/{path.name}" for path in folder.iterdir()
    }
    failed = {record.path for record in read(output) if record.error is not None}
    assert failed == {f"photos/{path.name}" for path in broken}
    assert len(mended) >= 3 and failed.isdisjoint(mended)
    check_equal(output, tmp_path / "whole.csv")
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        *("photos", "labels.csv", "labels.csv.run.json", "whole.csv", "whole.csv.run.json")
    }


def test_every_format_keeps_what_is_unchanged(run_cvt: RunCvt, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", "b.png", "d.png", "inner/a.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "b.png").read_bytes())
    (folder / "bad.png").write_text("no image")
    outputs = [each for name in FORMATS for each in ("-o", f"labels.{name}")]
    command = (*COMMAND, "photos", *outputs, "--columns", "width,sha256,index", "--update")
    first = run_cvt(*command, expect=1)
    assert ": 5 inputs: 0 kept, 5 new, 0 changed, 0 failed before, " in first.stderr

    picture(16, 16, 5).save(folder / "a.png")
    change(folder / "d.png", 6)
    picture(16, 16, 7).save(folder / "bad.png")
    (folder / "inner" / "a.png").unlink()
    second = run_cvt(*command, expect=0)
    said = ": 5 inputs: 2 kept, 1 new, 1 changed, 1 failed before; 1 gone: 0 dropped, 1 kept, "
    assert said in second.stderr
    whole = [each for name in FORMATS for each in ("-o", f"whole.{name}")]
    run_cvt(*COMMAND, "photos", *whole, "--columns", "width,sha256,index", expect=0)
    for name in FORMATS:
        *ours, gone = read(tmp_path / f"labels.{name}")
        assert gone.path == "photos/inner/a.png" and gone.error is None
        assert [record.path for record in ours] == [
            record.path for record in read(tmp_path / f"whole.{name}")
        ]
    # Nothing to do: not even the file's time changes.
    before = {name: (tmp_path / f"labels.{name}").stat() for name in FORMATS}
    third = run_cvt(*command, expect=0)
    assert ": 5 inputs: 5 kept, 0 new, 0 changed, 0 failed before; 1 gone" in third.stderr
    for name in FORMATS:
        assert (tmp_path / f"labels.{name}").stat().st_mtime_ns == before[name].st_mtime_ns
    run_cvt(*command, "--prune", expect=0)
    for name in FORMATS:
        check_equal(tmp_path / f"labels.{name}", tmp_path / f"whole.{name}")
    assert not list(tmp_path.glob("*.part*"))


def test_what_is_refused(run_cvt: RunCvt, tmp_path: Path, tiny_cvt: Callable[..., Path]) -> None:
    make(tmp_path / "photos", "a.png")
    command = ("classify", "photos", "-o", "a.csv", "--update")
    model = ("-m", "cvt-tiny-cifar10")
    run_cvt(*command, *model, "-b", 1, expect=0)
    before = (tmp_path / "a.csv").read_bytes()
    for more, words in {
        ("-m", tiny_cvt()): "another activation|another labels|another model|another preproc",
        (*model, "-k", 2): "another top-k: 5 then, 2 now",
        (*model, "--threshold", 0.5): "another threshold",
        (*model, "--shard", "1/2"): "another shard",
        (*model, "-f", "tsv"): "another format",
        (*model, "--overwrite"): "--update and --overwrite exclude each other",
        (*model, "--resume"): "--update and --resume exclude each other",
        (*model, "-o", "report.html"): "report.html: a report can't be updated",
    }.items():
        refused = run_cvt(*command, *more)
        line = check_line(refused, 2)
        assert any(word in line for word in words.split("|")), line
    assert (tmp_path / "a.csv").read_bytes() == before
    assert not list(tmp_path.glob("*.part*"))
    # Limits and the size of a batch may differ.
    run_cvt(*command, *model, "-b", 2, "--max-pixels", 10**6, expect=0)
    for arguments, words in (
        (("classify", "photos", *model, "--update"), "--update needs --output"),
        (("classify", "photos", *model, "-o", "x.csv", "--prune"), "--prune needs --update"),
    ):
        check_line(run_cvt(*arguments), 2, words)
    (tmp_path / "a.csv.run.json").unlink()
    check_line(run_cvt(*command, *model), 2, "a.csv can't be updated", "a.csv.run.json", "missing")


def test_update_is_advised_where_it_would_do(run_cvt: RunCvt, tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png")
    run_cvt(*COMMAND, "photos", "-o", "a.csv", expect=0)
    command = (*COMMAND, "photos", "-o", "a.csv")
    update, overwrite = "--update adds what is new, ", "--overwrite replaces it"

    def advised(*command: object) -> str:
        return check_line(run_cvt(*command), 2, "a.csv exists").partition("exists")[2]

    assert advised(*command) == f"; {update}{overwrite}"
    assert advised(*command, "-o", "new.jsonl") == f"; {update}{overwrite}"
    # A page can't be updated, and merge has no such option.
    assert advised(*command, "-o", "b.html") == f"; {overwrite}"
    assert advised("merge", "a.csv", "-o", "a.csv") == f"; {overwrite}"
    (tmp_path / "a.csv.run.json").unlink()
    assert advised(*command) == f"; {overwrite}"


def test_limits_may_be_raised_by_resume(run_cvt: RunCvt, tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png", "b.png")
    command = (*COMMAND, "photos", "-o", "a.csv")
    run_cvt(*command, "--max-pixels", 100, "--run-record", "run.json")  # none could be read
    run_cvt(*command, expect=0)
    kept = json.loads((tmp_path / "a.csv.run.json").read_text())
    (tmp_path / "a.csv").rename(tmp_path / "a.csv.part")
    made_with = kept["run"] | {"max_pixels": 255, "batch_size": 7}
    (tmp_path / "a.csv.part.json").write_text(json.dumps(made_with))
    run_cvt(*command, "--resume", expect=0)


def test_a_killed_update_is_not_taken_for_a_whole_run(run_cvt: RunCvt, tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png", "b.png")
    command = (*COMMAND, "--files-from", "-", "-o", "a.csv")
    run_cvt(*command, "--update", stdin=b"photos/a.png\n", expect=0)
    before = (tmp_path / "a.csv").read_bytes()
    with run_cvt.start(*command, "--update", encoding=None, errors=None) as process:
        assert process.stdin is not None
        process.stdin.write(b"photos/a.png\nphotos/b.png\n" + b"gone.png\n" * 3)
        process.stdin.flush()
        part = tmp_path / "a.csv.part"
        deadline = time.monotonic() + 300
        while not part.exists() or part.read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert (tmp_path / "a.csv").read_bytes() == before
    check_line(run_cvt(*command, "--resume", stdin=b"photos/b.png\n"), 2, "--update continues")
    assert (tmp_path / "a.csv").read_bytes() == before
    done = run_cvt(*command, "--update", stdin=b"photos/b.png\nphotos/a.png\n", expect=0)
    assert "2 inputs: 1 kept, 1 new, 0 changed" in done.stderr
    assert [record.path for record in read(tmp_path / "a.csv")] == ["photos/b.png", "photos/a.png"]


def test_only_what_was_listed_is_pruned(run_cvt: RunCvt, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        make(tmp_path / name, "a.png", "b.png", "in/c.png")
    run_cvt(*COMMAND, "one", "two", "three", "-o", "a.csv", "--update", expect=0)
    (tmp_path / "one" / "b.png").unlink()
    shutil.rmtree(tmp_path / "two")  # as of a share that is not mounted
    (tmp_path / "three" / "a.png").unlink()  # which is not named
    done = run_cvt(*COMMAND, "one", "two", "-o", "a.csv", "--update", "--prune", expect=1)
    assert "7 gone: 1 dropped, 6 kept" in done.stderr
    paths = {record.path for record in read(tmp_path / "a.csv") if record.error is None}
    assert paths == {
        *("one/a.png", "one/in/c.png"),
        *(f"{name}/{file}" for name in ("two", "three") for file in ("a.png", "b.png", "in/c.png")),
    }
    # Never all: there is another mistake, then.
    for path in ("one/a.png", "one/in/c.png"):
        (tmp_path / path).unlink()
    make(tmp_path / "one", "new.png")
    done = run_cvt(*COMMAND, "one", "-o", "a.csv", "--update", "--prune", expect=0)
    assert "no row is dropped" in done.stderr
    assert len(read(tmp_path / "a.csv")) == 9
    # A disk that is not mounted replaces nothing.
    before = (tmp_path / "a.csv").read_bytes()
    shutil.rmtree(tmp_path / "one")
    gone = run_cvt(*COMMAND, "one", "-o", "a.csv", "--update", "--prune")
    check_line(gone, 1, "one: no such file; a.csv stays as it is")
    assert (tmp_path / "a.csv").read_bytes() == before


RUN = {
    "model": "org/cvt",
    "commit": "a1",
    "weights_sha256": "00",
    "activation": "gelu",
    "preprocessing": {"size": 224},
    "dtype": "float32",
    "decode": "fast",
    "labels": None,
    "columns": [],
    "device": "cuda",
    "batch_size": 16,
    "max_pixels": 100,
    "version": "1",
}


@pytest.mark.parametrize(
    ("changed", "for_resume", "for_update"),
    [
        ({"weights_sha256": "01"}, "weights-sha256", "weights-sha256"),
        ({"activation": "quick_gelu"}, "activation", "activation"),
        ({"preprocessing": {"size": 384}}, "preprocessing", "preprocessing"),
        ({"dtype": "bfloat16"}, "dtype", "dtype"),
        ({"decode": "exact"}, "decode", "decode"),
        ({"labels": ["cat"]}, "labels", "labels"),
        ({"columns": ["width"]}, "columns", "columns"),
        ({"something": "new"}, "something", "something"),
        ({"device": "cpu", "batch_size": 1, "max_pixels": 1}, None, None),
        ({"version": "2"}, "version", None),
        ({"model": "a/folder", "commit": None}, "commit", None),  # of the same weights
    ],
)
def test_which_runs_belong_together(
    changed: dict[str, object], for_resume: str | None, for_update: str | None
) -> None:
    for later, expected in ((False, for_resume), (True, for_update)):
        found = difference(RUN, RUN | changed, later)
        assert (found and found[0]) == expected


def test_what_the_last_digits_depend_on() -> None:
    on_cpu = RUN | {"device": "cpu"}
    assert last_digits(RUN, RUN) is None
    assert last_digits(on_cpu, on_cpu | {"batch_size": 8}) is None
    assert "another batch-size (16 then, 8 now)" in (
        last_digits(RUN, RUN | {"batch_size": 8}) or ""
    )
    assert "another device ('cpu' then, 'cuda' now)" in (last_digits(on_cpu, RUN) or "")


@pytest.mark.parametrize("output", ["a.npy", "a.parquet"])
def test_embeddings_of_a_growing_folder(run_cvt: RunCvt, tmp_path: Path, output: str) -> None:
    """Rows of unchanged files stay as they are, also of those with strange names."""
    names = ("b.png", "gone.png", "line\nbreak.png", "back\\nslash.png")
    folder = make(tmp_path / "photos", *names)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "b.png").read_bytes())
    (folder / "bad.png").write_text("no image")
    command = ("embed", "photos", "-m", "cvt-tiny-cifar10", "-o", output, "--update", "--prune")
    run_cvt(*command, expect=1)
    before = {record.path: record.embedding for record in embeddings(tmp_path / output)}
    assert before["photos/bad.png"] is None
    picture(16, 16, 3).save(folder / "bad.png")
    change(folder / "b.png", 7)
    (folder / "gone.png").unlink()
    make(folder, "a.png")
    done = run_cvt(*command, expect=0)
    assert "6 inputs: 3 kept, 1 new, 1 changed, 1 failed before; 1 gone: 1 dropped" in done.stderr
    found = embeddings(tmp_path / output)
    assert [record.path for record in found] == [
        as_written(str(path.relative_to(tmp_path))) for path in sorted(folder.iterdir())
    ]
    after = {record.path: record.embedding for record in found}
    kept = ("line\nbreak.png", "back\\nslash.png", "caf\\udce9.png")
    assert all(after[f"photos/{name}"] == before[f"photos/{name}"] for name in kept)
    assert all(after.values()) and after["photos/b.png"] != before["photos/b.png"]
    run_cvt("embed", "photos", "-m", "cvt-tiny-cifar10", "-o", f"whole-{output}", expect=0)
    whole = {record.path: record.embedding for record in embeddings(tmp_path / f"whole-{output}")}
    assert list(whole) == list(after)
    for path, numbers in whole.items():
        assert after[path] == pytest.approx(numbers, abs=1e-4)
    before_bytes = (tmp_path / output).read_bytes()
    run_cvt(*command, expect=0)
    assert (tmp_path / output).read_bytes() == before_bytes
    refused = run_cvt(*command, "--decode", "exact")
    check_line(refused, 2, f"{output} is from a run with another decode")
    if output == "a.npy":
        (tmp_path / "a.paths.txt").write_text("photos/a.png\n")
        check_line(run_cvt(*command), 2, "a.npy can't be updated: it ends at row 1")
        assert (tmp_path / output).read_bytes() == before_bytes


def embeddings(file: Path) -> list[Record]:
    writer = embedding_writer_class(file.suffix[1:])
    return list(writer.embeddings(file))  # type: ignore[attr-defined]


def test_numbers_are_never_beside_the_paths_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process ends: there is no array, or all three files belong together."""
    output = tmp_path / "a.npy"
    shape = RecordShape(0, embedding_dim=2)

    def write(count: int) -> None:
        records = [Record(f"{n}.png", embedding=(n, count)) for n in range(count)]
        NpyWriter.convert(records, output, shape, run={})

    renames = 0

    def rename(*names: Path) -> None:
        nonlocal renames
        renames -= 1
        if renames < 0:
            raise OSError
        replace(*names)

    write(2)
    replace = files.replace
    monkeypatch.setattr(files, "replace", rename)
    for left in range(3):
        renames = left
        with pytest.raises(OSError):
            write(3 + left)
        assert not output.exists() or len(embeddings(output)) == 2
    renames = 3
    write(7)
    assert len(embeddings(output)) == 7
