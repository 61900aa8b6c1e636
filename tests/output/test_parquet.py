import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cvt_cli.system.files
from cvt_cli.output import parquet, read_back
from cvt_cli.output.npy import NpyWriter
from cvt_cli.output.parquet import ParquetEmbeddingWriter, ParquetWriter
from cvt_cli.records import Prediction, Record, RecordShape
from tests.output.records import SHAPE, hostile_records

RUN = {"model": "tiny", "preprocessing": {"size": 64}}


def test_columns_types_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    records = [
        Record("a.jpg", (Prediction("cat", 0.75, 3),), columns={"width": 9, "seconds": 0.5}),
        Record("caf\udce9.jpg", error="broken"),
    ]
    ParquetWriter.convert(records, path, SHAPE, run=RUN)
    table = pq.read_table(path)
    assert table.schema.equals(
        pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                ("label", pa.string()),
                ("score", pa.float64()),
                ("label_2", pa.string()),
                ("score_2", pa.float64()),
                ("width", pa.int64()),
                ("seconds", pa.float64()),
                ("sha256", pa.string()),
                ("error", pa.string()),
            ]
        )
    )
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a.jpg", "cat", 0.75, None, None, 9, 0.5, None, None),
        ("caf\\udce9.jpg", None, None, None, None, None, None, None, "broken"),
    ]
    assert json.loads(table.schema.metadata[b"cvt"]) == RUN
    assert sorted(each.name for each in tmp_path.iterdir()) == ["labels.parquet"]


def test_hostile_text_survives(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    records = hostile_records()
    ParquetWriter.convert(records, path, SHAPE, run=RUN)
    with path.open("rb") as file:
        back = list(ParquetWriter.documents(file))
    assert [(each.path, each.error) for each in back] == [(r.path, r.error) for r in records]
    assert [[(p.label, p.score) for p in each.predictions] for each in back] == [
        [(p.label, p.score) for p in each.predictions] for each in records
    ]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25])
def test_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(parquet, "CHUNK", 4)
    path = tmp_path / "labels.parquet"
    ParquetWriter.convert((Record(f"{i}.jpg") for i in range(count)), path, RecordShape(1), run=RUN)
    file = pq.ParquetFile(path)
    # Without a record one group all the same: pyarrow 18.0 reads no file without.
    assert file.num_row_groups == max(1, math.ceil(count / 10))
    assert file.read().column("path").to_pylist() == [f"{i}.jpg" for i in range(count)]
    with path.open("rb") as written:
        assert len(list(ParquetWriter.documents(written))) == count


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        yield Record("a.jpg")
        raise OSError(28, "No space left on device")

    path = tmp_path / "labels.parquet"
    path.write_text("before")
    with pytest.raises(OSError, match="No space"):
        ParquetWriter.convert(records(), path, SHAPE, run=RUN)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("labels.parquet", "before")
    ]


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Parquet"):
        list(ParquetWriter.documents(io.BytesIO(b"path,label,score\n")))
    other = io.BytesIO()
    pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), other)
    with pytest.raises(ValueError, match="no columns"):
        list(ParquetWriter.documents(other))


def embeddings() -> list[Record]:
    numbers = np.float32([0.1, -1e-30, 3e38, 1 / 3]).tolist()
    return [
        Record("a.jpg", embedding=tuple(numbers)),
        Record("two\nlines\t\u2028.jpg", error="broken\nbadly"),
        Record("caf\udce9.jpg", embedding=(0.0, 1.0, 2.0, 3.0)),
    ]


def test_embeddings_are_lists(tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    records = embeddings()
    ParquetEmbeddingWriter.convert(records, path, RecordShape(0, embedding_dim=4), run=RUN)
    table = pq.read_table(path)
    assert table.schema.field("embedding").type.equals(pa.list_(pa.float32()))
    assert table.column("embedding").to_pylist() == [
        list(each.embedding) if each.embedding else None for each in records
    ]
    assert table.column("error").to_pylist() == [None, "broken\nbadly", None]
    assert [each.embedding for each in ParquetEmbeddingWriter.embeddings(path)] == [
        each.embedding for each in records
    ]
    # As they were written before.
    fixed = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"path": ["a"], "embedding": fixed, "error": [""]}), path)
    (found,) = ParquetEmbeddingWriter.embeddings(path)
    assert found.embedding == (1.0, 2.0)


def one_label(path: Path, size: int, rows: int) -> Path:
    """Rows that all have the same label, in a dictionary."""
    labels = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["x" * size], pa.string())
    )
    table = pa.table({"path": list(map(str, range(rows))), "label": labels, "score": [0.5] * rows})
    options = {"compression": "zstd", "store_schema": False, "write_statistics": False}
    pq.write_table(table, path, dictionary_pagesize_limit=2**30, **options)
    return path


def peak_while_refused(path: Path) -> int:
    """Return how much more of pyarrow's memory was ever in use than before."""
    pools = pa.default_memory_pool(), pa.system_memory_pool()
    before = [pool.max_memory() for pool in pools]
    with path.open("rb") as file, pytest.raises(ValueError, match="decompression bomb"):
        for _ in ParquetWriter.documents(file):
            pass
    return sum(pool.max_memory() for pool in pools) - sum(before)


def test_labels_that_expand_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a large one is unpacked, and when many of a small one take too much."""
    assert peak_while_refused(one_label(tmp_path / "a.parquet", 40 * 2**20, 2)) < 2**22
    monkeypatch.setattr(read_back, "_ANY_FILE", 2**26)
    monkeypatch.setattr(parquet, "_AT_ONCE", 2**22)
    many = one_label(tmp_path / "b.parquet", 2**20, 1000)
    assert many.stat().st_size < 2**16
    assert peak_while_refused(many) < 2**25
    with many.open("rb") as file:
        assert len(next(ParquetWriter.documents(file)).predictions[0].label) == 2**20


def test_rows_without_end(tmp_path: Path) -> None:
    columns = {name: pa.nulls(2 * 2**20, pa.string()) for name in ("path", "label", "score")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    peak_while_refused(tmp_path / "a.parquet")


def test_one_embedding_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may stand for millions of equal numbers."""
    path = tmp_path / "a.parquet"
    zeros = pa.array([np.zeros(5 * 2**20, np.float32)])
    pq.write_table(pa.table({"path": ["a"], "embedding": zeros, "error": [""]}), path)
    assert path.stat().st_size < 2**16
    # pyarrow before 23 divides it among pages.
    monkeypatch.setattr(read_back, "_ANY_FILE", 2**24)
    with pytest.raises(ValueError, match="decompression bomb"):
        list(ParquetEmbeddingWriter.embeddings(path))


def test_numpy_has_a_row_for_every_input(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    NpyWriter.convert(embeddings(), path, RecordShape(0, embedding_dim=4), run=RUN)
    matrix = np.load(path)
    assert (matrix.shape, matrix.dtype) == ((3, 4), np.float32)
    assert matrix[0].tolist() == list(embeddings()[0].embedding or ())
    assert np.isnan(matrix[1]).all()
    assert np.load(path, mmap_mode="r")[2, 3] == 3
    paths = (tmp_path / "features.paths.txt").read_text()
    assert paths.splitlines() == ["a.jpg", "two\\nlines\\t\\u2028.jpg", "caf\\udce9.jpg"]
    errors = (tmp_path / "features.errors.txt").read_text()
    assert errors == "two\\nlines\\t\\u2028.jpg\tbroken\\nbadly\n"


def test_the_numbers_get_their_name_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def replace(file: Path, path: Path) -> None:
        names.append(path.name)
        file.replace(path)

    monkeypatch.setattr(cvt_cli.system.files, "replace", replace)
    path = tmp_path / "features.npy"
    NpyWriter.convert(embeddings(), path, RecordShape(0, embedding_dim=4), run=RUN)
    assert sorted(names[:2]) == ["features.errors.txt", "features.paths.txt"]
    assert names[2:] == ["features.npy"]


def test_numpy_without_errors_or_inputs(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    (tmp_path / "features.errors.txt").write_text("of the run before")
    NpyWriter.convert([], path, RecordShape(0, embedding_dim=4), run=RUN)
    assert np.load(path).shape == (0, 4)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "features.npy",
        "features.paths.txt",
    ]
