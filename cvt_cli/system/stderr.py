"""Standard error: where messages go, none of which is worth a run."""

import io
import sys
from typing import Any, TextIO


class _Unfailing(io.RawIOBase):
    """A stream that drops what can't be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream  # closes its file when nothing refers to it
        self._raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, data: Any) -> int:
        try:
            written: int = self._raw.write(data)
        except OSError:  # its reader or terminal has gone, or its disk is full
            return len(data)
        return written


def open_stderr(stream: TextIO) -> None:
    """Write messages there from now on."""
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(stream)),
        encoding=stream.encoding,
        errors="backslashreplace",  # a file name may hold bytes that are no UTF-8
        line_buffering=True,
    )
