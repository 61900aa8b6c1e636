"""Sizes of the pages in a Parquet file, read before anything is decompressed.

A page's header says how much memory its content takes. pyarrow believes it, and what the file's
own metadata says of a column chunk need not be true. The headers are in Thrift's compact protocol,
of which this reads what it takes to find two numbers and the next header.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# Of fields in fields, and of fields in a header.
_MAX_DEPTH = 8
_MAX_FIELDS = 256

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)
_INTEGERS = (_I16, _I32, _I64)
# Numbers of the fields of a `PageHeader`.
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_DICTIONARY = 2  # a type of page


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        packed, unpacked: bytes of its content in the file, and in memory.
        is_dictionary: it has the values that others refer to.
    """

    packed: int
    unpacked: int
    is_dictionary: bool


def pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """Yield the pages of a column chunk.

    Args:
        file: seekable; it is left anywhere.
        start, size: of the chunk in bytes.

    Raises:
        ValueError: if these are no pages.
    """
    at, end = start, start + size
    while at < end:
        file.seek(at)
        header = _Header(file)
        fields = header.struct()
        packed, unpacked = fields.get(_PACKED, -1), fields.get(_UNPACKED, -1)
        if packed < 0 or unpacked < 0:
            raise ValueError("a page without a size")
        yield Page(packed, unpacked, fields.get(_TYPE) == _DICTIONARY)
        at = file.tell() + packed


class _Header:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fields = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the integers among the fields by number; the others are skipped."""
        found: dict[int, int] = {}
        number = 0
        while kind := (head := self._byte()) & 15:
            self._fields += 1
            if depth > _MAX_DEPTH or self._fields > _MAX_FIELDS:
                raise ValueError("a page's header of absurd size")
            number = number + (head >> 4) if head >> 4 else self._integer()
            if kind in _INTEGERS:
                found[number] = self._integer()
            else:
                self._skip(kind, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_BYTE, _DOUBLE):
            self._file.seek(1 if kind == _BYTE else 8, 1)
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _BINARY:
            self._file.seek(self._varint(), 1)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            # No header of a page has lists, sets or maps.
            raise ValueError("not the header of a page")

    def _byte(self) -> int:
        data = self._file.read(1)
        if not data:
            raise ValueError("cut off")
        return data[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if not byte >> 7:
                return value
        raise ValueError("a number of absurd size")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
