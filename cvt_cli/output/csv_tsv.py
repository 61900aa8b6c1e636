"""CSV (RFC 4180) and TSV: one row per record, a pair of columns per prediction."""

import codecs
import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from reprlib import repr as repr_of
from typing import Any, BinaryIO, TextIO, cast

from cvt_cli.records import COLUMNS, Prediction, Record, RecordShape, ScoreKind, as_written

# Digits after the decimal point; a raw score may be of any size and has one significant digit more.
SCORE_DIGITS = 6
# Characters of a wrong header that an error quotes.
MAX_HEADER = 100
# Columns of a document; who types labels leaves the last one out.
NEEDED = ("path", "label", "score")
# The score of a label that a person has typed.
BY_HAND = 1.0


class DelimitedWriter:
    """Writes `path,label,score,label_2,score_2,…,error`."""

    delimiter = ","
    # What a cell holds only between quotes. The csv module does not quote a bare carriage return,
    # which its own reader then refuses.
    to_quote = re.compile('[,"\r\n]')
    line_end = "\r\n"

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream
        self._shape = shape
        if not started:
            self._write_row(header(shape))

    def write(self, records: Iterable[Record]) -> None:
        """Append a row for each record."""
        for record in records:
            cells: list[object] = [as_written(record.path)]
            for prediction in record.predictions:
                cells += [prediction.label, score_text(prediction.score, record.columns)]
            cells += [""] * (1 + 2 * self._shape.top_k - len(cells))
            for name in self._shape.columns:
                cells.append(column_text(record.columns.get(name)))
            self._write_row([*cells, as_written(record.error or "")])

    def close(self) -> None:
        """Do nothing: a CSV has no end mark."""

    @classmethod
    def read(cls, file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Read the complete rows. A CSV has no class indexes: they are read as -1.

        Raises:
            ValueError: if the header is not that of a `DelimitedWriter`.
        """
        rows = _whole_rows(file, cls.delimiter)
        names, _ = next(rows, ([], 0))
        if names:
            record = row_reader(names, COLUMNS, by_hand=False)
            for row, end in rows:
                yield record(row), end

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document, in which columns may have been moved or added.
        A label without a score, as a person types it, has the score 1.

        Raises:
            ValueError: if it has no columns of paths and labels.
        """
        with _rows(file, cls.delimiter) as rows:
            record = row_reader(next(rows, []), facts)
            for number, row in enumerate(rows, 2):
                if row:
                    try:
                        found = record(row)
                    except ValueError as error:
                        raise ValueError(f"row {number}: {error}") from None
                    yield found

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Read the shape from the header."""
        with _rows(file, cls.delimiter) as rows:
            return shape_of(next(rows, []))

    def _write_row(self, cells: Iterable[object]) -> None:
        texts = [*map(str, cells)]
        row = self.delimiter.join(texts)
        # Most rows have nothing to quote: then only separators stand out in them.
        if len(self.to_quote.findall(row)) >= len(texts):
            row = self.delimiter.join(map(self._quoted, texts))
        self._stream.write(row + self.line_end)

    def _quoted(self, cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if self.to_quote.search(cell) else cell


def column_text(value: float | str | None) -> str:
    """Format the value of a column for a document; empty for none."""
    return "" if value is None else str(value)


def score_text(score: float, facts: Mapping[str, object]) -> str:
    """Format a score for a document.

    Args:
        facts: the columns of its record.
    """
    if facts.get("scores") == ScoreKind.RAW:
        return f"{score:.{SCORE_DIGITS + 1}g}"
    return f"{score:.{SCORE_DIGITS}f}"


class CsvWriter(DelimitedWriter):
    """Writes comma-separated values, with the line ends of RFC 4180."""


class TsvWriter(DelimitedWriter):
    """Writes tab-separated values."""

    delimiter = "\t"
    to_quote = re.compile('[\t"\r\n]')
    line_end = "\n"


def prediction_names(top_k: int) -> list[str]:
    """List the names of the columns of predictions: `label`, `score`, `label_2`, `score_2`, …"""
    numbered = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
    return ["label", "score", *numbered]


def prediction_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the columns of labels among these names with their columns of scores."""
    pairs = [(name, name.replace("label", "score")) for name in names if _LABEL.fullmatch(name)]
    present = set(names)
    return [(label, score) for label, score in pairs if score in present]


def shape_of(names: Sequence[str]) -> RecordShape:
    """Read the shape of records from a header, or from the columns of a table.

    Raises:
        ValueError: if there are labels without scores, which no run has written.
    """
    if "label" in names and "score" not in names:
        raise ValueError("it has no column `score`")
    return RecordShape(
        max(1, len(prediction_pairs(names))), tuple(name for name in names if name in COLUMNS)
    )


def header(shape: RecordShape) -> list[str]:
    """Return the cells of the header."""
    return ["path", *prediction_names(shape.top_k), *shape.columns, "error"]


# Bytes by which the encoding and the separator are recognised.
_START = 4096
_LABEL = re.compile(r"label(_\d+)?")


def row_reader(
    names: Sequence[str], facts: Iterable[str] = (), *, by_hand: bool = True
) -> Callable[[Sequence[str]], Record]:
    """Return a function that turns a row under this header into a record with these facts.

    Args:
        by_hand: take labels without scores, whose score is 1.

    Raises:
        ValueError: if the header lacks a column.
    """
    needed = NEEDED[:-1] if by_hand else NEEDED
    if not {*needed} <= {*names}:
        # Shows whether something else separates the cells.
        header = textwrap.shorten(" ".join(map(repr, names)), MAX_HEADER, placeholder=" …")
        *most, last = (f"`{name}`" for name in needed)
        raise ValueError(f"it has no columns {', '.join(most)} and {last}, but {header or 'none'}")
    path = names.index("path")
    error = names.index("error") if "error" in names else None
    places = {name: at for at, name in reversed([*enumerate(names)])}
    pairs = [(places[label], places[score]) for label, score in prediction_pairs(names)]
    unscored = None if "score" in places else places["label"]
    fact_cells = [(names.index(name), name) for name in facts if name in names]

    def read(row: Sequence[str]) -> Record:
        if len(row) != len(names):
            raise ValueError(f"a row has {len(row)} cells and the header {len(names)}")
        predictions = tuple(
            Prediction(row[label], _number(row[score], by_hand), -1)
            for label, score in pairs
            if row[label]
        )
        if unscored is not None and row[unscored]:
            predictions = (Prediction(row[unscored], BY_HAND, -1),)
        columns = {name: _fact(name, row[at]) for at, name in fact_cells if row[at]}
        return Record(
            row[path],
            predictions,
            (row[error] if error is not None else "") or None,
            columns=columns,
        )

    return read


def _whole_rows(file: BinaryIO, delimiter: str) -> Iterator[tuple[list[str], int]]:
    row: list[bytes] = []
    end = quotes = 0
    for line in file:
        row.append(line)
        end += len(line)
        quotes += line.count(b'"')
        # With an odd number of quotes the line break is inside a cell.
        if quotes % 2 == 0 and line.endswith(b"\n"):
            text = b"".join(row).decode("utf-8")
            yield next(_reader(io.StringIO(text, newline=""), delimiter)), end
            row, quotes = [], 0


@contextmanager
def _rows(file: BinaryIO, delimiter: str) -> Iterator[Iterator[list[str]]]:
    """Yield the rows of a document, also as spreadsheets save it: in UTF-16, with other
    separators."""
    buffered = cast(io.BufferedReader, file if hasattr(file, "peek") else io.BufferedReader(file))
    start = buffered.peek(_START)[:_START]
    is_utf_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf_16 else "utf-8-sig"
    text = io.TextIOWrapper(buffered, encoding, newline="")
    try:
        separator = _separator(start.decode(encoding, "replace"), delimiter)
        yield _reader(text, separator, strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError:
        raise ValueError('it is not UTF-8; in a spreadsheet, save it as "CSV UTF-8"') from None
    finally:
        text.detach()
        if buffered is not file:
            buffered.detach()


def _separator(start: str, delimiter: str) -> str:
    """Find the separator of the header's cells: the delimiter, or what a spreadsheet makes of it in
    a country whose decimal sign is the comma."""
    line = start.splitlines()[0] if start else ""
    for each in (delimiter, ";", "\t", ","):
        if {*NEEDED[:-1]} <= {*next(_reader([line], each), [])}:
            return each
    return delimiter


def _fact(name: str, text: str) -> Any:
    """Return a fact of the type that its column has."""
    try:
        return COLUMNS[name](text)
    except ValueError:
        raise ValueError(f"{repr_of(text)} is no {name}") from None


def _number(text: str, by_hand: bool) -> float:
    """Parse a score, also as a spreadsheet saves it: `0,815` or `81,5%`."""
    if by_hand and not text.strip():
        return BY_HAND
    try:
        return float(text)
    except ValueError:
        number = text.strip().removesuffix("%").strip().replace(",", ".")
        try:
            return float(number) / (100 if text.strip().endswith("%") else 1)
        except ValueError:
            raise ValueError(f"{repr_of(text)} is no score") from None


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool = False) -> Iterator[list[str]]:
    # A path may be longer than the csv module's limit for a cell.
    csv.field_size_limit(2**31 - 1)
    # Else a quote that is not closed takes the rest of the table for one cell.
    return csv.reader(lines, delimiter=delimiter, strict=strict)
