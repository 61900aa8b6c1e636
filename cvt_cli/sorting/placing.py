"""Places files into a folder for each label. Nothing is ever overwritten or lost.

A file keeps its name, or if that is taken becomes `name-2.jpg`, `name-3.jpg` and so on, by the
order of the records: the same records give the same names again, so that a second run finds what
the first one has done. Its sidecars go with it.
"""

import contextlib
import enum
import errno
import filecmp
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from cvt_cli.errors import CvtError, ImageError, UsageError
from cvt_cli.images.find import find
from cvt_cli.images.names import existing
from cvt_cli.images.source import Search, Source, kind_of_archive
from cvt_cli.images.standard_input import STDIN
from cvt_cli.records import Record, short_label
from cvt_cli.sorting.folder_names import (
    UNCERTAIN,
    base_name,
    digest,
    folder_name,
    is_inside,
    numbered,
)
from cvt_cli.sorting.moved import MoveLog
from cvt_cli.sorting.sidecars import Sidecars
from cvt_cli.sorting.transfer import (
    CHUNK_BYTES,
    SortError,
    copy_file,
    hard_link,
    move_file,
    real,
    remove_moved,
    symlink,
)
from cvt_cli.system.text import folded, reason_of

# Takes any name of a member: the record shows that it is an image.
_ALL_MEMBERS = Search(include=("*", "*.*"))


# Errors of the disk: other files would fail, too.
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Action(enum.Enum):
    """Ways to place a file: copy, move or link it."""

    COPY = "copy"
    MOVE = "move"
    LINK = "link"
    SYMLINK = "symlink"


class SortStatus(enum.Enum):
    """The state of a record's file after sorting."""

    DONE = "done"
    THERE = "there"  # an earlier run has placed it
    LEFT = "left"  # the record is an error: the file stays where it is
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of sorting one record's file.

    Attributes:
        path: the file's, as the record has it.
        folder: the name of the label's folder; "" if there is none.
        target: where the file is now, or would be; None if nowhere.
        error: why, for `SortStatus.FAILED`.
        sidecars: those that went along, or would: where each was, and where it is.
    """

    status: SortStatus
    path: str
    folder: str = ""
    target: Path | None = None
    error: str = ""
    sidecars: tuple[tuple[Path, Path], ...] = ()


class Sorter:
    """Sorts the files of records into folders.

    Args:
        folder: holds the folders of the labels.
        action: what is done with each file.
        min_score: files whose best score is below go to `_uncertain`, as those without a label;
            None for those alone.
        dry_run: do nothing, only say what would be done.
    """

    def __init__(
        self,
        folder: Path,
        action: Action = Action.COPY,
        min_score: float | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        self._folder = folder
        self._action = action
        self._min_score = min_score
        self._dry_run = dry_run
        self._elsewhere = _Elsewhere()
        self._log = MoveLog(folder)
        self._sidecars = Sidecars()
        self._folders: dict[str, str] = {}
        self._label_of: dict[str, str] = {}
        # Records that are done, each with its place.
        self._placed: set[tuple[str, str]] = set()
        self._taken: set[str] = set()
        # For names of several files, the first number that may be free.
        self._next_number: dict[str, int] = {}

    def sort(self, records: Iterable[Record]) -> Iterator[Outcome]:
        """Yield one outcome for each record, in order, once its file is in place.

        Raises:
            CvtError: if the disk is full or read-only, or a label's folder can't be made; what was
                done stays.
            UsageError: if none can be made.
        """
        for record in records:
            if record.error is not None:
                yield Outcome(SortStatus.LEFT, record.path)
                continue
            folder = self._folder_of(record)
            try:
                picture = existing(record.path)
                if picture is None and not is_inside(record.path):
                    picture = Path(record.path)  # an earlier run may have moved it
                # Before it moves: which sidecars are its own depends on what is beside them.
                sidecars = self._sidecars.of(picture) if picture is not None else []
                status, target = self._place(record.path, folder)
                brought: tuple[tuple[Path, Path], ...] = ()
                if picture is not None and target is not None:
                    is_new = status is SortStatus.DONE
                    brought = tuple(self._bring(sidecars, picture, target, is_new=is_new))
                yield Outcome(status, record.path, folder, target=target, sidecars=brought)
            except (ImageError, SortError) as error:
                yield Outcome(SortStatus.FAILED, record.path, folder, error=str(error))
            except (OSError, ValueError) as error:
                reason = reason_of(error)
                if isinstance(error, OSError) and error.errno in _FATAL:
                    raise CvtError(
                        f"{self._folder / folder}: {reason}",
                        hint="fix that, then run the same command again to continue",
                    ) from None
                yield Outcome(SortStatus.FAILED, record.path, folder, error=reason)

    def _folder_of(self, record: Record) -> str:
        best = record.predictions[0] if record.predictions else None
        if best is None or not best.label:
            return UNCERTAIN
        if self._min_score is not None and best.score < self._min_score:
            return UNCERTAIN
        if best.label not in self._folders:
            name, whole = folder_name(short_label(best.label)), folder_name(best.label)
            # A folder of the whole label goes on to be that label's.
            if name != whole and (self._folder / whole).is_dir():
                name = whole
            # Some file systems ignore case: Cat and cat are the same.
            if self._label_of.setdefault(folded(name), best.label) != best.label:
                name = f"{name}-{digest(best.label)}"
            self._folders[best.label] = name
        return self._folders[best.label]

    def _place(self, path: str, folder: str) -> tuple[SortStatus, Path | None]:
        try:
            return self._place_once(path, folder)
        except FileNotFoundError:
            # Another process has moved the file meanwhile, or deleted a folder that was still
            # empty.
            return self._place_once(path, folder)

    def _place_once(self, path: str, folder: str) -> tuple[SortStatus, Path | None]:
        if (folder, path) in self._placed:
            return SortStatus.THERE, None
        file = existing(path)
        inside = file is None and is_inside(path)
        if inside and self._action is not Action.COPY:
            raise SortError("not a file of its own: it can only be copied")
        if file is not None and not stat.S_ISREG(os.stat(file).st_mode):
            raise SortError("not a regular file")
        if file is None and not inside and self._action is not Action.MOVE:
            raise _gone(path)
        name = base_name(path, file)
        with contextlib.ExitStack() as stack:
            if inside and not self._dry_run:
                file = stack.enter_context(_extracted(self._elsewhere.find(path)))
            for target in self._free_places(folder, name):
                if not os.path.lexists(target):
                    if file is None and not inside:
                        raise _gone(path)
                    if self._put(file, target):
                        self._take(folder, path, target)
                        return SortStatus.DONE, target
                    # Another process was quicker, perhaps with this very file.
                # A moved file, or one that a dry run leaves in its archive, can't be compared: its
                # place is taken, and no more is known.
                if target.exists() if file is None else self._is_same(file, target):
                    status = self._keep(file, target)
                    self._take(folder, path, target)
                    return status, target
        raise AssertionError("there is always another number")

    def _put(self, file: Path | None, target: Path) -> bool:
        """Put a file in a free place; returns whether it was still free."""
        if file is None or self._dry_run:
            return True
        made = self._make_folder(target.parent)
        try:
            self._act(file, target)
        except FileExistsError:
            if self._action is Action.MOVE:
                self._log.retract(file, target)
            return False
        except BaseException:
            if made:
                with contextlib.suppress(OSError):  # another process has put something there
                    target.parent.rmdir()
            raise
        return True

    def _keep(self, file: Path | None, target: Path) -> SortStatus:
        """Leave what is in a file's place and is the same; to move, the file itself goes."""
        if self._action is not Action.MOVE or file is None or _is_in(file, target):
            return SortStatus.THERE
        if not self._dry_run:
            self._log.add(file, target)
            remove_moved(file, target)
        return SortStatus.DONE

    def _act(self, file: Path, target: Path) -> None:
        if self._action is Action.MOVE:
            self._log.add(file, target)
        try:
            _ACTIONS[self._action](file, target)
        except PermissionError as error:
            left = [file.parent] if self._action is Action.MOVE else []
            for folder in (target.parent, *left):
                if not os.access(folder, os.W_OK | os.X_OK):
                    # Not the file's fault, though the error names the file.
                    raise SortError(f"{folder} can't be written: {reason_of(error)}") from None
            raise

    def _bring(
        self, sidecars: list[str], picture: Path, target: Path, *, is_new: bool
    ) -> Iterator[tuple[Path, Path]]:
        """Place the sidecars of a picture beside its place, and yield from where to where for each
        that was not there. What is there stays.

        Args:
            is_new: whether this run has placed the picture: the sidecar of an older copy may have
                been edited there.
        """
        for name in sidecars:
            sidecar = picture.with_name(name)
            place = target.with_name(target.stem + name[len(picture.stem) :])
            try:
                if not stat.S_ISREG(os.stat(sidecar).st_mode):
                    continue
                if not os.path.lexists(place) and self._put(sidecar, place):
                    yield sidecar, place
                elif not self._is_same(sidecar, place):
                    if is_new or self._action is Action.MOVE:
                        raise SortError(f"{place} is another file")
                else:
                    self._keep(sidecar, place)
            except FileNotFoundError:
                continue  # moved with another picture of its name
            except (OSError, SortError) as error:
                if isinstance(error, OSError) and error.errno in _FATAL:
                    raise
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                warnings.warn(f"{sidecar} stays where it is: {reason}", stacklevel=2)

    def _free_places(self, folder: str, name: str) -> Iterator[Path]:
        """Yield the places for a file of this name that this run has not taken."""
        first = folded(f"{folder}/{name}")
        start = self._next_number.get(first, 1)
        while folded(f"{folder}/{numbered(name, start)}") in self._taken:
            start += 1
        if start > 1:
            self._next_number[first] = start
        for number in count(start):
            place = f"{folder}/{numbered(name, number)}"
            if folded(place) not in self._taken:
                yield self._folder / place

    def _make_folder(self, folder: Path) -> bool:
        """Make a label's folder; returns whether there was none."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # Other files would fail, too.
            raise UsageError(f"{self._folder} can't be made: {reason_of(error)}") from None
        try:
            folder.mkdir()
        except FileExistsError:
            if folder.is_dir():
                return False
            raise SortError(f"{folder} is not a folder") from None
        except PermissionError as error:
            # Other labels would fail, too.
            kind = CvtError if self._placed else UsageError
            raise kind(f"{folder} can't be made: {reason_of(error)}") from None
        return True

    def _take(self, folder: str, path: str, target: Path) -> None:
        self._placed.add((folder, path))
        self._taken.add(folded(f"{folder}/{target.name}"))

    def _is_same(self, file: Path, target: Path) -> bool:
        if file.is_symlink() and self._action is Action.MOVE:
            return target.is_symlink() and real(target) == real(file)
        if target.is_symlink() and self._action is not Action.SYMLINK:
            # It may be a link to the very file that is to be moved.
            return False
        if not target.is_file():
            return False
        return target.samefile(file) or filecmp.cmp(file, target, shallow=False)


def _is_in(file: Path, target: Path) -> bool:
    """Tell whether a file has been in its place all along, under whatever name of the folder."""
    return file.name == target.name and real(file.parent) == real(target.parent)


def _gone(path: str) -> SortError:
    return SortError("standard input" if path == STDIN else "no such file")


class _Elsewhere:
    """Finds sources in archives or on the network. An archive is read in one go if its members are
    asked for in its order."""

    def __init__(self) -> None:
        self._archive = ""
        self._members: Iterator[Source] = iter(())

    def find(self, path: str) -> Source:
        """Find the source of a record.

        Raises:
            SortError: if it is not there any more.
        """
        archive = _archive_of(path)
        if archive is None:
            found = _named(find([path]), path)
        else:
            found = _named(self._members, path) if archive == self._archive else None
            if found is None:
                self._archive, self._members = archive, find([archive], _ALL_MEMBERS)
                found = _named(self._members, path)
        if found is None:
            raise SortError("no such file")
        return found


def _archive_of(path: str) -> str | None:
    for match in re.finditer("::", path):
        archive = path[: match.start()]
        if kind_of_archive(urlsplit(archive).path if "://" in archive else archive):
            return archive
    return None


def _named(sources: Iterator[Source], path: str) -> Source | None:
    return next((source for source in sources if source.path == path), None)


@contextlib.contextmanager
def _extracted(source: Source) -> Iterator[Path]:
    """Copy a source that is not a file itself, for as long as the context lasts.

    Raises:
        ImageError: if it can't be read.
    """
    with tempfile.TemporaryDirectory(prefix="cvt-sort-") as folder:
        copy = Path(folder) / "image"
        with source.open() as file, copy.open("wb") as out:
            shutil.copyfileobj(file, out, CHUNK_BYTES)
        yield copy


_ACTIONS: Mapping[Action, Callable[[Path, Path], None]] = {
    Action.COPY: copy_file,
    Action.MOVE: move_file,
    Action.LINK: hard_link,
    Action.SYMLINK: symlink,
}
