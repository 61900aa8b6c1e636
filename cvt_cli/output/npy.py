"""NumPy files of embeddings, one row per input, with the paths in a text file beside them."""

import contextlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.embeddings import EmbeddingJournal
from cvt_cli.output.run_file import Kept
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import is_replaceable, sync, write_atomically

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
                    reason = as_written(record.error).translate(_TABLE)
                    error_file.write(f"{line}\t{reason}\n".encode())
                count += 1
            file.seek(0)
            _header(file, count, dim)
            # The names of three files can't change at once: once all is on the disk, the old one
            # goes, so that no paths are ever beside the numbers of other images.
            for each in (file, path_file, error_file):
                each.flush()
                sync(each.fileno())
            if is_replaceable(path):
                path.unlink(missing_ok=True)

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

    @staticmethod
    def embeddings(path: Path) -> Iterator[Record]:
        """Read the records of a finished document, and of the files beside it.

        Raises:
            OSError: if one can't be read.
            ValueError: if they are no such documents, or don't belong together.
        """
        kept = Kept.read(path)
        known = kept.stamps if kept is not None else {}
        reasons: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            lines = errors_of(path).read_text("utf-8").splitlines()
            reasons = [line.partition("\t")[2] for line in lines]
        errors = iter(reasons)
        with path.open("rb") as file, paths_of(path).open(encoding="utf-8", newline="\n") as lines_:
            rows, dim = _shape(file)
            escaped: set[str] = set()
            for row in range(rows):
                line = lines_.readline().removesuffix("\n")
                vector = array("f", file.read(dim * 4))
                if not line or len(vector) != dim:
                    raise ValueError(f"it ends at row {row}, or {paths_of(path).name} does")
                if "\\" in line:
                    if line in escaped:
                        raise ValueError(f"{paths_of(path).name} has two names that read alike")
                    escaped.add(line)
                name = line if line in known else _unescaped(line)
                if all(map(math.isnan, vector)):
                    yield Record(name, error=next(errors, "unknown"))
                else:
                    yield Record(name, embedding=tuple(vector))
            if lines_.read(1):
                raise ValueError(f"{paths_of(path).name} has more lines than it has rows")


def paths_of(path: Path) -> Path:
    """Return the path of the text file of paths beside a NumPy file."""
    return path.with_suffix(".paths.txt")


def errors_of(path: Path) -> Path:
    """Return the path of the text file of errors beside a NumPy file; it exists if there are
    any."""
    return path.with_suffix(".errors.txt")


def _unescaped(line: str) -> str:
    """Return the name that a line stands for."""
    for character, escape in _ESCAPES.items():
        line = line.replace(escape, character)
    return line


def _shape(file: BinaryIO) -> tuple[int, int]:
    """Read the header of a NumPy file: rows, and numbers in each. Raises: ValueError."""
    np.lib.format.read_magic(file)
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    match shape:
        case (rows, numbers) if not in_columns and dtype == np.dtype("<f4"):
            return rows, numbers
    raise ValueError("it is no array of embeddings: two dimensions of float32")


def _header(file: BinaryIO, rows: int, dim: int) -> None:
    # NumPy leaves room in the header for any number of rows.
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    )
