"""Spreadsheets, also those that a person has saved."""

import errno
import gc
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest

from cvt_cli.output import xlsx
from cvt_cli.output.xlsx import XlsxWriter
from cvt_cli.records import THUMBNAIL, Prediction, Record, RecordShape
from cvt_cli.system import files
from tests.cli.test_failures import check_line
from tests.conftest import RunCvt
from tests.photos import picture

SHAPE = RecordShape(2, ("width", "sha256"))
# What a spreadsheet takes for something else, if it is let.
TEXTS = (
    "=1+1",
    "NA",
    "007",
    "1e5",
    "TRUE",
    "a;b,c",
    "http://x.org",
    "_x0041_.png",
    "tab\there.png",
)


def records(count: int = len(TEXTS)) -> list[Record]:
    good = [
        Record(
            TEXTS[n % len(TEXTS)],
            (Prediction(TEXTS[(n + 1) % len(TEXTS)], 0.815, -1), Prediction("b", 0.1, -1)),
            columns={"width": 96, "sha256": "0012"},
        )
        for n in range(count - 1)
    ]
    return [*good, Record("bad.png", error="=no image")]


def written(path: Path, rows: list[Record]) -> Path:
    XlsxWriter.convert(rows, path, SHAPE, run={})
    return path


def read(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return list(XlsxWriter.documents(file, SHAPE.columns))


def test_texts_are_texts_and_numbers_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "a.xlsx", records())
    assert read(path) == records()
    with path.open("rb") as file:
        assert XlsxWriter.shape(file) == SHAPE
    sheet = openpyxl.load_workbook(path).active
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref == f"A1:H{len(records()) + 1}"
    for row in sheet.iter_rows(min_row=2):
        kinds = [cell.data_type for cell in row if cell.value is not None]
        assert "f" not in kinds
        assert set(kinds) <= {"s", "n", "inlineStr"}
    assert sheet["C2"].value == 0.815
    assert [each.name for each in tmp_path.iterdir()] == ["a.xlsx"]


def test_more_rows_than_a_sheet_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx, "ROWS_PER_SHEET", 3)
    path = written(tmp_path / "a.xlsx", records(8))
    assert len(openpyxl.load_workbook(path).sheetnames) == 3
    assert read(path) == records(8)


def test_a_killed_run_leaves_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves is beside the output, and gone after the next run."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "labels"
    elsewhere.mkdir()
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr(files, "_MOMENT", -1.0)

    def killed() -> Iterator[Record]:
        yield from records()
        os.kill(os.getpid(), 9)

    process = os.fork()
    if not process:
        XlsxWriter.convert(killed(), folder / "a.xlsx", SHAPE, run={})
    os.waitpid(process, 0)
    assert not list(elsewhere.iterdir())
    assert any(each.is_dir() and list(each.iterdir()) for each in folder.iterdir())
    files.sweep_once.cache_clear()
    written(folder / "a.xlsx", records())
    assert list(folder.iterdir()) == [folder / "a.xlsx"]


def test_a_text_that_no_cell_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="32,767 characters"):
        written(path, [Record("x" * 32_768)])
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", ["file", "temporary"])
def test_a_full_disk_is_one_error(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    class Full(io.BytesIO):
        write = fail if where == "file" else io.BytesIO.write

    if where == "temporary":
        monkeypatch.setattr(zipfile.ZipFile, "write", fail)
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    file = Full()
    with pytest.raises(OSError, match="full") as found:
        xlsx._written(file, [Record("a.jpg")], RecordShape(1), folder=tmp_path)
    file.close()
    found.value.__traceback__ = None
    del found
    gc.collect()
    assert not printed


def test_what_a_person_has_saved(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["note", "score", "label", "path", "error"])
    book.active.append(["mine", 0.5, 7, 2024, None])
    book.active.append([None, None, None, None, None])
    book.active.append([None, None, None, "b.jpg", "no image"])
    book.create_sheet("empty")
    book.save(tmp_path / "a.xlsx")
    assert read(tmp_path / "a.xlsx") == [
        Record("2024", (Prediction("7", 0.5, -1),)),
        Record("b.jpg", error="no image"),
    ]


@pytest.mark.parametrize("content", [b"", b"path,label,score\n", b"PK\x03\x04 and no more"])
def test_what_is_no_spreadsheet(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is no \.xlsx file"):
        list(XlsxWriter.documents(io.BytesIO(content)))


def test_what_expands_without_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a.xlsx", records(2))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    changes = {
        "expands more than 200-fold": {"xl/more.bin": bytes(2**28 + 1)},
        "more than 1,048,576 rows": {sheet: members[sheet].replace(b'r="2"', b'r="999999999"')},
    }
    for reason, changed in changes.items():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (members | changed).items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match=reason):
            read(path)


def test_classify_merge_and_sort(run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        picture(16, 16, number).save(tmp_path / "photos" / f"00{number}.png")
    command = ("classify", "photos", "-m", "cvt-tiny-cifar10", "-o", "a.xlsx", "-o", "a.csv")
    run_cvt(*command, expect=0)
    run_cvt("merge", "a.xlsx", "-o", "b.csv", expect=0)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    picture(16, 16, 7).save(tmp_path / "photos" / "002.png")
    done = run_cvt(*command, "--update", expect=0)
    assert "3 inputs: 2 kept, 1 new" in done.stderr
    assert [record.path for record in read(tmp_path / "a.xlsx")] == [
        f"photos/00{number}.png" for number in range(3)
    ]
    assert "copied 3 files" in run_cvt("sort", "a.xlsx", "sorted", expect=0).stderr


def jpeg(seed: int, width: int = 320, height: int = 200) -> bytes:
    file = io.BytesIO()
    picture(width, height, seed).save(file, "JPEG")
    return file.getvalue()


def with_pictures(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return list(XlsxWriter.documents(file, (*SHAPE.columns, THUMBNAIL)))


def test_pictures_lie_in_their_row_and_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a cell's size that move and shrink with it are what a filter hides."""
    monkeypatch.setattr(xlsx, "ROWS_PER_SHEET", 6)
    sizes = ((320, 200), (200, 320), (320, 1), (1, 320), (16, 16))
    rows = [
        replace(record, thumbnail=jpeg(n, *sizes[n % 5]) if record.error is None else None)
        for n, record in enumerate(records(10))
    ]
    path = tmp_path / "a.xlsx"
    XlsxWriter.convert(rows, path, replace(SHAPE, thumbnails=True), run={})
    assert with_pictures(path) == rows
    assert read(path) == records(10)
    with path.open("rb") as file:
        assert XlsxWriter.shape(file) == replace(SHAPE, thumbnails=True)
    with zipfile.ZipFile(path) as archive:
        for sheet, count in ((1, 6), (2, 3)):
            drawing = archive.read(f"xl/drawings/drawing{sheet}.xml").decode()
            anchors = re.findall("<xdr:twoCellAnchor([^>]*)>(.*?)</xdr:twoCellAnchor>", drawing)
            assert len(anchors) == count
            for number, (attributes, anchor) in enumerate(anchors, 1):
                assert attributes.strip() in ("", 'editAs="twoCell"')
                assert re.findall("<xdr:row>(.*?)</xdr:row>", anchor) == [str(number)] * 2
                assert re.findall("<xdr:col>(.*?)</xdr:col>", anchor) == ["1", "1"]


def test_more_pictures_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx, "MOST_PICTURES", 3)
    rows = [replace(record, thumbnail=jpeg(n)) for n, record in enumerate(records(6)[:5])]
    path = tmp_path / "a.xlsx"
    with pytest.warns(UserWarning, match=r"a\.xlsx: pictures of the first 3 images; 2 more have"):
        XlsxWriter.convert(rows, path, replace(SHAPE, thumbnails=True), run={})
    found = [record.thumbnail for record in with_pictures(path)]
    assert found == [row.thumbnail for row in rows[:3]] + [None] * 2


def test_a_column_of_pictures(run_cvt: RunCvt, tmp_path: Path) -> None:
    """In the spreadsheet alone; an update keeps those of unchanged files, and so does a merge."""
    (tmp_path / "photos").mkdir()
    for number in range(2):
        picture(160, 100, number).save(tmp_path / "photos" / f"00{number}.png")
    model = ("-m", "cvt-tiny-cifar10")
    command = ("classify", "photos", *model, "-o", "a.xlsx", "-o", "a.csv", "--columns")
    run_cvt(*command, "width,thumbnail", expect=0)
    assert (tmp_path / "a.csv").read_text().startswith("path,label,score,label_2,")
    assert "thumbnail" not in (tmp_path / "a.csv").read_text().splitlines()[0]
    before = with_pictures(tmp_path / "a.xlsx")
    assert [record.columns["width"] for record in before] == [160, 160]
    assert all(record.thumbnail and record.thumbnail[:2] == b"\xff\xd8" for record in before)
    picture(16, 16, 7).save(tmp_path / "photos" / "001b.png")
    run_cvt(*command, "width,thumbnail", "--update", expect=0)
    after = with_pictures(tmp_path / "a.xlsx")
    assert after[:2] == before and after[2].thumbnail is not None
    run_cvt("merge", "a.xlsx", "-o", "b.xlsx", expect=0)
    assert with_pictures(tmp_path / "b.xlsx") == after

    check_line(run_cvt(*command, "width", "--update"), 2, "a.xlsx", "another thumbnails")
    refused = run_cvt("classify", "photos", *model, "-o", "c.csv", "--columns", "thumbnail")
    check_line(refused, 2, "--columns thumbnail needs -o FILE.xlsx", "report.html")
    refused = run_cvt(
        *("classify", "photos", *model, "-o", "parts", "--columns", "thumbnail"),
        *("--engine", "ray"),
    )
    check_line(refused, 2, "--columns thumbnail needs --engine local")
