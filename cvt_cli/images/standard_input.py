"""Standard input, and other files that this process has open, as the place of an image."""

import errno
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.source import os_reason

STDIN = "-"
# Redirections of the shell: they are open already, and can be read once.
OPEN_FILE = re.compile(r"/dev/stdin|/dev/fd/[0-9]+")


def open_stdin() -> BinaryIO:
    """Return standard input, binary. Raises: ImageError if it is closed."""
    closed = sys.stdin is None
    if not closed:
        try:
            os.read(sys.stdin.buffer.fileno(), 0)
        except OSError as error:  # also if there is no file number, as in a notebook
            closed = error.errno == errno.EBADF
    if closed:
        raise ImageError("standard input is closed")
    return sys.stdin.buffer


@dataclass(frozen=True, slots=True)
class PipedInput:
    """A place to be read once: standard input, or a file that this process has open."""

    path: str
    max_bytes: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Read all of it. Raises: ImageError."""
        from cvt_cli.images.spool import Spool

        spool = Spool(self.max_bytes)
        try:
            if self.path in (STDIN, "/dev/stdin", "/dev/fd/0"):
                spool.copy(open_stdin())
            else:
                with Path(self.path).open("rb") as file:
                    spool.copy(file)
        except OSError as error:
            raise ImageError(os_reason(error)) from None
        return spool.take()
