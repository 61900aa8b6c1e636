"""Compressed streams, with a bound on what they expand to."""

import bz2
import gzip
import lzma
import tarfile
from typing import BinaryIO, Protocol, cast

from cvt_cli.errors import ImageError
from cvt_cli.images.source import BOMB_RATIO, bomb
from cvt_cli.images.spool import CHUNK
from cvt_cli.system.extras import install_hint

_HEADER = 64  # more bytes than decompressors want in one piece


class _Expanded(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class ExpandedStream:
    """A file object of the bytes that a compressed stream expands to, read once.

    Raises:
        ImageError: while it is read, if that is far more than any photographs do; from the
            constructor, if a package is missing.
    """

    def __init__(self, file: BinaryIO, kind: str, max_bytes: int) -> None:
        self._input = _Counting(file)
        self._expanded = _decompressor(kind, self._input)
        self._max_bytes = max_bytes
        self._position = 0

    def tell(self) -> int:
        """Return the position: bytes that were read or skipped."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip forwards. Raises: EOFError if the stream ends before."""
        if position < self._position:
            raise tarfile.ReadError("a header leads back to where it was")
        while self._position < position:
            if not self.read(min(CHUNK, position - self._position)):
                raise EOFError("the archive is cut off")

    def read(self, size: int) -> bytes:
        """Read this many bytes; fewer only at the end."""
        start = self._position
        data = bytearray()
        while len(data) < size and (more := self._expanded.read1(size - len(data))):
            data += more
            self._position = start + len(data)
            if self._position > max(self._max_bytes, BOMB_RATIO * self._input.count):
                raise bomb()
        return bytes(data)


class _Counting:
    """A file object that counts bytes, and returns those of a block that have arrived: a server may
    hold back the others. Only a read as short as a header is always complete."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._some = getattr(file, "read1", file.read)
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = (self._some if size > _HEADER else self._file.read)(size)
        self.count += len(data)
        return data

    read1 = read


def _decompressor(kind: str, file: _Counting) -> _Expanded:
    if kind == "gz":
        return gzip.GzipFile(fileobj=cast(BinaryIO, file))
    if kind == "bz2":
        return bz2.BZ2File(cast(BinaryIO, file))
    if kind == "xz":
        return lzma.LZMAFile(cast(BinaryIO, file))
    if kind == "zst":
        return _zstd(cast(BinaryIO, file))
    return file


def _zstd(file: BinaryIO) -> _Expanded:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:
        raise ImageError(f".zst archives need zstandard: {install_hint('zst')}") from None
    reader: _Expanded = ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return reader
