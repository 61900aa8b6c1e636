"""The table for people: a block for each image, printed as it is done, aligned with the others."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cvt_cli.records import Record, RecordShape, ScoreKind, as_written
from cvt_cli.system.text import visible

__all__ = ["TableWriter", "visible"]

BAR_WIDTH = 20
LABEL_WIDTH = 44
SHARE_WIDTH, NUMBER_WIDTH = 6, 12
NARROW = 60


class TableWriter:
    """Prints label, score and class index of each image's predictions."""

    is_for_terminals = True

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._console = Console(file=stream, highlight=False)
        self._first = True

    def write(self, records: Iterable[Record]) -> None:
        """Print a block for each record."""
        for record in records:
            if not self._first:
                self._console.print()
            self._first = False
            # A name is shown as text, without markup or control characters.
            self._console.print(Text(visible(as_written(record.path)), style="bold"))
            if record.error is not None:
                self._console.print(Text(f"  {visible(as_written(record.error))}", style="red"))
            elif not record.predictions:
                self._console.print(Text("  no label above the threshold", style="dim"))
            else:
                self._console.print(self._table(record))

    def close(self) -> None:
        """Do nothing: a table has no end mark."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Raise ValueError: a table can't be read back."""
        raise ValueError("a table can't be read back")

    def _table(self, record: Record) -> Table:
        raw = record.columns.get("scores") == ScoreKind.RAW
        wide = self._console.width >= NARROW and not raw  # a bar shows a share
        score_width = NUMBER_WIDTH if raw else SHARE_WIDTH
        table = Table(box=None, padding=(0, 1), show_header=self._console.is_terminal)
        # The same width in every block, however long the labels are.
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
            score = Text(f"{prediction.score:.5g}" if raw else f"{prediction.score:.1%}")
            cells: list[Text | ProgressBar] = [Text(visible(prediction.label)), score]
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
