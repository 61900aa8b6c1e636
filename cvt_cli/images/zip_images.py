"""Images in zip archives, read in place."""

import io
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, cast

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.names import unsafe_reason
from cvt_cli.images.source import (
    BOMB_RATIO,
    Filter,
    Place,
    Source,
    bomb,
    failing,
    one_line,
    too_large,
)
from cvt_cli.images.spool import CHUNK, Spool

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def zip_members(path: str, place: Place, wanted: Filter, *, max_bytes: int) -> Iterator[Source]:
    """Yield the images in a zip archive; see `archives.members`."""
    archive = _Zip(place, max_bytes)
    total = 0
    for entry in archive.entries():
        name = f"{path}::{entry.name}"
        if entry.name.endswith("/") or not wanted.wants_member(entry.name):
            continue
        reason = unsafe_reason(entry.name)
        if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
            reason = "a link or a special file in an archive"
        elif entry.encrypted:
            reason = "encrypted"
        if reason:
            yield failing(name, reason)
            continue
        # Members may share their bytes, so that a limit for each is none for all.
        total += entry.size if entry.size <= max_bytes else 0
        if total > max(max_bytes, BOMB_RATIO * archive.size):
            raise bomb()
        yield Source(name, ZipMember(archive, entry))


@dataclass(frozen=True, slots=True)
class _ZipEntry:
    """A member's entry in the directory of a zip archive.

    Attributes:
        raw: the entry itself.
        start: where the member's local header is said to be, in bytes from the archive's start.
        packed, size: bytes in the archive, and unpacked.
        mode: as of the file that was packed; 0 if unknown.
    """

    raw: bytes
    name: str
    start: int
    packed: int
    size: int
    mode: int
    encrypted: bool


class _Zip:
    """A zip archive, for the threads that decode its members; in another process it is opened anew.

    `zipfile` would keep the whole directory in memory, half a GiB for a million members. Here it
    is read as the search goes on, and `zipfile` is shown each member as an archive of its own.

    Args:
        directory: where its directory starts and ends, and how many bytes were put before the
            archive; None to look.

    Attributes:
        size: bytes of the archive, where its directory was looked for.
        is_local: any process of this machine can open it.

    Raises:
        ImageError: if it can't be opened.
        zipfile.BadZipFile: if it is not a zip archive.
    """

    def __init__(
        self, place: Place, max_bytes: int, directory: tuple[int, int, int] | None = None
    ) -> None:
        self.is_local = place.is_local
        self._place = place
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        self.size = 0
        self._directory, self._directory_end, self._shift = directory or self._find_directory()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[object, ...]:
        directory = self._directory, self._directory_end, self._shift
        return _zip, (self._place, self._max_bytes, directory)

    def read_at(self, position: int, size: int) -> bytes:
        """Read bytes of the archive, whatever other threads read meanwhile."""
        with self._lock:
            if self._file is None:
                self._file = self._place.open()
            self._file.seek(position)
            return self._file.read(size)

    def _find_directory(self) -> tuple[int, int, int]:
        """Find where the directory starts and ends, and how many bytes precede the archive."""
        self.read_at(0, 0)
        assert self._file is not None
        self.size = whole = self._file.seek(0, 2)
        # The record may be followed by a comment, and has a locator of another before it.
        tail_start = max(0, whole - _ZIP_END.size - 2**16 - _ZIP64_LOCATOR_SIZE)
        tail = self.read_at(tail_start, whole - tail_start)
        last = at = tail.rfind(b"PK\5\6", 0, len(tail) - _ZIP_END.size + 4)
        # The comment may contain the same bytes; its length then does not lead to the end.
        while at >= 0 and at + _ZIP_END.size + tail[at + 20] + 256 * tail[at + 21] != len(tail):
            at = tail.rfind(b"PK\5\6", 0, at)
        at = last if at < 0 else at
        if at < 0:
            raise zipfile.BadZipFile("no zip archive, or cut off")
        *_, size, offset, _ = _ZIP_END.unpack_from(tail, at)
        end = tail_start + at
        if tail[max(0, at - _ZIP64_LOCATOR_SIZE) :].startswith(b"PK\6\7"):
            end64 = end - _ZIP64_LOCATOR_SIZE - _ZIP64_END.size
            record = self.read_at(max(0, end64), _ZIP64_END.size)
            if record.startswith(b"PK\6\6"):
                *_, size, offset = _ZIP64_END.unpack(record)
                end = end64
        start = end - size
        if start < offset:
            raise zipfile.BadZipFile("its directory is not where it should be")
        return start, end, start - offset

    def entries(self) -> Iterator[_ZipEntry]:
        """Yield the members, in order."""
        position, rest = self._directory, b""
        while position < self._directory_end:
            block = self.read_at(position, min(CHUNK, self._directory_end - position))
            if not block:
                raise zipfile.BadZipFile("its directory is cut off")
            position += len(block)
            rest += block
            at = 0
            while (entry := _zip_entry(rest, at)) is not None:
                at += len(entry.raw)
                yield entry
            rest = rest[at:]
        if rest:
            raise zipfile.BadZipFile("its directory is cut off")

    def read(self, entry: _ZipEntry) -> BinaryIO:
        """Unpack a member. Raises: ImageError."""
        if entry.size > self._max_bytes:
            raise too_large(self._max_bytes)
        spool = Spool(self._max_bytes)
        try:
            with (
                zipfile.ZipFile(io.BufferedReader(self._alone(entry))) as alone,
                alone.open(alone.infolist()[0]) as member,
            ):
                spool.copy(cast(BinaryIO, member))
        except (ImageError, NoTemporaryFiles):
            raise
        except Exception as error:  # as in `members`
            raise ImageError(f"broken in its archive: {one_line(error)}") from None
        return spool.take()

    def _alone(self, entry: _ZipEntry) -> "_Window":
        start = self._shift + entry.start
        # Room for the local header, with the longest name and extra field.
        size = min(self._directory - start, entry.packed + 2**18)
        if size <= 0:
            raise zipfile.BadZipFile("it is not where its archive says")
        raw = entry.raw[: _ZIP_ENTRY.size - 4] + bytes(4) + entry.raw[_ZIP_ENTRY.size :]
        end = _ZIP_END.pack(b"PK\5\6", 0, 0, 1, 1, len(raw), size, 0)
        return _Window(self, start, size, then=raw + end)


# Each process keeps the archive open that it last read from.
@lru_cache(maxsize=1)
def _zip(place: Place, max_bytes: int, directory: tuple[int, int, int]) -> _Zip:
    return _Zip(place, max_bytes, directory)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A place: a member of a zip archive."""

    archive: _Zip
    entry: _ZipEntry

    @property
    def is_local(self) -> bool:
        """Whether any process on this machine can open the archive."""
        return self.archive.is_local

    def open(self) -> BinaryIO:
        """Unpack the member. Raises: ImageError."""
        return self.archive.read(self.entry)


# Numbers of this disk and the directory's; members here, in all; the directory's size and offset.
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR_SIZE = 20
# Versions, flags, method, time, date; CRC, sizes; lengths of name, extra field, comment; disk,
# attributes; offset.
_ZIP_ENTRY = struct.Struct("<4s6H3L5H2L")
_ENCRYPTED, _UTF8 = 1, 1 << 11
_UNIX = (3, 19)  # systems on which a member was packed: Unix and macOS
_IN_EXTRA = 0xFFFFFFFF


def _zip_entry(data: bytes, at: int) -> _ZipEntry | None:
    """Read the entry that starts at a position; None if it is incomplete."""
    if len(data) < at + _ZIP_ENTRY.size:
        return None
    fields = _ZIP_ENTRY.unpack_from(data, at)
    if fields[0] != b"PK\1\2":
        raise zipfile.BadZipFile("its directory is broken")
    version, flags, packed, size, attributes, start = (fields[i] for i in (1, 3, 8, 9, 15, 16))
    name_end = at + _ZIP_ENTRY.size + fields[10]
    extra_end = name_end + fields[11]
    end = extra_end + fields[12]
    if len(data) < end:
        return None
    name = data[at + _ZIP_ENTRY.size : name_end]
    if _IN_EXTRA in (size, packed, start):
        large = _zip64_extra(data[name_end:extra_end])
        size, packed, start = (
            next(large, number) if number == _IN_EXTRA else number
            for number in (size, packed, start)
        )
    return _ZipEntry(
        raw=data[at:end],
        name=name.decode("utf-8", "surrogateescape") if flags & _UTF8 else _unmarked(name, version),
        start=start,
        packed=packed,
        size=size,
        mode=attributes >> 16,
        encrypted=bool(flags & _ENCRYPTED),
    )


def _unmarked(name: bytes, version: int) -> str:
    """Decode a name that is not marked as UTF-8: macOS and Unix write UTF-8 all the same."""
    if version >> 8 in _UNIX:
        with suppress(UnicodeDecodeError):
            return name.decode("utf-8")
    return name.decode("cp437")


def _zip64_extra(extra: bytes) -> Iterator[int]:
    """Read the numbers that do not fit into the entry itself."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            numbers = extra[at : at + size]
            yield from (n for (n,) in struct.iter_unpack("<Q", numbers[: len(numbers) // 8 * 8]))
            return
        at += size


class _Window(io.RawIOBase):
    """A file object of a part of an archive, followed by other bytes."""

    def __init__(self, archive: _Zip, start: int, size: int, *, then: bytes) -> None:
        self._archive = archive
        self._start = start
        self._size = size
        self._then = then
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        origin = (0, self._position, self._size + len(self._then))[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        left = self._size - self._position
        if left > 0:
            data = self._archive.read_at(self._start + self._position, min(len(view), left))
        else:
            data = self._then[-left:][: len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
