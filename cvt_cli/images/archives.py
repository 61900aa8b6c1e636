"""The images in zip and tar archives, read where they are: nothing is ever unpacked.

Untrusted bytes: a member's name is never used as a path of the file system, links are not
followed, and sizes are checked while reading.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, Protocol, cast

from cvt_cli.errors import ImageError
from cvt_cli.images.source import Filter, Source, failing, one_line
from cvt_cli.images.spool import CHUNK, Spool, too_large

_SUFFIXES = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "gz",
    ".tgz": "gz",
    ".tar.bz2": "bz2",
    ".tbz2": "bz2",
    ".tbz": "bz2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zst",
    ".tzst": "zst",
}

# Photographs hardly shrink. Bytes out for each one in.
_BOMB_RATIO = 200
# A tar header claims to be longer than this only to exhaust memory. Bytes.
_MAX_HEADER = 2**24

Open = Callable[[], BinaryIO]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def kind_of_archive(path: str) -> str | None:
    """ "zip", "tar", "gz", "bz2", "xz", "zst" (tars in the last five) by the suffix; else None."""
    path = path.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if path.endswith(suffix)), None)


def members(
    path: str, kind: str, open_: Open, seekable: bool, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """The images in an archive, in its order.

    What is no regular file or has an unsafe name (absolute, or with "..") is a `Source` that
    fails; so is, under the archive's own path, the place from which on it is broken.

    Args:
        path: of the archive; members are `path::name`.
        kind: as `kind_of_archive` says.
        open_: opens the archive.
        seekable: what it returns is; and a tar archive can be opened for each member anew. A zip
            archive must be seekable.
        wanted: which members to take.
        max_bytes: size above which a member is refused.
    """
    found = False
    try:
        if kind == "zip":
            each = _zip_members(path, open_, wanted, max_bytes)
        elif kind == "tar" and seekable:
            each = _tar_members(path, open_, wanted, max_bytes)
        else:
            each = _stream_members(path, kind, open_, wanted, max_bytes)
        for source in each:
            found = True
            yield source
    except ImageError as error:
        yield failing(path, error)
    # Hostile bytes make these modules raise nearly anything; each is this archive's own.
    except Exception as error:
        yield failing(path, f"broken archive: {one_line(error)}")
    else:
        if not found:
            yield failing(path, "an archive without images")


def _zip_members(path: str, open_: Open, wanted: Filter, max_bytes: int) -> Iterator[Source]:
    archive = _Zip(open_(), max_bytes)
    for info in archive.zip.infolist():
        name = f"{path}::{info.filename}"
        if info.is_dir() or not wanted.wants_member(info.filename):
            continue
        reason = _unsafe(info.filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            reason = "a link or a special file in an archive"
        elif info.flag_bits & 1:
            reason = "encrypted"
        yield failing(name, reason) if reason else Source(name, archive.opener(info))


class _Zip:
    """An open zip archive, for the threads that decode its members."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Members share one handle. zipfile locks it to read, but not to open and close.
        self._lock = threading.Lock()
        try:
            self.zip = zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise
        # zipfile closes only what it has opened.
        self._file = file

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def opener(self, info: zipfile.ZipInfo) -> Open:
        return lambda: self._read(info)

    def _read(self, info: zipfile.ZipInfo) -> BinaryIO:
        if info.file_size > self._max_bytes:
            raise too_large(self._max_bytes)
        spool = Spool(self._max_bytes)
        try:
            with self._lock:
                member = self.zip.open(info)
            try:
                spool.copy(cast(BinaryIO, member))
            finally:
                with self._lock:
                    member.close()
        except ImageError:
            raise
        except Exception as error:  # as in `members`
            raise ImageError(f"broken in its archive: {one_line(error)}") from None
        return spool.take()


def _tar_members(path: str, open_: Open, wanted: Filter, max_bytes: int) -> Iterator[Source]:
    with open_() as file:
        size = file.seek(0, 2)
        file.seek(0)
        with tarfile.open(
            fileobj=cast(BinaryIO, _Headers(file)), mode="r:", tarinfo=_Header
        ) as tar:
            for member in _each(tar):
                if not wanted.wants_member(member.name):
                    continue
                name = f"{path}::{member.name}"
                reason = _refusal(member)
                if reason:
                    yield failing(name, reason)
                elif member.offset_data + member.size > size:
                    yield failing(name, "the archive is cut off here")
                    return
                else:
                    yield Source(name, _part(open_, member, max_bytes))


def _stream_members(
    path: str, kind: str, open_: Open, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """A tar archive read once from its start to its end: a member's bytes are taken as they come
    by, before the next is asked for."""
    with open_() as file:
        stream = _Expanding(file, kind, max_bytes)
        with tarfile.open(
            fileobj=cast(BinaryIO, stream), mode="r|", bufsize=CHUNK, tarinfo=_Header
        ) as tar:
            for member in _each(tar):
                if not wanted.wants_member(member.name):
                    continue
                name = f"{path}::{member.name}"
                reason = _refusal(member)
                if reason:
                    yield failing(name, reason)
                    continue
                if member.size > max_bytes:
                    yield failing(name, too_large(max_bytes))
                    continue
                spool = Spool(max_bytes)
                try:
                    spool.copy(cast(BinaryIO, tar.extractfile(member)))
                except (tarfile.ReadError, EOFError):
                    yield failing(name, "the archive is cut off here")
                    return
                yield Source(name, spool.take)


def _each(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    end = -1
    while (member := tar.next()) is not None:
        # tarfile remembers every member, and a header may send it back where it was.
        tar.members.clear()  # type: ignore[attr-defined]
        if tar.offset <= end:
            raise tarfile.ReadError("its headers go round in a circle")
        end = tar.offset
        yield member


def _refusal(member: tarfile.TarInfo) -> str:
    if not member.isreg() or member.issparse():
        return "a link or a special file in an archive"
    return _unsafe(member.name)


def _unsafe(name: str) -> str:
    """Names that would leave the folder where an archive is unpacked. We unpack nothing, but
    whoever gets the record might."""
    if (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name)
        or ".." in re.split(r"[/\\]", name)
    ):
        return "an unsafe name in an archive"
    return ""


def _part(open_: Open, member: tarfile.TarInfo, max_bytes: int) -> Open:
    start, size = member.offset_data, member.size

    def read() -> BinaryIO:
        if size > max_bytes:
            raise too_large(max_bytes)
        spool = Spool(size)
        try:
            with open_() as file:
                file.seek(start)
                while chunk := file.read(min(CHUNK, size - spool.received)):
                    spool.write(chunk)
        except OSError as error:
            raise ImageError(one_line(error)) from None
        if spool.received < size:
            raise ImageError("the archive has changed since the search")
        return spool.take()

    return read


class _Header(tarfile.TarInfo):
    """Tells a broken header from the end of the archive; tarfile takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.strip(b"\0"):
                raise tarfile.ReadError(str(error)) from None
            raise
        if header.size < 0:
            raise tarfile.ReadError("a negative size")
        return header


class _Headers:
    """A tar archive of which the headers only are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError("a header of absurd size")
        return self._file.read(size)


class _Expanding:
    """What a compressed stream expands to.

    Raises:
        ImageError: from `read`, if that is far more than any photographs do; from the
            constructor, if a package is missing.
    """

    def __init__(self, file: BinaryIO, kind: str, max_bytes: int) -> None:
        self._input = _Counting(file)
        self._expanded = _decompressor(kind, cast(BinaryIO, self._input))
        self._max_bytes = max_bytes
        self._count = 0

    def read(self, size: int) -> bytes:
        data = self._expanded.read(size)
        self._count += len(data)
        if self._count > max(self._max_bytes, _BOMB_RATIO * self._input.count):
            raise ImageError(
                f"expands more than {_BOMB_RATIO}-fold (a decompression bomb?)",
                hint="unpack it if it is what it should be",
            )
        return data


class _Counting:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        return data


def _decompressor(kind: str, file: BinaryIO) -> _Readable:
    if kind == "gz":
        return gzip.GzipFile(fileobj=file)
    if kind == "bz2":
        return bz2.BZ2File(file)
    if kind == "xz":
        return lzma.LZMAFile(file)
    if kind == "zst":
        return _zstd(file)
    return file


def _zstd(file: IO[bytes]) -> _Readable:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:
        raise ImageError('.zst archives need zstandard: pip install "cvt-cli[zst]"') from None
    reader: _Readable = ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return reader
