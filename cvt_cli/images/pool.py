"""The pool of reading processes: sources go out in lots, and pixels come back through shared
memory, in order. A process that hangs, crashes or takes too much memory costs only the image it was
reading.

    consumer            pulls sources, waits for the next image in order
    supervisor          a thread: sends lots, collects them, watches the clock and the memory
    server              forks readers; see `worker`
    readers             one for each core

Beside the sources that any process can open, a file say, there are those that only this one can: a
download, standard input, a member of an archive that is a stream. Threads here get their bytes.
"""

import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import Image

from cvt_cli.errors import CvtError, ImageError, NoTemporaryFiles
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import (
    IMAGE_TIMEOUT,
    Bytes,
    Filter,
    Nowhere,
    Place,
    Source,
    failing,
    in_words,
)
from cvt_cli.images.spool import Spooled
from cvt_cli.images.worker import (
    ALIGN,
    HEADER,
    PROGRESS,
    At,
    Job,
    List,
    Listed,
    Lot,
    Needs,
    Passed,
    Read,
    packed,
    receive_files,
    send,
    serve,
)
from cvt_cli.system.cores import DECODE_THREADS, cores
from cvt_cli.system.text import neutral

# Bytes of memory for the large pictures that all readers decode at the same time.
BUDGET = 2**29

# Images of a lot, at most, and the seconds that one should take: long lots cost less, short ones
# spread better.
_LOT = 32
_LOT_SECONDS = 0.1
# Lots that a reader has at a time, so that it need not wait for the next.
_QUEUED = 2
# Bytes for the pixels of a lot.
_SLOT = 2**22
# Bytes of sources that are on their way.
_HELD = 2**26
# A message of up to this many bytes fits into a socket's buffer, however busy the reader is.
_FITS = 2**15
# How often an image is tried that its reader dies of: in a lot of its own after the first time. A
# crash is the image's own fault. Somebody kills a reader for another's memory, or at random: from
# the third time on no other image is read meanwhile, and a small one is tried more often.
_CRASHES = 2
_KILLS = 3
_SMALL_KILLS = 5
# What is lost beside others so often is given up.
_LOSSES = 50
# The exit code of a reader that was killed; Windows knows no such thing.
_KILLED = -getattr(signal, "SIGKILL", 9)
# Seconds beyond the time of an image for which a reader may do nothing.
_GRACE = 10.0
# Seconds that the server may take to end by itself.
_GENTLY = 0.1
# Timeouts that the network may take for an archive, which is tried three times.
_NETWORK = 4

_SLOW_HINT = "raise --image-timeout if you trust it"


@dataclass(slots=True, eq=False)
class _Item:
    """A source on its way through the pool."""

    source: Source
    job: Job
    image: DecodedImage | None = None
    file: BinaryIO | None = None
    size: int = 0
    fetched: float = 0.0
    deaths: int = 0
    losses: int = 0


@dataclass(slots=True, eq=False)
class _Sent:
    """A lot that a reader is working on."""

    number: int
    items: list[_Item]
    slot: int
    sent: float


@dataclass(eq=False)
class _Reader:
    """A reading process, as the supervisor sees it."""

    connection: Connection
    process: Any
    memory: mmap.mmap | None
    job: int = -1
    lots: deque[_Sent] = field(default_factory=deque)
    slots: set[int] = field(default_factory=lambda: set(range(_QUEUED)))
    at: tuple[int, int, float] = (-1, -1, 0.0)
    heard: float = 0.0
    needs: int = 0
    granted: int = 0

    def progress(self) -> tuple[int, int, float]:
        """Return the number of the lot, the image in it, and since when; 0 if it is idle."""
        if self.memory is not None:
            number, index, start = PROGRESS.unpack_from(self.memory)
            return number, index, start
        return self.at


class ReaderPool:
    """A pool of reading processes, started at once: before torch is imported, if it is going to be.

    Args:
        readers: how many, at most; None for one for each core.
        timeout: seconds that an image may take to decode.
        budget: bytes that the large pictures may take that are decoded at once, over all readers;
            one that takes more is decoded alone.
        debug: let codecs write to stderr.

    Raises:
        CvtError: from its methods, if processes can't be started.
    """

    def __init__(
        self,
        readers: int | None = None,
        timeout: float = IMAGE_TIMEOUT,
        *,
        budget: int = BUDGET,
        debug: bool = False,
    ) -> None:
        self.count = readers or cores()
        self.timeout = timeout
        self._budget = budget
        self._share = budget // (2 * self.count)
        self._starter = _starter(debug)
        self._changed = threading.Condition()
        self._pending: deque[_Item] = deque()
        self._readers: list[_Reader] = []
        self._waiting: deque[_Reader] = deque()  # for memory
        self._jobs: dict[int, tuple[Job, int]] = {}
        self._numbers = iter(range(sys.maxsize))
        self._pace = 0.0  # seconds an image
        self._closing = False
        self._failure: Exception | None = None
        self._bell, self._ringer = Pipe(duplex=False)
        self._rung = False
        self._supervisor = threading.Thread(target=self._supervise, name="readers", daemon=True)
        self._supervisor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        with self._changed:
            self._closing = True
        self._ring()
        # Set first, as the supervisor may be waiting for its first reader.
        self._starter.close()
        self._supervisor.join(_GRACE)

    def batches(
        self,
        reader: ImageReader,
        sources: Iterable[Source | Image.Image],
        batch_size: int,
        *,
        columns: Sequence[str] = (),
        thumbnails: bool = False,
        ahead: int = 1,
    ) -> Iterator[list[DecodedImage]]:
        """Yield batches of `batch_size` images, read, in order, as `ImageReader.batches` does;
        `ahead` more batches are read meanwhile."""
        stream = _Stream(
            self, reader, batch_size, columns=columns, thumbnails=thumbnails, ahead=ahead
        )
        return stream.batches(sources)

    def members(
        self,
        path: str,
        kind: str,
        place: Place,
        *,
        seekable: bool,
        wanted: Filter,
        max_bytes: int,
    ) -> Iterator[Source]:
        """List the members of an archive, as `archives.members` does, in a process of its own."""
        try:
            connection, process = self._starter.start(None)
        except OSError as error:
            yield failing(path, f"no process to read it can be started: {error}")
            return
        waits = self.timeout
        if not place.is_local:
            waits += _NETWORK * getattr(place, "timeout", IMAGE_TIMEOUT)
        try:
            asked = List(path, kind, place, seekable, wanted, max_bytes, _folder())
            connection.send(asked)
            while True:
                if not connection.poll(waits):
                    yield failing(path, _too_slow(self.timeout))
                    return
                listed: Listed | NoTemporaryFiles = connection.recv()
                if isinstance(listed, NoTemporaryFiles):
                    raise listed
                if not listed.sources:
                    if listed.skipped is not None:
                        wanted.skipped.add(listed.skipped)
                    return
                yield from _opened(receive_files(connection, listed.sources))
        except (EOFError, OSError):
            status = self._starter.status(process)
            yield failing(path, f"broken archive: {_cause(status)}")
        finally:
            connection.close()
            self._starter.kill(process)

    def open_job(self, reader: ImageReader, columns: Sequence[str], thumbnails: bool) -> Job:
        """Tell the readers what the next images are read for."""
        job = Job(next(self._numbers), reader, tuple(columns), thumbnails, self._share, _folder())
        size = reader.preprocessing.image_size
        fits = _SLOT // (math.prod(size) * 3 + ALIGN) if size is not None else _LOT
        with self._changed:
            self._jobs[job.number] = job, max(1, min(_LOT, fits))
        return job

    def close_job(self, job: Job) -> None:
        """Forget a job whose images nobody waits for any more."""
        with self._changed:
            self._jobs.pop(job.number, None)
            self._pending = deque(item for item in self._pending if item.job is not job)

    def submit(self, items: Sequence[_Item]) -> None:
        """Queue items to be read, in order."""
        with self._changed:
            self._pending.extend(items)
        self._ring()

    def result(self, item: _Item) -> DecodedImage:
        """Wait for the result of an item. Raises: CvtError."""
        if item.image is not None:
            return item.image
        with self._changed:
            while item.image is None:
                if isinstance(self._failure, CvtError):
                    raise self._failure
                if self._failure is not None:
                    raise CvtError(
                        f"the reading processes can't go on: {self._failure}"
                    ) from self._failure
                # Waits are short, because on Windows nothing interrupts them.
                self._changed.wait(1)
        return item.image

    def finish(self, item: _Item, image: DecodedImage) -> None:
        """Finish an item that needs no reader any more."""
        with self._changed:
            item.image = image
            self._changed.notify_all()

    def fail(self, error: CvtError) -> None:
        """Make `result` raise this error for all unfinished items."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    # The supervisor.

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            with suppress(OSError):
                self._ringer.send_bytes(b"\0")

    def _supervise(self) -> None:
        try:
            self._start_reader()
            while not self._closing:
                self._dispatch()
                self._answer()
        except Exception as error:
            with self._changed:
                if not self._closing:
                    self._failure = error
                self._changed.notify_all()
        finally:
            for reader in self._readers:
                self._starter.kill(reader.process)
                reader.connection.close()

    def _start_reader(self) -> None:
        memory = _shared_memory(HEADER + _QUEUED * _SLOT) if self._starter.has_files else None
        shared = mmap.mmap(memory.fileno(), 0) if memory is not None else None
        try:
            connection, process = self._starter.start(memory.fileno() if memory else None)
        finally:
            if memory is not None:
                memory.close()
        self._readers.append(_Reader(connection, process, shared, heard=time.monotonic()))

    def _dispatch(self) -> None:
        """Send pending items to readers that have room for them."""
        while self._pending and not self._must_wait():
            reader = min(self._readers, key=lambda each: len(each.lots), default=None)
            if (reader is None or reader.lots) and len(self._readers) < self.count:
                try:
                    self._start_reader()
                except OSError:
                    if reader is None:
                        raise
                    self.count = len(self._readers)  # the system allows no more
                continue
            assert reader is not None
            if len(reader.lots) >= _QUEUED:
                return
            with self._changed:
                items = self._take()
            if not items:
                return
            if reader.lots and any(item.file is not None or item.size > _FITS for item in items):
                # Sending this could block until the reader reads.
                with self._changed:
                    self._pending.extendleft(reversed(items))
                return
            self._send(reader, items)

    def _must_wait(self) -> bool:
        """Whether the next image, or one that is being read, is to be read while no other is."""
        sent = [lot.items[0].deaths for reader in self._readers for lot in reader.lots]
        with self._changed:
            following = self._pending[0].deaths if self._pending else 0
        return bool(sent) and max(following, *sent) >= _KILLS - 1

    def _take(self) -> list[_Item]:
        """Take the next lot."""
        pending = self._pending
        if not pending:
            return []
        first = pending.popleft()
        if first.deaths:
            return [first]
        limit = self._jobs[first.job.number][1] if first.job.number in self._jobs else 1
        pace = int(_LOT_SECONDS / self._pace) if self._pace else 1
        limit = min(limit, max(1, pace), max(1, len(pending) // (2 * self.count)))
        items, size = [first], first.size
        while len(items) < limit and pending:
            item = pending[0]
            size += item.size
            if item.job is not first.job or item.deaths or size > _FITS or item.file is not None:
                break
            items.append(pending.popleft())
        return items

    def _send(self, reader: _Reader, items: list[_Item]) -> None:
        lot = _Sent(next(self._numbers), items, reader.slots.pop(), time.monotonic())
        reader.lots.append(lot)
        if len(reader.lots) == 1:
            reader.heard = lot.sent
        job = items[0].job
        sources, files = [], []
        for item in items:
            place = item.source.place
            if item.file is not None:
                if self._starter.has_files:
                    files.append(item.file.fileno())
                    place = Passed(len(files) - 1)
                else:
                    item.file.seek(0)
                    place = Bytes(item.file.read())
            sources.append(replace(item.source, place=place))
        try:
            if reader.job != job.number:
                reader.connection.send(job)
                reader.job = job.number
            start = HEADER + lot.slot * _SLOT
            message = Lot(lot.number, job.number, tuple(sources), start, _SLOT, len(files))
            send(reader.connection, message, tuple(files))
        except OSError:
            self._bury(reader)

    def _answer(self) -> None:
        """Wait for the readers, or for a wake-up call."""
        by_connection = {reader.connection: reader for reader in self._readers}
        ready = wait([self._bell, *by_connection], self._patience())
        for connection in ready:
            if connection is self._bell:
                self._bell.recv_bytes()
                self._rung = False
                continue
            reader = by_connection[connection]  # type: ignore[index]
            try:
                self._hear(reader, reader.connection.recv())
            except (EOFError, OSError):
                self._bury(reader)
        now = time.monotonic()
        for reader in list(self._readers):
            self._check_time(reader, now)

    def _patience(self) -> float | None:
        """Return the seconds until the first reader may be late."""
        late = min((self._due(each) for each in self._readers if each.lots), default=math.inf)
        return max(0.0, late - time.monotonic()) if late < math.inf else None

    def _due(self, reader: _Reader) -> float:
        """Return the time at which a reader is late."""
        if reader in self._waiting:
            return math.inf
        *_, start = reader.progress()
        # A reader between two images waits for nothing.
        return (start or reader.heard + _GRACE) + self.timeout

    def _check_time(self, reader: _Reader, now: float) -> None:
        if not reader.lots or now < self._due(reader):
            return
        self._starter.kill(reader.process)
        # What it had sent before counts.
        with suppress(EOFError, OSError):
            while reader.connection.poll():
                self._hear(reader, reader.connection.recv())
        start = reader.progress()[2]
        self._bury(reader, late=start != 0 and now - start >= self.timeout)

    def _hear(self, reader: _Reader, message: Any) -> None:
        reader.heard = time.monotonic()
        if isinstance(message, NoTemporaryFiles):
            raise message
        if isinstance(message, At):
            reader.at = message.lot, message.index, reader.heard
        elif isinstance(message, Needs):
            reader.at = *reader.at[:2], 0.0
            reader.needs = message.size
            reader.granted = 0
            if message.size:
                self._waiting.append(reader)
            self._grant()
        else:
            assert isinstance(message, Read)
            self._collect(reader, message)

    def _grant(self) -> None:
        """Let waiting readers go on, in turn, as far as the memory allows."""
        while self._waiting:
            first = self._waiting[0]
            granted = sum(reader.granted for reader in self._readers)
            if granted and granted + first.needs > self._budget // 2:
                return
            self._waiting.popleft()
            first.granted = first.needs
            first.heard = time.monotonic()
            with suppress(OSError):  # its death is noticed anyway
                first.connection.send(None)

    def _collect(self, reader: _Reader, read: Read) -> None:
        lot = reader.lots.popleft()
        assert lot.number == read.lot
        reader.slots.add(lot.slot)
        reader.at = -1, -1, 0.0
        pace = read.seconds / len(lot.items)
        self._pace = 0.7 * self._pace + 0.3 * pace if self._pace else pace
        start, block = HEADER + lot.slot * _SLOT, None
        ends = [
            pixels[0] + pixels[1] * pixels[2] * 3
            for *_, pixels in read.images
            if isinstance(pixels, tuple)
        ]
        if ends and reader.memory is not None:
            # One copy of all pixels, so that the reader can reuse its memory.
            block = np.frombuffer(reader.memory, np.uint8, max(ends) - start, start).copy()
        for item, (error, columns, thumbnail, found) in zip(lot.items, read.images, strict=True):
            pixels = found
            if isinstance(found, tuple):
                assert block is not None
                offset, height, width = found
                flat = block[offset - start : offset - start + height * width * 3]
                pixels = flat.reshape(height, width, 3)
            if "seconds" in columns:
                columns["seconds"] = round(columns["seconds"] + item.fetched, 6)
            item.image = DecodedImage(item.source.path, pixels, error, columns, thumbnail)
            _close(item)
        with self._changed:
            self._changed.notify_all()

    def _bury(self, reader: _Reader, late: bool = False) -> None:
        """Handle a dead reader: the image that it died of is tried once more, or gets that for its
        error; the rest of its lot is done again."""
        if reader not in self._readers:
            return
        self._readers.remove(reader)
        with suppress(ValueError):
            self._waiting.remove(reader)
        self._starter.kill(reader.process)
        reader.connection.close()
        number, index, start = reader.progress()
        status = self._starter.status(reader.process) if not late else None
        killed = _KILLS if reader.granted else _SMALL_KILLS
        most = killed if status == _KILLED else _CRASHES
        again = []
        for lot in reader.lots:
            for place, item in enumerate(lot.items):
                guilty = lot.number == number and place == index and start != 0
                if guilty:
                    item.deaths += 1
                elif not start:
                    item.losses += 1
                if guilty and late:
                    self._give_up(item, in_words(_too_slow(self.timeout)))
                elif (guilty and item.deaths >= most) or item.losses >= _LOSSES:
                    self._give_up(item, f"broken image: {_cause(status)}")
                else:
                    again.append(item)
        with self._changed:
            wanted = [item for item in again if item.job.number in self._jobs]
            self._pending.extendleft(reversed(wanted))
        if reader.memory is not None:
            with suppress(BufferError):
                reader.memory.close()
        self._grant()

    def _give_up(self, item: _Item, error: str) -> None:
        _close(item)
        self.finish(item, DecodedImage(item.source.path, error=error))


class _Stream:
    """The images of one call of `ReaderPool.batches`."""

    def __init__(
        self,
        pool: ReaderPool,
        reader: ImageReader,
        batch_size: int,
        *,
        columns: Sequence[str],
        thumbnails: bool,
        ahead: int,
    ) -> None:
        self._pool = pool
        self._reader = reader
        self._batch_size = batch_size
        self._columns = columns
        self._thumbnails = thumbnails
        self._window = (1 + ahead) * batch_size
        self._items: deque[_Item] = deque()
        self._fetchers: ThreadPoolExecutor | None = None

    def batches(self, sources: Iterable[Source | Image.Image]) -> Iterator[list[DecodedImage]]:
        """Yield the batches; see `ReaderPool.batches`."""
        stream = iter(sources)
        self._job = self._pool.open_job(self._reader, self._columns, self._thumbnails)
        try:
            while True:
                batch: list[DecodedImage] = []
                while len(batch) < self._batch_size:
                    self._fill(stream, self._window - len(batch))
                    if not self._items:
                        break
                    item = self._items.popleft()
                    batch.append(self._pool.result(item))
                if not batch:
                    return
                yield batch
        finally:
            self._pool.close_job(self._job)
            if self._fetchers is not None:
                # Don't wait for threads that may be reading from a server that never answers.
                self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _fill(self, stream: Iterator[Source | Image.Image], window: int) -> None:
        """Have sources read until enough of them, or of their bytes, are on their way."""
        if len(self._items) >= window:
            return
        ready: list[_Item] = []
        held = sum(item.size for item in self._items if item.image is None)
        while len(self._items) < window and held <= _HELD:
            source = next(stream, None)
            if source is None:
                break
            if isinstance(source, Image.Image):
                item = _Item(failing("", ""), self._job)
                self._later(self._read_here, item, source)
            else:
                item = _Item(source, self._job)
                place = source.place
                if isinstance(place, Nowhere):
                    error = in_words(ImageError(place.message, place.hint))
                    item.image = DecodedImage(source.path, error=error)
                elif place.is_local:
                    ready.append(item)
                elif isinstance(place, Bytes | Spooled):
                    self._take_file(item)
                    held += item.size
                    if item.image is None:
                        ready.append(item)
                else:
                    self._later(self._fetch, item)
            self._items.append(item)
        if ready:
            self._pool.submit(ready)

    def _later(self, work: Any, *arguments: Any) -> None:
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(DECODE_THREADS, "fetch")
        self._fetchers.submit(work, *arguments)

    def _read_here(self, item: _Item, image: Image.Image) -> None:
        read = self._reader.read(image, self._columns, with_thumbnail=self._thumbnails)
        self._pool.finish(item, read)

    def _fetch(self, item: _Item) -> None:
        start = time.perf_counter()
        self._take_file(item)
        item.fetched = time.perf_counter() - start
        if item.image is None:
            self._pool.submit([item])

    def _take_file(self, item: _Item) -> None:
        """Get the bytes of a source that only this process can open."""
        files: list[BinaryIO] = []
        error = None
        try:
            place = packed(item.source.place, files)
        except NoTemporaryFiles as problem:
            self._pool.fail(problem)
            return
        except ImageError as problem:
            error = in_words(problem)
        except OSError as problem:
            error = str(problem)
        if error is not None:
            self._pool.finish(item, DecodedImage(item.source.path, error=error))
        elif files:
            item.file = files[0]
            item.size = os.fstat(item.file.fileno()).st_size
        elif isinstance(place, Bytes):
            item.source = replace(item.source, place=place)
            item.size = len(place.data)


def _folder() -> str:
    with suppress(OSError):
        return os.getcwd()
    return "."


def _close(item: _Item) -> None:
    if item.file is not None:
        item.file.close()
        item.file = None


def _opened(sources: Iterable[Source]) -> Iterator[Source]:
    """Give each handed-over file a spool, and close those that nobody opened."""
    for source in sources:
        place = source.place
        yield source if not hasattr(place, "handle") else replace(source, place=_File(place))


class _File:
    """A place that is a handed-over file; closed with this object unless it was opened."""

    is_local = False

    def __init__(self, place: Place) -> None:
        self._file: BinaryIO | None = place.open()

    def open(self) -> BinaryIO:
        """Return the file. Raises: ImageError if it was opened before."""
        if self._file is None:
            raise ImageError("can be read only once")
        file, self._file = self._file, None
        return file

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _too_slow(timeout: float) -> ImageError:
    return ImageError(f"takes longer than the limit of {timeout:g} s", _SLOW_HINT)


def _cause(status: int | None) -> str:
    """Describe what a reader died of, by its exit code."""
    if status is None or status >= 0:
        return "the process that read it died"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            return "the process that read it was killed, as the system does where memory runs out"
        return f"the process that read it crashed ({name})"
    return f"the process that read it died of signal {-status}"


def _shared_memory(size: int) -> BinaryIO | None:
    """Make a nameless file with reserved blocks; None if there is no room, because writing to
    memory that can't be had would kill the process."""
    try:
        if hasattr(os, "memfd_create"):
            file = os.fdopen(os.memfd_create("cvt-pixels", os.MFD_CLOEXEC), "w+b")
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (who asked closes it)
    except OSError:
        return None
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (OSError, AttributeError):
        file.close()
        return None
    return file


class _ForkServer:
    """Starts readers by forking a process that has imported what they need."""

    has_files = True

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._start_server()

    def _start_server(self) -> None:
        ours, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from cvt_cli.images.worker import serve_readers; "
            f"serve_readers({theirs.fileno()}, {self._debug})"
        )
        # Only a process with one thread can fork safely.
        alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # What a codec says may be made of what is in the file.
        seen = self._debug and sys.stderr.isatty()
        unseen = None if self._debug else subprocess.DEVNULL
        stderr = subprocess.PIPE if seen else unseen
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **alone},
            )
        if self._server.stderr is not None:
            threading.Thread(target=_show, args=[self._server.stderr], daemon=True).start()
        self._control = ours
        # The server ends when its socket is closed, whatever becomes of this object.
        weakref.finalize(self, _end, self._server, ours)

    def start(self, memory: int | None) -> tuple[Connection, int]:
        """Start a reader. Raises: OSError."""
        with self._lock:
            try:
                connection, process = self._start(memory)
            except (EOFError, OSError):
                if self._closed:
                    raise OSError("the pool is closed") from None
                self._start_server()  # it was killed
                try:
                    connection, process = self._start(memory)
                except EOFError:
                    raise OSError("their server ends at once") from None
        if process < 0:
            connection.close()
            raise OSError(-process, os.strerror(-process))
        return connection, process

    def _start(self, memory: int | None) -> tuple[Connection, int]:
        ours, theirs = Pipe()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self._control.send(None)
            reduction.send_handle(self._control, theirs.fileno(), None)
            reduction.send_handle(self._control, null if memory is None else memory, None)
            process: int = self._control.recv()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(null)
        return ours, process

    def kill(self, process: int) -> None:
        """End a reader that has not ended yet."""
        if self._closed:
            return  # all end with the server
        # TypeError: another thread closes the connection just now.
        with self._lock, suppress(OSError, TypeError):
            self._control.send(-process)

    def status(self, process: int) -> int | None:
        """Return the exit code of a reader that has ended; None if it is unknown."""
        with self._lock, suppress(EOFError, OSError):
            self._control.send(process)
            code: int | None = self._control.recv()
            return code
        return None

    def close(self) -> None:
        """End the server, and with it all readers."""
        assert self._server is not None
        self._closed = True
        _end(self._server, self._control)


def _show(lines: Iterable[bytes]) -> None:
    """Write what codecs say to a terminal."""
    for line in lines:
        sys.stderr.write(neutral(line.decode("utf-8", "backslashreplace")))


def _end(server: "subprocess.Popen[bytes]", control: Connection) -> None:
    control.close()
    try:
        server.wait(_GENTLY)
    except subprocess.TimeoutExpired:
        # It may still be importing. The system ends its readers with it.
        server.kill()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE)


class _Spawner:
    """Starts readers as new processes, on systems without a fork server."""

    has_files = False

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        self._context = get_context("spawn")
        self._lock = threading.Lock()

    def start(self, memory: int | None) -> tuple[Connection, Any]:
        """Start a reader. Raises: OSError."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(theirs, memory, self._debug), daemon=True
        )
        # It would import the main program, and run a script that has no guard.
        with self._lock, theirs:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                process.start()
            finally:
                sys.modules["__main__"] = main
        return ours, process

    def kill(self, process: Any) -> None:
        """End a reader."""
        process.kill()

    def status(self, process: Any) -> int | None:
        """Return the exit code of a reader that has ended; None if it is unknown."""
        process.join(_GRACE)
        code: int | None = process.exitcode
        return code

    def close(self) -> None:
        """Do nothing: there is no server to end."""


def _starter(debug: bool) -> "_ForkServer | _Spawner":
    return _ForkServer(debug) if sys.platform == "linux" else _Spawner(debug)
