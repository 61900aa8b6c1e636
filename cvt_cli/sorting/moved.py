"""The log of what `cvt sort --move` moved into a folder, by which `--undo` puts it back.

One line of JSON per move, written before it: `{"from": "/home/me/1.jpg", "to": "cat/1.jpg"}`. Where
another process was quicker and took that place, a second line with `"retracted": true` follows.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt_cli.errors import UsageError
from cvt_cli.images.formats import RAW_SUFFIXES
from cvt_cli.images.source import IMAGE_SUFFIXES
from cvt_cli.sorting.sidecars import SIDECAR_SUFFIXES
from cvt_cli.sorting.transfer import SortError, copy_file, move_file, remove_moved
from cvt_cli.system.files import write_atomically
from cvt_cli.system.locks import open_itself
from cvt_cli.system.text import reason_of

NAME = ".cvt-moved.jsonl"
# Files that go back by themselves. A folder from somebody else may have a log too, which must not
# put a program where one is started from.
_RETURNED_SUFFIXES = (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *SIDECAR_SUFFIXES)


class MoveLog:
    """Appends to the log of a folder.

    Args:
        folder: holds the folders of the labels.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, file: Path, target: Path) -> None:
        """Note, before it is done, that a file moves to its place in the folder."""
        self._append(_line(self._folder, target, os.path.abspath(file)))

    def retract(self, file: Path, target: Path) -> None:
        """Note that a move was not done: another process has taken the place."""
        self._append(_line(self._folder, target, os.path.abspath(file), retracted=True))

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = open_itself(self._folder / NAME, flags)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Return:
    """The outcome for one file that had been moved.

    Attributes:
        file: where it is, in the folder.
        origin: where it was.
        error: why it stays; "" if it went, or would go, back.
    """

    file: Path
    origin: Path
    error: str = ""


def undo(folder: Path, *, dry_run: bool = False) -> Iterator[Return]:
    """Put the files back that were moved into a folder, the last one first, and yield one result
    for each. Nothing is replaced. Folders of labels that are empty then go, and so does the log,
    unless a file stays.

    Raises:
        UsageError: if there is no log, or it can't be read.
    """
    moves = _read(folder)
    # Equal files of two paths may have become one: each path but the last gets a copy.
    uses = Counter(target for target, origin in moves if not os.path.lexists(origin))
    stay: list[tuple[Path, Path]] = []
    left = list(moves)
    try:
        while left:
            target, origin = left[-1]
            keep = uses[target] > 1
            try:
                try:
                    is_back = _put_back(target, origin, keep=keep, dry_run=dry_run)
                except (FileNotFoundError, FileExistsError):
                    # Another process was quicker.
                    is_back = _put_back(target, origin, keep=keep, dry_run=dry_run)
            except (OSError, SortError) as error:
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                stay.append(left.pop())
                yield Return(target, origin, reason)
                continue
            left.pop()
            if is_back:
                uses[target] -= 1
                yield Return(target, origin)
    finally:
        if not dry_run:
            _clear(folder, [*left, *reversed(stay)], {target.parent for target, _ in moves})


def _put_back(target: Path, origin: Path, *, keep: bool, dry_run: bool) -> bool:
    """Move a file back; tells whether there was something to move.

    Raises:
        SortError: if it can't go back.
    """
    if not os.path.lexists(target):
        if os.path.lexists(origin):  # back already, or never moved
            return False
        raise SortError("no such file")
    is_there = os.path.lexists(origin)
    if is_there and (keep or not _is_linked(target, origin)):
        raise SortError(f"{origin} exists")
    suffix = origin.suffix.lower()
    if suffix not in _RETURNED_SUFFIXES or suffix != target.suffix.lower():
        raise SortError(f"not named like a picture: move it to {origin} yourself, if you trust it")
    if target.parent.is_symlink():
        raise SortError(f"{target.parent} is a link")
    if is_there:  # two paths of one file, as within a move
        if not dry_run:
            remove_moved(target, origin)
        return True
    if not origin.parent.is_dir():
        raise SortError(f"{origin.parent} is gone: make that folder first")
    if not dry_run:
        (copy_file if keep else move_file)(target, origin)
    return True


def _is_linked(target: Path, origin: Path) -> bool:
    """Tell whether two paths are hard links to one file."""
    if target.is_symlink() or origin.is_symlink():
        return False
    return target.samefile(origin)


def _clear(folder: Path, left: list[tuple[Path, Path]], folders: set[Path]) -> None:
    """Delete what is empty, and keep a log of what is left."""
    log = folder / NAME
    if left:
        content = b"".join(_line(folder, target, str(origin)) for target, origin in left)
        write_atomically(log, lambda file: file.write(content))
    else:
        log.unlink(missing_ok=True)
        folders = {*folders, folder}
    for each in sorted(folders, reverse=True):  # the folder itself comes last
        try:
            each.rmdir()
        except OSError:
            continue  # something is in it


def _line(folder: Path, target: Path, origin: str, *, retracted: bool = False) -> bytes:
    move: dict[str, Any] = {"from": origin, "to": target.relative_to(folder).as_posix()}
    if retracted:
        move["retracted"] = True
    return json.dumps(move).encode() + b"\n"


def _read(folder: Path) -> list[tuple[Path, Path]]:
    """Return the places and the origins of what was moved, in that order.

    Raises:
        UsageError: as `undo`.
    """
    log = folder / NAME
    try:
        with open(open_itself(log, os.O_RDONLY), encoding="utf-8") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: nothing to undo: cvt sort --move has moved nothing here",
            hint="copies and links can be deleted",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{log}: {reason}") from None
    # A run that was killed may have left its last line cut.
    # One that was interrupted was noted twice; a line retracts one only, because two runs may have
    # tried the same move.
    noted: Counter[tuple[Path, Path]] = Counter()
    for number, line in enumerate(lines[:-1], 1):
        move = _move_of(line)
        if move is None:
            raise UsageError(f"{log}: line {number} is no move")
        origin, place, is_retracted = move
        noted[folder / place, Path(origin)] += -1 if is_retracted else 1
    return [move for move, times in noted.items() if times > 0]


def _move_of(line: str) -> tuple[str, str, bool] | None:
    """Return origin and place of a line, and whether it retracts the move; None if it is none: a
    place is `label/name`."""
    try:
        move: Any = json.loads(line)
        origin, place = move["from"], move["to"]
        folder, name = place.split("/")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(origin, str) or not os.path.isabs(origin) or "\0" in origin + place:
        return None
    if {folder, name} & {"", ".", ".."}:
        return None
    return origin, place, move.get("retracted") is True
