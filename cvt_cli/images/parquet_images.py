"""Images in a Parquet file, which datasets keep as a column of encoded bytes."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.parquet_pages import (
    LIMITS,
    ROWS_OF_ANY_FILE,
    check_pages,
    groups_with_rows,
)
from cvt_cli.images.source import BOMB_RATIO, Bytes, Place, Source, bomb, failing, too_large
from cvt_cli.images.spool import CHUNK, IN_MEMORY, Spool, Spooled
from cvt_cli.system.extras import install_hint

# Rows that are read at once.
ROWS = 16
# Bytes of a column in a row group, above which rows are read one by one: a dictionary may turn one
# large value into a hundred.
SMALL = 2**22
# Names of the column to prefer, in order, if several hold bytes.
_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")


def parquet_members(path: str, place: Place, max_bytes: int) -> Iterator[Source]:
    """Yield the images of a Parquet file, `path::0` and so on by their rows.

    They are in a column of bytes, or of structs with a field `bytes`, as Hugging Face's datasets
    have it.

    Args:
        place: of the file, which is opened seekable.
        max_bytes: size above which an image is refused.

    Raises:
        ImageError: if there is no such column, or pyarrow is not installed.
        Exception: what pyarrow makes of a broken file.
    """
    if find_spec("pyarrow") is None:
        raise ImageError(f".parquet needs pyarrow: {install_hint('parquet')}")
    with place.open() as file:
        # Only now, as it takes 30 MB: there may be no file.
        import pyarrow.parquet as pq

        # In pieces: a row group may be larger than the memory.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK, **LIMITS) as parquet:
            yield from _members(path, file, parquet, max_bytes=max_bytes)


def _members(path: str, file: BinaryIO, parquet: Any, *, max_bytes: int) -> Iterator[Source]:
    size = file.seek(0, 2)
    metadata, column = parquet.metadata, _column(parquet.schema_arrow)
    if metadata.num_rows > max(ROWS_OF_ANY_FILE, size):
        raise bomb()
    row = expanded = 0
    for group in groups_with_rows(metadata):
        sizes = check_pages(file, metadata.row_group(group), column.__eq__)
        rows = ROWS if sizes.unpacked <= SMALL else 1
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=[column]):
            expanded += batch.nbytes
            if expanded > max(max_bytes, BOMB_RATIO * size):
                raise bomb()
            for value in batch.column(0):
                yield _member(f"{path}::{row}", value, max_bytes)
                row += 1


def _column(schema: Any) -> str:
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return kind in (pa.binary(), pa.large_binary(), pa.binary_view())

    found = []
    for field in schema:
        if is_bytes(field.type):
            found.append(field.name)
        elif pa.types.is_struct(field.type):
            index = field.type.get_field_index("bytes")
            if index >= 0 and is_bytes(field.type.field(index).type):
                found.append(f"{field.name}.bytes")
    if not found:
        raise ImageError("no column of images: bytes, or structs with a field `bytes`")
    known = (each for name in _NAMES for each in found if each.split(".")[0].lower() == name)
    column: str = next(known, found[0])
    return column


def _member(path: str, value: Any, max_bytes: int) -> Source:
    if value.is_valid and value.type.num_fields:
        value = value["bytes"]
    if not value.is_valid:
        return failing(path, "no image in this row")
    data = memoryview(value.as_buffer())
    if len(data) > max_bytes:
        return failing(path, too_large(max_bytes))
    if len(data) <= IN_MEMORY:
        return Source(path, Bytes(bytes(data)))
    spool = Spool(len(data))
    for start in range(0, len(data), CHUNK):
        spool.write(data[start : start + CHUNK])
    return Source(path, Spooled(spool))
