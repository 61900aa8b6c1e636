"""`cvt merge`: what one run would have written, of the files of several."""

import itertools
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cvt_cli.cli.merge_inputs import list_parts
from cvt_cli.distributed.folders import LocalFolder
from tests.cli.test_failures import check_line
from tests.conftest import NOWHERE, Completed, RunCvt
from tests.fork_server import ForkClient
from tests.photos import picture

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkClient) -> Path:
    """`whole.csv` and so on, of one run; `part-1.csv` and so on, of two that share its inputs."""
    folder = tmp_path_factory.mktemp("labels")
    run = RunCvt(folder, NOWHERE, fork_server)
    names = [*map(str, range(5)), 'comma, "quotes" and\nline', os.fsdecode(b"caf\xe9")]
    paths = [folder / f"{name}.png" for name in names]
    for seed, path in enumerate(paths):
        picture(16, 8 + seed, seed).save(path)
    paths[1].write_text("no image")
    command = ("classify", "-m", "cvt-tiny-cifar10", "-b", 1, "--columns", "height,sha256,index")
    for name, some in (("whole", paths), ("part-2", paths[:3]), ("part-10", paths[3:])):
        outputs = itertools.chain(*(("-o", f"{name}.{format_}") for format_ in FORMATS))
        run(*command, *some, *outputs, expect=int(paths[1] in some))
    return folder


def same(path: Path, other: Path) -> bool:
    if path.suffix == ".parquet":  # the metadata says which command wrote it
        return bool(pq.read_table(path).equals(pq.read_table(other)))
    return path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *(("jsonl", target) for target in FORMATS),
        *((source, "csv") for source in FORMATS if source != "jsonl"),
        ("parquet", "parquet"),
        ("json", "json"),
    ],
)
def test_files_of_every_format_become_one_of_every_format(
    source: str, target: str, labels: Path, run_cvt: RunCvt, tmp_path: Path
) -> None:
    parts = (labels / f"part-2.{source}", labels / f"part-10.{source}")
    done = run_cvt("merge", *parts, "-o", f"x.{target}", expect=0)
    assert same(tmp_path / f"x.{target}", labels / f"whole.{target}")
    assert done.stderr == f"cvt: x.{target}: 7 records of 2 files, 1 error\n"
    assert done.stdout == ""


def link(folder: Path, files: dict[str, Path]) -> Path:
    folder.mkdir()
    for name, path in files.items():
        (folder / name).symlink_to(path)
    return folder


def test_a_folder_by_its_numbers_and_formats_beside_each_other(
    labels: Path, run_cvt: RunCvt, tmp_path: Path
) -> None:
    parts = {
        f"part-{n}.{name}": labels / f"part-{n}.{name}" for n, name in ((10, "csv"), (2, "tsv"))
    }
    folder = link(tmp_path / "parts", parts)
    (folder / "notes.txt").write_text("none of them")
    run_cvt("merge", folder, "-o", "x.csv", expect=0)
    assert same(tmp_path / "x.csv", labels / "whole.csv")
    quiet = run_cvt("-q", "merge", "parts/", "-o", "x", "--format", "csv", expect=0)
    assert quiet.stderr == ""
    assert same(tmp_path / "x", labels / "whole.csv")


def test_parts_with_different_columns(run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("path,label,score,width,error\na.jpg,cat,0.500000,9,\n")
    (tmp_path / "2.csv").write_text(
        "path,label,score,label_2,score_2,height,error\nb.jpg,cat,0.5,dog,0.25,7,\n"
    )
    run_cvt("merge", "1.csv", "2.csv", "-o", "x.csv", expect=0)
    assert (tmp_path / "x.csv").read_text().splitlines() == [
        "path,label,score,label_2,score_2,width,height,error",
        "a.jpg,cat,0.500000,,,9,,",
        "b.jpg,cat,0.500000,dog,0.250000,,7,",
    ]


def test_files_at_addresses(labels: Path, run_cvt: RunCvt, tmp_path: Path) -> None:
    # local:// is to fsspec what file:// is to all, and as good as any store.
    parts = (f"file://{labels}/part-2.csv", f"local://{labels}/part-10.csv")
    run_cvt("merge", *parts, "-o", "x.csv", expect=0)
    assert same(tmp_path / "x.csv", labels / "whole.csv")
    url = f"file://{tmp_path}/x.csv"
    refused(run_cvt, url, "-o", "x.csv", "--overwrite", words=("x.csv is one of the inputs",))


def refused(
    run_cvt: RunCvt, *arguments: object, words: tuple[str, ...], code: int = 2
) -> Completed:
    done = run_cvt("merge", *arguments)
    check_line(done, code, *words)
    assert done.stdout == ""
    return done


def test_what_is_not_finished(labels: Path, run_cvt: RunCvt, tmp_path: Path) -> None:
    folder = link(tmp_path / "parts", {"part-000000.csv": labels / "whole.csv"})
    (folder / "_run.json").write_text("{}")
    refused(run_cvt, "parts", "-o", "x.csv", words=("parts is not finished", "--resume"))
    (folder / "_SUCCESS").touch()
    run_cvt("merge", "parts", "-o", "x.csv", expect=0)
    assert same(tmp_path / "x.csv", labels / "whole.csv")

    shards = link(tmp_path / "shards", {"part-1.csv": labels / "whole.csv"})
    (shards / "part-2.csv.part").touch()
    refused(run_cvt, "shards", "-o", "y.csv", words=("shards/part-2.csv.part", "--resume"))
    assert not list(tmp_path.glob("y.csv*"))


def test_a_file_that_is_named_twice_is_merged_once(
    labels: Path, run_cvt: RunCvt, tmp_path: Path
) -> None:
    (tmp_path / "again.csv").symlink_to(labels / "part-2.csv")
    for inputs, twice in (
        ([labels / "part-2.csv", labels / "part-10.csv", labels / "part-2.csv"], "part-2.csv"),
        ([labels / "part-2.csv", labels / "part-10.csv", "again.csv"], "again.csv"),
    ):
        done = run_cvt("merge", *inputs, "-o", "x.csv", "--overwrite", expect=0)
        assert f"{twice} is named twice and merged once" in done.stderr.splitlines()[0]
        assert same(tmp_path / "x.csv", labels / "whole.csv")


def test_parts_that_begin_alike_are_said(labels: Path, run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name in ("part-2.csv", "part-10.csv"):
        shutil.copy(labels / name, tmp_path / "own")
    done = run_cvt("merge", "own", "-o", "own/all.csv", expect=0)
    assert "warning" not in done.stderr
    done = run_cvt("merge", "own", "-o", "x.csv", expect=0)
    said = "own/part-2.csv starts with the same image as own/all.csv: are its records"
    assert said in done.stderr.splitlines()[0]


def test_a_folder_is_listed_once(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        shutil.copy(labels / "part-2.csv", tmp_path / f"{number}.csv")
    listed = []
    names = LocalFolder.names
    monkeypatch.setattr(LocalFolder, "names", lambda self: listed.append(0) or names(self))
    assert [part.run() for part in list_parts(str(tmp_path))] == [{}] * 3
    assert len(listed) == 1


def test_an_output_that_is_there(labels: Path, run_cvt: RunCvt, tmp_path: Path) -> None:
    output = tmp_path / "x.csv"
    output.write_text("mine")
    parts = (labels / "part-2.csv", labels / "part-10.csv")
    refused(run_cvt, *parts, "-o", output, words=("x.csv exists", "--overwrite"))
    assert output.read_text() == "mine"
    run_cvt("merge", *parts, "-o", output, "--overwrite", expect=0)
    assert same(output, labels / "whole.csv")
    (tmp_path / "y.csv").symlink_to(output)
    for inputs in (["x.csv"], ["./x.csv"], ["y.csv"], ["."]):
        refused(
            run_cvt, *inputs, "-o", output, "--overwrite", words=("x.csv is one of the inputs",)
        )
    assert same(output, labels / "whole.csv")


@pytest.mark.parametrize(
    ("source", "target"), [("csv", "json"), ("tsv", "jsonl"), ("parquet", "json")]
)
def test_no_class_indexes_for_json(source: str, target: str, labels: Path, run_cvt: RunCvt) -> None:
    part = labels / f"whole.{source}"
    words = (str(part), "class indexes", target, "merge to csv, tsv or parquet")
    refused(run_cvt, part, "-o", f"x.{target}", words=words)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def bent(data: bytes) -> bytes:
    """A page of a Parquet file changed, its directory as it was."""
    return data[:20] + bytes(60) + data[80:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.csv", b"a,b\r\n1,2\r\n"),
        ("bad.csv", b"path,label,score,error\r\na.jpg,cat\r\n"),
        ("bad.csv", b"path,label,score,error\r\ncaf\xe9.jpg,cat,0.5,\r\n"),
        ("bad.tsv", b"path\tlabel\tscore\twidth\terror\na.jpg\tcat\t0.5\twide\t\n"),
        ("bad.jsonl", b'{"path": "a.j'),
        ("bad.json", b"[1]"),
        ("bad.parquet", cut),
        ("bad.parquet", bent),
    ],
)
def test_a_broken_part_is_named(
    name: str, content: object, labels: Path, run_cvt: RunCvt, tmp_path: Path
) -> None:
    if callable(content):
        content = content((labels / "whole.parquet").read_bytes())
    assert isinstance(content, bytes)
    (tmp_path / name).write_bytes(content)
    good = labels / "whole.jsonl"
    refused(run_cvt, good, name, "-o", "x.csv", words=(f"{name}: no records of cvt",), code=4)
    assert not list(tmp_path.glob("*x.csv*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nowhere -o x.csv", ["nowhere", "no files of records", ".csv, .tsv"]),
        ("nothing://bucket/x -o x.csv", ["nothing"]),
        ("notes.txt -o x.csv", ["notes.txt", "suffix"]),
        ("pipe -o x.csv", ["pipe is neither a file nor a folder; a pipe can be read only once"]),
        ("a.csv -o x.txt", ["x.txt", "suffix"]),
        ("a.csv -o x --format html", ["html", "one of csv"]),
        ("a.csv", ["--output"]),
    ],
)
def test_wrong_usage(arguments: str, words: list[str], run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,score,error\n")
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    refused(run_cvt, *arguments.split(), words=tuple(words))
    assert not list(tmp_path.glob("x*"))


def test_a_folder_with_a_files_name(labels: Path, run_cvt: RunCvt, tmp_path: Path) -> None:
    folder = link(tmp_path / "parts", {"1.csv": labels / "whole.csv"})
    (folder / "2.csv").mkdir()
    done = refused(run_cvt, "parts", "-o", "x.csv", words=("parts/2.csv: is a directory",), code=4)
    assert "--resume" not in done.stderr


def test_an_output_that_can_not_be_written(labels: Path, run_cvt: RunCvt) -> None:
    for name in ("x.csv", "x.parquet"):
        words = (f"{labels}/whole.csv/{name} can't be written: not a directory",)
        output = labels / "whole.csv" / name
        refused(run_cvt, labels / "whole.csv", "-o", output, words=words)
