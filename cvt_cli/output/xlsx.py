"""Spreadsheets (.xlsx), which read the same in every locale: texts are texts, numbers are numbers.

XlsxWriter writes them and openpyxl reads them, also those that a person has saved. The journal of a
run is in JSON Lines.
"""

import errno
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import openpyxl
import xlsxwriter
from openpyxl.utils.escape import unescape
from openpyxl.utils.exceptions import InvalidFileException
from xlsxwriter.exceptions import XlsxFileError

from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.delimited import header, row_reader, score_text, shape_of
from cvt_cli.output.jsons import JsonLinesWriter
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import write_atomically

# Rows of a sheet below its header; more rows go to the next sheet.
ROWS_PER_SHEET = 2**20 - 1
# Characters of a cell, at most.
_MAX_TEXT = 32_767
# Width of a column in characters, at most: longer texts are wider than a screen.
_MAX_WIDTH = 60


class XlsxWriter(JsonLinesWriter):
    """Writes one row per record, below a header that stays in view and can be filtered; in as many
    sheets as it takes."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the document from a journal's records, with one row in memory at a time.

        Raises:
            OSError: if it can't be written, or a text is longer than a cell may be.
        """

        def write(file: BinaryIO) -> None:
            workbook = xlsxwriter.Workbook(file, {"constant_memory": True})
            try:
                _Sheets(workbook, shape).write(records)
            finally:
                try:
                    workbook.close()
                except XlsxFileError as error:
                    cause = error.args[0] if error.args else error
                    raise cause if isinstance(cause, OSError) else OSError(str(error)) from None

        write_atomically(path, write)

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document. Class indexes are read as -1.

        Raises:
            ValueError: if it is no spreadsheet, or not of images' labels.
        """
        for number, rows in enumerate(_sheets(file)):
            names = next(rows, [])
            if number and not names:
                continue  # an empty sheet that a person has added
            record = row_reader(names, facts)
            for position, row in enumerate(rows, 2):
                if not any(row):
                    continue
                try:
                    found = record((row + [""] * len(names))[: len(names)])
                except ValueError as error:
                    raise ValueError(f"row {position}: {error}") from None
                yield found

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Read the shape from the header."""
        return shape_of(next(next(_sheets(file), iter(())), []))


class _Sheets:
    """The sheets of a workbook that is being written."""

    def __init__(self, workbook: xlsxwriter.Workbook, shape: RecordShape) -> None:
        self._workbook = workbook
        self._shape = shape
        self._header = header(shape)
        self._bold = workbook.add_format({"bold": True})
        self._score = workbook.add_format({"num_format": "0.000000"})
        self._widths: list[int] = []
        self._new()

    def write(self, records: Iterable[Record]) -> None:
        """Write a row for each record."""
        for record in records:
            if self._row > ROWS_PER_SHEET:
                self._end()
                self._new()
            self._write(record)
            self._row += 1
        self._end()

    def _new(self) -> None:
        self._sheet = self._workbook.add_worksheet()
        self._row = 0
        self._widths = [0] * len(self._header)
        for column, name in enumerate(self._header):
            self._text(column, name, self._bold)
        self._sheet.freeze_panes(1, 0)
        self._row = 1

    def _end(self) -> None:
        self._sheet.autofilter(0, 0, max(1, self._row - 1), len(self._header) - 1)
        for column, width in enumerate(self._widths):
            self._sheet.set_column(column, column, min(_MAX_WIDTH, width + 3))

    def _write(self, record: Record) -> None:
        self._text(0, as_written(record.path))
        for rank, prediction in enumerate(record.predictions):
            self._text(1 + 2 * rank, prediction.label)
            score = float(score_text(prediction.score, record.columns))
            self._number(2 + 2 * rank, score, self._score)
        first = 1 + 2 * self._shape.top_k
        for column, name in enumerate(self._shape.columns, first):
            value = record.columns.get(name)
            if isinstance(value, str):
                self._text(column, value)
            elif value is not None:
                self._number(column, value)
        if record.error is not None:
            self._text(len(self._header) - 1, as_written(record.error))

    def _text(self, column: int, text: str, style: Any = None) -> None:
        # Not `write`, which would make "=1+1" a formula and "007" a number.
        if len(text) > _MAX_TEXT or self._sheet.write_string(self._row, column, text, style):
            raise OSError(
                errno.EFBIG, f"a cell holds no text of more than {_MAX_TEXT:,} characters"
            )
        self._widths[column] = max(self._widths[column], len(text))

    def _number(self, column: int, value: float, style: Any = None) -> None:
        if not math.isfinite(value):
            self._text(column, str(value))
        elif self._sheet.write_number(self._row, column, value, style):
            raise OSError(errno.EFBIG, "more columns than a sheet holds")
        self._widths[column] = max(self._widths[column], 8)


def _sheets(file: BinaryIO) -> Iterator[Iterator[list[str]]]:
    """Yield the rows of each sheet, as texts."""
    try:
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError) as error:
        raise ValueError(f"it is no .xlsx file: {error}") from None
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # as other programs may store wrong ones
        yield ([_as_text(value) for value in row] for row in sheet.iter_rows(values_only=True))


def _as_text(value: object) -> str:
    """Format a cell as CSV has it."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return unescape(value) if isinstance(value, str) else str(value)
