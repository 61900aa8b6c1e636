"""Tables for people, written as records come: a block for each image, or a line where many come."""

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, TextIO

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cvt_cli.output.csv_tsv import column_text
from cvt_cli.records import Prediction, Record, RecordShape, ScoreKind, as_written, short_label
from cvt_cli.system.text import visible

__all__ = ["TableWriter", "visible"]

BAR_WIDTH = 20
LABEL_WIDTH = 44
SHARE_WIDTH, NUMBER_WIDTH = 6, 12
NARROW = 60
GAP = 2
# Of a line: how wide path and label are at least, before columns are left out.
LEAST_PATH, LEAST_LABEL = 20, 20
# A block has the path, a header and an empty line on top of its labels.
BLOCK_EXTRA = 3
NOTHING = "no label above the threshold"
# What a column's values take, where that is more than its name.
_WIDTHS = {"bytes": 10, "sha256": 64, "taken": 25, "latitude": 10, "longitude": 10}
_WIDTHS |= {"camera": 24, "lens": 24}


class TableWriter:
    """Writes label, score and class index of each image's predictions, and the columns asked for.

    One line per image, with the best label, if only one label was asked for, or if nobody said how
    many and the blocks do not fit on the screen. Until that is known the first images wait.
    """

    is_for_terminals = True

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._console = Console(file=stream, highlight=False)
        self._shape = shape
        self._waiting: list[Record] | None = []
        self._lines: _Lines | None = None
        block = shape.top_k + BLOCK_EXTRA
        self._screenful = self._console.height // block if shape.is_brief else 0
        if shape.top_k == 1:
            self._begin(one_line=True)
        elif not shape.is_brief or not self._console.is_terminal:
            self._begin(one_line=False)

    def write(self, records: Iterable[Record]) -> None:
        """Print each record, or keep it until it is known how."""
        for record in records:
            if self._waiting is not None:
                self._waiting.append(record)
                if len(self._waiting) > self._screenful:
                    self._begin(one_line=True)
            elif self._lines is not None:
                self._lines.write(record)
            else:
                self._write_block(record)

    def close(self) -> None:
        """Print what still waits, and the names of the columns that had no room."""
        if self._waiting is not None:
            self._begin(one_line=False)
        if self._lines is not None:
            self._lines.close()

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Raise ValueError: a table can't be read back."""
        raise ValueError("a table can't be read back")

    def _begin(self, one_line: bool) -> None:
        waiting, self._waiting = self._waiting or [], None
        self._first = True
        if one_line:
            self._lines = _Lines(self._console, self._shape)
        self.write(waiting)

    def _write_block(self, record: Record) -> None:
        if not self._first:
            self._console.print()
        self._first = False
        # A name is text, never markup or control characters.
        self._console.print(Text(visible(as_written(record.path)), style="bold"))
        if record.error is not None:
            self._console.print(Text(f"  {visible(as_written(record.error))}", style="red"))
        elif not record.predictions:
            self._console.print(Text(f"  {NOTHING}", style="dim"))
        else:
            self._console.print(self._table(record))
        facts = [
            f"{name} {visible(text)}"
            for name in self._shape.shown
            if (text := column_text(record.columns.get(name)))
        ]
        if facts:
            self._console.print(Text(f" {', '.join(facts)}", style="dim"))

    def _table(self, record: Record) -> Table:
        raw = record.columns.get("scores") == ScoreKind.RAW
        wide = self._console.width >= NARROW and not raw  # a bar is a share of something
        score_width = NUMBER_WIDTH if raw else SHARE_WIDTH
        table = Table(box=None, padding=(0, 1), show_header=self._console.is_terminal)
        # The same width in every block, whatever the labels are.
        others = 2 + score_width + 2 + 7 + (BAR_WIDTH + 2 if wide else 0)
        width = max(1, min(LABEL_WIDTH, self._console.width - others - 1))
        table.add_column(
            "label", width=width, no_wrap=True, overflow="ellipsis", header_style="dim"
        )
        table.add_column("score", justify="right", width=score_width, header_style="dim")
        if wide:
            table.add_column("", width=BAR_WIDTH)
        table.add_column("index", justify="right", width=5, header_style="dim")
        for rank, prediction in enumerate(record.predictions):
            cells: list[Text | ProgressBar] = [
                Text(visible(short_label(prediction.label))),
                Text(_score(prediction, raw)),
            ]
            if wide:
                cells.append(
                    ProgressBar(
                        1.0,
                        prediction.score,
                        width=BAR_WIDTH,
                        complete_style="cyan",
                        finished_style="cyan",
                    )
                )
            cells.append(Text(str(prediction.index), style="dim"))
            table.add_row(*cells, style="" if rank else "green")
        return table


class _Lines:
    """Prints one line per image. The widths are those of the terminal, not of what comes."""

    def __init__(self, console: Console, shape: RecordShape) -> None:
        self._console = console
        width = console.width
        # Raw numbers are wider than percentages.
        self._score_width = NUMBER_WIDTH if "scores" in shape.columns else SHARE_WIDTH
        room = width - (LEAST_PATH + LEAST_LABEL + self._score_width + 2 * GAP)
        self._columns: list[str] = []
        for name in shape.shown:
            if console.is_terminal and room < GAP + _width(name):
                continue
            room -= GAP + _width(name)
            self._columns.append(name)
        self._left_out = [name for name in shape.shown if name not in self._columns]
        room = max(0, room)
        self._label_width = LEAST_LABEL + min(LABEL_WIDTH - LEAST_LABEL, room // 2)
        self._path_width = LEAST_PATH + LEAST_LABEL + room - self._label_width
        if console.is_terminal:
            self._print(("path", "label", "score"), self._columns, "dim")

    def write(self, record: Record) -> None:
        facts = [visible(column_text(record.columns.get(name))) for name in self._columns]
        if record.predictions:
            best = record.predictions[0]
            score = _score(best, record.columns.get("scores") == ScoreKind.RAW)
            self._print((as_written(record.path), short_label(best.label), score), facts)
        else:
            reason = (
                Text(visible(as_written(record.error)), "red")
                if record.error
                else Text(NOTHING, "dim")
            )
            path = Text(_tail(visible(as_written(record.path)), self._path_width))
            self._console.print(Text.assemble(path, " " * GAP, reason))

    def close(self) -> None:
        if self._left_out:
            names = ", ".join(self._left_out)
            self._console.print(Text(f"no room here for {names}: -o FILE has all", style="dim"))

    def _print(self, best: tuple[str, str, str], facts: Sequence[str], style: str = "") -> None:
        path, label, score = best
        cells = [
            _tail(visible(path), self._path_width),
            _head(visible(label), self._label_width),
            score.rjust(self._score_width),
            *(
                set_cell_size(text, max(cell_len(text), _width(name)))
                for name, text in zip(self._columns, facts, strict=True)
            ),
        ]
        line = (" " * GAP).join(cells).rstrip()
        self._console.print(Text(line, style), no_wrap=True, crop=False, overflow="ignore")


def _score(prediction: Prediction, raw: bool) -> str:
    return f"{prediction.score:.5g}" if raw else f"{prediction.score:.1%}"


def _width(column: str) -> int:
    return max(len(column), _WIDTHS.get(column, 0))


def _head(text: str, width: int) -> str:
    """Cut a text at its end, or fill it with spaces."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1).rstrip() + "…"


def _tail(text: str, width: int) -> str:
    """Cut a path at its beginning, for the file's name is at its end; or fill it with spaces."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    backwards = chop_cells(text[::-1], width - 1)[0]
    return set_cell_size("…" + backwards[::-1], width)
