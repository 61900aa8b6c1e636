"""CSV (RFC 4180) and its tab-separated sibling: a row a record, a pair of columns a prediction."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO, TextIO

from cvt_cli.records import COLUMNS, Prediction, Record, RecordShape

SCORE_DIGITS = 6


class DelimitedWriter:
    """`path,label,score,label_2,score_2,…,error`."""

    delimiter = ","
    line_end = "\r\n"

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._rows = csv.writer(stream, delimiter=self.delimiter, lineterminator=self.line_end)
        self._shape = shape
        if not started:
            self._rows.writerow(header(shape))

    def write(self, records: Iterable[Record]) -> None:
        """Append a row for each record."""
        for record in records:
            cells: list[object] = [record.path]
            for prediction in record.predictions:
                cells += [prediction.label, f"{prediction.score:.{SCORE_DIGITS}f}"]
            cells += [""] * (1 + 2 * self._shape.top_k - len(cells))
            cells += [record.columns.get(name, "") for name in self._shape.columns]
            self._rows.writerow([*cells, record.error or ""])

    def close(self) -> None:
        """Nothing ends a CSV."""

    @classmethod
    def read(cls, file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """The whole rows. A CSV does not keep class indexes: they read as -1.

        Raises:
            ValueError: if the header is not that of a `DelimitedWriter`.
        """
        rows = _whole_rows(file, cls.delimiter)
        names, _ = next(rows, ([], 0))
        if not names:
            return
        if names[0] != "path" or "label" not in names or names[-1] != "error":
            raise ValueError("its header is not `path,label,score,…,error`")
        pairs = [
            (column, names.index(name.replace("label", "score")))
            for column, name in enumerate(names)
            if name == "label" or name.startswith("label_")
        ]
        extra = [(column, name) for column, name in enumerate(names) if name in COLUMNS]
        for row, end in rows:
            if len(row) != len(names):
                raise ValueError(f"the row that ends at byte {end} has {len(row)} cells")
            predictions = tuple(
                Prediction(row[label], float(row[score]), -1)
                for label, score in pairs
                if row[label]
            )
            columns = {name: COLUMNS[name](row[at]) for at, name in extra if row[at]}
            yield Record(row[0], predictions, row[-1] or None, columns), end


class CsvWriter(DelimitedWriter):
    """Comma-separated, lines ended as RFC 4180 says."""


class TsvWriter(DelimitedWriter):
    """Tab-separated."""

    delimiter = "\t"
    line_end = "\n"


def _whole_rows(file: BinaryIO, delimiter: str) -> Iterator[tuple[list[str], int]]:
    row, end, quotes = b"", 0, 0
    for line in file:
        row += line
        end += len(line)
        quotes += line.count(b'"')
        # An odd number of quotes: the line break is inside a cell.
        if quotes % 2 == 0 and row.endswith(b"\n"):
            text = row.decode("utf-8")
            yield next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), end
            row, quotes = b"", 0


def header(shape: RecordShape) -> list[str]:
    """The names of a row's cells."""
    numbered = [
        f"{name}_{rank}" for rank in range(2, shape.top_k + 1) for name in ("label", "score")
    ]
    return ["path", "label", "score", *numbered, *shape.columns, "error"]
