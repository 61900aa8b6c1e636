"""The images in a Parquet file: datasets keep them as a column of encoded bytes."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.source import Source, failing
from cvt_cli.images.spool import too_large
from cvt_cli.system.extras import install_hint

# Images in memory before anyone asks for them.
ROWS = 16
# Names that the column goes by, where there are several of bytes.
_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")


def parquet_members(path: str, open_: Callable[[], BinaryIO], max_bytes: int) -> Iterator[Source]:
    """The images of a Parquet file, `path::0` and so on by their rows.

    They are in a column of bytes, or of structs with a field `bytes`, as Hugging Face's datasets
    have it.

    Args:
        open_: opens the file, seekable.
        max_bytes: size above which an image is refused.

    Raises:
        ImageError: if there is no such column, or pyarrow is not installed.
        Exception: what pyarrow makes of a broken file.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ImageError(f".parquet needs pyarrow: {install_hint('parquet')}") from None
    with open_() as file, pq.ParquetFile(file) as parquet:
        column = _column(parquet.schema_arrow)
        row = 0
        for batch in parquet.iter_batches(ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
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
    if isinstance(value, dict):
        value = value["bytes"]
    if value is None:
        return failing(path, "no image in this row")
    if len(value) > max_bytes:
        return failing(path, too_large(max_bytes))
    return Source(path, partial(io.BytesIO, value))
