"""The walk of a folder, in order, with all that it leaves out."""

import os
from collections.abc import Iterator

from cvt_cli.images import names
from cvt_cli.images.source import (
    Filter,
    LocalFile,
    Search,
    Source,
    failing,
    kind_of_archive,
    os_reason,
)

# In a folder, a .parquet file may as well be a table of labels.
_NO_ARCHIVE = (None, "parquet")


class FolderWalk:
    """Walks folders.

    Args:
        search: the options.
        wanted: which files and folders to take. It counts what is left out.
        counting: nobody is going to open what is found, nor is told of what is left out.

    Attributes:
        is_counting: as `counting`.
        passed_over: an archive that the latest walk has passed over; empty for none.
    """

    def __init__(self, search: Search, wanted: Filter, *, counting: bool) -> None:
        self._search = search
        self._filter = wanted
        self.is_counting = counting
        self.passed_over = ""

    def walk(self, top: str) -> Iterator[Source]:
        """Yield the wanted files below a folder, sorted by name. A folder that can't be read is a
        `Source` that fails."""
        self.passed_over = ""
        # A stack of iterators, each with its folder's path below the top and the folder's identity:
        # folders may be nested deeper than calls.
        here = names.folder_id(top)
        stack = [("", here, self._entries(top))]
        while stack:
            relative, _, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, Source):
                yield entry
            else:
                path, name = entry
                inner = f"{relative}{name}"
                here = names.folder_id(path)
                # A link may lead back to a folder that it lies in.
                loop = here is not None and any(here == above for _, above, _ in stack)
                if not loop and self._filter.wants_folder(name, inner):
                    stack.append((f"{inner}/", here, self._entries(path, f"{inner}/")))

    def _entries(self, folder: str, relative: str = "") -> Iterator[Source | tuple[str, str]]:
        """Return the wanted files of a folder, and the path and name of the folders in it."""
        inside = os.path.join(folder, "")
        folders: set[str] = set()

        def found() -> Iterator[str]:
            with os.scandir(folder) as scan:
                for entry in scan:
                    if names.is_marked_hidden(entry):
                        continue
                    if not names.is_folder(entry):
                        if self._wants(entry, relative + entry.name):
                            yield entry.name
                    elif self._search.recursive and not self._filter.is_hidden(entry.name):
                        if self._filter.is_junk(entry.name):
                            self.leave(entry.path, is_folder=True)
                        else:
                            folders.add(entry.name)
                            yield entry.name

        def entry_of(name: str) -> Source | tuple[str, str]:
            path = inside + name
            return (path, name) if name in folders else local_file(path, self._search)

        error = None
        listed: list[str] = []
        try:
            if self.is_counting:
                # In any order: who counts may stop long before the end of a large folder.
                for name in found():
                    yield entry_of(name)
            else:
                listed.extend(found())
        except OSError as problem:
            error = problem
        listed.sort()
        self._filter.skipped.add_pairs([name for name in listed if name not in folders])
        for name in listed:
            yield entry_of(name)
        if error is not None:
            yield failing(folder, os_reason(error))

    def _wants(self, entry: os.DirEntry[str], relative: str) -> bool:
        """Tell whether to take a file, and note why not."""
        if self._filter.wants_file(entry.name, relative):
            return True
        self.note(entry.path, entry.name, relative)
        return False

    def note(self, path: str, name: str, relative: str) -> None:
        """Count a file that is left out, by the reason.

        Args:
            relative: its path below what is searched, with slashes.
        """
        is_archive = kind_of_archive(name) not in _NO_ARCHIVE
        if is_archive and self._filter.wants_folder(name, relative):
            self.passed_over = path
        elif self._filter.is_junk(name):
            self.leave(path)
        elif not is_archive and not self.is_counting and self._filter.is_unknown(name, relative):
            self._filter.skipped.add_file(name)

    def leave(self, path: str, is_folder: bool = False) -> None:
        """Count what is left out for its name only."""
        if not self.is_counting:
            files = sum(len(names) for *_, names in os.walk(path)) if is_folder else 1
            self._filter.skipped.add_junk(path, files)


def local_file(path: str, search: Search) -> Source:
    """Return a file on this machine as a source."""
    return Source(path, LocalFile(path, search.max_bytes))
