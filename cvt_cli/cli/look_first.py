"""`cvt sort --order`: the pictures that are most worth looking at, first."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, cast

from cvt_cli.cli.labels_file import STDIN, LabelsFile
from cvt_cli.cli.messages import say
from cvt_cli.cli.name_line import encoded_name
from cvt_cli.cli.option_groups import Panel
from cvt_cli.errors import UsageError
from cvt_cli.output import (
    EMBEDDING_FORMATS,
    EmbeddingWriter,
    embedding_writer_class,
    format_of_file,
)
from cvt_cli.records import Record, as_written
from cvt_cli.system.text import counted, reason_of, visible

ORDER = Panel("Which to look at first")
MAX_FIRST = 10**9


class Order(StrEnum):
    """Orders of worth: by the scores, or by the embeddings."""

    UNCERTAIN = "uncertain"
    DIVERSE = "diverse"


@dataclass(frozen=True, kw_only=True)
class OrderOptions:
    """Options for the order, and for what is printed."""

    order: Annotated[
        Order | None,
        ORDER.option(
            "--order",
            help="Touch no file; print the paths, most worth looking at first, as --files-from "
            "reads them. uncertain: with the closest two best scores. diverse: most unlike those "
            "before; LABELS is then the output of cvt embed, .parquet or .npy.",
        ),
    ] = None
    labelled: Annotated[
        Path | None,
        ORDER.option(
            "--labelled",
            metavar="FILE",
            help="With --order: leave out the images of this file, such as the corrections.csv "
            "of a report. diverse: and keep away from them.",
        ),
    ] = None
    first: Annotated[
        int | None,
        ORDER.option(
            "--first",
            min=1,
            max=MAX_FIRST,
            metavar="N",
            help="With --order: print only this many paths.",
        ),
    ] = None
    null: Annotated[
        bool, ORDER.option("--null", "-0", help="With --order: end each path with NUL.")
    ] = False


def print_order(labels: str, format_: str | None, wanted: OrderOptions, *, quiet: bool) -> None:
    """Print the paths of a file in their order.

    Raises:
        UsageError: if a file is not there, or not what it should be.
    """
    from cvt_cli.sorting.order import diverse, uncertain

    known = set() if wanted.labelled is None else _paths_in(wanted.labelled)
    if wanted.order is Order.DIVERSE:
        paths = diverse(_embeddings(labels, format_), known)
    else:
        paths = uncertain(LabelsFile(labels, format_).records(), known)
    left_out = 0
    with _told(labels):
        for path in islice(paths, wanted.first):
            name = encoded_name(path, wanted.null)
            if name is None:
                left_out += 1
            elif sys.stdout.isatty():
                print(visible(path))
            else:
                sys.stdout.buffer.write(name)
                # Who reads it may have enough, and each path takes the time of all embeddings.
                sys.stdout.buffer.flush()
    if left_out and not quiet:
        say(
            f"warning: {counted(left_out, 'name')} with a line break left out; with --null they fit"
        )


def _paths_in(path: Path) -> set[str]:
    from cvt_cli.output.read_back import read_rows

    return {as_written(each.path) for each in read_rows(path) if each.error is None}


def _embeddings(name: str, format_: str | None) -> Iterator[Record]:
    if name == STDIN:
        raise UsageError("embeddings can't be read from standard input", hint="name their file")
    if format_ is None:
        format_ = format_of_file(Path(name), EMBEDDING_FORMATS)
    elif format_ not in EMBEDDING_FORMATS:
        raise UsageError(
            f"--order diverse reads no {format_}",
            hint=f"the output of `cvt embed`: {' or '.join(EMBEDDING_FORMATS)}",
        )
    writer = cast(type[EmbeddingWriter], embedding_writer_class(format_))
    try:
        yield from writer.embeddings(Path(name))
    except OSError as error:
        raise UsageError(f"{name} can't be read: {reason_of(error)}") from None


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{name} can't be ordered: {error}") from None
