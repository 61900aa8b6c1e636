"""NumPy files of embeddings, one row per input, with the paths in a text file beside them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.embeddings import EmbeddingJournal
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import write_atomically

# Characters that some programs take for the end of a line; and the tab, which ends a path.
_ESCAPES = {
    character: character.encode("unicode_escape").decode()
    for character in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
}
_TABLE = str.maketrans(_ESCAPES)


class NpyWriter(EmbeddingJournal):
    """Writes (inputs, embed_dim[-1]) float32 to `features.npy`, NaN for an input without an
    embedding; the path of each row, one per line, to `features.paths.txt`; and any errors to
    `features.errors.txt`, one per line: path, tab, error."""

    @staticmethod
    def convert(
        records: Iterable[Record],
        path: Path,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        summary: Mapping[str, Any] = NO_SUMMARY,
    ) -> None:
        """Write the files, `path` last: if it exists, the others do too.

        Raises:
            OSError: if one can't be written.
        """
        dim = shape.embedding_dim
        missing = np.full(dim, np.nan, np.float32).tobytes()
        errors = 0

        def write(file: BinaryIO, path_file: BinaryIO, error_file: BinaryIO) -> None:
            nonlocal errors
            count = 0
            _header(file, count, dim)
            for record in records:
                if record.embedding is None:
                    file.write(missing)
                else:
                    file.write(np.array(record.embedding, np.float32).tobytes())
                line = as_written(record.path).translate(_TABLE)
                path_file.write(f"{line}\n".encode())
                if record.error is not None:
                    errors += 1
                    error_file.write(f"{line}\t{record.error.translate(_TABLE)}\n".encode())
                count += 1
            file.seek(0)
            _header(file, count, dim)

        beside = [paths_of(path), errors_of(path)]
        write_atomically(
            path,
            lambda file: write_atomically(
                beside[0],
                lambda path_file: write_atomically(
                    beside[1], lambda error_file: write(file, path_file, error_file)
                ),
            ),
        )
        if not errors:
            beside[1].unlink()


def paths_of(path: Path) -> Path:
    """Return the path of the text file of paths beside a NumPy file."""
    return path.with_suffix(".paths.txt")


def errors_of(path: Path) -> Path:
    """Return the path of the text file of errors beside a NumPy file; it exists if there are
    any."""
    return path.with_suffix(".errors.txt")


def _header(file: BinaryIO, rows: int, dim: int) -> None:
    # NumPy leaves room in the header for any number of rows.
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    )
