"""Output formats: records become a table, CSV, JSON and so on. Each format has a file of its own,
and a line in the registry below."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TextIO, cast, runtime_checkable

from cvt_cli.errors import UsageError
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.extras import install_hint

NO_SUMMARY: Mapping[str, Any] = {}


class Writer(Protocol):
    """Writes records to a text stream, which its caller flushes and closes.

    Args:
        stream: as `open_text` opens it.
        shape: what a record has room for.
        started: whether the stream holds records already.
    """

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None: ...

    def write(self, records: Iterable[Record]) -> None:
        """Append records."""

    def close(self) -> None:
        """Write the end of the document."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """Read the complete records of a document, finished or not, each with the offset of its end
        in bytes. Formats made for people can't be read back.

        Raises:
            ValueError: if it is not such a document.
        """
        ...


@runtime_checkable
class RowWriter(Writer, Protocol):
    """A writer of documents that programs can read back, row by row."""

    @classmethod
    def documents(cls, file: BinaryIO, facts: Sequence[str] = ()) -> Iterator[Record]:
        """Read the records of a finished document, even if another program has saved it since.

        Args:
            file: seekable where the format needs that.
            facts: names out of `records.COLUMNS` to take along, where the document has them.

        Raises:
            ValueError: if it is not such a document.
        """
        ...

    @classmethod
    def shape(cls, file: BinaryIO) -> RecordShape:
        """Read the shape of the records of a finished document. Raises: as `documents`."""
        ...


@runtime_checkable
class EmbeddingWriter(Writer, Protocol):
    """A writer of documents of embeddings."""

    @staticmethod
    def embeddings(path: Path) -> Iterator[Record]:
        """Read the records of a finished document, and of the files beside it.

        Raises:
            OSError: if one can't be read.
            ValueError: if it is not such a document.
        """
        ...


@runtime_checkable
class ConvertedWriter(Writer, Protocol):
    """A writer of a format that can't be appended to. What it writes and reads is a journal, which
    is converted at the end."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the document, whole or not at all.

        Args:
            records: those of the journal.
            path: the document.
            shape: what a record has room for.
            run: what the records were made with.
            summary: how the run went: `command`, `end`, `images_per_second`. It is another one
                each time: a table of records does without.

        Raises:
            OSError: if it can't be written.
        """
        ...


WriterClass = type[Writer]

# The module and the class of each format's writer. A format's name is also the suffix of its files,
# and the name of the extra that installs the packages it needs.
_WRITERS = {
    "table": ("cvt_cli.output.table", "TableWriter"),
    "plain": ("cvt_cli.output.plain", "PlainWriter"),
    "csv": ("cvt_cli.output.csv_tsv", "CsvWriter"),
    "tsv": ("cvt_cli.output.csv_tsv", "TsvWriter"),
    "json": ("cvt_cli.output.jsons", "JsonWriter"),
    "jsonl": ("cvt_cli.output.jsons", "JsonLinesWriter"),
    "parquet": ("cvt_cli.output.parquet", "ParquetWriter"),
    "xlsx": ("cvt_cli.output.xlsx", "XlsxWriter"),
    "html": ("cvt_cli.output.report_page", "ReportPageWriter"),
}
FORMATS = tuple(_WRITERS)
ROW_FORMATS = tuple(name for name in _WRITERS if name not in ("table", "plain", "html"))
FILE_FORMATS = (*ROW_FORMATS, "html")

# Formats of embeddings, likewise.
_EMBEDDING_WRITERS = {
    "parquet": ("cvt_cli.output.parquet", "ParquetEmbeddingWriter"),
    "npy": ("cvt_cli.output.npy", "NpyWriter"),
}
EMBEDDING_FORMATS = tuple(_EMBEDDING_WRITERS)


def check_format(name: str) -> str:
    """Return the name of a format.

    Raises:
        UsageError: if there is no such format.
    """
    if name not in _WRITERS:
        raise UsageError(f"{name}: no such format", hint=f"one of {', '.join(FORMATS)}")
    return name


def format_of_file(path: Path, formats: tuple[str, ...] = ROW_FORMATS) -> str:
    """Return the format of a file by its suffix.

    Raises:
        UsageError: if it names none.
    """
    name = path.suffix.lower().removeprefix(".")
    if name not in formats:
        suffixes = " ".join(f".{each}" for each in formats)
        way_out = ", or say --format" if formats in (ROW_FORMATS, FILE_FORMATS) else ""
        known = name in (*FILE_FORMATS, *EMBEDDING_FORMATS)
        what = f"{name} can't be used here" if known else "the suffix names no format"
        raise UsageError(f"{path}: {what}", hint=f"one of {suffixes}{way_out}")
    return name


def writer_class(name: str) -> WriterClass:
    """Return the writer of a format.

    Raises:
        UsageError: if it needs a package that is not installed.
    """
    return _load(name, _WRITERS[name])


def embedding_writer_class(name: str) -> WriterClass:
    """Return the writer of a format of embeddings."""
    return _load(name, _EMBEDDING_WRITERS[name])


def _load(name: str, where: tuple[str, str]) -> WriterClass:
    module, attribute = where
    try:
        return cast(WriterClass, getattr(import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} needs {error.name}, which is not installed",
            hint=install_hint(name),
        ) from None


def open_text(
    path: Path, mode: Literal["w", "a"], opener: Callable[[str, int], int] | None = None
) -> TextIO:
    """Open a file for a writer: UTF-8, line ends as written. A byte of a file name that is not
    UTF-8 becomes the text `\\udc..`, as in `as_written`. `opener` is as for `open`."""
    return cast(
        TextIO,
        open(path, mode, encoding="utf-8", errors="backslashreplace", newline="", opener=opener),
    )
