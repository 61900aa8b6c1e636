"""The file of labels that `cvt sort` and `cvt tag` act on, and their options for it."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from cvt_cli.cli.options import INPUT, named_path
from cvt_cli.cli.output_options import format_option
from cvt_cli.errors import CvtError, InputsError, UsageError
from cvt_cli.images.names import is_missing
from cvt_cli.output import ROW_FORMATS, RowWriter, check_format, writer_class
from cvt_cli.output.read_back import format_of_labels
from cvt_cli.output.run_file import Kept
from cvt_cli.records import Record, ScoreKind
from cvt_cli.system.text import reason_of, visible

STDIN = "-"
# Failed files that are named, at most.
NAMED_FAILURES = 20

LabelsArgument = Annotated[
    str,
    INPUT.argument(
        metavar="LABELS",
        help=f"The output of cvt classify: {', '.join(ROW_FORMATS[:-1])} or {ROW_FORMATS[-1]}; - "
        "for standard input. Its paths are relative to the current folder.",
    ),
]
LabelsFormatOption = Annotated[
    str | None,
    format_option(
        INPUT, ROW_FORMATS, help=f"{', '.join(ROW_FORMATS)}. Default: by the suffix of LABELS."
    ),
]


def with_checked_scores(records: Iterable[Record], min_score: float | None) -> Iterator[Record]:
    """Pass on the records, checking that their scores can be compared with --min-score.

    Raises:
        UsageError: before the first record, if they can't.
    """
    from cvt_cli.inference.scores import check_threshold

    for record in records:
        if record.predictions:
            raw = record.columns.get("scores") == ScoreKind.RAW
            kind = ScoreKind.RAW if raw else ScoreKind.SOFTMAX
            check_threshold(min_score, kind, "--min-score")
        yield record


class Elsewhere:
    """Detects that cvt runs in another folder than the one the labels were written in, to report
    that once instead of a missing file for each record."""

    def __init__(self) -> None:
        self._missing = 0
        self._waiting: list[tuple[str, str]] = []
        self._found = False
        self._named = 0

    def named(
        self, path: str, error: str | None, *, is_there: bool = True
    ) -> list[tuple[str, str]]:
        """Return path and error of the failed records to report now.

        Args:
            path: of the next record.
            error: why it failed; None if it did not.
            is_there: whether its file was found, then.
        """
        if error is not None:
            relative = not (os.path.isabs(path) or path == STDIN or "::" in path or "://" in path)
            if not self._found and relative and is_missing(path):
                self._missing += 1
                if len(self._waiting) < NAMED_FAILURES:
                    self._waiting.append((path, error))
                return []
            self._waiting.append((path, error))
        self._found = self._found or error is not None or is_there
        if not self._found:
            return []
        named, self._waiting = self._waiting[: NAMED_FAILURES - self._named], []
        self._named += len(named)
        return named

    def check(self, labels: str) -> None:
        """Check that at least one file was found. Raises `InputsError` if not."""
        if self._found or not self._missing:
            return
        path = visible(self._waiting[0][0])
        if self._missing == 1:
            raise InputsError(f"{path}: no such file", hint=_FROM.format(labels))
        raise InputsError(
            f"none of the {self._missing} files exists here, for example {path}",
            hint=_FROM.format(labels),
        )


_FROM = "the paths in {} are relative to the folder where cvt classify ran: cd there"


class LabelsFile:
    """The file of labels that a command acts on, written by cvt classify.

    Raises:
        UsageError: if it is in no format that can be read.
    """

    def __init__(self, name: str, format_: str | None) -> None:
        if format_ is None:
            if name == STDIN:
                raise UsageError("labels on standard input need --format")
            format_ = format_of_labels(named_path(name))
        writer = writer_class(check_format(format_))
        if not issubclass(writer, RowWriter):
            raise UsageError(
                f"{format_} can't be read back", hint=f"one of {', '.join(ROW_FORMATS)}"
            )
        if name == STDIN and format_ in ("parquet", "xlsx"):
            raise UsageError(f"{format_} can't be read from standard input")
        self.name = name
        self._writer = writer
        self._format = format_

    def records(self) -> Iterator[Record]:
        """Read the records.

        Raises:
            UsageError: if it is not there, or what it should be.
        """
        try:
            with (
                nullcontext(sys.stdin.buffer)
                if self.name == STDIN
                else Path(self.name).open("rb") as file
            ):
                yield from self._writer.documents(file, ("scores",))
        except OSError as error:
            raise UsageError(f"{self.name} can't be read: {reason_of(error)}") from None
        except ValueError as error:
            raise UsageError(f"{self.name} can't be read: {error}") from None

    def count(self) -> int | None:
        """Count the records, if that can be known beforehand: a pipe can be read only once."""
        if self.name == STDIN or not os.path.isfile(self.name):
            return None
        try:
            return sum(1 for _ in self.records())
        except CvtError:
            return None

    def model(self) -> str:
        """Return the name of the model that made the labels; "" if the file does not tell."""
        if self.name == STDIN:
            return ""
        kept = Kept.read(Path(self.name))
        run = kept.run if kept is not None else {}
        if kept is None and self._format == "parquet":
            from cvt_cli.output.parquet import run_of

            try:
                with Path(self.name).open("rb") as file:
                    run = run_of(file) or {}
            except OSError:
                return ""
        name = run.get("model")
        return name if isinstance(name, str) else ""
