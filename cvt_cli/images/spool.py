"""Spools: temporary storage for bytes of unknown number."""

import io
from contextlib import suppress
from typing import BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.source import Bytes, too_large
from cvt_cli.system.temporary import temporary_file, writing_temporary_files

# Bytes kept in memory; more go to the disk, as many inputs are on their way at a time.
IN_MEMORY = 2**23
CHUNK = 2**18


class Spool:
    """Stores bytes in memory, beyond 8 MiB in a temporary file, and refuses more than a limit.

    Attributes:
        received: bytes so far.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.received = 0
        self._limit = limit
        self._file: BinaryIO | None = io.BytesIO()

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            ImageError: past the limit.
            NoTemporaryFiles: if the disk is full.
        """
        if self._file is None:
            raise ValueError("nobody waits for this any more")
        if self.received + len(chunk) > self._limit:
            raise too_large(self._limit)
        if self.received <= IN_MEMORY < self.received + len(chunk):
            start = self._file
            self._file = temporary_file()
            start.seek(0)
            with writing_temporary_files():
                self._file.write(start.read())
        with writing_temporary_files():
            self._file.write(chunk)
        self.received += len(chunk)

    def copy(self, stream: BinaryIO) -> None:
        """Append all bytes of a stream."""
        while chunk := stream.read(CHUNK):
            self.write(chunk)

    def take(self) -> BinaryIO:
        """Hand over the file, at its start. Whoever takes it closes it.

        Raises:
            ImageError: if it was taken before.
            NoTemporaryFiles: if the disk is full.
        """
        if self._file is None:
            raise ImageError("can be read only once")
        file, self._file = self._file, None
        with writing_temporary_files():  # flushes
            file.seek(0)
        return file

    def close(self) -> None:
        """Discard everything, unless it was taken."""
        if self._file is not None:
            with suppress(OSError):  # flushing fails if the disk is full
                self._file.close()
            self._file = None

    # A source that nobody opened must not leave its temporary file behind.
    __del__ = close


class Spooled:
    """A place whose bytes are in a spool, to be opened once.

    Attributes:
        size: bytes.
    """

    is_local = False

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.size = spool.received

    def open(self) -> BinaryIO:
        """Return the file. Raises: ImageError if it was opened before."""
        return self._spool.take()

    def __reduce__(self) -> tuple[type[Bytes], tuple[bytes]]:
        """Another process gets the bytes."""
        with self.open() as file:
            return Bytes, (file.read(),)
