"""What was typed becomes names: brace ranges, globs, lists of names."""

import os
import re
from collections.abc import Iterator
from fnmatch import translate
from typing import BinaryIO

# A list that is no list must not fill the memory.
_MAX_NAME = 2**20
_CHUNK = 2**16

_RANGE = re.compile(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})\}")
_MAGIC = re.compile(r"[*?[]")
_ANY_DEPTH = "**"

# Device and inode.
FolderId = tuple[int, int]


def has_magic(path: str) -> bool:
    """Whether a path has characters of a glob."""
    return _MAGIC.search(path) is not None


def may_repeat(pattern: str) -> bool:
    """Whether `expand_glob` may find a file more than once."""
    return re.split(r"[/\\]", pattern).count(_ANY_DEPTH) > 1


def has_range(path: str) -> bool:
    """Whether a path has a brace range."""
    return _RANGE.search(path) is not None


def expand_ranges(path: str) -> Iterator[str]:
    """`shard-{000..999}.tar` as a shell would expand it, zeros kept, one name at a time."""
    match = _RANGE.search(path)
    if match is None:
        yield path
        return
    first, last = match.groups()
    padded = any(len(end.lstrip("-")) > 1 and end.lstrip("-")[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        for rest in expand_ranges(path[match.end() :]):
            yield f"{path[: match.start()]}{number:0{width}}{rest}"


def expand_glob(pattern: str) -> Iterator[str]:
    """The paths that match, sorted within each folder, as they are found.

    `**` is any number of folders. With it, only files are found: the folders' files are matched
    anyway. Names with a leading dot only match a pattern that has one.
    """
    pattern = pattern.replace(os.altsep, os.sep) if os.altsep else pattern
    drive, rest = os.path.splitdrive(pattern)
    start = drive + rest[: len(rest) - len(rest.lstrip(os.sep))]
    parts = [part for part in rest.split(os.sep) if part]
    for path in _glob(start, parts):
        if _ANY_DEPTH not in parts or not os.path.isdir(path):
            yield path


def _glob(folder: str, parts: list[str]) -> Iterator[str]:
    part, *rest = parts
    if part == _ANY_DEPTH:
        for each in _folders(folder):
            yield from _glob(each, rest or ["*"])
    elif has_magic(part):
        match = re.compile(translate(part)).match
        for name in _names(folder):
            if match(name) and (part.startswith(".") or not name.startswith(".")):
                path = os.path.join(folder, name)
                if not rest:
                    yield path
                elif os.path.isdir(path):
                    yield from _glob(path, rest)
    else:
        path = os.path.join(folder, part)
        if rest:
            yield from _glob(path, rest)
        elif os.path.lexists(path):
            yield path


def _folders(top: str) -> Iterator[str]:
    """A folder and all below it, links that lead back to where they are left out."""
    # Each with the folders that it lies in. A stack: folders may lie deeper than calls can.
    waiting: list[tuple[str, frozenset[FolderId]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        here = folder_id(folder or os.curdir)
        if here is None or here in above:
            continue
        yield folder
        inner = (os.path.join(folder, n) for n in _names(folder) if not n.startswith("."))
        waiting += [(path, above | {here}) for path in inner if os.path.isdir(path)][::-1]


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or os.curdir))
    except OSError:
        # As a shell does: a pattern asks for what can be found.
        return []


def folder_id(folder: str) -> FolderId | None:
    """What tells a folder from every other, whatever links lead there."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def read_names(file: BinaryIO, null: bool) -> Iterator[str]:
    """The names in a list, as they are read.

    Args:
        file: binary; a pipe may be written to meanwhile.
        null: they end with NUL bytes; else with newlines, with or without a carriage return.

    Raises:
        OSError: if the list can't be read further.
        ValueError: at a name of more than a MiB.
    """
    end = b"\0" if null else b"\n"
    rest = b""
    start = True
    # read1: what is there already, without waiting for more.
    read = getattr(file, "read1", file.read)
    while True:
        chunk = read(_CHUNK)
        *whole, rest = (rest + chunk).split(end)
        if not chunk:
            whole, rest = [*whole, rest], b""
        for line in whole:
            name = line if null else line.removesuffix(b"\r")
            if start and not null:
                name = name.removeprefix(b"\xef\xbb\xbf")
            start = False
            if name:
                yield os.fsdecode(name)
        if len(rest) > _MAX_NAME:
            raise ValueError("a name of more than a MiB: is this a list of names?")
        if not chunk:
            return
