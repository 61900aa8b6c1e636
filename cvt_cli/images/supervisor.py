"""The supervisor of the reading processes: a thread between them and who waits for images."""

import math
import mmap
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, BinaryIO

import numpy as np

from cvt_cli.errors import CvtError, ImageError, NoTemporaryFiles
from cvt_cli.images.reader_messages import (
    ALIGN,
    HEADER,
    PROGRESS,
    ImageBegun,
    Lot,
    LotRead,
    MemoryNeeded,
    ReadingTask,
    SentFile,
    send,
)
from cvt_cli.images.reader_processes import GRACE, cause_of_death, process_starter, shared_memory
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Bytes, Source, in_words
from cvt_cli.system.cores import cores
from cvt_cli.system.text import reason_of

# Bytes of memory for the large pictures that all readers decode at the same time.
BUDGET = 2**29
# Images of a lot, at most, and the seconds that one should take: long lots cost less, short ones
# spread better.
_LOT = 32
_LOT_SECONDS = 0.1
_SHORT_SECONDS = 0.002
# Lots that a reader has at a time, so that it need not wait for the next.
_QUEUED = 2
# Bytes for the pixels of a lot.
_SLOT = 2**22
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
# Seconds until the next look at a reader that is about to be late.
_SOON = 0.01
# The exit code of a reader that was killed; Windows knows no such thing.
_KILLED = -getattr(signal, "SIGKILL", 9)
_SLOW_HINT = "raise --image-timeout if you trust it"


@dataclass(slots=True, eq=False)
class Item:
    """A source on its way through the pool.

    Attributes:
        image: the result, once there is one.
        file: with its bytes, for a source that only this process can open.
        size: bytes that go with it; 0 for a source that readers open.
        fetched: seconds that it took to get them.
        deaths: readers that died of it.
        losses: readers that ended while it was in their lot, of nothing that can be told.
    """

    source: Source
    task: ReadingTask
    image: DecodedImage | None = None
    file: BinaryIO | None = None
    size: int = 0
    fetched: float = 0.0
    deaths: int = 0
    losses: int = 0


@dataclass(slots=True, eq=False)
class _SentLot:
    """A lot that a reader is working on.

    Attributes:
        slot: which part of the shared memory its pixels may have.
        sent: when, by the monotonic clock.
    """

    number: int
    items: list[Item]
    slot: int
    sent: float


@dataclass(eq=False)
class _Reader:
    """A reading process, as the supervisor sees it.

    Attributes:
        memory: shared with it; None where there is none.
        task: the number of the one that it knows.
        slots: parts of the shared memory that no lot has.
        at: progress, as it told; see `progress`.
        heard: when it last said something, or was first given something to do.
        needs, granted: bytes of the memory budget that it waits for, and that it has.
        spent: seconds that its image had taken when it asked for these.
    """

    connection: Connection
    process: Any
    memory: mmap.mmap | None
    task: int = -1
    lots: deque[_SentLot] = field(default_factory=deque)
    slots: set[int] = field(default_factory=lambda: set(range(_QUEUED)))
    at: tuple[int, int, float] = (-1, -1, 0.0)
    heard: float = 0.0
    needs: int = 0
    granted: int = 0
    spent: float = 0.0

    def progress(self) -> tuple[int, int, float]:
        """Return the number of the lot, the image in it, and since when; 0 if it is idle."""
        if self.memory is not None:
            number, index, start = PROGRESS.unpack_from(self.memory)
            return number, index, start
        return self.at


class Supervisor:
    """Feeds reading processes from a thread: sends lots, collects them, watches the clock and the
    memory, and replaces readers that end.

    Args:
        readers, timeout, budget, debug: as for `ReaderPool`.

    Attributes:
        starter: starts and ends processes.
    """

    def __init__(
        self,
        readers: int | None,
        timeout: float,
        *,
        budget: int,
        debug: bool,
    ) -> None:
        self.count = readers or cores()
        self.timeout = timeout
        self._budget = budget
        self._share = budget // (2 * self.count)
        self.starter = process_starter(debug)
        self._changed = threading.Condition()
        self._pending: deque[Item] = deque()
        self._readers: list[_Reader] = []
        self._waiting: deque[_Reader] = deque()  # for memory
        self._tasks: dict[int, tuple[ReadingTask, int]] = {}
        self._numbers = iter(range(sys.maxsize))
        self._pace = 0.0  # seconds an image
        self._closing = False
        self._failure: Exception | None = None
        self._bell, self._ringer = Pipe(duplex=False)
        self._rung = False
        self._thread = threading.Thread(target=self._supervise, name="readers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all processes."""
        with self._changed:
            self._closing = True
        self._ring()
        # Set first, as the supervisor may be waiting for its first reader.
        self.starter.close()
        self._thread.join(GRACE)

    def open_task(
        self, reader: ImageReader, columns: Sequence[str], thumbnails: bool
    ) -> ReadingTask:
        """Tell the readers what the next images are read for."""
        task = ReadingTask(
            next(self._numbers),
            reader,
            columns=tuple(columns),
            thumbnails=thumbnails,
            share=self._share,
            folder=current_folder(),
        )
        size = reader.preprocessing.image_size
        fits = _SLOT // (math.prod(size) * 3 + ALIGN) if size is not None else _LOT
        with self._changed:
            self._tasks[task.number] = task, max(1, min(_LOT, fits))
        return task

    def close_task(self, task: ReadingTask) -> None:
        """Forget a task whose images nobody waits for any more."""
        with self._changed:
            self._tasks.pop(task.number, None)
            self._pending = deque(item for item in self._pending if item.task is not task)

    def submit(self, items: Sequence[Item]) -> None:
        """Queue items to be read, in order."""
        with self._changed:
            self._pending.extend(items)
        self._ring()

    def result(self, item: Item) -> DecodedImage:
        """Wait for the result of an item. Raises: CvtError."""
        if item.image is not None:
            return item.image
        with self._changed:
            while item.image is None:
                if isinstance(self._failure, CvtError):
                    raise self._failure
                if self._failure is not None:
                    raise CvtError(
                        f"the reading processes can't go on: {reason_of(self._failure)}"
                    ) from self._failure
                # Waits are short, because on Windows nothing interrupts them.
                self._changed.wait(1)
        return item.image

    def finish(self, item: Item, image: DecodedImage) -> None:
        """Finish an item that needs no reader any more."""
        with self._changed:
            item.image = image
            self._changed.notify_all()

    def fail(self, error: CvtError) -> None:
        """Make `result` raise this error for all unfinished items."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

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
                self.starter.kill(reader.process)
                reader.connection.close()

    def _start_reader(self) -> None:
        memory = shared_memory(HEADER + _QUEUED * _SLOT) if self.starter.has_files else None
        shared = mmap.mmap(memory.fileno(), 0) if memory is not None else None
        try:
            connection, process = self.starter.start(memory.fileno() if memory else None)
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
        """Tell whether the next image, or one that is being read, is to be read alone."""
        sent = [lot.items[0].deaths for reader in self._readers for lot in reader.lots]
        with self._changed:
            following = self._pending[0].deaths if self._pending else 0
        return bool(sent) and max(following, *sent) >= _KILLS - 1

    def _take(self) -> list[Item]:
        """Take the next lot."""
        pending = self._pending
        if not pending:
            return []
        first = pending.popleft()
        if first.deaths:
            return [first]
        limit = self._tasks[first.task.number][1] if first.task.number in self._tasks else 1
        pace = int(_LOT_SECONDS / self._pace) if self._pace else 1
        # So short a lot keeps no other reader waiting.
        soon = int(_SHORT_SECONDS / self._pace) if self._pace else 1
        limit = min(limit, max(1, pace), max(1, soon, len(pending) // (2 * self.count)))
        items, size = [first], first.size
        while len(items) < limit and pending:
            item = pending[0]
            size += item.size
            if item.task is not first.task or item.deaths or size > _FITS or item.file is not None:
                break
            items.append(pending.popleft())
        return items

    def _send(self, reader: _Reader, items: list[Item]) -> None:
        lot = _SentLot(next(self._numbers), items, slot=reader.slots.pop(), sent=time.monotonic())
        reader.lots.append(lot)
        if len(reader.lots) == 1:
            reader.heard = lot.sent
        task = items[0].task
        sources, files = [], []
        for item in items:
            place = item.source.place
            if item.file is not None:
                if self.starter.has_files:
                    files.append(item.file.fileno())
                    place = SentFile(len(files) - 1)
                else:
                    item.file.seek(0)
                    place = Bytes(item.file.read())
            moved = place is not item.source.place
            sources.append(replace(item.source, place=place) if moved else item.source)
        try:
            if reader.task != task.number:
                reader.connection.send(task)
                reader.task = task.number
            start = HEADER + lot.slot * _SLOT
            message = Lot(
                lot.number,
                task.number,
                tuple(sources),
                start=start,
                size=_SLOT,
                files=len(files),
            )
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
        now, late = time.monotonic(), math.inf
        for reader in self._readers:
            if reader.lots and reader not in self._waiting:
                *_, start = reader.progress()
                # One that has begun no image may do so at once, or go on with its last one.
                left = max(_SOON, self.timeout - reader.spent)
                late = min(late, start + self.timeout if start else now + left)
        return max(0.0, late - now) if late < math.inf else None

    def _due(self, reader: _Reader) -> float:
        """Return the time at which a reader is late."""
        if reader in self._waiting:
            return math.inf
        *_, start = reader.progress()
        # A reader between two images waits for nothing.
        return (start or reader.heard + GRACE) + self.timeout

    def _check_time(self, reader: _Reader, now: float) -> None:
        if not reader.lots or now < self._due(reader):
            return
        self.starter.kill(reader.process)
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
        if isinstance(message, ImageBegun):
            reader.at = message.lot, message.index, reader.heard - message.spent
        elif isinstance(message, MemoryNeeded):
            reader.at = *reader.at[:2], 0.0
            reader.needs, reader.spent = message.size, message.spent
            reader.granted = 0
            if message.size:
                self._waiting.append(reader)
            self._grant()
        else:
            assert isinstance(message, LotRead)
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

    def _collect(self, reader: _Reader, read: LotRead) -> None:
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
            item.image = DecodedImage(
                item.source.path, pixels, error, columns=columns, thumbnail=thumbnail
            )
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
        self.starter.kill(reader.process)
        reader.connection.close()
        number, index, start = reader.progress()
        status = self.starter.status(reader.process) if not late else None
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
                    self._give_up(item, in_words(too_slow(self.timeout)))
                elif (guilty and item.deaths >= most) or item.losses >= _LOSSES:
                    self._give_up(item, f"broken image: {cause_of_death(status)}")
                else:
                    again.append(item)
        with self._changed:
            wanted = [item for item in again if item.task.number in self._tasks]
            self._pending.extendleft(reversed(wanted))
        if reader.memory is not None:
            with suppress(BufferError):
                reader.memory.close()
        self._grant()

    def _give_up(self, item: Item, error: str) -> None:
        _close(item)
        self.finish(item, DecodedImage(item.source.path, error=error))


def current_folder() -> str:
    """Return the folder that relative paths start from; "." if it is gone."""
    with suppress(OSError):
        return os.getcwd()
    return "."


def _close(item: Item) -> None:
    if item.file is not None:
        item.file.close()
        item.file = None


def too_slow(timeout: float) -> ImageError:
    """Make the error for what takes longer than `timeout` seconds."""
    return ImageError(f"takes longer than the limit of {timeout:g} s", _SLOW_HINT)
