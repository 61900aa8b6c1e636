"""`cvt merge`: the parts of one run, or the files of several, joined into one file."""

import io
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from cvt_cli.cli import options
from cvt_cli.cli.merge_inputs import (
    all_records,
    check_set,
    list_parts,
    survey_of,
    without_repeats,
)
from cvt_cli.cli.messages import say
from cvt_cli.cli.output_options import ReplaceOption, format_option, output_option
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output import ROW_FORMATS, ConvertedWriter, check_format, format_of_file, writer_class
from cvt_cli.output.journal import check_output
from cvt_cli.output.run_file import kept_of
from cvt_cli.records import THUMBNAIL, Record, RecordShape
from cvt_cli.system.files import check_name, make_parent, write_atomically
from cvt_cli.system.text import counted, reason_of

EXAMPLES = """\
[bold]Examples[/]

cvt merge labels/ -o labels.csv

cvt merge s3://bucket/labels -o labels.parquet

cvt merge job-1.csv job-2.csv job-3.csv -o labels.csv
"""
# Formats with class indexes: CSV and Parquet have none.
_INDEXED = ("json", "jsonl")


def merge(
    context: typer.Context,
    *,
    inputs: Annotated[
        list[str],
        options.INPUT.argument(
            metavar="FOLDER|FILE",
            help="Folders of parts and output files, on disk or at an address. All files of a "
            "folder are merged, by name.",
        ),
    ],
    output: Annotated[
        Path,
        output_option(help="The merged file; it appears complete or not at all."),
    ],
    format_: Annotated[
        str | None,
        format_option(
            options.OUTPUT,
            ROW_FORMATS,
            help=f"{', '.join(ROW_FORMATS)}. Default: by the suffix of --output.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        options.INPUT.option(
            "--partial",
            help="Merge even if shards are missing or come from different runs.",
        ),
    ] = False,
    overwrite: ReplaceOption = False,
) -> None:
    """Merge the parts or shards that cvt classify wrote into one file.

    A missing shard is an error, and so are scores of several kinds. If an input failed in one part
    and succeeded in another, the successful record is kept.
    """
    for each in inputs:
        options.named_path(each)
    check_name(output)
    name = check_format(format_) if format_ is not None else format_of_file(output)
    if name not in ROW_FORMATS:
        raise UsageError(
            f"parts can't be merged to {name}", hint=f"one of {', '.join(ROW_FORMATS)}"
        )
    check_output(output, resume=False, overwrite=overwrite)
    parts = [part for each in inputs for part in list_parts(each)]
    if not parts:
        raise UsageError(
            f"{inputs[0]} is a run record, not a file of records", hint="name the others"
        )
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
        pictures = shape.thumbnails or own.thumbnails
        shape = RecordShape(max(shape.top_k, own.top_k), tuple(columns), thumbnails=pictures)
    parts = without_repeats(parts)
    if not partial:
        check_set(parts)
    survey = survey_of(parts)
    if not partial:
        survey.check_scores()
    facts = (*shape.columns, THUMBNAIL) if name == "xlsx" and shape.thumbnails else shape.columns
    through = _Counted(all_records(parts, facts), survey.repaired)
    _write(through, output, name, shape=shape)
    if not context.obj.quiet:
        if through.left_out:
            say(f"{counted(through.left_out, 'failed record')} left out: another has the labels")
        records, files = counted(through.count, "record"), counted(len(parts), "file")
        say(f"{output}: {records} of {files}, {counted(through.errors, 'error')}")


class _Counted:
    """An iterator that counts records and drops failed ones whose input succeeded elsewhere.

    Attributes:
        count: the records.
        errors: how many of them are errors.
        left_out: failed records that are not among them.
    """

    def __init__(self, records: Iterator[Record], repaired: Container[str]) -> None:
        self._records = records
        self._repaired = repaired
        self.count = self.errors = self.left_out = 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            if record.error is not None and record.path in self._repaired:
                self.left_out += 1
                continue
            self.count += 1
            self.errors += record.error is not None
            yield record


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
        make_parent(output)
        kept_of(output).unlink(missing_ok=True)  # it describes the file that is replaced
        if issubclass(writer, ConvertedWriter):
            writer.convert(records, output, shape, run={})
        else:
            write_atomically(output, write)
    except OSError as error:
        raise CvtError(f"{output} can't be written: {reason_of(error)}") from None
