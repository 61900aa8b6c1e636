import errno
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cvt_cli.errors import CvtError, ExitCode, UsageError
from cvt_cli.output import WriterClass, embedding_writer_class, writer_class
from cvt_cli.output import journal as module
from cvt_cli.output.journal import Journal, check_output, part_of
from cvt_cli.output.parquet import ParquetWriter
from cvt_cli.output.run_file import Kept
from cvt_cli.output.update import UpdatedJournal
from cvt_cli.records import Record, RecordShape, as_written
from tests.output.records import some_records

SHAPE = RecordShape(top_k=2)
RUN = {"model": "tiny", "top_k": 2}
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")


def journal(
    path: Path,
    resume: bool = False,
    run: dict[str, object] | None = None,
    overwrite: bool = False,
) -> Journal:
    return Journal(
        path,
        writer_class(path.suffix[1:]),
        SHAPE,
        run=run or RUN,
        resume=resume,
        overwrite=overwrite,
    )


def left(folder: Path) -> set[str]:
    """What is there, but for what each output keeps."""
    return {each.name for each in folder.iterdir() if not each.name.endswith(".run.json")}


def write_part(
    path: Path, writer: WriterClass, shape: RecordShape, records: Sequence[Record]
) -> bytes:
    unfinished = Journal(path, writer, shape, run=RUN, resume=False)
    for record in records:
        unfinished.write([record])
    return part_of(path).read_bytes()


def check_every_cut(
    folder: Path, name: str, writer: WriterClass, shape: RecordShape, records: Sequence[Record]
) -> None:
    whole_path, path = folder / f"whole.{name}", folder / f"cut.{name}"
    whole = Journal(whole_path, writer, shape, run=RUN, resume=False)
    whole.write(records)
    whole.finish()
    part = write_part(path, writer, shape, records)
    paths = [as_written(record.path) for record in records]
    seen = set()
    for size in range(len(part) + 1):
        part_of(path).write_bytes(part[:size])
        if not part_of(path).with_name(f"{path.name}.part.json").exists():
            part_of(path).with_name(f"{path.name}.part.json").write_text(json.dumps(RUN))
        again = Journal(path, writer, shape, run=RUN, resume=True)
        done = len(again.done)
        assert again.done == paths[:done]
        assert again.errors == sum(record.error is not None for record in records[:done])
        seen.add(done)
        again.write(records[done:])
        again.finish()
        assert path.read_bytes() == whole_path.read_bytes(), f"cut after {size} bytes"
    assert seen == set(range(len(records) + 1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_at_any_byte_keeps_the_whole_records(tmp_path: Path, name: str) -> None:
    records = [*some_records(), Record("caf\udce9.jpg", error="last")]
    check_every_cut(tmp_path, name, writer_class(name), SHAPE, records)


@pytest.mark.parametrize("name", ["parquet", "npy"])
def test_a_cut_of_embeddings(tmp_path: Path, name: str) -> None:
    records = [
        Record("a\nb.jpg", embedding=(0.5, -1.0, float("inf"))),
        Record("bad", error="no image"),
        Record("caf\udce9.jpg", embedding=(1.5, 0.0, 3.25)),
    ]
    shape = RecordShape(0, embedding_dim=3)
    check_every_cut(tmp_path, name, embedding_writer_class(name), shape, records)


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_with_room_for_more_labels_than_now(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"labels.{name}"
    records = some_records()
    write_part(path, writer_class(name), RecordShape(top_k=4), records[:2])
    again = journal(path, resume=True)
    again.write(records[2:])
    again.finish()
    with path.open("rb") as file:
        read = list(writer_class(name).documents(file))
    assert [len(record.predictions) for record in read] == [2, 1, 0, 0, 2]


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_has_the_final_name_before_the_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"labels.{name}"
    unfinished = journal(path)
    unfinished.write(some_records())
    assert not path.exists()
    unfinished.finish()
    assert left(tmp_path) == {path.name}


@pytest.mark.parametrize("there", [False, True])
def test_what_has_its_name_is_on_the_disk(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.csv"
    if there:
        path.touch()
    unfinished = journal(path, overwrite=there)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    unfinished.write(some_records())
    assert synced == []
    monkeypatch.setattr(module, "FSYNC_SECONDS", -1.0)
    unfinished.write([Record("last")])
    assert synced == [part_of(path).stat().st_size]
    monkeypatch.setattr(module, "FSYNC_SECONDS", 5.0)
    unfinished.write([Record("very last")])
    assert len(synced) == 1

    def renamed(part: Path, path: Path) -> None:
        assert synced[1] == part.stat().st_size
        part.rename(path)

    monkeypatch.setattr(module, "replace" if there else "rename_new", renamed)
    unfinished.finish()
    assert path.stat().st_size == synced[1]


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_a_disk_that_is_full_at_the_end_loses_no_record(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"labels.{name}"
    unfinished = journal(path)
    unfinished.write(some_records())
    with monkeypatch.context() as patch:
        patch.setattr(ParquetWriter, "convert", full)
        patch.setattr(module, "rename_new", full)
        with pytest.raises(CvtError, match="no space left on device"):
            unfinished.finish()
    assert not path.exists()
    unfinished._lock.close()
    again = journal(path, resume=True)
    assert again.done == [as_written(record.path) for record in some_records()]
    again.finish()
    assert left(tmp_path) == {path.name}


def test_an_output_that_another_program_has_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, a table in a spreadsheet: it can't be replaced as long as it is."""
    path = tmp_path / "labels.csv"
    path.write_bytes(b"before")
    unfinished = journal(path, overwrite=True)
    unfinished.write(some_records())

    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Used by another process", str(part_of(path)))

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace", refuse)
        with pytest.raises(CvtError, match=r"labels\.csv can't be written: used by another pro"):
            unfinished.finish()
    assert path.read_bytes() == b"before"
    unfinished._lock.close()
    again = journal(path, resume=True)
    assert len(again.done) == len(some_records())
    again.finish()
    assert left(tmp_path) == {path.name}


def test_what_could_not_be_written_is_not_tried_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    unfinished = journal(tmp_path / "labels.csv")
    monkeypatch.setattr(module, "FSYNC_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CvtError, match="no space left on device"):
        unfinished.write(some_records())
    assert unfinished._stream.closed


def test_killed_between_the_document_and_the_end_of_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    unfinished = journal(path)
    unfinished.write(some_records())
    part = part_of(path).read_bytes()
    unfinished.finish()
    finished = path.read_bytes()
    part_of(path).write_bytes(part)
    part_of(path).with_name("labels.parquet.part.json").write_text(json.dumps(RUN))
    check_output(path, resume=True, overwrite=False)
    again = journal(path, resume=True)
    assert len(again.done) == len(some_records())
    again.finish()
    assert path.read_bytes() == finished
    assert left(tmp_path) == {path.name}


@pytest.mark.parametrize("resume", [False, True])
def test_one_run_at_a_time(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "labels.csv"
    first = journal(path)
    first.write(some_records()[:1])
    with pytest.raises(UsageError, match=r"labels\.csv\.part is being written by another run"):
        journal(path, resume)
    if not resume:
        with pytest.raises(UsageError, match=r"labels\.csv\.part is being written by another run"):
            check_output(path, resume, overwrite=False)
    first.write(some_records()[1:])
    first.finish()
    finished = path.read_bytes()
    with pytest.raises(UsageError, match=r"labels\.csv (exists|is finished)"):
        journal(path, resume)
    again = journal(path, overwrite=True)  # nobody holds it any more
    again.write(some_records())
    again.finish()
    assert path.read_bytes() == finished


def test_a_journal_that_was_renamed_meanwhile_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.csv"
    first = journal(path)
    first.write(some_records())
    flock = fcntl.flock

    def after_the_end(*arguments: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.finish()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", after_the_end)
    with pytest.raises(UsageError, match="another run"):
        journal(path, resume=True)


def test_another_run_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    journal(path).write(some_records())
    os.truncate(part_of(path), part_of(path).stat().st_size - 3)
    before = part_of(path).read_bytes()
    with pytest.raises(UsageError, match="another top-k: 2 then, 3 now"):
        journal(path, resume=True, run={**RUN, "top_k": 3})
    with pytest.raises(UsageError, match="another threshold: None then, 0"):
        journal(path, resume=True, run={**RUN, "threshold": 0.5})
    assert part_of(path).read_bytes() == before


def test_of_the_preprocessing_only_what_differs_is_said(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    then = {"resample": 3, "crop_pct": 0.9, "size": {"height": 32, "width": 32}}
    journal(path, run={"preprocessing": then}).write(some_records())
    now = {"resample": 3, "size": {"height": 32, "width": 64}}
    with pytest.raises(UsageError) as raised:
        journal(path, resume=True, run={"preprocessing": now})
    said = "another preprocessing: crop_pct 0.9 then, None now; size.width 32 then, 64 now"
    assert str(raised.value).endswith(said)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("csv", b"a,b\r\n"),
        ("csv", b"\xff\xfe\r\n"),
        ("csv", b"path,label,score,error\r\nx\r\n"),
        ("json", b'[\n  {"path": 1},\n  {"path": "b", "predictions": [], "error": null}'),
        ("jsonl", b'{"path": 1}\n{"path": "b", "predictions": [], "error": null}\n'),
    ],
)
def test_a_damaged_journal_is_left_alone(tmp_path: Path, name: str, damage: bytes) -> None:
    path = tmp_path / f"labels.{name}"
    journal(path).write(some_records())
    part_of(path).write_bytes(damage)
    with pytest.raises(UsageError, match="can't be resumed"):
        journal(path, resume=True)
    assert part_of(path).read_bytes() == damage


def test_a_journal_without_its_run(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    journal(path).write(some_records())
    part_of(path).with_name("labels.csv.part.json").unlink()
    with pytest.raises(UsageError, match="missing or corrupt"):
        journal(path, resume=True)


def test_what_stands_is_never_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    check_output(path, resume=True, overwrite=False)
    path.touch()
    with pytest.raises(UsageError, match="exists"):
        check_output(path, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="finished"):
        check_output(path, resume=True, overwrite=False)
    check_output(path, resume=False, overwrite=True)
    path.unlink()
    path.symlink_to("dangling")
    with pytest.raises(UsageError, match="exists"):
        check_output(path, resume=False, overwrite=False)
    path.unlink()
    part_of(path).touch()
    with pytest.raises(UsageError, match="interrupted") as raised:
        check_output(path, resume=False, overwrite=False)
    assert "--resume" in raised.value.hint
    assert "--overwrite" in raised.value.hint
    with pytest.raises(UsageError, match="exclude"):
        check_output(path, resume=True, overwrite=True)


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_what_is_no_journal_is_not_opened(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    for name, make, words in (
        ("a.csv", os.mkfifo, "a.csv.part is not a regular file"),
        ("b.csv", os.mkdir, "b.csv.part is a folder"),
    ):
        make(part_of(tmp_path / name))  # type: ignore[operator]
        with pytest.raises(UsageError, match=words):
            check_output(tmp_path / name, resume, overwrite)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, Path.touch])
@pytest.mark.parametrize("name", ["csv", "json", "parquet"])
def test_what_came_meanwhile_is_not_replaced(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / f"labels.{name}"
    unfinished = journal(path)
    unfinished.write(some_records())
    make(path)
    before = path.stat()
    with pytest.raises(CvtError, match="was created during the run and is kept") as raised:
        unfinished.finish()
    assert "labels." + name + ".part keeps the records" in raised.value.hint
    assert path.stat() == before
    with pytest.raises(UsageError, match="was created during the run"):
        journal(path, resume=True)
    assert path.stat() == before
    path.rename(tmp_path / "moved")
    again = journal(path, resume=True)
    assert len(again.done) == len(some_records())
    again.finish()
    with path.open("rb") as file:
        assert len(list(writer_class(name).documents(file))) == len(some_records())
    assert left(tmp_path) == {path.name, "moved"}


def test_what_was_there_at_the_start_is_replaced_once_said(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.touch()
    journal(path, overwrite=True).write(some_records())  # interrupted
    assert path.read_bytes() == b""
    check_output(path, resume=True, overwrite=False)
    again = journal(path, resume=True)
    again.finish()
    assert path.read_bytes().count(b"\r\n") > len(some_records())
    assert left(tmp_path) == {path.name}


def test_cut_between_the_two_steps_of_a_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(part: Path, path: Path) -> None:
        path.hardlink_to(part)
        raise KeyboardInterrupt

    path = tmp_path / "labels.csv"
    unfinished = journal(path)
    unfinished.write(some_records())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "rename_new", cut)
        unfinished.finish()
    unfinished._lock.close()
    journal(path, resume=True).finish()
    assert left(tmp_path) == {path.name}


def test_a_journal_that_was_deleted_meanwhile_is_not_said_to_be_kept(tmp_path: Path) -> None:
    unfinished = journal(tmp_path / "labels.csv")
    unfinished.write(some_records())
    unfinished.part.unlink()
    with pytest.raises(CvtError, match="has been deleted meanwhile") as raised:
        unfinished.finish()
    assert raised.value.hint == "run the same command again"


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.csv"
    journal(path).abandon()
    assert list(tmp_path.iterdir()) == []
    again = journal(path)
    again.write(some_records())
    again.finish()
    assert left(tmp_path / "new") == {path.name}


def test_what_came_between_the_check_and_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    check_output(path, resume=False, overwrite=False)
    path.write_bytes(b"of another")
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"exists|is finished"):
            journal(path, resume)
        assert left(tmp_path) == {path.name}
    path.unlink()
    part_of(path).write_bytes(b"of another")
    with pytest.raises(UsageError, match="left from an interrupted run"):
        journal(path)
    assert part_of(path).read_bytes() == b"of another"
    part_of(path).unlink()
    (tmp_path / "precious").write_bytes(b"precious")
    for make in (part_of(path).symlink_to, part_of(path).hardlink_to):
        make(tmp_path / "precious")
        if part_of(path).is_symlink():
            for resume, overwrite in ((False, False), (True, False), (False, True)):
                with pytest.raises(UsageError, match="labels"):
                    journal(path, resume, overwrite=overwrite)
            part_of(path).unlink()
        else:  # another name of a file is a name only
            journal(path, overwrite=True).write(some_records())
        assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize("good", [0, 2])
def test_abandoned(tmp_path: Path, good: int) -> None:
    path = tmp_path / "labels.csv"
    some = [*some_records()[:good], Record("bad", error="no image")]
    first = journal(path)
    first.write(some)
    first._stream.close()
    first._lock.close()
    before = part_of(path).read_bytes()
    again = journal(path, resume=True)
    assert again.failed[-1] == ("bad", "no image")
    again.write([Record("worse", error="no image")])
    again.abandon()
    if good:
        assert part_of(path).read_bytes() == before
    else:
        assert list(tmp_path.iterdir()) == []


def test_what_an_output_keeps_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.csv"
    first = journal(path)
    for record in (Record("a"), Record("b", error="no image"), Record("c")):
        first.note(record.path, (1, 2) if record.path != "c" else None)
        first.write([record])
    first.finish()
    assert Kept.read(path) == Kept(RUN, {"a": (1, 2)})

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # That of an output that stays stays; one is not left beside an output of another run.
    second = journal(path, overwrite=True, run={**RUN, "top_k": 3})
    second.write(some_records())
    with monkeypatch.context() as patch:
        patch.setattr(module, "replace", full)
        with pytest.raises(CvtError, match="no space left"):
            second.finish()
    second._lock.close()
    assert Kept.read(path) == Kept(RUN, {"a": (1, 2)})
    third = journal(path, resume=True, run={**RUN, "top_k": 3})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Kept, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        third.finish()
    assert Kept.read(path) is None


@pytest.mark.parametrize("update", [False, True])
def test_a_disk_that_is_full_at_the_start_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: bool
) -> None:
    path = tmp_path / "out.csv"

    def start() -> Journal:
        if update:
            return UpdatedJournal(path, writer_class("csv"), SHAPE, run=RUN)
        return journal(path, resume=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(CvtError, match="no space left") as found:
        patch.setattr(Journal, "_write_run", full)
        start()
    assert found.value.exit_code is ExitCode.RUN_FAILED
    assert not left(tmp_path)
    # A run that was killed in between has left this.
    part_of(path).touch()
    later = start()
    later.write(some_records()[:1])
    if isinstance(later, UpdatedJournal):
        later.settle(["a, b.jpg"])
    later.finish()
    assert left(tmp_path) == {"out.csv"}
