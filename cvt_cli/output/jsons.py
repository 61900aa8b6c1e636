"""JSON: an array that is written as it grows, and JSON Lines."""

import base64
import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, TextIO

from cvt_cli.output.csv_tsv import score_text
from cvt_cli.records import (
    COLUMNS,
    THUMBNAIL,
    Prediction,
    Record,
    RecordShape,
    as_written,
    check_types,
)
from cvt_cli.system.json_text import parse_json

# Bytes that are read at a time, and the characters that one object may have.
CHUNK = 2**16
MAX_OBJECT = 2**24


def as_json(record: Record, shape: RecordShape) -> dict[str, Any]:
    """Return a record as a JSON value. Lone surrogates, which Python uses for bytes other than
    UTF-8, are escaped: they would make the whole document unreadable to some programs."""
    return {
        "path": as_written(record.path),
        "predictions": [
            {
                "label": each.label,
                "score": float(score_text(each.score, record.columns)),
                "index": each.index,
            }
            for each in record.predictions
        ],
        "error": None if record.error is None else as_written(record.error),
    } | {name: record.columns.get(name) for name in shape.columns}


class JsonLinesJournal:
    """Writes one line per record. The journals of other formats add or change values in it."""

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream
        self._shape = shape

    def write(self, records: Iterable[Record]) -> None:
        """Append a line for each record."""
        for record in records:
            self._stream.write(json.dumps(self.values(record), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Do nothing: JSON Lines have no end mark."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return the values in a record's line."""
        return as_json(record, self._shape)

    @staticmethod
    def record(values: Any) -> Record:
        """Make the record from the values in its line. Raises: ValueError."""
        return parse_record(values)

    @classmethod
    def read(cls, file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Read the complete lines.

        Raises:
            ValueError: if one is not a record.
        """
        end = 0
        for line in file:
            end += len(line)
            if line.endswith(b"\n"):
                yield cls.record(parse_json(line)), end


class PicturesJournal(JsonLinesJournal):
    """A record a line, with its thumbnail as base64."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return what a line holds of a record."""
        values = super().values(record)
        if record.thumbnail is not None:
            values[THUMBNAIL] = base64.b64encode(record.thumbnail).decode()
        return values

    @staticmethod
    def record(values: Any) -> Record:
        """Make a record of a line's values. Raises: ValueError."""
        record = parse_record(values)
        encoded = values.get(THUMBNAIL)
        return replace(record, thumbnail=base64.b64decode(encoded)) if encoded else record


class JsonDocument:
    """Reads a finished document, an array or lines."""

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document, with all facts in it; see `parse`."""
        return parse(file)

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Find the shape from all records, as each may differ."""
        top_k, columns = 1, dict[str, None]()
        for record in parse(file):
            top_k = max(top_k, len(record.predictions))
            columns |= dict.fromkeys(record.columns)
        return RecordShape(top_k, tuple(columns))


class JsonLinesWriter(JsonDocument, JsonLinesJournal):
    """Writes one line per record, as a document."""


class JsonWriter(JsonDocument):
    """Writes one array of all records."""

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
        """Read the complete elements of an array, one per line, as this writer writes it.

        Raises:
            ValueError: if one is not a record.
        """
        end = 0
        for line in file:
            element = line.rstrip(b",\r\n")
            # A last element without its end was cut short.
            if element.strip() not in (b"[", b"]", b"[]", b"") and element.endswith(b"}"):
                try:
                    record = parse_record(parse_json(element))
                except ValueError:
                    if line.endswith(b"\n"):
                        raise
                    return
                yield record, end + len(element)
            end += len(line)


def parse(file: BinaryIO) -> Iterator[Record]:
    """Read the records of an array or a sequence of JSON objects, however they are laid out; only a
    piece is in memory at a time.

    Raises:
        ValueError: if it is something else.
    """
    decoder = json.JSONDecoder()
    # From a pipe, take what has arrived: the writer may be slow.
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    text = codecs.getincrementaldecoder("utf-8-sig")()
    buffer, at, ended, in_array = "", 0, False, False
    while True:
        at = _skip(buffer, at, in_array)
        character = buffer[at : at + 1]
        if character == "{":
            try:
                values, at = decoder.raw_decode(buffer, at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except ValueError:
                if ended or len(buffer) - at > MAX_OBJECT:
                    raise ValueError("it is cut off, or not JSON") from None
            else:
                yield parse_record(values)
                continue
        elif character in ("[", "]"):
            in_array = character == "["
            at += 1
            continue
        elif character:
            raise ValueError("it is not JSON")
        if ended:
            if in_array:
                raise ValueError("it is cut off")
            return
        # An object that was not whole is tried again once there is twice as much of it.
        data = read(max(CHUNK, len(buffer) - at))
        ended = not data
        buffer, at = buffer[at:] + text.decode(data, final=ended), 0


def _skip(buffer: str, at: int, in_array: bool) -> int:
    between = " \t\r\n," if in_array else " \t\r\n"
    while at < len(buffer) and buffer[at] in between:
        at += 1
    return at


def parse_record(values: Any) -> Record:
    """Make the record from the value that `as_json` made.

    Raises:
        ValueError: if it is something else.
    """
    try:
        predictions = tuple(
            Prediction(each["label"], each["score"], each.get("index", -1))
            for each in values["predictions"]
        )
        columns = {name: values[name] for name in COLUMNS if name in values}
        record = Record(values["path"], predictions, values.get("error"), columns=columns)
        check_types(record)
        return record
    except (AttributeError, KeyError, TypeError):
        raise ValueError("it holds something other than records of `cvt classify`") from None
