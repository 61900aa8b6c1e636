"""Spreadsheets (.xlsx), which read the same in every locale: texts are texts, numbers are numbers.

XlsxWriter writes them and openpyxl reads them, also those that a person has saved. The journal of a
run is in JSON Lines.

Pictures lie in a row each, and move and shrink with it, so that a filter hides them.
"""

import errno
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from zipfile import BadZipFile, ZipFile

import openpyxl
import xlsxwriter
from openpyxl.drawing.spreadsheet_drawing import SpreadsheetDrawing
from openpyxl.packaging.relationship import get_dependents, get_rels_path
from openpyxl.reader.drawings import find_images
from openpyxl.utils.escape import unescape
from openpyxl.utils.exceptions import InvalidFileException
from PIL import Image
from xlsxwriter.exceptions import XlsxFileError

from cvt_cli.images.source import bomb
from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.csv_tsv import header, row_reader, score_text, shape_of
from cvt_cli.output.jsons import PicturesJournal
from cvt_cli.output.read_back import most_unpacked
from cvt_cli.records import THUMBNAIL, Record, RecordShape, as_written
from cvt_cli.system.files import temporary_folder, write_atomically

# Rows of a sheet below its header; more rows go to the next sheet.
ROWS_PER_SHEET = 2**20 - 1
# Characters of a cell, at most.
_MAX_TEXT = 32_767
# Width of a column in characters, at most: longer texts are wider than a screen.
_MAX_WIDTH = 60
# Programs take minutes to open many more.
MOST_PICTURES = 5_000
# Pixels of a picture's longer side, and of what is around it.
_PICTURE = 120
_MARGIN = 3
T = TypeVar("T")
# "Move and size with cells".
_WITH_CELLS = 1


class XlsxWriter(PicturesJournal):
    """Writes one row per record, below a header that stays in view and can be filtered; in as many
    sheets as it takes."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return what a line of the journal holds of a record: its picture if it is shown."""
        shown = record if self._shape.thumbnails else replace(record, thumbnail=None)
        return super().values(shown)

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
            # The rows of a sheet wait in a file until it is closed.
            with temporary_folder(path) as folder:
                sheets = _written(file, records, shape, folder=folder)
            if sheets.without_picture:
                warnings.warn(
                    f"{path}: pictures of the first {MOST_PICTURES:,} images; "
                    f"{sheets.without_picture:,} more have none",
                    stacklevel=2,
                )

        write_atomically(path, write)

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document. Class indexes are read as -1.

        Args:
            facts: `THUMBNAIL` among them for the pictures.

        Raises:
            ValueError: if it is not a spreadsheet, or not of images' labels.
        """
        with_pictures = THUMBNAIL in facts
        facts = [name for name in facts if name != THUMBNAIL]
        for number, (rows, sheet) in enumerate(_sheets(file)):
            names = next(rows, [])
            if number and not names:
                continue  # an empty sheet that a person has added
            pictures = _pictures(sheet) if with_pictures else {}
            record = row_reader(names, facts)
            for position, row in enumerate(rows, 2):
                if not any(row):
                    continue
                try:
                    found = record((row + [""] * len(names))[: len(names)])
                except ValueError as error:
                    raise ValueError(f"row {position}: {error}") from None
                yield replace(found, thumbnail=pictures.get(position)) if pictures else found

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Read the shape from the header."""
        for rows, _ in _sheets(file):
            names = next(rows, [])
            return replace(shape_of(names), thumbnails=THUMBNAIL in names)
        return shape_of([])


def _written(
    file: BinaryIO, records: Iterable[Record], shape: RecordShape, *, folder: Path
) -> "_Sheets":
    """Write a workbook.

    Args:
        folder: for temporary files.
    """
    target = _Forgetful(file)
    options = {"constant_memory": True, "tmpdir": str(folder)}
    workbook = xlsxwriter.Workbook(cast(BinaryIO, target), options)
    sheets = _Sheets(workbook, shape)
    try:
        sheets.write(records)
    finally:
        try:
            workbook.close()
        except XlsxFileError as error:
            cause = error.args[0] if error.args else error
            raise cause if isinstance(cause, OSError) else OSError(str(error)) from None
        finally:
            target.take_no_more()  # it is whole, or a temporary file could not be written
    return sheets


class _Forgetful:
    """A file that takes all and keeps nothing once a write has failed. A `ZipFile` that is left by
    an error writes its end whenever it is deleted, and what goes wrong then is printed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._has_failed = False

    def take_no_more(self) -> None:
        """Keep nothing from now on."""
        self._has_failed = True

    def write(self, data: bytes) -> int:
        if self._has_failed:
            return len(data)
        try:
            return self._file.write(data)
        except OSError:
            self._has_failed = True
            raise

    def flush(self) -> None:
        if not self._has_failed:
            self._file.flush()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return 0 if self._has_failed else self._file.seek(offset, whence)

    def tell(self) -> int:
        return 0 if self._has_failed else self._file.tell()

    def seekable(self) -> bool:
        return True


class _Sheets:
    """The sheets of a workbook that is being written.

    Attributes:
        without_picture: images that have a picture for which there was no room.
    """

    def __init__(self, workbook: xlsxwriter.Workbook, shape: RecordShape) -> None:
        self._workbook = workbook
        self._shape = shape
        self._header = header(shape)
        # Behind the path, where one sees which it is.
        self._header[1:1] = [THUMBNAIL] if shape.thumbnails else []
        self._first = 2 if shape.thumbnails else 1
        self._pictures = self.without_picture = 0
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
        if self._shape.thumbnails:
            self._sheet.set_column_pixels(1, 1, _PICTURE + 2 * _MARGIN)

    def _write(self, record: Record) -> None:
        self._text(0, as_written(record.path))
        for rank, prediction in enumerate(record.predictions):
            self._text(self._first + 2 * rank, prediction.label)
            score = float(score_text(prediction.score, record.columns))
            self._number(self._first + 1 + 2 * rank, score, self._score)
        first = self._first + 2 * self._shape.top_k
        for column, name in enumerate(self._shape.columns, first):
            value = record.columns.get(name)
            if isinstance(value, str):
                self._text(column, value)
            elif value is not None:
                self._number(column, value)
        if record.error is not None:
            self._text(len(self._header) - 1, as_written(record.error))
        if self._shape.thumbnails and record.thumbnail is not None:
            self._picture(record.thumbnail)

    def _picture(self, thumbnail: bytes) -> None:
        if self._pictures == MOST_PICTURES:
            self.without_picture += 1
            return
        self._pictures += 1
        with Image.open(io.BytesIO(thumbnail)) as image:
            scale = _PICTURE / max(image.size)
            height = round(image.height * scale)
        self._sheet.set_row_pixels(self._row, height + 2 * _MARGIN)
        options = {
            "image_data": io.BytesIO(thumbnail),
            "x_scale": scale,
            "y_scale": scale,
            "x_offset": _MARGIN,
            "y_offset": _MARGIN,
            "object_position": _WITH_CELLS,
            "decorative": True,  # or screen readers are told its size
        }
        if self._sheet.insert_image(self._row, 1, f"{self._row}.jpg", options):
            raise OSError(errno.EINVAL, "a picture can't be put into the spreadsheet")

    def _text(self, column: int, text: str, style: Any = None) -> None:
        # Not `write`, which would make "=1+1" a formula and "007" a number.
        if len(text) > _MAX_TEXT or self._sheet.write_string(self._row, column, text, style):
            raise OSError(errno.EFBIG, f"a cell holds at most {_MAX_TEXT:,} characters")
        self._widths[column] = max(self._widths[column], len(text))

    def _number(self, column: int, value: float, style: Any = None) -> None:
        if not math.isfinite(value):
            self._text(column, str(value))
        elif self._sheet.write_number(self._row, column, value, style):
            raise OSError(errno.EFBIG, "more columns than a sheet holds")
        self._widths[column] = max(self._widths[column], 8)


def _sheets(file: BinaryIO) -> Iterator[tuple[Iterator[list[str]], Any]]:
    """Yield the rows of each sheet, as texts, and the sheet.

    Raises:
        ValueError: if it is no such file, or holds more than any.
    """
    try:
        with ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > most_unpacked(file.seek(0, io.SEEK_END)):
            raise ValueError(str(bomb()))
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError, OSError) as error:
        raise ValueError(f"it is no .xlsx file: {error}") from None
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # as other programs may store wrong ones
        rows = _counted(sheet.iter_rows(values_only=True))
        yield ([_as_text(value) for value in row] for row in rows), sheet


def _counted(rows: Iterator[T]) -> Iterator[T]:
    """Pass on the rows of a sheet. openpyxl makes empty ones up to whatever number a row has.

    Raises:
        ValueError: if there are more than a sheet has.
    """
    for number, row in enumerate(rows):
        if number > ROWS_PER_SHEET:
            raise ValueError(f"a sheet of more than {ROWS_PER_SHEET + 1:,} rows")
        yield row


def _pictures(sheet: Any) -> dict[int, bytes]:
    """Return the pictures of a sheet by their rows, from 1; the first of several in a row."""
    archive = sheet.parent._archive
    pictures: dict[int, bytes] = {}
    try:
        related = get_dependents(archive, get_rels_path(sheet._worksheet_path))
        for drawing in related.find(SpreadsheetDrawing._rel_type):
            for image in find_images(archive, drawing.target)[1]:
                pictures.setdefault(image.anchor._from.row + 1, image._data())
    except (KeyError, AttributeError, OSError, TypeError):  # what others have drawn there
        pass
    return pictures


def _as_text(value: object) -> str:
    """Format a cell as CSV has it."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return unescape(value) if isinstance(value, str) else str(value)
