"""Documents of others, read back: what is no record is told in one line, in linear time."""

import io
import json
import time
from typing import Any

import pytest

from cvt_cli.output import writer_class
from cvt_cli.output.run_file import read_stamps

GOOD: dict[str, Any] = {
    "path": "a.jpg",
    "predictions": [{"label": "x", "score": 0.5, "index": 1}],
    "error": None,
}


def prediction(**changes: object) -> dict[str, Any]:
    return GOOD | {"predictions": [GOOD["predictions"][0] | changes]}


@pytest.mark.parametrize(
    "record",
    [
        GOOD | {"path": 1},
        GOOD | {"path": None},
        GOOD | {"error": ["x"]},
        GOOD | {"width": "wide"},
        GOOD | {"sha256": 7},
        GOOD | {"predictions": 1},
        prediction(label=None),
        prediction(label=["x"]),
        prediction(label="\ud800"),
        prediction(score="high"),
        prediction(score=True),
        prediction(score=10**400),
        prediction(index="1"),
        prediction(index=2**64),
    ],
)
@pytest.mark.parametrize("format_", ["jsonl", "json"])
def test_wrong_types(record: dict[str, Any], format_: str) -> None:
    for read in ("documents", "read"):
        text = json.dumps(record) if format_ == "jsonl" else f"[\n  {json.dumps(record)}\n]"
        with pytest.raises(ValueError, match=r"other than records|not Unicode text"):
            list(getattr(writer_class(format_), read)(io.BytesIO(text.encode() + b"\n")))


def test_a_right_one_passes() -> None:
    text = json.dumps(GOOD | {"width": 3, "seconds": 1, "sha256": None}).encode() + b"\n"
    (record,) = writer_class("jsonl").documents(io.BytesIO(text))  # type: ignore[attr-defined]
    assert record.predictions[0].label == "x"


def test_wrong_types_in_parquet() -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for column, values in (("path", [1]), ("label", [b"x"]), ("score", ["1"]), ("label", [[1]])):
        file = io.BytesIO()
        columns = {"path": ["a"], "label": ["x"], "score": [0.5], "error": ["x"], column: values}
        pq.write_table(pa.table(columns), file)
        with pytest.raises(ValueError, match="other than records"):
            list(writer_class("parquet").documents(file))  # type: ignore[attr-defined]


@pytest.mark.parametrize("format_", ["jsonl", "json"])
@pytest.mark.parametrize("read", ["documents", "read"])
def test_deep_nesting(format_: str, read: str) -> None:
    data = b'{"path": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    with pytest.raises(ValueError, match="nested too deeply"):
        list(getattr(writer_class(format_), read)(io.BytesIO(data)))


def test_deep_nesting_beside_a_journal(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"[" * 100_000 + b'\n["a", 1, 2]\n')
    assert list(read_stamps(tmp_path / "x")) == [("a", (1, 2))]


def test_many_columns_of_labels() -> None:
    count = 20_000
    names = [f"{name}_{i}" for i in range(2, count) for name in ("label", "score")]
    header = ",".join(["path", "label", "score", *names, "error"])
    row = ",".join(["a.jpg"] + ["x", "0.5"] * (count - 1) + [""])
    start = time.process_time()
    (record,) = writer_class("csv").documents(io.BytesIO(f"{header}\r\n{row}\r\n".encode()))  # type: ignore[attr-defined]
    assert len(record.predictions) == count - 1
    assert time.process_time() - start < 5


def test_a_cell_of_many_lines() -> None:
    text = 'path,label,score,error\n"' + "x\n" * 300_000 + '",a,0.5,\n'
    start = time.process_time()
    assert len(list(writer_class("csv").read(io.BytesIO(text.encode())))) == 1
    assert time.process_time() - start < 5


def test_an_object_that_never_ends() -> None:
    data = b'{"path": "' + b"x" * (2**24 + 2**20)
    start = time.process_time()
    with pytest.raises(ValueError, match="cut off"):
        list(writer_class("jsonl").documents(io.BytesIO(data)))  # type: ignore[attr-defined]
    assert time.process_time() - start < 5
