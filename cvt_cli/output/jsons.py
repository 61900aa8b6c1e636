"""A JSON array, written as it grows, and JSON Lines."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TextIO

from cvt_cli.output.delimited import SCORE_DIGITS
from cvt_cli.records import COLUMNS, Prediction, Record, RecordShape


def as_json(record: Record, shape: RecordShape) -> dict[str, Any]:
    """The record as JSON has it."""
    return {
        "path": record.path,
        "predictions": [_prediction(each) for each in record.predictions],
        "error": record.error,
    } | {name: record.columns.get(name) for name in shape.columns}


def _prediction(prediction: Prediction) -> dict[str, Any]:
    score = round(prediction.score, SCORE_DIGITS)
    return {"label": prediction.label, "score": score, "index": prediction.index}


class JsonLinesWriter:
    """A record a line."""

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream
        self._shape = shape

    def write(self, records: Iterable[Record]) -> None:
        """Append a line for each record."""
        for record in records:
            self._stream.write(json.dumps(as_json(record, self._shape), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Nothing ends JSON Lines."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """The whole lines.

        Raises:
            ValueError: if one is not a record.
        """
        end = 0
        for line in file:
            end += len(line)
            if line.endswith(b"\n"):
                yield _from_json(line), end


class JsonWriter:
    """One array of all records."""

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream
        self._shape = shape
        self._before = ",\n" if started else "[\n"

    def write(self, records: Iterable[Record]) -> None:
        """Append an element for each record."""
        for record in records:
            line = json.dumps(as_json(record, self._shape), ensure_ascii=False)
            self._stream.write(f"{self._before}  {line}")
            self._before = ",\n"

    def close(self) -> None:
        """Close the array."""
        self._stream.write("[]\n" if self._before == "[\n" else "\n]\n")

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """The whole elements of an array, one a line, as this writer writes it.

        Raises:
            ValueError: if one is not a record.
        """
        end = 0
        for line in file:
            element = line.rstrip(b",\r\n")
            # A last element without its end is one that was cut.
            if element.strip() not in (b"[", b"]", b"[]", b"") and element.endswith(b"}"):
                try:
                    record = _from_json(element)
                except ValueError:
                    if line.endswith(b"\n"):
                        raise
                    return
                yield record, end + len(element)
            end += len(line)


def _from_json(line: bytes) -> Record:
    try:
        values = json.loads(line)
        predictions = tuple(Prediction(**prediction) for prediction in values["predictions"])
        columns = {name: values[name] for name in COLUMNS if name in values}
        return Record(values["path"], predictions, values["error"], columns)
    except (KeyError, TypeError):
        raise ValueError("it holds what is not a record of `cvt classify`") from None
