"""Temporary files. If they can't be written, no input is to blame, and the run ends."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from cvt_cli.errors import NoTemporaryFiles
from cvt_cli.system.text import reason_of


def temporary_file() -> BinaryIO:
    """Open a nameless file, deleted when it is closed.

    Raises:
        NoTemporaryFiles: if there can't be one.
    """
    with writing_temporary_files():
        return tempfile.TemporaryFile()


@contextlib.contextmanager
def writing_temporary_files() -> Iterator[None]:
    """Raise NoTemporaryFiles for an OSError in the block, which must write to nothing else.

    Raises:
        NoTemporaryFiles: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "any folder"
        raise NoTemporaryFiles(
            f"temporary files can't be written in {folder}: {reason_of(error)}",
            hint="make room there, or set TMPDIR to another folder",
        ) from None
