"""Sources on their way through the reading processes, ahead of the batches that are asked for."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, BinaryIO

from PIL import Image

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.reader_messages import packed
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import (
    Bytes,
    Nowhere,
    Source,
    failing,
    in_words,
    one_line,
    os_reason,
)
from cvt_cli.images.spool import Spooled
from cvt_cli.images.supervisor import Item, Supervisor
from cvt_cli.system.cores import DECODE_THREADS

# Bytes of sources that are on their way.
_HELD = 2**26
# Images that are asked for at once, at most, as messages cost the more the shorter they are.
_REFILL = 32


class ReadAhead:
    """Reads the images of one call of `ReaderPool.batches`."""

    def __init__(
        self,
        supervisor: Supervisor,
        reader: ImageReader,
        batch_size: int,
        *,
        columns: Sequence[str],
        thumbnails: bool,
        ahead: int,
    ) -> None:
        self._supervisor = supervisor
        self._reader = reader
        self._batch_size = batch_size
        self._columns = columns
        self._thumbnails = thumbnails
        # No more: who lists names as they come waits for the records of those before.
        self._window = (1 + ahead) * batch_size
        self._least = self._window - min(_REFILL, self._window // 4)
        self._items: deque[Item] = deque()
        self._fetchers: ThreadPoolExecutor | None = None

    def batches(self, sources: Iterable[Source | Image.Image]) -> Iterator[list[DecodedImage]]:
        """Yield the batches; see `ReaderPool.batches`."""
        stream = iter(sources)
        self._task = self._supervisor.open_task(self._reader, self._columns, self._thumbnails)
        try:
            while True:
                batch: list[DecodedImage] = []
                while len(batch) < self._batch_size:
                    if len(self._items) + len(batch) <= self._least or not self._items:
                        self._fill(stream, self._window - len(batch))
                    if not self._items:
                        break
                    item = self._items.popleft()
                    batch.append(self._supervisor.result(item))
                if not batch:
                    return
                self._fill(stream, self._window - len(batch))
                yield batch
        finally:
            self._supervisor.close_task(self._task)
            if self._fetchers is not None:
                # Don't wait for threads that may be reading from a server that never answers.
                self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _fill(self, stream: Iterator[Source | Image.Image], window: int) -> None:
        """Have sources read until enough of them, or of their bytes, are on their way."""
        ready: list[Item] = []
        held = sum(item.size for item in self._items if item.image is None)
        while len(self._items) < window and held <= _HELD:
            source = next(stream, None)
            if source is None:
                break
            if isinstance(source, Image.Image):
                item = Item(failing("", ""), self._task)
                self._later(self._read_here, item, source)
            else:
                item = Item(source, self._task)
                place = source.place
                if isinstance(place, Nowhere):
                    error = in_words(ImageError(place.message, place.hint))
                    item.image = DecodedImage(source.path, error=error)
                elif place.is_local:
                    ready.append(item)
                elif isinstance(place, Bytes | Spooled):
                    if self._take_file(item):
                        ready.append(item)
                    held += item.size
                else:
                    self._later(self._fetch, item)
            self._items.append(item)
        if ready:
            self._supervisor.submit(ready)

    def _later(self, work: Any, *arguments: Any) -> None:
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(DECODE_THREADS, "fetch")
        self._fetchers.submit(work, *arguments)

    def _read_here(self, item: Item, image: Image.Image) -> None:
        read = self._reader.read(image, self._columns, with_thumbnail=self._thumbnails)
        self._supervisor.finish(item, read)

    def _fetch(self, item: Item) -> None:
        start = time.perf_counter()
        taken = self._take_file(item)
        item.fetched = time.perf_counter() - start
        if taken:
            self._supervisor.submit([item])

    def _take_file(self, item: Item) -> bool:
        """Get the bytes of a source that only this process can open, and tell whether there is
        something to read: no reader may try to open it."""
        files: list[BinaryIO] = []
        error = None
        try:
            place = packed(item.source.place, files)
        except NoTemporaryFiles as problem:
            self._supervisor.fail(problem)
            return False
        except ImageError as problem:
            error = in_words(problem)
        # An image that is never finished would be waited for for ever.
        except Exception as problem:
            error = os_reason(problem) if isinstance(problem, OSError) else one_line(problem)
        if error is not None:
            self._supervisor.finish(item, DecodedImage(item.source.path, error=error))
        elif files:
            item.file = files[0]
            item.size = os.fstat(item.file.fileno()).st_size
        elif isinstance(place, Bytes):
            item.source = replace(item.source, place=place)
            item.size = len(place.data)
        return error is None
