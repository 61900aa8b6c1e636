"""Tables of labels as people have them: which image has which label.

CSV, TSV and other delimited text, JSON Lines (Hugging Face's `metadata.jsonl`), or lines of a path
and a label (Caffe's `val.txt`). Where the columns are not called `path` or `file_name` and `label`,
a warning says which were taken.
"""

import csv
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.images.find import find_named
from cvt_cli.images.names import is_missing
from cvt_cli.images.source import IMAGE_SUFFIXES, Source, failing
from cvt_cli.images.standard_input import OPEN_FILE, STDIN
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
# Of a path: those of members of archives, and addresses.
_NO_FILE = ("::", "://")
# A path, which may have spaces, and a label.
_LINE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})) +(.+)", re.IGNORECASE)


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
    # Objects of JSON Lines may lack any key.
    names = [*dict.fromkeys(name for row in rows for name in row.cells)]
    if rows:
        path, labels = _columns(table, names, rows)
    read = []
    for row in rows:
        name = _text(row, path)
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


def named_images(path: str) -> Iterator[Source]:
    """Find the image that a table names: no name stands for several, as of a folder or a
    pattern."""
    if path == STDIN or OPEN_FILE.fullmatch(path):
        yield failing(path, "standard input, not an image")
    elif os.path.isdir(path):
        yield failing(path, "a folder, not an image")
    else:
        yield from find_named(path)


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
    # Not at other line ends: JSON may hold those as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                cells = json.loads(line, object_pairs_hook=_once_each)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"line {number}: {reason}") from None
            if not isinstance(cells, dict):
                raise UsageError(f"{table}: line {number} is no JSON object")
            yield _Row(f"{table}, line {number}", cells)


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _check_once(names: Sequence[str]) -> None:
    """Raise ValueError if two columns have the same name."""
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"two columns have the name '{visible(twice[0])}'")


def _delimited_rows(table: Path, text: str) -> Iterator[_Row]:
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    if not first.count(delimiter):
        yield from _lines(table, text)
        return
    rows = _cells(text, delimiter)
    _, names = next(rows, (1, []))
    if names and _is_image(names[0]):
        # Without a header: the first row is an image already.
        yield _Row(f"{table}, line 1", dict(zip(_headless(names), names, strict=True)))
        if len(names) > len(_HEADLESS):
            warnings.warn(f"{table}: taking its first two columns for path and label", stacklevel=2)
        names = _headless(names)
    _check_once(names)
    for number, row in rows:
        if any(row[len(names) :]):
            raise UsageError(
                f"{table}, line {number}: has {len(row)} cells, and the first line {len(names)}",
                hint=f"a label with '{visible(delimiter)}' in it needs quotes",
            )
        if any(row):
            cells = dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=False))
            yield _Row(f"{table}, line {number}", cells)


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of a row's last line, and its cells without spaces around them."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    first = 1
    try:
        for row in reader:
            yield reader.line_num, [cell.strip() for cell in row]
            first = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is not closed" if "unexpected end" in str(error) else error
        raise ValueError(f"line {first}: {reason}") from None


_HEADLESS = ("path", "label")


def _headless(names: Sequence[str]) -> list[str]:
    return [*_HEADLESS, *map(str, range(2, len(names)))][: len(names)]


def _lines(table: Path, text: str) -> Iterator[_Row]:
    """Read lines of a path, a space and a label."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise UsageError(f"{table}: {_NO_COLUMNS}", hint=_WHICH_COLUMNS)
        yield _Row(f"{table}, line {number}", {"path": found[1], "label": found[2]})


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
            _text(row, name).casefold() in _YES | _NO for row in rows for name in rest
        ):
            warnings.warn(f"{table}: taking {len(rest)} columns for a label each", stacklevel=3)
            return path, rest
        raise UsageError(f"{table}: {_NO_COLUMNS}", hint=_WHICH_COLUMNS)
    for chosen in (path, label):
        same = [name for name in names if name.strip().casefold() == chosen.strip().casefold()]
        if len(same) > 1:
            raise UsageError(f"{table}: which of its columns {' and '.join(map(repr, same))}?")
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
        return [name for name in columns if _text(row, name).casefold() in _YES] or [""]
    (column,) = columns
    value = row.cells.get(column)
    if isinstance(value, list):
        return [_as_text(row, column, each).strip() for each in value] or [""]
    text = _text(row, column).strip()
    return text.split()[:1] or [""] if column.strip().casefold() == _BOXES else [text]


def _text(row: _Row, column: str) -> str:
    return _as_text(row, column, row.cells.get(column))


def _as_text(row: _Row, column: str, value: object) -> str:
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise UsageError(f"{row.where}: '{visible(column)}' is {kind}, not text")
    return "" if value is None else str(value)
