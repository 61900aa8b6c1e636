import io
import json
from pathlib import Path

import pytest

from cvt_cli.output import jsons, open_text, writer_class
from cvt_cli.output.jsons import CHUNK, parse
from cvt_cli.records import Prediction, Record, RecordShape
from tests.output.records import SHAPE, hostile_records


def write(path: Path, records: list[Record]) -> bytes:
    with open_text(path, "w") as stream:
        writer = writer_class(path.suffix[1:])(stream, SHAPE)
        for record in records:
            writer.write([record])
        writer.close()
    return path.read_bytes()


def with_nulls(record: Record) -> Record:
    columns = {name: record.columns.get(name) for name in SHAPE.columns}
    return Record(record.path, record.predictions, record.error, columns)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_hostile_text_survives(tmp_path: Path, suffix: str) -> None:
    records = hostile_records()
    written = write(tmp_path / f"x.{suffix}", records)
    expected = [with_nulls(record) for record in records]
    assert [record for record, _ in writer_class(suffix).read(io.BytesIO(written))] == expected
    assert list(parse(io.BytesIO(written))) == expected
    text = written.decode()
    assert "\u4e2d\u6587" in text
    # Not splitlines: JSON may hold separators that Unicode takes for ends of lines.
    values = json.loads(text) if suffix == "json" else map(json.loads, text.split("\n")[:-1])
    assert [value["path"] for value in values] == [record.path for record in records]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_bytes_that_are_no_utf8_are_what_every_reader_takes(tmp_path: Path, suffix: str) -> None:
    records = [Record("caf\udce9.jpg", error="no caf\udce9")]
    written = write(tmp_path / f"x.{suffix}", records)
    assert b"\\\\udce9" in written  # a backslash and five letters: what CSV has
    ((record, _),) = writer_class(suffix).read(io.BytesIO(written))
    assert (record.path, record.error) == ("caf\\udce9.jpg", "no caf\\udce9")
    json.dumps(json.loads(written), ensure_ascii=False).encode()  # no half of a pair in it


def test_no_records_are_an_empty_array(tmp_path: Path) -> None:
    assert json.loads(write(tmp_path / "x.json", [])) == []
    assert write(tmp_path / "x.jsonl", []) == b""


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("as_array", [True, False])
def test_any_layout_is_read(tmp_path: Path, indent: int | None, as_array: bool) -> None:
    # What jq, a formatter or an editor makes of it, with objects across the pieces that are read.
    records = hostile_records()
    values = json.loads(write(tmp_path / "x.json", records))
    for value in values:
        del value["error"]
        value["mine"] = {"nested": ["]", {}]}
    if as_array:
        text = json.dumps(values, indent=indent, sort_keys=True)
    else:
        text = "\n\n".join(json.dumps(value, indent=indent, sort_keys=True) for value in values)
    assert len(text) > 2 * CHUNK
    back = list(parse(io.BytesIO(b"\xef\xbb\xbf" + text.encode())))
    assert [record.path for record in back] == [record.path for record in records]
    assert [record.predictions for record in back] == [record.predictions for record in records]


def test_what_others_write_needs_no_class_index() -> None:
    document = b'{"path": "a", "predictions": [{"label": "x", "score": 0.5}]}'
    assert list(parse(io.BytesIO(document))) == [Record("a", (Prediction("x", 0.5, -1),))]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_the_shape_is_that_of_the_largest_record(tmp_path: Path, suffix: str) -> None:
    best = tuple(Prediction(label, 0.25, 0) for label in "abc")
    with open_text(tmp_path / "x", "w") as stream:
        writer = writer_class(suffix)(stream, RecordShape(3))
        writer.write([Record("a", best[:2]), Record("b", best), Record("c", best[:1])])
        writer.close()
    with (tmp_path / "x").open("rb") as file:
        assert writer_class(suffix).shape(file) == RecordShape(3)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_line_that_is_damaged_is_not_the_end(tmp_path: Path, suffix: str) -> None:
    lines = write(tmp_path / f"x.{suffix}", [Record("a"), Record("b"), Record("c")]).split(b"\n")
    at = 2 if suffix == "json" else 1
    for damage in (b'  {"path": 1},', b"  {damage},"):
        text = b"\n".join([*lines[:at], damage, *lines[at + 1 :]])
        found = writer_class(suffix).read(io.BytesIO(text))
        assert next(found)[0].path == "a"
        with pytest.raises(ValueError):
            next(found)


def test_an_object_without_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsons, "MAX_OBJECT", 3 * CHUNK)
    pieces = []

    class Endless(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            assert len(pieces) < 10
            pieces.append(size)
            return b"x" * CHUNK if len(pieces) > 1 else b'{"path": "'

    with pytest.raises(ValueError, match="cut off, or not JSON"):
        list(parse(Endless()))


@pytest.mark.parametrize(
    "document",
    [
        b"label,score",
        b"[1, 2]",
        b'[{"path": "a"}]',
        b'[{"path": "a", "predictions": []}',
        b'{"path": "a", "predicti',
        b'{"path": "a", "predictions": [1]}',
        b'{"a":' * 100_000,
        b"\xff\xfe[\x00]\x00",
    ],
)
def test_another_file_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|other than records|cut off|nested|utf-8"):
        list(parse(io.BytesIO(document)))
