"""What was typed becomes a lazy stream of files to read, one for each image."""

import errno
import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.records import as_written

STDIN = "-"

# Only folders are searched by suffix; a file named outright is tried whatever it is called.
IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .jp2 .j2k .jpx "  # noqa: SIM905
    ".ppm .pgm .pbm .pnm .ico .icns .tga .pcx .dds .psd .mpo .sgi .qoi".split()
)


@dataclass(frozen=True, slots=True)
class Source:
    """One input: its path as it was given, and how to open it.

    `open` raises `ImageError` with the reason where there is nothing to read.
    """

    path: str
    open: Callable[[], BinaryIO]


def find(inputs: Iterable[str]) -> Iterator[Source]:
    """The images behind files, folders and `-` (one image on standard input), in order.

    Folders are walked, sorted by name, hidden files and links to folders left out. What can't be
    read is a `Source` too: opening it says why.
    """
    for path in inputs:
        if path == STDIN:
            yield Source(path, _open_stdin)
        elif os.path.isdir(path):  # False, not an error, for a name that is too long
            yield from _walk(path)
        else:
            yield Source(path, _opener(path))


def remaining(
    search: Callable[[], Iterator[Source]], done: Sequence[str], batch_size: int
) -> tuple[Iterator[Source], int]:
    """What is left to do after an interruption.

    Args:
        search: starts the search for the same inputs anew.
        done: the paths that have a record, in its order, as output files write them.
        batch_size: the sources that went through the network together.

    Returns:
        The sources from the first one of the batch that was cut, so that batches are the same
        as in an uninterrupted run; and how many of them have a record already.
    """
    stream = search()
    whole_batches = len(done) // batch_size * batch_size
    again = []
    for index, path in enumerate(done):
        source = next(stream, None)
        if source is None or as_written(source.path) != path:
            warnings.warn(
                "the inputs have changed since: doing those without a record", stacklevel=2
            )
            known = set(done)
            return (each for each in search() if as_written(each.path) not in known), 0
        if index >= whole_batches:
            again.append(source)
    return chain(again, stream), len(again)


def _walk(folder: str) -> Iterator[Source]:
    found = False
    for path in _files(folder):
        found = True
        yield path
    if not found:
        yield Source(folder, _fails("a folder without images"))


def _files(folder: str) -> Iterator[Source]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        yield Source(folder, _fails(_reason(error)))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # A link to a folder may lead back to where we are.
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not _is_dir(entry):
            yield Source(entry.path, _opener(entry.path))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _opener(path: str) -> Callable[[], BinaryIO]:
    return lambda: _open(path)


def _fails(reason: str) -> Callable[[], BinaryIO]:
    def fail() -> BinaryIO:
        raise ImageError(reason)

    return fail


def _open(path: str) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            # To open a FIFO would wait for ever.
            raise ImageError("not a regular file")
        return Path(path).open("rb")
    except OSError as error:
        raise ImageError(_reason(error, path)) from None
    except ValueError as error:  # a NUL in the name
        raise ImageError(str(error)) from None


def _open_stdin() -> BinaryIO:
    return io.BytesIO(sys.stdin.buffer.read())


def _reason(error: OSError, path: str = "") -> str:
    if error.errno == errno.ENOENT:
        return "a dangling link" if os.path.islink(path) else "no such file"
    if error.errno == errno.EACCES:
        return "permission denied"
    return (error.strerror or str(error)).lower()
