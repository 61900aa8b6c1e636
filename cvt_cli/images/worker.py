"""A reading process: does what its driver sends. Imports neither torch nor pyarrow."""

import importlib
import mmap
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images import formats
from cvt_cli.images.memory_limits import MemoryLimits
from cvt_cli.images.reader_messages import (
    ALIGN,
    PROGRESS,
    ArchiveToList,
    ImageBegun,
    Lot,
    LotRead,
    MembersFound,
    MemoryNeeded,
    OpenedFile,
    ReadingTask,
    packed,
    receive_files,
    send,
)
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Source, failing
from cvt_cli.system.signals import ENDING

# Bytes for the directory of an archive. pyarrow reserves far more than it uses.
_ARCHIVE_MEMORY = 2**30
_PARQUET_MEMORY = 2**33
_PARQUET_DATA = 9 * 2**27
# Members that are sent at once, if each is a mere place in the archive.
_MEMBERS = 64

_OUT_OF_MEMORY = "more memory than the {} MB that a reader may have for it"
_MEMORY_HINT = "raise --max-pixels if you trust the file"


def serve(connection: Connection, memory: int | None, debug: bool) -> None:
    """Run a reader: do what the driver sends, until it is gone.

    Args:
        memory: the file of the shared memory; None if there is none.
        debug: let codecs write to stderr.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1) if debug else (0, 1, 2):
        os.dup2(null, stream)
    with suppress(EOFError, OSError):
        _ReaderLoop(connection, memory).run()


class _ReaderLoop:
    """The loop of a reading process."""

    def __init__(self, connection: Connection, memory: int | None) -> None:
        self._driver = connection
        self._shared = mmap.mmap(memory, 0) if memory is not None else None
        self._queue: deque[Any] = deque()
        self._task: ReadingTask | None = None
        self._limits = MemoryLimits()
        self._now = (0, 0)
        self._since = 0.0
        self._holds = False

    def run(self) -> None:
        while True:
            message = self._queue.popleft() if self._queue else self._next()
            if isinstance(message, ReadingTask):
                self._task = message
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

    def _read(self, lot: Lot) -> LotRead:
        assert self._task is not None
        task, start = self._task, time.monotonic()
        images: list[tuple[str | None, dict[str, Any], bytes | None, Any]] = []
        offset, end = lot.start, lot.start + lot.size
        for index, source in enumerate(lot.sources):
            self._now = lot.number, index
            self._begin()
            self._limits.set(None)
            image = task.reader.read(source, task.columns, with_thumbnail=task.thumbnails)
            pixels: Any = image.pixels
            if image.out_of_memory:
                image.error = f"{_OUT_OF_MEMORY.format(self._limits.room >> 20)}; {_MEMORY_HINT}"
            if pixels is not None and self._shared is not None and offset + pixels.nbytes <= end:
                place = np.frombuffer(self._shared, np.uint8, pixels.nbytes, offset)
                np.copyto(place.reshape(pixels.shape), pixels)
                pixels = offset, *pixels.shape[:2]
                offset += -(-place.nbytes // ALIGN) * ALIGN
                del place
            images.append((image.error, image.columns, image.thumbnail, pixels))
            if self._holds:
                self._holds = False
                self._driver.send(MemoryNeeded(0))
        self._pause()
        return LotRead(lot.number, images, time.monotonic() - start)

    def _begin(self, spent: float = 0.0) -> None:
        """Tell that an image begins, or goes on for which `spent` seconds were spent before."""
        self._since = time.monotonic() - spent
        if self._shared is not None:
            PROGRESS.pack_into(self._shared, 0, *self._now, self._since)
        else:
            self._driver.send(ImageBegun(*self._now, spent))

    def _pause(self) -> None:
        if self._shared is not None:
            PROGRESS.pack_into(self._shared, 0, *self._now, 0.0)

    def _admit(self, image: Image.Image, size: tuple[int, int]) -> None:
        """Ask for the memory that an image takes, if that is much, and wait until it is there."""
        assert self._task is not None
        self._limits.set(image.format)
        needed = formats.memory(image, size)
        if needed <= self._task.share:
            return
        spent = time.monotonic() - self._since
        self._pause()
        self._holds = True
        self._driver.send(MemoryNeeded(needed, spent))
        while (message := self._next()) is not None:
            self._queue.append(message)
        self._begin(spent)

    def _list(self, asked: ArchiveToList) -> MembersFound:
        self._limits.set_room(_PARQUET_MEMORY if asked.kind == "parquet" else _ARCHIVE_MEMORY)
        if asked.kind == "parquet":
            self._limits.set_data(_PARQUET_DATA)
        _enter(asked.folder)
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
        asked.wanted.skipped = Skipped()
        try:
            for sources in _in_lots(_members(asked)):
                self._send_listed(sources)
        except MemoryError:
            self._send_listed([failing(asked.path, "out of memory: a broken archive?")])
        return MembersFound((), skipped=asked.wanted.skipped)

    def _send_listed(self, sources: list[Source]) -> None:
        files: list[BinaryIO] = []
        sent = []
        for source in sources:
            here = not source.place.is_local
            place = packed(source.place, files) if here else source.place
            sent.append(replace(source, place=place))
        handles = tuple(file.fileno() for file in files)
        send(self._driver, MembersFound(tuple(sent), len(handles)), handles)
        for file in files:
            file.close()


def _enter(folder: str) -> None:
    # Opening a path reports that the folder can't be entered.
    with suppress(OSError):
        os.chdir(folder)


def _members(asked: ArchiveToList) -> Iterator[Source]:
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
                yield replace(source, place=OpenedFile(file))
        except ImageError as error:
            yield failing(source.path, error)


def _in_lots(sources: Iterator[Source]) -> Iterator[list[Source]]:
    """Group members: several at once if they are mere places, one by one if they carry bytes."""
    lot: list[Source] = []
    for source in sources:
        lot.append(source)
        if len(lot) >= _MEMBERS or not source.place.is_local:
            yield lot
            lot = []
    if lot:
        yield lot
