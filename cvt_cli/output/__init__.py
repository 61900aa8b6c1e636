"""Records become a table, CSV, JSON and so on: one file a format, one line each below."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, TextIO, cast

from cvt_cli.errors import UsageError
from cvt_cli.records import Record, RecordShape


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
        """Write what ends the document."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """The whole records of a document, finished or not, each with the offset of its end in
        bytes. Formats for people's eyes can't be read back.

        Raises:
            ValueError: if it is no such document.
        """
        ...


WriterClass = type[Writer]

# The format's name, and the suffix of a file in it, to where its writer is.
_WRITERS = {
    "table": ("cvt_cli.output.table", "TableWriter"),
    "plain": ("cvt_cli.output.plain", "PlainWriter"),
    "csv": ("cvt_cli.output.delimited", "CsvWriter"),
    "tsv": ("cvt_cli.output.delimited", "TsvWriter"),
    "json": ("cvt_cli.output.jsons", "JsonWriter"),
    "jsonl": ("cvt_cli.output.jsons", "JsonLinesWriter"),
}
FORMATS = tuple(_WRITERS)


def check_format(name: str) -> str:
    """The name itself.

    Raises:
        UsageError: if there is no such format.
    """
    if name not in _WRITERS:
        raise UsageError(f"{name}: no such format", hint=f"one of {', '.join(FORMATS)}")
    return name


def format_of_file(path: Path) -> str:
    """The format that a file's suffix names.

    Raises:
        UsageError: if it names none.
    """
    name = path.suffix.lower().removeprefix(".")
    if name not in _WRITERS or name in ("table", "plain"):
        suffixes = " ".join(f".{name}" for name in FORMATS if name not in ("table", "plain"))
        raise UsageError(
            f"{path}: the suffix names no format", hint=f"one of {suffixes}, or say --format"
        )
    return name


def writer_class(name: str) -> WriterClass:
    """The writer of that format."""
    module, attribute = _WRITERS[name]
    return cast(WriterClass, getattr(import_module(module), attribute))


def open_text(path: Path, mode: Literal["w", "a"]) -> TextIO:
    """A file for a writer: UTF-8, line ends as written. A byte of a file name that is no UTF-8
    becomes a `\\udc..` escape, which JSON readers turn back into that byte's stand-in."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace", newline="")
