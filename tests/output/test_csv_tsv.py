import csv
import io
from pathlib import Path

import pytest

from cvt_cli.output import open_text, writer_class
from cvt_cli.records import Prediction, Record, RecordShape
from tests.output.records import SHAPE, hostile_records


def write(path: Path, records: list[Record], shape: RecordShape = SHAPE) -> bytes:
    with open_text(path, "w") as stream:
        writer = writer_class(path.suffix[1:])(stream, shape)
        writer.write(records)
        writer.close()
    return path.read_bytes()


def without_indexes(record: Record) -> Record:
    predictions = tuple(Prediction(each.label, each.score, -1) for each in record.predictions)
    return Record(record.path, predictions, record.error, record.columns)


def test_csv_looks_as_documented(tmp_path: Path) -> None:
    record = Record("a, b.jpg", (Prediction("cat", 0.75, 3),), columns={"width": 9})
    written = write(tmp_path / "x.csv", [record, Record("c.jpg", error="broken")])
    assert written.decode().split("\r\n") == [
        "path,label,score,label_2,score_2,width,seconds,sha256,error",
        '"a, b.jpg",cat,0.750000,,,9,,,',
        "c.jpg,,,,,,,,broken",
        "",
    ]


def test_plain_lines() -> None:
    predictions = (Prediction("x\ty", 0.12345678, 0), Prediction("z", 0.1, 1))
    stream = io.StringIO()
    # One without a label that reaches the threshold has nothing but its path.
    records = [Record("a\x9b\n b.jpg"), Record("c", predictions), Record("d", error="bro\rken")]
    writer_class("plain")(stream, SHAPE).write(records)
    assert stream.getvalue() == ("a\\x9b\\n b.jpg\nc\tx\\ty\t0.123457\nd\t\t\tbro\\rken\n")


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_hostile_text_survives(tmp_path: Path, suffix: str, delimiter: str) -> None:
    records = hostile_records()
    written = write(tmp_path / f"x.{suffix}", records)
    back = list(writer_class(suffix).read(io.BytesIO(written)))
    assert [record for record, _ in back] == [without_indexes(each) for each in records]
    assert back[-1][1] == len(written)
    # Python's own reader sees the same.
    csv.field_size_limit(2**31 - 1)
    rows = list(csv.reader(io.StringIO(written.decode(), newline=""), delimiter=delimiter))
    assert [row[0] for row in rows[1:]] == [record.path for record in records]
    assert {len(row) for row in rows} == {9}


def test_a_byte_that_is_no_utf8_becomes_an_escape(tmp_path: Path) -> None:
    written = write(tmp_path / "x.csv", [Record("caf\udce9.jpg")])
    assert b"\r\ncaf\\udce9.jpg,," in written


def test_documents_of_spreadsheets_and_data_frames(tmp_path: Path) -> None:
    rows = "\ufefflabel,path,score,note,label_2\ncat,a.jpg,0.5,x,\n,b.jpg,,y,z\n\n"
    records = list(writer_class("csv").documents(io.BytesIO(rows.encode())))
    assert records == [Record("a.jpg", (Prediction("cat", 0.5, -1),)), Record("b.jpg")]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "a,b\n1,2\n",
        "path,label,score,error\na,b\n",
        "path,label,score,error\na,b,0.5,,and more\n",
        "path,label,score\na,b,c\n",
    ],
)
def test_another_file_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match=r"columns|cells|no score"):
        list(writer_class("csv").documents(io.BytesIO(document.encode())))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path|label|score\r\nx|y|0.5\r\n", r"`path` and `label`, but 'path\|label\|score'$"),
        ("path,label,score\r\nx,y,0.5\r\nx,y,half\r\n", "^row 3: 'half' is no score"),
        ("path,label,score\r\nx,y\r\n", "^row 2: a row has 2 cells and the header 3"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(writer_class("csv").documents(io.BytesIO(text.encode())))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label,score,error\na.jpg,cat,0.815,\n", "utf-8-sig"),
        ("path;label;score;error\r\na.jpg;cat;0,815;\r\n", "utf-8-sig"),
        ("path;label;score;error\r\na.jpg;cat;81,5%;\r\n", "utf-8"),
        ("path\tlabel\tscore\terror\r\na.jpg\tcat\t81.5 %\t\r\n", "utf-16"),
        ("path,label,score,error\na.jpg,cat,0.815,\n", "utf-16"),
    ],
)
def test_what_a_spreadsheet_has_saved(text: str, encoding: str) -> None:
    for file in (
        io.BytesIO(text.encode(encoding)),
        io.BufferedReader(io.BytesIO(text.encode(encoding))),
    ):
        (record,) = writer_class("csv").documents(file)  # type: ignore[attr-defined]
        assert record == Record("a.jpg", (Prediction("cat", pytest.approx(0.815), -1),))  # type: ignore[arg-type]
        file.seek(0)
        assert writer_class("csv").shape(file) == RecordShape(1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("path,label,score,error\ncaf\u00e9.jpg,cat,0.5,\n".encode("cp1252"), "not UTF-8; in"),
        (b"path,label,score,error\na.jpg,cat,much,\n", "row 2: 'much' is no score"),
        (b"a;b\n1;2\n", "it has no columns"),
    ],
)
def test_what_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(writer_class("csv").documents(io.BytesIO(data)))  # type: ignore[attr-defined]
