"""The pool of reading processes: sources go out in lots, and pixels come back through shared
memory, in order. A process that hangs, crashes or takes too much memory costs only the image it was
reading.

    consumer            pulls sources, waits for the next image in order: `read_ahead`
    supervisor          a thread: sends lots, collects them, watches the clock and the memory
    server              forks readers: `reader_server`, which `reader_processes` starts
    readers             one for each core: `worker`

Beside the sources that any process can open, a file say, there are those that only this one can: a
download, standard input, a member of an archive that is a stream. Threads of this process get
their bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, Self

from PIL import Image

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.read_ahead import ReadAhead
from cvt_cli.images.reader_messages import ArchiveToList, MembersFound, receive_files
from cvt_cli.images.reader_processes import cause_of_death
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import (
    IMAGE_TIMEOUT,
    MOST_SECONDS,
    Filter,
    Place,
    Source,
    failing,
    os_reason,
)
from cvt_cli.images.supervisor import BUDGET, Supervisor, current_folder, too_slow

# Timeouts that the network may take for an archive, which is tried three times.
_NETWORK = 4


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
        self._timeout = min(timeout, MOST_SECONDS)
        self._supervisor = Supervisor(readers, self._timeout, budget=budget, debug=debug)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._supervisor.close()

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
        images = ReadAhead(
            self._supervisor,
            reader,
            batch_size,
            columns=columns,
            thumbnails=thumbnails,
            ahead=ahead,
        )
        return images.batches(sources)

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
            connection, process = self._supervisor.starter.start(None)
        except OSError as error:
            yield failing(path, f"no process to read it can be started: {os_reason(error)}")
            return
        waits = self._timeout
        if not place.is_local:
            waits += _NETWORK * getattr(place, "timeout", IMAGE_TIMEOUT)
        try:
            connection.send(
                ArchiveToList(
                    path,
                    kind,
                    place,
                    seekable=seekable,
                    wanted=wanted,
                    max_bytes=max_bytes,
                    folder=current_folder(),
                )
            )
            while True:
                if not connection.poll(waits):
                    yield failing(path, too_slow(self._timeout))
                    return
                listed: MembersFound | NoTemporaryFiles = connection.recv()
                if isinstance(listed, NoTemporaryFiles):
                    raise listed
                if not listed.sources:
                    if listed.skipped is not None:
                        wanted.skipped.add(listed.skipped)
                    return
                yield from _opened(receive_files(connection, listed.sources))
        except (EOFError, OSError):
            status = self._supervisor.starter.status(process)
            yield failing(path, f"broken archive: {cause_of_death(status)}")
        finally:
            connection.close()
            self._supervisor.starter.kill(process)


def _opened(sources: Iterable[Source]) -> Iterator[Source]:
    """Have each received file closed, even if nobody opens it."""
    for source in sources:
        place = source.place
        yield source if not hasattr(place, "handle") else replace(source, place=_OwnedFile(place))


class _OwnedFile:
    """A place that is a received file; closed with this object unless it was opened."""

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
