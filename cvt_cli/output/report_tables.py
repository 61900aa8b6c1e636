"""Reports about models: tables for people, and the same numbers raw for programs."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output import EMBEDDING_FORMATS, FILE_FORMATS
from cvt_cli.system.files import TO_STDOUT, check_file, write_atomically
from cvt_cli.system.text import for_reading, reason_of, visible

MAX_WORD = 24
# Up to so many characters a column is never narrowed.
SHORT = 8
# Columns of a terminal from which on there is a wide gap between the columns of a table.
WIDE = 70
THOUSAND = 1000
# The least number that three digits round to a thousand.
ROUNDED_THOUSAND = 999.5
# Decimals of three digits, each for the numbers below a limit, at which they are rounded up.
DECIMALS = ((9.995, 2), (99.95, 1))
FORMATS = ("table", "csv", "tsv", "json")


@dataclass(frozen=True)
class Share:
    """A cell with a bar for a number from 0 to 1, which plain text shows as a percentage."""

    value: float


Cell = str | Share


@dataclass(frozen=True)
class Column:
    """A column of a section.

    Attributes:
        name: its header.
        right: numbers, aligned at their last digit.
        wraps: texts that may wrap; others are cut if there is no room.
        width: in characters; None for what its cells need.
        from_width: of the terminal, in characters; it is left out on a narrower one.
    """

    name: str = ""
    right: bool = False
    wraps: bool = False
    width: int | None = None
    from_width: int = 0


@dataclass(frozen=True)
class Section:
    """A table with a title above and a note below, each of which may be empty. Without column names
    there is no header. A row of one cell is a heading."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A report in three forms.

    Attributes:
        document: the JSON value.
        records: the rows of the CSV.
        sections: the tables, for a terminal of so many characters a line, or for plain text where
            that is None.
        header: the columns of the CSV; by default the keys of the first record.
    """

    document: Any
    records: Sequence[Mapping[str, object]]
    sections: Callable[[int | None], Sequence[Section]]
    header: Sequence[str] = ()


def pick_format(name: str | None, output: Path | None) -> str:
    """Return the requested format, or that of the output's suffix, or else a table.

    Raises:
        UsageError: if there is no such format.
    """
    if name is not None:
        name = name.lower()
        if name not in FORMATS:
            raise UsageError(f"{name}: no such format", hint=f"one of {', '.join(FORMATS)}")
        return name
    if output is None:
        return "table"
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in FORMATS[1:]:
        suffixes = " ".join(f".{name}" for name in FORMATS[1:])
        known = suffix in (*FILE_FORMATS, *EMBEDDING_FORMATS)
        what = f"{suffix} can't be used here" if known else "the suffix names no format"
        raise UsageError(f"{output}: {what}", hint=f"one of {suffixes}, or say --format")
    return suffix


def check_new(path: Path | None, overwrite: bool, instead: str = TO_STDOUT) -> None:
    """Check, before anything else, that a file can be created.

    Args:
        instead: as `check_name` has it.

    Raises:
        UsageError: if a file is there that must not be replaced; as `check_file`.
    """
    if path is None:
        return
    check_file(path, instead)
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path} exists", hint="--overwrite replaces it")


def write_report(report: Report, format_: str, output: Path | None) -> None:
    """Write a report to the file, whole or not at all, or to standard output.

    Raises:
        CvtError: if the file can't be written; what was to be in it is on standard output then.
    """
    if output is not None:
        text = as_text(report, format_).encode("utf-8", "backslashreplace")
        try:
            write_whole(output, lambda file: file.write(text))
        except CvtError as error:
            write_report(report, format_, None)
            sys.stdout.flush()
            raise CvtError(str(error), hint="it went to standard output instead") from None
    elif format_ == "table" and sys.stdout.isatty():
        _print(report)
    else:
        for_reading(sys.stdout).write(as_text(report, format_))


def as_text(report: Report, format_: str) -> str:
    """Return the whole report as text, for any width."""
    if format_ == "json":
        return json.dumps(report.document, indent=2, ensure_ascii=False) + "\n"
    if format_ == "table":
        return "\n".join(map(_plain, report.sections(None)))
    text = io.StringIO()
    delimiter, line_end = (",", "\r\n") if format_ == "csv" else ("\t", "\n")
    rows = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    rows.writerow(report.header or (report.records[0] if report.records else ()))
    rows.writerows(record.values() for record in report.records)
    return text.getvalue()


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file, whole or not at all.

    Raises:
        CvtError: if it can't be written.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise CvtError(f"{path} can't be written: {reason_of(error)}") from None


def _plain(section: Section) -> str:
    """Align columns, each as wide as its cells."""
    header = [column.name for column in section.columns]
    rows = [[_plain_cell(cell) for cell in row] for row in section.rows]
    if rows and any(header):
        rows.insert(0, header)
    widths = [
        max((cell_len(row[i]) for row in rows if len(row) > 1), default=0)
        for i in range(len(header))
    ]
    lines = [section.title] if section.title else []
    for row in rows:
        cells = [
            " " * (width - cell_len(cell)) + cell
            if column.right
            else cell + " " * (width - cell_len(cell))
            for cell, column, width in zip(row, section.columns, widths, strict=False)
        ]
        lines.append("  ".join(cells).rstrip())
    if section.note:
        lines.append(section.note)
    return "\n".join(lines) + "\n"


def _plain_cell(cell: Cell) -> str:
    return visible(cell) if isinstance(cell, str) else f"{cell.value:.1%}"


def _print(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=False)
    for number, section in enumerate(report.sections(console.width)):
        if number:
            console.print()
        if section.title:
            console.print(Text(visible(section.title), style="bold"))
        if section.rows:
            console.print(_table(section, console.width))
        if section.note:
            lines = map(visible, section.note.split("\n"))
            console.print(Text("\n".join(lines), style="dim"))
        if section.rows and (names := _left_out(section, console.width)):
            console.print(Text(f"no room here for {', '.join(names)}: -f csv has all", style="dim"))


def _left_out(section: Section, console_width: int) -> list[str]:
    """List the columns for which the terminal is too narrow."""
    return [each.name for each in section.columns if console_width < each.from_width and each.name]


def _table(section: Section, console_width: int) -> Table:
    columns = section.columns
    shown = [i for i, each in enumerate(columns) if console_width >= each.from_width]
    named = any(each.name for each in columns)
    gap = 2 if console_width >= WIDE else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=named)
    for i in shown:
        column = columns[i]
        table.add_column(
            Text(visible(column.name)),
            header_style="dim",
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
            width=column.width,
            min_width=_least_width(section, i),
        )
    for row in section.rows:
        if len(row) == 1:
            table.add_row(Text(_plain_cell(row[0]), style="bold"))
        else:
            table.add_row(*(_rich_cell(row[i]) for i in shown))
    return table


def _least_width(section: Section, column: int) -> int | None:
    """Return the characters below which a column is not narrowed: a number that is cut is none."""
    if section.columns[column].wraps:
        return _longest_word(section, column)
    cells = [section.columns[column].name, *(row[column] for row in section.rows if len(row) > 1)]
    width = max((cell_len(cell) for cell in cells if isinstance(cell, str)), default=0)
    return width if section.columns[column].right or width <= SHORT else None


def _longest_word(section: Section, column: int) -> int:
    """Return the length of the longest word, up to that of a line: only longer words are broken."""
    cells = [section.columns[column].name, *(row[column] for row in section.rows if len(row) > 1)]
    words = " ".join(cell for cell in cells if isinstance(cell, str)).split()
    return min(MAX_WORD, max(map(cell_len, words), default=0))


def _rich_cell(cell: Cell) -> Text | Bar:
    if isinstance(cell, str):
        return Text(visible(cell))
    return Bar(1.0, 0.0, cell.value, color="green")


def decimals(value: float) -> int:
    """Return the number of decimals with which a number from 1 on has three digits."""
    return next((count for limit, count in DECIMALS if value < limit), 0)


def si(value: float) -> str:
    """Format a number with three digits and a prefix: 19,997,480 is "20.0 M"."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    whole = value == int(value) and value < THOUSAND
    while value >= ROUNDED_THOUSAND and len(prefixes) > 1:
        value /= THOUSAND
        del prefixes[0]
    if value >= ROUNDED_THOUSAND:
        return f"{value:.3g} {prefixes[0]}"
    digits = 0 if whole else decimals(value)
    return f"{value:.{digits}f} {prefixes[0]}".rstrip()


def si_unit(value: float, unit: str) -> str:
    """Format a number with three digits, a prefix and a unit: "80.1 MB", "4.57 GMACs"."""
    number, _, prefix = si(value).partition(" ")
    return f"{number} {prefix}{unit}"


def size_in_words(size: Sequence[int]) -> str:
    """Format a size as `512 × 384`."""
    return " × ".join(map(str, size))
