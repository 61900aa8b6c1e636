"""`cvt merge`: the parts of a run, or the files of several, become one file."""

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cvt_cli.cli import options
from cvt_cli.cli.messages import say
from cvt_cli.distributed.folders import LocalFolder, RemoteFolder, open_folder
from cvt_cli.distributed.part_folder import RUN, SUCCESS
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output import (
    ROW_FORMATS,
    ConvertedWriter,
    RowWriter,
    check_format,
    format_of_file,
    writer_class,
)
from cvt_cli.output.journal import check_output
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.files import check_name, write_atomically
from cvt_cli.system.text import counted, reason_of

EXAMPLES = """\
[bold]Examples[/]

cvt merge labels/ -o labels.csv

cvt merge s3://bucket/labels -o labels.parquet

cvt merge job-1.csv job-2.csv job-3.csv -o labels.csv
"""

# CSV and Parquet have no class indexes, JSON must.
_INDEXED = ("json", "jsonl")


def merge(
    context: typer.Context,
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER|FILE",
            help="Folders of parts and files of records, here or at an address. Of a folder all "
            "are taken, by name.",
            show_default=False,
            rich_help_panel=options.INPUT,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The one file; its suffix says the format. It appears whole or not at all.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help=f"{', '.join(ROW_FORMATS)}. Default: what the suffix of --output says.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Make one file of the parts that cvt classify wrote on a cluster, or in shards."""
    check_name(output)
    name = check_format(format_) if format_ is not None else format_of_file(output)
    if name not in ROW_FORMATS:
        raise UsageError(
            f"parts can't be merged to {name}", hint=f"one of {', '.join(ROW_FORMATS)}"
        )
    check_output(output, resume=False, overwrite=overwrite)
    parts = [part for each in inputs for part in _parts(each)]
    shape = RecordShape(1)
    for part in parts:
        if output.exists() and part.is_file(output):
            raise UsageError(f"{output} is one of the inputs")
        if name in _INDEXED and part.format not in _INDEXED:
            raise UsageError(
                f"{part.name}: {part.format} has no class indexes, which {name} needs",
                hint="merge to csv, tsv or parquet",
            )
        own = part.shape()
        columns = dict.fromkeys((*shape.columns, *own.columns))
        shape = RecordShape(max(shape.top_k, own.top_k), tuple(columns))
    named = Counter(part.place for part in parts)
    for part in {part.place: part for part in parts if named[part.place] > 1}.values():
        warnings.warn(f"{part.name} is named twice: so are its records", stacklevel=1)
    through = _Counted(_records(parts, shape.columns))
    _write(through, output, name, shape=shape)
    if not context.obj.quiet:
        records, files = counted(through.count, "record"), counted(len(parts), "file")
        say(f"{output}: {records} of {files}, {counted(through.errors, 'error')}")


class _Counted:
    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self.count = self.errors = 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            self.count += 1
            self.errors += record.error is not None
            yield record


class _Part:
    """A file of records."""

    def __init__(self, folder: LocalFolder | RemoteFolder, where: str, name: str) -> None:
        self._folder = folder
        self._file = name
        self.name = f"{where.rstrip('/')}/{name}" if where else name
        self.format = format_of_file(Path(name))
        self._writer = writer_class(self.format)

    @property
    def place(self) -> str:
        """Real path or address, the same for two names of one file."""
        if isinstance(self._folder, LocalFolder):
            return os.path.realpath(self._folder.path(self._file))
        return self.name

    def is_file(self, path: Path) -> bool:
        return isinstance(self._folder, LocalFolder) and path.samefile(
            self._folder.path(self._file)
        )

    def shape(self) -> RecordShape:
        assert issubclass(self._writer, RowWriter)
        with self._open() as file:
            try:
                return self._writer.shape(file)
            except (ValueError, OSError) as error:
                raise self._broken(error) from None

    def records(self, facts: tuple[str, ...]) -> Iterator[Record]:
        assert issubclass(self._writer, RowWriter)
        with self._open() as file:
            try:
                yield from self._writer.documents(file, facts)
            # OSError: what pyarrow makes of pages that can't be unpacked.
            except (ValueError, OSError) as error:
                raise self._broken(error) from None

    def _open(self) -> BinaryIO:
        return self._folder.open(self._file)

    def _broken(self, error: ValueError | OSError) -> CvtError:
        return CvtError(f"{self.name}: no records of cvt classify: {error}")


def _records(parts: Sequence[_Part], facts: tuple[str, ...]) -> Iterator[Record]:
    # An earlier merge that lies among its parts begins as one of them, and so does a copy.
    begun: dict[str, _Part] = {}
    for part in parts:
        for index, record in enumerate(part.records(facts)):
            if index == 0:
                other = begun.setdefault(record.path, part)
                if other.place != part.place:
                    warnings.warn(
                        f"{part.name} begins with the image that {other.name} begins with: "
                        "are all its records there twice?",
                        stacklevel=1,
                    )
            yield record


def _parts(where: str) -> list[_Part]:
    """List the files behind what was typed.

    Raises:
        UsageError: if there are none, or a run there is not finished.
    """
    folder = open_folder(where)
    if folder.is_file():
        parent, slash, name = where.rstrip("/").rpartition("/")
        return [_Part(open_folder(parent + slash or "."), parent + slash, name)]
    names = folder.names()
    if RUN in names and SUCCESS not in names:
        raise UsageError(
            f"{where} is not finished", hint="the command that wrote it goes on with --resume"
        )
    for name in names:
        if name.endswith(".part"):
            raise UsageError(
                f"{where}/{name} is of a run that is not finished",
                hint="the command that wrote it goes on with --resume",
            )
    suffixes = tuple(f".{name}" for name in ROW_FORMATS)
    found = [name for name in names if name.endswith(suffixes) and name != RUN]
    if not found:
        raise UsageError(
            f"{where}: no files of records there", hint=f"they end in {', '.join(suffixes)}"
        )
    return [_Part(folder, where, name) for name in sorted(found, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key by which part-2 comes before part-10."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split("([0-9]+)", name)
    ]


def _write(records: Iterable[Record], output: Path, name: str, *, shape: RecordShape) -> None:
    writer = writer_class(name)

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        document = writer(text, shape)
        for record in records:
            document.write([record])
        document.close()
        text.flush()
        text.detach()

    try:
        if issubclass(writer, ConvertedWriter):
            writer.convert(records, output, shape, run={})
        else:
            write_atomically(output, write)
    except OSError as error:
        raise CvtError(f"{output} can't be written: {reason_of(error)}") from None
