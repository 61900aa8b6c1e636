"""Plain lines for pipes: `path<TAB>label<TAB>score`, the best label of each image, then the columns
that were asked for. An image without a label has its error behind them."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, TextIO

from cvt_cli.output.csv_tsv import column_text, score_text
from cvt_cli.records import Record, RecordShape, as_written

# Control characters are replaced: a name must neither break its line nor steer a terminal. Unusual
# spaces stay, as programs that read the lines must find the file.
_ESCAPES = {
    code: chr(code).encode("unicode_escape").decode() for code in (*range(32), *range(127, 160))
}


class PlainWriter:
    """Writes tab-separated lines without a header or quotes."""

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream
        self._columns = shape.shown

    def write(self, records: Iterable[Record]) -> None:
        """Append a line for each record."""
        for record in records:
            if record.predictions:
                best = record.predictions[0]
                cells = [
                    as_written(record.path),
                    best.label,
                    score_text(best.score, record.columns),
                ]
            else:
                cells = [as_written(record.path), "", ""]
            cells += [column_text(record.columns.get(name)) for name in self._columns]
            if not record.predictions:
                cells.append(as_written(record.error or ""))
            cells = [cell.translate(_ESCAPES) for cell in cells]
            self._stream.write("\t".join(cells).rstrip("\t") + "\n")

    def close(self) -> None:
        """Do nothing: plain lines have no end mark."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Raise ValueError: plain lines can't be read back."""
        raise ValueError("plain lines can't be read back")
