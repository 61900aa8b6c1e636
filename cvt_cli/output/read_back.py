"""Records of a run's output, read back whatever its format."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.images.formats import RAW_SUFFIXES
from cvt_cli.images.source import BOMB_RATIO, IMAGE_SUFFIXES
from cvt_cli.output import ROW_FORMATS, RowWriter, format_of_file, writer_class
from cvt_cli.records import Record
from cvt_cli.system.text import reason_of

# Bytes that the records of a file may take unpacked, however small it is.
_ANY_FILE = 2**28


def most_unpacked(size: int) -> int:
    """Return the bytes that the records in a file of so many may take unpacked."""
    return max(_ANY_FILE, BOMB_RATIO * size)


def format_of_labels(path: Path) -> str:
    """Return the format of a file of labels by its suffix.

    Raises:
        UsageError: if it names none, or there are pictures in place of labels.
    """
    try:
        return format_of_file(path)
    except UsageError:
        quoted = shlex.quote(str(path))
        if os.path.isdir(path):
            parts = any(each.suffix[1:] in ROW_FORMATS for each in path.iterdir())
            command = "cvt merge" if parts else "cvt classify"
            raise UsageError(
                f"{path} is a folder, not a file of labels",
                hint=f"{command} {quoted} -o labels.csv",
            ) from None
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *RAW_SUFFIXES):
            raise UsageError(
                f"{path} is an image, not a file of labels",
                hint=f"cvt classify {quoted} -o labels.csv",
            ) from None
        if not os.path.exists(path):
            raise UsageError(f"{path} can't be read: no such file") from None
        raise


def read_rows(path: Path) -> Iterator[Record]:
    """Yield the records of a file in the format that its suffix names.

    Raises:
        UsageError: if it is not there, in no format that can be read, or not what it should be.
    """
    writer = writer_class(format_of_labels(path))
    assert issubclass(writer, RowWriter)
    try:
        with path.open("rb") as file:
            yield from writer.documents(file)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {reason_of(error)}") from None
    except ValueError as error:
        raise UsageError(f"{path} can't be read: {error}") from None
