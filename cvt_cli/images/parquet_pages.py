"""Sizes of the pages in a Parquet file, read before anything is decompressed.

A page's header says how much memory its content takes. pyarrow believes it, and what the file's
own metadata says of a column chunk need not be true. The headers are in Thrift's compact protocol,
of which this reads what it takes to find two numbers and the next header.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from cvt_cli.errors import ImageError
from cvt_cli.images.source import BOMB_RATIO, bomb

# Of a page, packed or not, in bytes. pyarrow puts a thousand images in each; a dictionary is in
# memory beside them, and has a MiB where nobody says otherwise.
MAX_PAGE = 2**29
MAX_DICTIONARY = 2**27
# Pages of photographs hardly shrink, but for small ones.
_SMALL_PAGE = 2**22
# Values of a page that takes next to no bytes, as one of nulls does.
_VALUES_OF_ANY_PAGE = 2**22
# Rows may be empty, and take next to no bytes.
ROWS_OF_ANY_FILE = 2**20
# Of the file's description of itself: bytes of a text, and members of a list.
LIMITS = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**18}
# Bytes of a store's object that are fetched at once: for a header that is far from what was fetched
# before, and for one that is nearer than so many.
_PIECE, _AHEAD = 2**14, 2**20

# Of fields in fields, and of fields in a header.
_MAX_DEPTH = 8
_MAX_FIELDS = 256

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)
_INTEGERS = (_I16, _I32, _I64)
# Numbers of the fields of a `PageHeader`.
_TYPE, _UNPACKED, _PACKED = 1, 2, 3
_OF_DATA, _OF_DATA_2 = 5, 8  # structs, of which this is a field:
_COUNT = 1
_DICTIONARY = 2  # a type of page


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        packed, unpacked: bytes of its content in the file, and in memory.
        values: of data, nulls included.
        is_dictionary: it has the values that others refer to.
    """

    packed: int
    unpacked: int
    values: int
    is_dictionary: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of columns in memory.

    Attributes:
        unpacked: bytes of their pages.
        dictionaries: bytes of those with values that others refer to; a row has at most so many
            from them.
    """

    unpacked: int
    dictionaries: int


def groups_with_rows(metadata: Any) -> Iterator[int]:
    """Yield the indexes of the row groups that have rows: of an empty table pyarrow writes one
    without, whose description points to no page.

    Args:
        metadata: pyarrow's description of the file.
    """
    groups = range(metadata.num_row_groups)
    return (index for index in groups if metadata.row_group(index).num_rows)


def check_pages(file: BinaryIO, group: Any, is_wanted: Callable[[str], bool]) -> Sizes:
    """Check the pages of a row group, of which nothing is unpacked for it.

    Args:
        file: seekable; it is left anywhere.
        group: pyarrow's description of the row group.
        is_wanted: tells whether a column is to be read, by its path in the schema.

    Raises:
        ImageError: if a page takes far more memory than any of photographs or their labels.
        ValueError: if these are no pages.
    """
    if hasattr(file, "fs"):  # a store's client would fetch all of it
        file = cast(BinaryIO, _Pieces(file))
    unpacked = dictionaries = 0
    for chunk in (group.column(index) for index in range(group.num_columns)):
        if not is_wanted(chunk.path_in_schema):
            continue
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset)
        for page in pages(file, start, chunk.total_compressed_size):
            _check(page)
            unpacked += page.unpacked
            dictionaries += page.unpacked if page.is_dictionary else 0
    return Sizes(unpacked, dictionaries)


def _check(page: Page) -> None:
    if page.unpacked > max(_SMALL_PAGE, BOMB_RATIO * page.packed):
        raise bomb()
    if page.values > max(_VALUES_OF_ANY_PAGE, BOMB_RATIO * page.packed):
        raise bomb()
    limit = MAX_DICTIONARY if page.is_dictionary else MAX_PAGE
    if max(page.packed, page.unpacked) > limit:
        raise ImageError(
            f"a page of {page.unpacked} bytes, more than the limit of {limit}",
            hint="rewrite it with smaller pages",
        )


class _Pieces:
    """A file object that fetches pieces of a store's object. To read so from its start to its end
    takes one request for each MiB at most.

    Args:
        file: as fsspec opens it.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._piece, self._start, self._at = b"", 0, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (self._at if whence else 0)
        return self._at

    def read(self, size: int) -> bytes:
        if not self._start <= self._at <= self._start + len(self._piece) - size:
            gap = self._at - self._start - len(self._piece)
            piece = _AHEAD if 0 <= gap < _AHEAD else _PIECE
            end = min(self._at + max(size, piece), self._file.size)
            if self._at >= end:
                return b""
            self._piece = self._file.fs.cat_file(self._file.path, start=self._at, end=end)
            self._start = self._at
        data = self._piece[self._at - self._start :][:size]
        self._at += len(data)
        return data


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
        values = max(fields.get(_OF_DATA, 0), fields.get(_OF_DATA_2, 0))
        is_dictionary = fields.get(_TYPE) == _DICTIONARY
        yield Page(packed, unpacked, values, is_dictionary=is_dictionary)
        at = file.tell() + packed


class _Header:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fields = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Return the integers among the fields by number, and for a struct the first integer in it;
        the others are skipped."""
        found: dict[int, int] = {}
        number = 0
        while kind := (head := self._byte()) & 15:
            self._fields += 1
            if depth > _MAX_DEPTH or self._fields > _MAX_FIELDS:
                raise ValueError("a page's header of absurd size")
            number = number + (head >> 4) if head >> 4 else self._integer()
            if kind in _INTEGERS:
                found[number] = self._integer()
            elif kind == _STRUCT:
                found[number] = self.struct(depth + 1).get(_COUNT, 0)
            else:
                self._skip(kind)
        return found

    def _skip(self, kind: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_BYTE, _DOUBLE):
            self._file.seek(1 if kind == _BYTE else 8, 1)
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _BINARY:
            self._file.seek(self._varint(), 1)
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
