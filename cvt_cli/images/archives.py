"""Images in zip and tar archives, read in place: nothing is ever unpacked to the disk.

Untrusted bytes: a member's name is never used as a path of the file system, links are not
followed, and sizes are checked while reading.
"""

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from cvt_cli.errors import ImageError, NoTemporaryFiles
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
from cvt_cli.images.spool import CHUNK, Spool, Spooled
from cvt_cli.system.extras import install_hint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HEADER = 64  # more bytes than decompressors want in one piece
# Kinds that have their directory at the end.
NEEDS_SEEK = ("zip", "parquet")

# Bytes of one header of a member of a tar archive that is no block, and of all. Longer ones are
# meant to exhaust memory or time.
_MAX_HEADER = 2**16
_MAX_HEADERS = 2**17
# A row of digits in one: to search for a number, tarfile tries each of them as its start.
_MAX_DIGITS = 256


class _Expanded(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def members(
    path: str, kind: str, place: Place, *, seekable: bool, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """Yield the images in an archive, in its order.

    A member that is not a regular file or has an unsafe name (absolute, or with "..") is a
    `Source` that fails. Where the archive is broken, one more fails under the archive's own path.

    Args:
        path: of the archive; members are `path::name`.
        kind: as `kind_of_archive` says.
        place: of the archive.
        seekable: it is opened so; and a tar archive can be opened for each member anew. Those
            of `NEEDS_SEEK` must be seekable.
        wanted: which members to take.
        max_bytes: size above which a member is refused.
    """
    found = False
    try:
        if kind == "zip":
            each = _zip_members(path, place, wanted, max_bytes=max_bytes)
        elif kind == "parquet":
            from cvt_cli.images.parquet_images import parquet_members

            each = parquet_members(path, place, max_bytes)
        elif kind == "tar" and seekable:
            each = _tar_members(path, place, wanted, max_bytes=max_bytes)
        else:
            each = _stream_members(path, kind, place, wanted=wanted, max_bytes=max_bytes)
        for source in each:
            found = True
            yield source
    except NoTemporaryFiles:
        raise
    except ImageError as error:
        yield failing(path, error)
    except MemoryError:
        yield failing(path, "takes more memory than an archive may (a decompression bomb?)")
    # Hostile bytes make these modules raise nearly anything; it concerns this archive only.
    except Exception as error:
        yield failing(path, f"broken archive: {one_line(error)}")
    else:
        if not found:
            yield failing(path, wanted.without_images("an archive"))


def _zip_members(path: str, place: Place, wanted: Filter, *, max_bytes: int) -> Iterator[Source]:
    archive = _Zip(place, max_bytes)
    total = 0
    for entry in archive.entries():
        name = f"{path}::{entry.name}"
        if entry.name.endswith("/") or not wanted.wants_member(entry.name):
            continue
        reason = _unsafe(entry.name)
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
        data[at:end],
        name.decode("utf-8", "surrogateescape") if flags & _UTF8 else _unmarked(name, version),
        start,
        packed,
        size,
        attributes >> 16,
        bool(flags & _ENCRYPTED),
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


def _tar_members(path: str, place: Place, wanted: Filter, *, max_bytes: int) -> Iterator[Source]:
    with place.open() as file:
        size = file.seek(0, 2)
        file.seek(0)
        for name, member in _wanted(path, file, wanted):
            reason = _refusal(member)
            if reason:
                yield failing(name, reason)
            elif member.offset_data + member.size > size:
                yield failing(name, "the archive is cut off here")
                return
            else:
                yield Source(name, TarMember(place, member.offset_data, member.size, max_bytes))


def _stream_members(
    path: str, kind: str, place: Place, *, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """Read a tar archive once from start to end: a member's bytes are taken before the next member
    is looked for."""
    with place.open() as file:
        stream = _Expanding(file, kind, max_bytes)
        for name, member in _wanted(path, stream, wanted):
            reason = _refusal(member)
            if reason:
                yield failing(name, reason)
                continue
            try:
                if member.size > max_bytes:
                    stream.seek(member.offset_data + member.size)
                    yield failing(name, too_large(max_bytes))
                else:
                    yield Source(name, Spooled(_copied(stream, member.size)))
            except EOFError:
                yield failing(name, "the archive is cut off here")
                return


def _wanted(
    path: str, file: "BinaryIO | _Expanding", wanted: Filter
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the wanted members, with the names that their records have."""
    for member in _each(file):
        if wanted.wants_member(member.name, is_file=member.isreg()):
            yield f"{path}::{member.name}", member


def _each(file: "BinaryIO | _Expanding") -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar archive, from the current position to its end. The file is left at
    the start of a member's content."""
    headers = _Headers(file)
    end = -1
    kind = type("_OwnHeader", (_Header,), {"headers": headers})
    with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:", tarinfo=kind) as tar:
        while (member := tar.next()) is not None:
            # tarfile remembers every member and global header, and a header may send it back to an
            # earlier position.
            tar.members.clear()  # type: ignore[attr-defined]
            tar.pax_headers.clear()  # type: ignore[attr-defined]
            if tar.offset <= end or member.size < 0:
                raise tarfile.ReadError("a header leads back to where it was")
            end = tar.offset
            yield member
            headers.left = _MAX_HEADERS


def _refusal(member: tarfile.TarInfo) -> str:
    if not member.isreg() or member.issparse():
        return "a link or a special file in an archive"
    return _unsafe(member.name)


def _unsafe(name: str) -> str:
    """Tell whether a name would leave the folder that an archive is unpacked in. Nothing is
    unpacked here, but whoever gets the record might."""
    if (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name)
        or ".." in re.split(r"[/\\]", name)
    ):
        return "an unsafe name in an archive"
    return ""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A place: a part of a tar archive, at an offset."""

    archive: Place
    start: int
    size: int
    max_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether any process on this machine can open the archive."""
        return self.archive.is_local

    def open(self) -> BinaryIO:
        """Copy the part. Raises: ImageError."""
        if self.size > self.max_bytes:
            raise too_large(self.max_bytes)
        try:
            with self.archive.open() as file:
                file.seek(self.start)
                return _copied(file, self.size).take()
        except OSError as error:
            raise ImageError(one_line(error)) from None
        except EOFError:
            raise ImageError("the archive has changed since the search") from None


def _copied(file: "BinaryIO | _Expanding", size: int) -> Spool:
    """Copy this many bytes into a spool. Raises: EOFError if there are fewer."""
    spool = Spool(size)
    while chunk := file.read(min(CHUNK, size - spool.received)):
        spool.write(chunk)
    if spool.received < size:
        raise EOFError
    return spool


class _Header(tarfile.TarInfo):
    """A tar header that tells a broken or missing header from the end of the archive, a block of
    zeros. tarfile takes the former for the end, too. What newer Pythons refuse all do here.

    Attributes:
        headers: which it is one of.
    """

    headers: "_Headers"

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("the archive is cut off") from None
            if buf.strip(b"\0"):
                raise tarfile.ReadError(str(error)) from None
            raise
        if header.size < 0:  # as its binary form can tell; CVE-2025-8194
            raise tarfile.ReadError("a header leads back to where it was")
        cls.headers.is_pax_next = header.type in _PAX
        return header


# Types of headers that hold records for the next one, or for all that follow.
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _Headers:
    """A tar archive whose headers alone are read.

    Attributes:
        left: bytes that the next member's may have.
        is_pax_next: the next bytes are records of a pax header.
    """

    def __init__(self, file: "BinaryIO | _Expanding") -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.left = _MAX_HEADERS
        self.is_pax_next = False

    def read(self, size: int) -> bytes:
        if not 0 <= size <= min(self.left, _MAX_HEADER):
            raise tarfile.ReadError("a header of absurd size")
        self.left -= size
        data = self._file.read(size)
        if self.is_pax_next:
            self.is_pax_next = False
            _check_pax(data)
        return data


def _check_pax(data: bytes) -> None:
    """See that a pax header is one, `LENGTH KEY=VALUE` a line, in time that grows with its length.
    tarfile takes the square of it where there are digits only (CVE-2024-6232).

    Raises:
        tarfile.ReadError: if it is none.
    """
    at = 0
    while at < len(data) and data[at]:
        length = re.compile(rb"([0-9]{1,9}) ").match(data, at)
        end = at + int(length[1]) if length else at
        if length is None or data[end - 1 : end] != b"\n" or data.find(b"=", length.end(), end) < 0:
            raise tarfile.ReadError("a broken pax header")
        at = end
    if data[at:].strip(b"\0") or re.search(rb"[0-9]{%d}" % _MAX_DIGITS, data):
        raise tarfile.ReadError("a broken pax header")


class _Expanding:
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
