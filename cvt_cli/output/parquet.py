"""Parquet, written by pyarrow. It can't be appended to, so the journal is in JSON Lines."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cvt_cli.errors import ImageError
from cvt_cli.images.parquet_pages import (
    LIMITS,
    ROWS_OF_ANY_FILE,
    check_pages,
    groups_with_rows,
)
from cvt_cli.images.source import bomb
from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.csv_tsv import prediction_names, prediction_pairs, shape_of
from cvt_cli.output.embeddings import EmbeddingJournal
from cvt_cli.output.jsons import JsonLinesWriter
from cvt_cli.output.read_back import most_unpacked
from cvt_cli.records import COLUMNS, Prediction, Record, RecordShape, as_written, check_types
from cvt_cli.system.files import write_atomically
from cvt_cli.system.json_text import parse_json

# Rows that a reader skips or loads at a time; the writer has one group in memory.
ROWS_PER_GROUP = 2**15
EMBEDDINGS_PER_GROUP = 2**12
# Records that are Python objects at a time.
CHUNK = 1024
# Bytes that the records of one batch may take in memory.
_AT_ONCE = 2**27
# Key in the file's metadata of the description of the run, as JSON.
METADATA_KEY = "cvt"

_TYPES: Mapping[type, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string()}


class ParquetWriter(JsonLinesWriter):
    """Writes the columns `path, label, score, label_2, score_2, …, error`, with nulls for empty
    cells."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the document from a journal's records, with one row group in memory at a time.

        Raises:
            OSError: if it can't be written.
        """
        names = prediction_names(shape.top_k)
        fields = [
            *((name, pa.string() if "label" in name else pa.float64()) for name in names),
            *((name, _TYPES[COLUMNS[name]]) for name in shape.columns),
        ]

        def row(record: Record) -> dict[str, object]:
            values = [value for each in record.predictions for value in (each.label, each.score)]
            return dict(zip(names, values, strict=False)) | dict(record.columns)

        _write(records, path, fields, row=row, run=run, rows_per_group=ROWS_PER_GROUP)

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document. Class indexes are read as -1.

        Raises:
            ValueError: if it is not Parquet, or not of images' labels.
        """
        parquet = _open(file)
        present = parquet.schema_arrow.names
        pairs = prediction_pairs(present)
        facts = [name for name in facts if name in present]
        names = ["path", "error", *(name for pair in pairs for name in pair), *facts]
        for batch in _batches(file, parquet, [name for name in names if name in present]):
            for row in batch.to_pylist():
                predictions = tuple(
                    Prediction(row[label], row[score], -1)
                    for label, score in pairs
                    if row[label] is not None
                )
                columns = {name: row[name] for name in facts if row[name] is not None}
                record = Record(row["path"], predictions, row.get("error") or None, columns=columns)
                check_types(record)
                yield record

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Read the shape from the schema."""
        return shape_of(_open(file).schema_arrow.names)


class ParquetEmbeddingWriter(EmbeddingJournal):
    """Writes the columns `path, embedding, error`; an embedding is a list of float32."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the document, as `ParquetWriter` does."""
        # Not of a fixed size: pyarrow before 26 reads and writes no nulls among such lists.
        fields = [("embedding", pa.list_(pa.float32()))]
        _write(
            records,
            path,
            fields,
            row=lambda record: {"embedding": record.embedding},
            run=run,
            rows_per_group=EMBEDDINGS_PER_GROUP,
        )

    @staticmethod
    def embeddings(path: Path) -> Iterator[Record]:
        """Read the records of a finished document.

        Raises:
            OSError: if it can't be read.
            ValueError: if it is not such a document.
        """
        with path.open("rb") as file:
            parquet = _parquet(file)
            if not {"path", "embedding", "error"} <= set(parquet.schema_arrow.names):
                raise ValueError("it has no columns `path`, `embedding` and `error`")
            for batch in _batches(file, parquet, ["path", "embedding", "error"]):
                for row in batch.to_pylist():
                    numbers = row["embedding"]
                    vector = None if numbers is None else tuple(numbers)
                    yield Record(row["path"], error=row["error"], embedding=vector)


def run_of(file: BinaryIO) -> dict[str, Any] | None:
    """Return what the records were made with, from the file's metadata; None if it has none."""
    try:
        metadata = pq.ParquetFile(file).schema_arrow.metadata or {}
        run = parse_json(metadata[METADATA_KEY.encode()])
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    return run if isinstance(run, dict) else None


def _parquet(file: BinaryIO) -> pq.ParquetFile:
    with _telling("it is no Parquet file"):
        return pq.ParquetFile(file, **LIMITS)


def _batches(
    file: BinaryIO, parquet: pq.ParquetFile, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of these columns, as long as they take no more memory than any labels.

    Raises:
        ValueError: if they take more, or the file is damaged.
    """
    with _telling("it is damaged"):
        size = file.seek(0, io.SEEK_END)
        most = most_unpacked(size)
        if parquet.metadata.num_rows > max(ROWS_OF_ANY_FILE, size):
            raise bomb()
        for group in groups_with_rows(parquet.metadata):
            sizes = check_pages(
                file,
                parquet.metadata.row_group(group),
                lambda path: path.partition(".")[0] in columns,
            )
            rows = _AT_ONCE // max(1, sizes.dictionaries)
            for batch in parquet.iter_batches(
                max(1, min(CHUNK, rows)), row_groups=[group], columns=columns
            ):
                most -= batch.nbytes
                if most < 0:
                    raise bomb()
                yield batch


@contextmanager
def _telling(reason: str) -> Iterator[None]:
    """Turn the many kinds of errors that pyarrow raises for a broken file into ValueError."""
    try:
        yield
    except (pa.ArrowException, ValueError):  # pages without sizes are the latter
        raise ValueError(reason) from None
    except ImageError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise ValueError(reason) from None


def _open(file: BinaryIO) -> pq.ParquetFile:
    parquet = _parquet(file)
    if not {"path", "label", "score"} <= set(parquet.schema_arrow.names):
        raise ValueError("it has no columns `path`, `label` and `score`")
    return parquet


def _write(
    records: Iterable[Record],
    path: Path,
    fields: Iterable[tuple[str, pa.DataType]],
    *,
    row: Callable[[Record], Mapping[str, object]],
    run: Mapping[str, Any],
    rows_per_group: int,
) -> None:
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            *(pa.field(name, type_) for name, type_ in fields),
            pa.field("error", pa.string()),
        ],
        metadata={METADATA_KEY: json.dumps(run)},
    )
    rows = (
        {"path": as_written(record.path), **row(record), "error": record.error}
        for record in records
    )

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            group = _group(rows, schema, rows_per_group)
            while True:
                # Without a record too: pyarrow 18 reads no file without a row group.
                writer.write_table(
                    pa.Table.from_batches(group, schema), row_group_size=rows_per_group
                )
                group = _group(rows, schema, rows_per_group)
                if not group:
                    break

    write_atomically(path, write)


def _group(
    rows: Iterator[Mapping[str, object]], schema: pa.Schema, size: int
) -> list[pa.RecordBatch]:
    batches = []
    while size and (chunk := list(islice(rows, min(CHUNK, size)))):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema))
        size -= len(chunk)
    return batches
