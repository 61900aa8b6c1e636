"""Reading processes, and the server that starts them. Imports neither torch nor pyarrow.

The server is a process with one thread that has imported what reading takes, so that to start a
reader is a fork of a few milliseconds, and never a fork of the driver with torch's threads. It ends
with the driver, however that ends, and takes the readers with it.
"""

import errno
import importlib
import mmap
import os
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images import formats
from cvt_cli.images.reading import ImageReader
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Bytes, Filter, Place, Source, failing
from cvt_cli.system.temporary import temporary_file, writing_temporary_files

# The progress of a reader, shared with the driver: the number of the lot, the image in it, and
# since when by the system's monotonic clock; 0 while it is idle.
PROGRESS = struct.Struct("<qqd")
HEADER = 64
ALIGN = 64

# Bytes beyond those of an image's pixels: the encoded image, and what the allocator keeps.
_SPARE = 2**27
# Bytes for the directory of an archive. pyarrow reserves far more than it uses.
_ARCHIVE_MEMORY = 2**30
_PARQUET_MEMORY = 2**33
_PARQUET_DATA = 9 * 2**27
# Members that are sent at once, if each is a mere place in the archive.
_MEMBERS = 64
# Seconds to wait for a process to end: it may hang in the kernel.
_REAP_SECONDS = 0.5
# Bytes that are sent in a message; more go as an open file.
SMALL_BYTES = 2**20

MEMORY = "more memory than the {} MB that a reader may have for it"
MEMORY_HINT = "raise --max-pixels if you trust the file"


@dataclass(frozen=True, slots=True)
class Job:
    """The task that lots are read for.

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
    """Images to read.

    Attributes:
        start, size: of the part of the shared memory that their pixels may have.
        files: that come after this, for the places that are `Passed`.
    """

    number: int
    job: int
    sources: tuple[Source, ...]
    start: int
    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A place whose open file is sent along with it."""

    index: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Nobody has taken the file yet."""
        raise AssertionError


@dataclass(frozen=True, slots=True)
class Handed:
    """A place that is an open file of this process, to be opened once."""

    handle: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """It, from its start."""
        file = os.fdopen(self.handle, "rb")
        file.seek(0)
        return file


@dataclass(frozen=True, slots=True)
class Needs:
    """A message: a reader waits for this many bytes of the shared memory budget until it is told to
    go on; 0 returns them."""

    size: int


@dataclass(frozen=True, slots=True)
class At:
    """A message: the reader begins an image of a lot. Sent if there is no shared memory."""

    lot: int
    index: int


@dataclass(frozen=True, slots=True)
class Read:
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
class List:
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
class Listed:
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
        replace(source, place=Handed(reduction.recv_handle(connection)))
        if isinstance(source.place, Passed)
        else source
        for source in sources
    )


def serve_readers(control: int, debug: bool) -> None:
    """Run the server: start readers on request, until the driver is gone.

    Args:
        control: the socket to the driver.
        debug: let them write to stderr.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the driver decides
    formats.register()
    die_with_parent = _death_signal()
    driver: Connection = Connection(control)
    alive: set[int] = set()
    ended: dict[int, int] = {}
    with suppress(EOFError, OSError):
        while True:
            asked = driver.recv()
            _reap(alive, ended)
            if asked is None:
                process = _fork(driver, die_with_parent, debug)
                if process > 0:
                    alive.add(process)
                driver.send(process)
            elif asked < 0:  # end one; until it is reaped here no other has its number
                if -asked in alive:
                    os.kill(-asked, signal.SIGKILL)
            else:  # how did one end?
                end = time.monotonic() + _REAP_SECONDS
                while asked in alive and asked not in ended and time.monotonic() < end:
                    time.sleep(0.002)
                    _reap(alive, ended)
                driver.send(ended.pop(asked, None))
    for process in alive:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _fork(driver: Connection, die_with_parent: Callable[[], None], debug: bool) -> int:
    """Start a reader, with the connection and the file of shared memory that follow.

    Returns:
        Its number; that of the error, below zero, if there can't be one.
    """
    handles = [reduction.recv_handle(driver) for _ in range(2)]
    try:
        process = os.fork()
    except OSError as error:
        process = -(error.errno or errno.EAGAIN)
    if process == 0:
        try:
            die_with_parent()
            driver.close()
            shared = os.fstat(handles[1]).st_size > 0
            serve(Connection(handles[0]), handles[1] if shared else None, debug)
        finally:
            os._exit(0)
    for handle in handles:
        os.close(handle)
    return process


def _reap(alive: set[int], ended: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            alive.discard(found[0])
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])


def _death_signal() -> Callable[[], None]:
    """Make the system end this process with its parent, if it can."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)

    return ask


def serve(connection: Connection, memory: int | None, debug: bool) -> None:
    """Run a reader: do what the driver sends, until it is gone.

    Args:
        memory: the file of the shared memory; None if there is none.
        debug: let codecs write to stderr.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1) if debug else (0, 1, 2):
        os.dup2(null, stream)
    with suppress(EOFError, OSError):
        _Reader(connection, memory).run()


class _Reader:
    """The loop of a reading process."""

    def __init__(self, connection: Connection, memory: int | None) -> None:
        self._driver = connection
        self._shared = mmap.mmap(memory, 0) if memory is not None else None
        self._queue: deque[Any] = deque()
        self._job: Job | None = None
        self._limits = _Limits()
        self._now = (0, 0)
        self._holds = False

    def run(self) -> None:
        while True:
            message = self._queue.popleft() if self._queue else self._next()
            if isinstance(message, Job):
                self._job = message
                message.reader.admit = self._admit
                self._limits.max_pixels = message.reader.max_pixels
                _enter(message.folder)
            elif isinstance(message, Lot):
                self._answer(self._read, message)
            else:
                self._answer(self._list, message)

    def _answer(self, work: Callable[[Any], Any], message: Any) -> None:
        """Send what comes of it, or what ends the run."""
        try:
            self._driver.send(work(message))
        except NoTemporaryFiles as error:
            self._driver.send(error)

    def _next(self) -> Any:
        message = self._driver.recv()
        if isinstance(message, Lot) and message.files:
            return replace(message, sources=receive_files(self._driver, message.sources))
        return message

    def _read(self, lot: Lot) -> Read:
        assert self._job is not None
        job, start = self._job, time.monotonic()
        images: list[tuple[str | None, dict[str, Any], bytes | None, Any]] = []
        offset, end = lot.start, lot.start + lot.size
        for index, source in enumerate(lot.sources):
            self._now = lot.number, index
            self._begin()
            self._limits.set(None)
            image = job.reader.read(source, job.columns, with_thumbnail=job.thumbnails)
            pixels: Any = image.pixels
            if image.out_of_memory:
                image.error = f"{MEMORY.format(self._limits.room >> 20)}; {MEMORY_HINT}"
            if pixels is not None and self._shared is not None and offset + pixels.nbytes <= end:
                place = np.frombuffer(self._shared, np.uint8, pixels.nbytes, offset)
                np.copyto(place.reshape(pixels.shape), pixels)
                pixels = offset, *pixels.shape[:2]
                offset += -(-place.nbytes // ALIGN) * ALIGN
                del place
            images.append((image.error, image.columns, image.thumbnail, pixels))
            if self._holds:
                self._holds = False
                self._driver.send(Needs(0))
        self._pause()
        return Read(lot.number, images, time.monotonic() - start)

    def _begin(self) -> None:
        if self._shared is not None:
            PROGRESS.pack_into(self._shared, 0, *self._now, time.monotonic())
        else:
            self._driver.send(At(*self._now))

    def _pause(self) -> None:
        if self._shared is not None:
            PROGRESS.pack_into(self._shared, 0, *self._now, 0.0)

    def _admit(self, image: Image.Image, size: tuple[int, int]) -> None:
        """Ask for the memory that an image takes, if that is much, and wait until it is there."""
        assert self._job is not None
        self._limits.set(image.format)
        needed = formats.memory(image, size)
        if needed <= self._job.share:
            return
        self._pause()
        self._holds = True
        self._driver.send(Needs(needed))
        while (message := self._next()) is not None:
            self._queue.append(message)
        self._begin()

    def _list(self, asked: List) -> Listed:
        self._limits.set_room(_PARQUET_MEMORY if asked.kind == "parquet" else _ARCHIVE_MEMORY)
        if asked.kind == "parquet":
            self._limits.set_data(_PARQUET_DATA)
        _enter(asked.folder)
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
        asked.wanted.skipped = Skipped()
        try:
            for sources in _lots(_members(asked)):
                self._send_listed(sources)
        except MemoryError:
            self._send_listed([failing(asked.path, "out of memory: a broken archive?")])
        return Listed((), skipped=asked.wanted.skipped)

    def _send_listed(self, sources: list[Source]) -> None:
        files: list[BinaryIO] = []
        sent = []
        for source in sources:
            here = not source.place.is_local
            place = packed(source.place, files) if here else source.place
            sent.append(replace(source, place=place))
        handles = tuple(file.fileno() for file in files)
        send(self._driver, Listed(tuple(sent), len(handles)), handles)
        for file in files:
            file.close()


def _enter(folder: str) -> None:
    # Opening a path reports that the folder can't be entered.
    with suppress(OSError):
        os.chdir(folder)


def _members(asked: List) -> Iterator[Source]:
    archives = importlib.import_module("cvt_cli.images.archives")
    found: Iterator[Source] = archives.members(
        asked.path,
        asked.kind,
        asked.place,
        seekable=asked.seekable,
        wanted=asked.wanted,
        max_bytes=asked.max_bytes,
    )
    for source in found:
        # Only this process can read its own open file.
        if source.place.is_local:
            yield source
            continue
        try:
            with source.open() as file:
                yield replace(source, place=Held(file))
        except ImageError as error:
            yield failing(source.path, error)


@dataclass(frozen=True, slots=True)
class Held:
    """A place that is an open file, before it is sent."""

    file: BinaryIO
    is_local: bool = False

    def open(self) -> BinaryIO:
        """The file."""
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
    return Passed(len(files) - 1)


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


def _lots(sources: Iterator[Source]) -> Iterator[list[Source]]:
    """Group members: several at once if they are mere places, one by one if they carry bytes."""
    lot: list[Source] = []
    for source in sources:
        lot.append(source)
        if len(lot) >= _MEMBERS or not source.place.is_local:
            yield lot
            lot = []
    if lot:
        yield lot


class _Limits:
    """The memory that this process may have, on systems that limit it (not macOS or Windows).

    Attributes:
        max_pixels: of an image.
        room: bytes that it may take now, beyond what the process has had from the start.
    """

    def __init__(self) -> None:
        self.max_pixels = 0
        self.room = 0
        self._base = 0
        self._set: Callable[[int], None] | None = None
        if sys.platform != "linux":
            return
        import resource

        with suppress(OSError), open("/proc/self/statm", "rb") as file:
            self._base = int(file.read().split()[0]) * mmap.PAGESIZE
            _, hard = resource.getrlimit(resource.RLIMIT_AS)

            def limit(size: int) -> None:
                if hard != resource.RLIM_INFINITY:
                    size = min(size, hard)
                with suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_AS, (size, hard))

            self._set = limit

    def set(self, name: str | None) -> None:
        """Set the limit for an image of this format, or of one that is not known yet."""
        self.set_room(formats.bytes_per_pixel(name) * self.max_pixels + _SPARE)

    def set_data(self, room: int) -> None:
        """Allow this many bytes for what it writes to, whatever it reserves. For good: a process
        that lists an archive does nothing else."""
        if self._set is None:
            return
        import resource

        with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
            size = int(file.read().split()[5]) * mmap.PAGESIZE + room
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))

    def set_room(self, room: int) -> None:
        """Set the limit to this many bytes more than the process had when it started."""
        if room != self.room:
            self.room = room
            if self._set is not None:
                self._set(self._base + room)
