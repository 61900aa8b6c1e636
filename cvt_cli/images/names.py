"""Names of inputs: brace ranges, globs, and what is to be told of a name."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

from cvt_cli.errors import ImageError
from cvt_cli.system.text import reason_of

# {000..999}, {dog,cat}
_RANGE = re.compile(r"\{(?:(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})|([^{}]*,[^{}]*))\}")
_MAGIC = re.compile(r"[*?[]")
_ANY_DEPTH = "**"
# Attributes that Windows hides files by, such as the bin on every disk and card.
MARKS_HIDDEN = hasattr(os.stat_result, "st_file_attributes")
# Device and inode.
FolderId = tuple[int, int]
# Errors of names that no file has; an address is one, of any length.
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL})
_ESCAPED_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A folder that a pattern leads to but that can't be searched, and why."""

    path: str
    error: OSError


def unsafe_reason(name: str) -> str:
    """Return why an archive's member may not have a name: it would leave the folder that the
    archive is unpacked in. Nothing is unpacked here, but whoever gets the record might. Empty for a
    safe name."""
    if (
        name.startswith(("/", "\\"))
        or re.match("[A-Za-z]:", name)
        or ".." in re.split(r"[/\\]", name)
    ):
        return "an unsafe name in an archive"
    return ""


def has_magic(path: str) -> bool:
    """Tell whether a path has wildcards."""
    return _MAGIC.search(path) is not None


def glob_root(path: str) -> str:
    """Return the folder in front of a pattern's first part with a wildcard. A path without
    wildcards, or one that exists, is returned as it is."""
    found = _MAGIC.search(path)
    if found is None or os.path.lexists(path):
        return path
    return path[: re.match(r".*[/\\]|", path[: found.start()], re.DOTALL).end()]  # type: ignore[union-attr]


def is_missing(path: str) -> bool:
    """Tell whether nothing has this name; a name that can't be looked up may fail for another
    reason."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def may_repeat(pattern: str) -> bool:
    """Tell whether `expand_glob` may find a file more than once."""
    return re.split(r"[/\\]", pattern).count(_ANY_DEPTH) > 1


def has_range(path: str) -> bool:
    """Tell whether a path has braces that stand for several names."""
    return _RANGE.search(path) is not None


def expand_ranges(path: str) -> Iterator[str]:
    """Expand `shard-{000..999}.tar` and `{dog,cat}/*.jpg` as a shell would, leading zeros kept, one
    name at a time."""
    match = _RANGE.search(path)
    if match is None:
        yield path
        return
    first, last, listed = match.groups()
    if listed is not None:
        for each in listed.split(","):
            for rest in expand_ranges(path[match.end() :]):
                yield f"{path[: match.start()]}{each}{rest}"
        return
    padded = any(len(end.lstrip("-")) > 1 and end.lstrip("-")[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        for rest in expand_ranges(path[match.end() :]):
            yield f"{path[: match.start()]}{number:0{width}}{rest}"


Leave = Callable[[os.DirEntry[str]], bool]


def _nothing(_: os.DirEntry[str]) -> bool:
    return False


def expand_glob(pattern: str, leave: Leave = _nothing) -> Iterator[str | Unlisted]:
    """Yield the paths that match, sorted within each folder, as they are found; and once each the
    folders that can't be searched.

    `**` is any number of folders. With it, only files are found: the folders' files are matched
    anyway. Names with a leading dot only match a pattern that has one.

    Args:
        leave: says of what any name stands for whether to leave it out; asked only of what would
            match.
    """
    pattern = pattern.replace(os.altsep, os.sep) if os.altsep else pattern
    drive, rest = os.path.splitdrive(pattern)
    start = drive + rest[: len(rest) - len(rest.lstrip(os.sep))]
    parts = [part for part in rest.split(os.sep) if part]
    unlisted: set[str] = set()
    for path in _glob(start, parts, leave):
        if isinstance(path, Unlisted):
            # `**` matches what is in a folder, and goes on below it.
            if path.path not in unlisted:
                unlisted.add(path.path)
                yield path
        elif _ANY_DEPTH not in parts or not os.path.isdir(path):
            yield path


def _glob(folder: str, parts: list[str], leave: Leave) -> Iterator[str | Unlisted]:
    part, *rest = parts
    if part == _ANY_DEPTH:
        for each in _folders(folder, leave):
            if isinstance(each, Unlisted):
                yield each
            else:
                yield from _glob(each, rest or ["*"], leave)
        return
    magic = has_magic(part)
    inside = _matching(folder, part, bool(rest), leave=leave) if magic else _named(folder, part)
    for path in inside:
        if rest and not isinstance(path, Unlisted):
            yield from _glob(path, rest, leave)
        else:
            yield path


def _matching(
    folder: str, part: str, folders_only: bool, *, leave: Leave
) -> Iterator[str | Unlisted]:
    match = re.compile(translate(os.path.normcase(part))).match

    def wanted(entry: os.DirEntry[str]) -> bool:
        hidden = entry.name.startswith(".") and not part.startswith(".")
        fits = not hidden and match(os.path.normcase(entry.name)) is not None
        return fits and (not folders_only or is_folder(entry)) and not leave(entry)

    return _inside(folder, wanted)


def _folders(top: str, leave: Leave) -> Iterator[str | Unlisted]:
    """Yield a folder and all folders below it, except links that lead back to one of their own
    folders."""
    # A stack of folders, each with those it lies in: folders may be nested deeper than calls.
    waiting: list[tuple[str, frozenset[FolderId | None]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        here = folder_id(folder or os.curdir)
        if here is not None and here in above:
            continue
        yield folder
        within = above | {here}
        inner = _inside(
            folder,
            lambda each: not each.name.startswith(".") and is_folder(each) and not leave(each),
        )
        for path in reversed(list(inner)):
            if isinstance(path, Unlisted):
                yield path
            else:
                waiting.append((path, within))


def _inside(folder: str, wanted: Callable[[os.DirEntry[str]], bool]) -> Iterator[str | Unlisted]:
    try:
        with os.scandir(folder or os.curdir) as scan:
            names = sorted(
                entry.name for entry in scan if not is_marked_hidden(entry) and wanted(entry)
            )
    except OSError as error:
        yield from _unlisted(folder, error)
        return
    for name in names:
        yield os.path.join(folder, name)


def _named(folder: str, name: str) -> Iterator[str | Unlisted]:
    path = os.path.join(folder, name)
    try:
        os.lstat(path)
    except OSError as error:
        yield from _unlisted(folder, error)
    else:
        yield path


def _unlisted(folder: str, error: OSError) -> Iterator[Unlisted]:
    # A folder that is not there holds nothing to match.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        yield Unlisted(folder or os.curdir, error)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry of a folder is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_marked_hidden(entry: os.DirEntry[str]) -> bool:
    """Tell whether what was found in a folder is hidden, whatever it is called."""
    if not MARKS_HIDDEN:
        return False
    marks: int = getattr(entry.stat(follow_symlinks=False), "st_file_attributes")  # noqa: B009
    return bool(marks & stat.FILE_ATTRIBUTE_HIDDEN)


def folder_id(folder: str) -> FolderId | None:
    """Return the identity of a folder, whatever links lead to it; None if the system has none."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    # Some network drives have no such numbers on Windows.
    return (found.st_dev, found.st_ino) if found.st_ino else None


def local_path(url: str) -> str:
    """Return the path of a `file://` address."""
    from urllib.request import url2pathname

    return url2pathname(re.sub("^file://[^/]*", "", url, flags=re.IGNORECASE))


def existing(path: str) -> Path | None:
    """Find the file of a record. Output files escape bytes that are not UTF-8, so an escape may
    stand for the byte or for itself.

    Raises:
        ImageError: if there is a file of either name, or the system does not let it be looked up.
    """
    escaped = _ESCAPED_BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), path)
    found = []
    for candidate in {path, escaped}:
        try:
            os.lstat(candidate)
        except ValueError:  # a NUL, or a lone surrogate
            continue
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise ImageError(reason_of(error)) from None
            continue
        found.append(candidate)
    if len(found) > 1:
        raise ImageError("two files may be meant: one has this name, one a byte for its escape")
    return Path(found[0]) if found else None
