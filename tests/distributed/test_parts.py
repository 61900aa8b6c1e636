"""The folder of parts, on this machine and in a store."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from cvt_cli.distributed.folders import open_folder
from cvt_cli.distributed.part_folder import RUN, SUCCESS, PartFolder
from cvt_cli.distributed.parts import Part, parts_of
from cvt_cli.distributed.parts_left import _inputs, known_inputs, left_of
from cvt_cli.errors import CvtError, Finished, UsageError
from cvt_cli.images.source import Bytes, Source, failing
from cvt_cli.output import writer_class
from cvt_cli.records import Prediction, Record, RecordShape
from tests.cli.test_merge import bent

SHAPE = RecordShape(1, ("width",))
SETTINGS = {"model": "x", "top_k": 1}
BROKEN = os.fsdecode(b"caf\xe9.jpg")


class Disk(LocalFileSystem):
    """A file system behind fsspec, as that of sftp is: a file that is being written can be seen,
    and what a folder had once is remembered."""

    protocol = "disk"
    is_full = False
    listed: ClassVar[dict[object, Any]] = {}

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        if (path, detail) not in self.listed:
            self.listed[path, detail] = super().ls(path, detail, **options)
        return self.listed[path, detail]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listed.clear()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("disk://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        super().pipe_file(path, value[: len(value) // 2] if self.is_full else value)
        if self.is_full:
            raise OSError(28, "No space left on device")

    def mv(self, path1: str, path2: str) -> None:
        assert not self.exists(path2)
        super().mv(path1, path2)


fsspec.register_implementation("disk", Disk)


@pytest.fixture(params=["", "file://", "disk://", "memory://"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that is not there yet."""
    if request.param != "memory://":
        yield f"{request.param}{tmp_path}/new folder/labels"
        return

    url = f"memory://{uuid.uuid4().hex}/labels"
    yield url
    fs = fsspec.filesystem("memory")
    if fs.exists(url):
        fs.rm(url, recursive=True)


def folder(where: str, format_: str = "csv") -> PartFolder:
    return PartFolder(where, format_, writer_class(format_), shape=SHAPE)


def filled(index: int, paths: list[str]) -> Part:
    part = Part(index, paths)
    for position, path in enumerate(paths):
        part.records[position] = Record(path, (Prediction("cat", 0.25, 3),), None, {"width": 9})
    return part


def names(where: str) -> set[str]:
    return set(open_folder(where).names())


def content(where: str, name: str) -> bytes:
    with open_folder(where).open(name) as file:
        return file.read()


def source(path: str, is_archive: bool = False) -> Source:
    return Source(path, Bytes(b""), is_archive=is_archive)


def test_a_part_knows_what_it_lacks() -> None:
    part = Part(0, ["a", "b", "c"])
    part.records[1] = Record("b")
    assert (part.missing(), part.is_complete) == ([0, 2], False)
    part.records[2], part.records[0] = Record("c"), Record("a")
    assert (part.missing(), part.is_complete) == ([], True)
    assert [record.path for record in part.in_order()] == ["a", "b", "c"]


def test_an_archive_is_complete_when_it_was_read_to_its_end() -> None:
    part = Part(0, ["a.tar"], is_archive=True)
    part.records[0] = Record("a.tar::x")
    assert not part.is_complete
    part.size = 2
    assert (part.missing(), part.is_complete) == ([1], False)
    part.records[1] = Record("a.tar::y")
    assert part.is_complete


def test_inputs_in_parts() -> None:
    sources = [
        *map(source, ("a", "b", "c")),
        source("x.tar", is_archive=True),
        source("y.tar", is_archive=True),
        failing("d", "no such file"),
        source("e"),
        *map(source, ("f", "g")),
    ]
    parts = list(parts_of(sources, 2, first=7))
    assert [(part.index, part.paths, part.is_archive) for part in parts] == [
        (7, ["a", "b"], False),
        (8, ["c"], False),
        (9, ["x.tar"], True),
        (10, ["y.tar"], True),
        (11, ["d", "e"], False),
        (12, ["f", "g"], False),
    ]
    assert parts[4].records == {0: Record("d", error="no such file")}
    assert [part.missing() for part in parts[4:]] == [[1], [0, 1]]


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "parquet"])
def test_what_is_written_is_known_again(where: str, format_: str) -> None:
    one = folder(where, format_)
    one.begin(SETTINGS, False, False)
    archive = "https://host/x.tar?version=1"
    members = [f"{archive}::in/{name}" for name in ("1.jpg", "2.jpg", "with::colons.jpg")]
    one.write(filled(0, ["a.jpg", BROKEN, "half::a.jpg"]), SETTINGS)
    one.write(filled(3, members), SETTINGS)
    one.write(filled(1, ["odd::x.zip::1.jpg"]), SETTINGS)
    failed = Part(1_000_000, ["y.tar"], is_archive=True)
    failed.records[0] = Record("y.tar", error="it is cut off")
    one.write(failed, SETTINGS)
    known, count, errors, following = known_inputs(folder(where, format_))
    assert (count, errors, following) == (8, 1, 1_000_001)
    sources = [
        source("a.jpg"),
        source(BROKEN),
        source("half"),
        source("odd::x.zip", is_archive=True),
        source(archive, is_archive=True),
        source("y.tar", is_archive=True),
        source("z.tar", is_archive=True),
    ]
    left = [path for part in parts_of(sources, 10, known, first=following) for path in part.paths]
    assert left == ["half", "z.tar"]


def test_what_is_left_keeps_its_numbers(where: str) -> None:
    one = folder(where)
    one.begin(SETTINGS, False, False)
    archive = Part(3, ["x.tar"], is_archive=True)
    archive.records = {0: Record("x.tar::1"), 1: Record("x.tar", error="it is cut off")}
    one.write(filled(1, ["c", BROKEN]), SETTINGS)
    one.write(archive, SETTINGS)

    def inputs(*more: str) -> list[Part]:
        sources = [
            *map(source, ("a", "b", "c", BROKEN)),
            failing("d", "no such file"),
            source("x.tar", is_archive=True),
            source("y.tar", is_archive=True),
            *map(source, more),
        ]
        return list(parts_of(sources, 2))

    parts, count, errors = left_of(inputs("e"), one, 2)
    assert [(part.index, part.paths, part.is_archive) for part in parts] == [
        (0, ["a", "b"], False),
        (2, ["d"], False),
        (4, ["y.tar"], True),
        (5, ["e"], False),
    ]
    assert (count, errors) == (4, 1)
    # An input before the others moves them all.
    with pytest.warns(UserWarning, match="the inputs have changed since"):
        parts, count, errors = left_of(list(parts_of([source("0"), *_inputs(inputs())], 2)), one, 2)
    assert [(part.index, part.paths, part.is_archive) for part in parts] == [
        (4, ["0", "a"], False),
        (5, ["b", "d"], False),
        (6, ["y.tar"], True),
    ]
    assert parts[1].records == {1: Record("d", error="no such file")}
    assert (count, errors) == (4, 1)


def test_a_part_is_a_document(where: str) -> None:
    one = folder(where)
    one.write(filled(12, ["a, b.jpg", BROKEN]), SETTINGS)
    assert names(where) == {"part-000012.csv"}
    assert content(where, "part-000012.csv").decode().split("\r\n") == [
        "path,label,score,width,error",
        '"a, b.jpg",cat,0.250000,9,',
        "caf\\udce9.jpg,cat,0.250000,9,",
        "",
    ]


def test_from_the_beginning_to_the_end(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = folder(f"{where}/")
    one.check_free(False, False)
    assert names(where) == set()  # nothing is made before anything is started
    one.begin(SETTINGS, False, False)
    assert json.loads(content(where, RUN)) == SETTINGS
    one.write(filled(0, ["a"]), SETTINGS)
    one.finish(SETTINGS | {"outcome": "finished"})
    assert names(where) == {RUN, SUCCESS, "part-000000.csv"}
    assert json.loads(content(where, RUN))["outcome"] == "finished"

    # Done: to be replaced only where someone says so, and then all of it.
    with pytest.raises(UsageError, match="holds the labels of a run"):
        folder(where).check_free(False, False)
    with pytest.raises(Finished, match="nothing to resume"):
        folder(where).check_free(True, False)
    with pytest.raises(UsageError, match="exclude each other"):
        folder(where).check_free(True, True)
    again = folder(where)
    again.check_free(False, True)
    # At no time are there parts and nothing that says of which run.
    deleted: list[str] = []
    files = again._files
    monkeypatch.setattr(
        files, "delete", lambda name: (deleted.append(name), type(files).delete(files, name))
    )
    again.begin(SETTINGS, False, True)
    assert again.failed() == deleted == []
    # What the earlier run did is done anew.
    parts, count, errors = left_of([filled(0, ["a"])], again, 1)
    assert ([part.index for part in parts], count, errors) == ([0], 0, 0)
    # While nothing could be read nothing is replaced.
    bad = Part(0, ["bad"])
    bad.records[0] = Record("bad", error="no image")
    again.write(bad, SETTINGS | {"run": 2})
    again.write_run(SETTINGS | {"outcome": "interrupted"})
    assert names(where) == {RUN, SUCCESS, "part-000000.csv"}
    assert json.loads(content(where, RUN))["outcome"] == "finished"
    assert again.written() == (0, 0)
    assert again.failed() == [("bad", "no image")]
    assert again.give_up() == again.kept(0) == f"{again.where} stays as it is"
    assert deleted == []
    again.write(filled(1, ["a"]), SETTINGS | {"run": 2})
    assert deleted == [SUCCESS, "part-000000.csv", RUN]
    assert names(where) == {RUN, "part-000000.csv", "part-000001.csv"}
    assert json.loads(content(where, RUN))["run"] == 2
    assert again.written() == (2, 1)
    assert again.kept(2) == f"{where} keeps the 2 in finished parts: --resume continues"
    assert again.failed() == [("bad", "no image")]
    assert again.give_up().startswith("no part is kept in ") and names(where) == set()


def test_an_interrupted_run_is_taken_up_as_the_same_or_not_at_all(where: str) -> None:
    one = folder(where)
    one.begin(SETTINGS, False, False)
    one.write(filled(0, ["a"]), SETTINGS)
    with pytest.raises(UsageError, match="interrupted") as refused:
        folder(where).check_free(False, False)
    assert "--resume" in refused.value.hint
    again = folder(where)
    again.check_free(True, False)
    with pytest.raises(UsageError, match="another top-k: 1 then, 2 now"):
        again.begin(SETTINGS | {"top_k": 2}, True, False)
    again.begin(SETTINGS, True, False)
    assert names(where) == {RUN, "part-000000.csv"}
    for corrupt in (b"{", b"[]", b"7"):
        open_folder(where).write(RUN, corrupt)
        with pytest.raises(UsageError, match=r"can't be resumed: _run\.json is corrupt"):
            folder(where).begin(SETTINGS, True, False)
    open_folder(where).write("part-000000.csv", b"a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"part-000000\.csv can't be resumed"):
        known_inputs(folder(where))


def test_another_run_that_was_quicker(where: str) -> None:
    one = folder(where)
    one.check_free(False, False)
    other = folder(where)
    other.begin(SETTINGS, False, False)
    other.finish(SETTINGS)
    with pytest.raises(UsageError, match="holds the labels of a run"):
        one.begin(SETTINGS, False, False)


def test_that_nothing_is_missing_is_said_last(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = folder(where)
    one.begin(SETTINGS, False, False)
    written: list[str] = []
    monkeypatch.setattr(one._files, "write", lambda name, data: written.append(name))
    one.finish(SETTINGS)
    assert written == [RUN, SUCCESS]


def test_parts_of_another_format_are_not_read(where: str) -> None:
    folder(where, "jsonl").write(filled(0, ["a"]), SETTINGS)
    one = folder(where)
    one.write(filled(1, ["b"]), SETTINGS)
    assert [index for index, _ in one.finished()] == [1]


def test_records_of_an_archive_are_those_in_it() -> None:
    part = Part(0, ["a.zip"], is_archive=True)
    assert part.has_records_of(["a.zip::x", "a.zip::y::z"])
    assert part.has_records_of(["a.zip"])
    assert not part.has_records_of(["a.zip2::x"])
    assert not part.has_records_of(["a.zip::x", "a.zip.zip"])


def test_a_part_that_is_damaged(tmp_path: Path) -> None:
    one = folder(str(tmp_path), "parquet")
    one.write(filled(0, ["a"]), SETTINGS)
    path = tmp_path / "part-000000.parquet"
    path.write_bytes(bent(path.read_bytes()))
    damaged = r"part-000000\.parquet can't be resumed: it is damaged$"
    with pytest.raises(UsageError, match=damaged) as error:
        left_of([Part(0, ["a"])], one, 1)
    assert "delete it" in error.value.hint


def test_files_of_others_are_neither_taken_nor_deleted(where: str) -> None:
    open_folder(where).write("holiday.jpg", b"mine")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(UsageError, match="is not empty"):
            folder(where).check_free(resume, overwrite)
    folder(where).write(filled(0, ["a"]), SETTINGS)
    again = folder(where)
    again.begin(SETTINGS, False, True)
    again.write(filled(1, ["a"]), SETTINGS)
    assert names(where) == {RUN, "part-000001.csv", "holiday.jpg"}


def test_parts_of_an_unknown_run(where: str) -> None:
    folder(where).write(filled(0, ["a"]), SETTINGS)
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"holds parts but no _run\.json"):
            folder(where).check_free(resume, False)
    folder(where).check_free(False, True)


def test_a_part_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder(str(tmp_path / "labels"))
    one.begin(SETTINGS, False, False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CvtError, match="no space left on device") as lost:
        one.write(filled(0, ["a"]), SETTINGS)
    assert "--resume" in lost.value.hint
    assert os.listdir(tmp_path / "labels") == [RUN]


def test_a_part_is_whole_where_writing_can_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"disk://{tmp_path}/labels"
    one = folder(where)
    one.begin(SETTINGS, False, False)
    monkeypatch.setattr(Disk, "is_full", True)
    with pytest.raises(CvtError, match=r"labels/part-000000\.csv: .*No space left") as lost:
        one.write(filled(0, ["a"]), SETTINGS)
    assert "--resume" in lost.value.hint
    assert known_inputs(folder(where))[1] == 0
    assert one.written() == (0, 0)
    monkeypatch.undo()
    part = filled(0, ["a", "b"])
    part.records[1] = Record("b", error="broken")
    one.write(part, SETTINGS)
    assert one.written() == (2, 1)
    assert names(where) == {RUN, "part-000000.csv"}


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    one, two, other = (str(tmp_path / name) for name in ("labels", "labels", "others"))
    refusal = pytest.raises(UsageError, match="another run writes to ")
    with folder(one).held(), folder(other).held(), refusal, folder(two).held():
        pass
    with folder(two).held():
        pass


def test_an_address_that_leads_nowhere() -> None:
    with pytest.raises(UsageError, match=r"nothing://bucket/x: .*nothing"):
        folder("nothing://bucket/x")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "labels").touch()
    with pytest.raises(CvtError, match="labels: not a directory"):
        folder(str(tmp_path / "labels")).check_free(False, False)
