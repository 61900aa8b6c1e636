"""Tables of labels as people have them: which image has which label.

CSV, TSV and other delimited text, JSON Lines (Hugging Face's `metadata.jsonl`), or lines of a path
and a label (Caffe's `val.txt`). Where the columns are not called `path` or `file_name` and `label`,
a warning says which were taken.
"""

import csv
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.images.names import is_missing
from cvt_cli.images.source import IMAGE_SUFFIXES
from cvt_cli.system.text import counted, reason_of, visible

# Names of columns, in order of preference; in any capitals.
_PATHS = (
    *("path", "file_name", "filename", "file_path", "filepath", "file", "image_path"),
    *("image_name", "image", "image_id", "imageid", "img", "fname", "name", "id"),
)
_LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target")
# Of Kaggle's ImageNet: a WordNet id, then the corners of a box.
_BOXES = "predictionstring"
_PLAIN = ({"path", "file_name"}, {"label"})
_METADATA = ("metadata.csv", "metadata.jsonl")
_DELIMITERS = ",;\t"
# Values of columns that are a label each.
_YES = frozenset({"1", "1.0", "true"})
_NO = frozenset({"0", "0.0", "false", ""})
# Of a path: those of members of archives, patterns and addresses.
_NO_FILE = ("::", "*", "://")


@dataclass(frozen=True, slots=True)
class LabelledPath:
    """A row of a table.

    Attributes:
        path: as the table has it.
        label: empty for none.
        where: the table and line.
    """

    path: str
    label: str
    where: str


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    cells: Mapping[str, object]


def read_label_table(table: Path) -> list[LabelledPath]:
    """Read the rows of a table, in its order; one for each label of an image.

    Raises:
        UsageError: if it can't be read, names no image, or its columns tell no paths and labels.
    """
    try:
        rows = _rows(table)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        kind = "JSON Lines" if _is_json(table) else "CSV"
        raise UsageError(f"{table}: not readable as {kind}: {reason_of(error)}") from None
    names = list(rows[0].cells) if rows else []
    if rows:
        path, labels = _columns(table, names, rows)
    read = []
    for row in rows:
        name = _text(row.cells.get(path))
        if not name:
            raise UsageError(f"{row.where}: without a path")
        read += [LabelledPath(name, label, row.where) for label in _labels(row, labels)]
    if not read:
        raise UsageError(f"{table}: names no image")
    return read


def locate(folder: Path, rows: Sequence[LabelledPath], table: Path) -> list[Path]:
    """Find the image of each row in a folder. A path may lack its suffix, as Kaggle's ids do, or
    have Windows' slashes.

    Raises:
        UsageError: if none of them is there, or several images have a name.
    """
    listings: dict[Path, dict[str, list[str]]] = {}
    paths = [_locate(folder, row, listings) for row in rows]
    missing = [
        path
        for path, row in zip(paths, rows, strict=True)
        if not any(part in row.path for part in _NO_FILE) and is_missing(str(path))
    ]
    if len(missing) == len(paths):
        raise UsageError(
            f"{table}: none of its {counted(len(paths), 'image')} is there, for example "
            f"{visible(str(missing[0]))}",
            hint=f"its paths are relative to {folder}",
        )
    return paths


def metadata_in(folder: Path) -> Path | None:
    """Find the table of labels that Hugging Face's `imagefolder` has beside its images."""
    return next((path for each in _METADATA if (path := folder / each).is_file()), None)


def _locate(folder: Path, row: LabelledPath, listings: dict[Path, dict[str, list[str]]]) -> Path:
    path = folder / row.path
    if any(part in row.path for part in _NO_FILE) or not is_missing(str(path)):
        return path
    if "\\" in row.path:
        path = folder / row.path.replace("\\", "/")
        if not is_missing(str(path)):
            return path
    found = _listing(path.parent, listings).get(path.name, [])
    if len(found) > 1:
        raise UsageError(f"{row.where}: {visible(row.path)} may be {' or '.join(sorted(found))}")
    return path.parent / found[0] if found else path


def _listing(folder: Path, listings: dict[Path, dict[str, list[str]]]) -> dict[str, list[str]]:
    """List the images of a folder by their names without suffix."""
    if folder not in listings:
        listings[folder] = {}
        try:
            for name in os.listdir(folder):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    listings[folder].setdefault(stem, []).append(name)
        except OSError:
            pass  # opening the image reports it
    return listings[folder]


def _is_json(table: Path) -> bool:
    return table.suffix.lower() in (".jsonl", ".ndjson")


def _rows(table: Path) -> list[_Row]:
    content = table.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    return list(_json_rows(table, text) if _is_json(table) else _delimited_rows(table, text))


def _json_rows(table: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            cells = json.loads(line)
            if not isinstance(cells, dict):
                raise UsageError(f"{table}: line {number} is no JSON object")
            yield _Row(f"{table}, line {number}", cells)


def _delimited_rows(table: Path, text: str) -> Iterator[_Row]:
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    if not first.count(delimiter):
        yield from _lines(table, text)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = next(reader, [])
    if names and _is_image(names[0]):
        # Without a header: the first row is an image already.
        yield _Row(f"{table}, line 1", dict(zip(_headless(names), names, strict=True)))
        names = _headless(names)
    for row in reader:
        if any(row):
            cells = dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=False))
            yield _Row(f"{table}, line {reader.line_num}", cells)


def _headless(names: Sequence[str]) -> list[str]:
    return ["path", "label", *map(str, range(2, len(names)))][: len(names)]


def _lines(table: Path, text: str) -> Iterator[_Row]:
    """Read lines of a path, a space and a label."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().partition(" ")
        while label and not _is_image(path):  # a space in the path
            part, _, label = label.partition(" ")
            path = f"{path} {part}"
        if not _is_image(path) or not label:
            raise UsageError(f"{table}: {_NO_COLUMNS}", hint=_WHICH_COLUMNS)
        yield _Row(f"{table}, line {number}", {"path": path, "label": label.strip()})


_NO_COLUMNS = "its first line does not name the columns path,label"
_WHICH_COLUMNS = (
    "a row for each image, its path and its label; or a column for each label, of 1 and 0"
)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _columns(table: Path, names: Sequence[str], rows: Sequence[_Row]) -> tuple[str, list[str]]:
    """Choose the column of paths and that of labels; or all columns that are a label each.

    Raises:
        UsageError: if that is not clear.
    """
    by_name = {name.strip().casefold(): name for name in names}
    path = next((by_name[each] for each in _PATHS if each in by_name), None)
    if path is None:
        raise UsageError(f"{table}: {_NO_COLUMNS}", hint=_WHICH_COLUMNS)
    label = next((by_name[each] for each in (*_LABELS, _BOXES) if each in by_name), None)
    rest = [name for name in names if name.strip() and name != path]
    if label is None and len(rest) == 1:
        (label,) = rest
    if label is None:
        if len(rest) > 1 and all(
            _text(row.cells.get(name)).casefold() in _YES | _NO for row in rows for name in rest
        ):
            warnings.warn(f"{table}: taking {len(rest)} columns for a label each", stacklevel=3)
            return path, rest
        raise UsageError(f"{table}: {_NO_COLUMNS}", hint=_WHICH_COLUMNS)
    if path not in _PLAIN[0] or label not in _PLAIN[1]:
        warnings.warn(
            f"{table}: taking its columns '{visible(path)}' and '{visible(label)}' for path and "
            "label",
            stacklevel=3,
        )
    return path, [label]


def _labels(row: _Row, columns: Sequence[str]) -> list[str]:
    """Return the labels of a row, or an empty one."""
    if len(columns) > 1:
        return [name for name in columns if _text(row.cells.get(name)).casefold() in _YES] or [""]
    (column,) = columns
    value = row.cells.get(column)
    if isinstance(value, list):
        return [*map(_text, value)] or [""]
    text = _text(value)
    return text.split()[:1] or [""] if column.strip().casefold() == _BOXES else [text]


def _text(value: object) -> str:
    return "" if value is None else str(value)
