"""Images in tar archives: in place, or compressed and read once from start to end."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from cvt_cli.errors import ImageError
from cvt_cli.images.decompression import ExpandedStream
from cvt_cli.images.names import unsafe_reason
from cvt_cli.images.source import Filter, Place, Source, failing, one_line, too_large
from cvt_cli.images.spool import CHUNK, Spool, Spooled

# Bytes of one header of a member of a tar archive that is no block, and of all. Longer ones are
# meant to exhaust memory or time.
_MAX_HEADER = 2**16
_MAX_HEADERS = 2**17
# A row of digits in one: to search for a number, tarfile tries each of them as its start.
_MAX_DIGITS = 256


def tar_members(path: str, place: Place, wanted: Filter, *, max_bytes: int) -> Iterator[Source]:
    """Yield the images in a tar archive, which is opened anew for each; see `archives.members`."""
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
                yield Source(
                    name,
                    TarMember(
                        place, start=member.offset_data, size=member.size, max_bytes=max_bytes
                    ),
                )


def stream_members(
    path: str, kind: str, place: Place, *, wanted: Filter, max_bytes: int
) -> Iterator[Source]:
    """Read a tar archive once from start to end: a member's bytes are taken before the next member
    is looked for."""
    with place.open() as file:
        stream = ExpandedStream(file, kind, max_bytes)
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
    path: str, file: "BinaryIO | ExpandedStream", wanted: Filter
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the wanted members, with the names that their records have."""
    for member in _each(file):
        if wanted.wants_member(member.name, is_file=member.isreg()):
            yield f"{path}::{member.name}", member


def _each(file: "BinaryIO | ExpandedStream") -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar archive, from the current position to its end. The file is left at
    the start of a member's content."""
    headers = _HeaderReader(file)
    end = -1
    kind = type("_OwnHeader", (_TarHeader,), {"headers": headers})
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
    return unsafe_reason(member.name)


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


def _copied(file: "BinaryIO | ExpandedStream", size: int) -> Spool:
    """Copy this many bytes into a spool. Raises: EOFError if there are fewer."""
    spool = Spool(size)
    while chunk := file.read(min(CHUNK, size - spool.received)):
        spool.write(chunk)
    if spool.received < size:
        raise EOFError
    return spool


class _TarHeader(tarfile.TarInfo):
    """A tar header that tells a broken or missing header from the end of the archive, a block of
    zeros. tarfile takes the former for the end, too. What newer Pythons refuse all do here.

    Attributes:
        headers: which it is one of.
    """

    headers: "_HeaderReader"

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarHeader":
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


class _HeaderReader:
    """A tar archive whose headers alone are read.

    Attributes:
        left: bytes that the next member's may have.
        is_pax_next: the next bytes are records of a pax header.
    """

    def __init__(self, file: "BinaryIO | ExpandedStream") -> None:
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
    """Check that a pax header is `LENGTH KEY=VALUE` a line, in time that grows with its length.
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
