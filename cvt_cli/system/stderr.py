"""Standard error, to which messages go. No run fails because one can't be written."""

import io
import sys
from typing import Any, TextIO


class _Unfailing(io.RawIOBase):
    """A stream that drops what it can't write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream  # keeps its file open
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
        except OSError:  # the reader or the terminal is gone, or the disk is full
            return len(data)
        return written


def open_stderr(stream: TextIO) -> None:
    """Replace standard error by a stream that never fails."""
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(stream)),
        encoding=stream.encoding,
        errors="backslashreplace",  # a file name may hold bytes that are no UTF-8
        line_buffering=True,
    )
