"""Messages between the driver and its reading processes, and the open files that go with them."""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

from cvt_cli.images.reading import ImageReader
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Bytes, Filter, Place, Source
from cvt_cli.system.temporary import temporary_file, writing_temporary_files

# The progress of a reader, shared with the driver: the number of the lot, the image in it, and
# since when by the system's monotonic clock, waits for memory left out; 0 while it is idle.
PROGRESS = struct.Struct("<qqd")
# Bytes of the shared memory before the pixels, where the progress is.
HEADER = 64
# The pixels of an image start at a multiple of so many bytes.
ALIGN = 64
# Bytes that are sent in a message; more go as an open file.
SMALL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """A message: the task that the following lots are read for.

    Attributes:
        share: bytes that an image may take without asking.
        folder: that relative paths start from.
    """

    number: int
    reader: ImageReader
    columns: tuple[str, ...]
    thumbnails: bool
    share: int
    folder: str


@dataclass(frozen=True, slots=True)
class Lot:
    """A message: images to read.

    Attributes:
        start, size: of the part of the shared memory that their pixels may have.
        files: that come after this, for the places that are `SentFile`.
    """

    number: int
    task: int
    sources: tuple[Source, ...]
    start: int
    size: int
    files: int


@dataclass(frozen=True, slots=True)
class SentFile:
    """A place whose open file is sent along with it."""

    index: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Fail: nobody has received the file yet."""
        raise AssertionError


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A place that is an open file of this process, to be opened once."""

    handle: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Return the file, at its start."""
        file = os.fdopen(self.handle, "rb")
        file.seek(0)
        return file


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """A message: a reader waits for this many bytes of the shared memory budget until it is told to
    go on; 0 returns them.

    Attributes:
        spent: seconds that the image has taken before.
    """

    size: int
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageBegun:
    """A message: the reader begins an image of a lot, or goes on with it.

    Sent if there is no shared memory.

    Attributes:
        spent: seconds that the image has taken before.
    """

    lot: int
    index: int
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class LotRead:
    """A message: the results of a lot.

    Attributes:
        images: (error, columns, thumbnail, pixels) each; pixels are an array, or (offset, height,
            width) in the shared memory, or None.
        seconds: in all.
    """

    lot: int
    images: list[tuple[str | None, dict[str, Any], bytes | None, Any]]
    seconds: float


@dataclass(frozen=True, slots=True)
class ArchiveToList:
    """A message: an archive to list, with the arguments of `archives.members` and the folder that
    relative paths start from."""

    path: str
    kind: str
    place: Place
    seekable: bool
    wanted: Filter
    max_bytes: int
    folder: str


@dataclass(frozen=True, slots=True)
class MembersFound:
    """A message: some members of an archive; at the end, none, and what was left out."""

    sources: tuple[Source, ...]
    files: int = 0
    skipped: Skipped | None = None


def send(connection: Connection, message: Any, files: tuple[int, ...] = ()) -> None:
    """Send a message and open files."""
    connection.send(message)
    for file in files:
        reduction.send_handle(connection, file, None)


def receive_files(connection: Connection, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Put the files that were sent with sources into their places."""
    return tuple(
        replace(source, place=ReceivedFile(reduction.recv_handle(connection)))
        if isinstance(source.place, SentFile)
        else source
        for source in sources
    )


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A place that is an open file, before it is sent."""

    file: BinaryIO
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Return the file."""
        return self.file


def packed(place: Place, files: list[BinaryIO]) -> Place:
    """Turn a place of this process into one that can be sent: small bytes, or a file, which is
    appended to `files`. Raises: ImageError, NoTemporaryFiles."""
    if isinstance(place, Bytes) and len(place.data) <= SMALL_BYTES:
        return place
    file = place.open()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= SMALL_BYTES:
        with file:
            return Bytes(file.read())
    files.append(on_disk(file))
    return SentFile(len(files) - 1)


def on_disk(file: BinaryIO) -> BinaryIO:
    """Return a file with a file number and the same bytes."""
    with suppress(OSError):
        file.fileno()
        return file
    copy = temporary_file()
    with file:
        while chunk := file.read(SMALL_BYTES):
            with writing_temporary_files():
                copy.write(chunk)
    with writing_temporary_files():
        copy.flush()
    return copy
