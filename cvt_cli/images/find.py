"""Finding: inputs as typed become a lazy stream of sources, one for each image."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

from cvt_cli.errors import ImageError, UsageError
from cvt_cli.images import names
from cvt_cli.images.folder_walk import FolderWalk, local_file
from cvt_cli.images.name_list import list_start, read_names, why_no_list
from cvt_cli.images.shard import Shard, key_of
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import (
    IMAGE_SUFFIXES,
    Filter,
    LocalFile,
    Place,
    Search,
    Source,
    failing,
    kind_of_archive,
    os_reason,
)
from cvt_cli.images.standard_input import OPEN_FILE, STDIN, PipedInput, open_stdin
from cvt_cli.records import masked

if TYPE_CHECKING:
    from cvt_cli.images.store_images import Store

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_EVERYTHING = Search()


class Lister(Protocol):
    """Lists an archive, as `archives.members` does."""

    def __call__(
        self,
        path: str,
        kind: str,
        place: Place,
        *,
        seekable: bool,
        wanted: Filter,
        max_bytes: int,
    ) -> Iterator[Source]:
        """List the members, as `archives.members` does."""
        ...


def find(
    inputs: Iterable[str],
    search: Search = _EVERYTHING,
    whole_archives: bool = False,
    *,
    shard: Shard | None = None,
    list_members: Lister | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Source]:
    """Find the images behind the inputs, and yield them in order, as they are found.

    - A file is tried whatever it is called. `-` is one image on standard input.
    - A folder is walked, sorted by name. Hidden files, files without an image's suffix, and links
      back to a folder that they lie in are left out.
    - A pattern (`'photos/**/*.png'`) stands for the files that match, `{000..999}` for the
      numbers, unless there is a file of that very name.
    - `.zip`, `.parquet` and `.tar` (also `.gz`, `.bz2`, `.xz`, `.zst`) stand for the images in
      them.
    - Addresses (`https://`, `s3://`, any that fsspec knows) are downloaded when they are opened.
      Folders there are walked, patterns expanded, archives read in place.

    An input that can't be read is a `Source` too, which says why when it is opened. Each path
    comes once, and a warning at the end says how many repetitions were left out. The order
    depends on the files only.

    Args:
        whole_archives: an archive is one `Source` for all that is in it, and is not opened.
        shard: only what is dealt to it. An archive that can only be read from end to end is dealt
            whole, and is not opened if it is another's.
        list_members: lists archives; None for this process itself.
        skipped: counts what is left out, for the caller to tell; None for a warning at the end.
    """
    inputs = tuple(inputs)
    finder = _Finder(
        search,
        whole_archives=whole_archives,
        shard=shard,
        list_members=list_members,
        skipped=skipped,
    )
    stream = finder.all(inputs)
    stream = _once(stream, tell=True) if _may_repeat(inputs, search) else stream
    return shard.take(stream) if shard is not None else stream


def find_named(
    path: str,
    search: Search = _EVERYTHING,
    *,
    list_members: Lister | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Source]:
    """Find one of the sources of an earlier `find` again, maybe on another machine: the file of
    exactly that name, or the images in that archive.

    Args:
        list_members, skipped: as in `find`.
    """
    return _Finder(search, list_members=list_members, skipped=skipped).named(path)


def count_sources(
    inputs: Iterable[str],
    search: Search = _EVERYTHING,
    shard: Shard | None = None,
    *,
    list_members: Lister | None = None,
    most: int | None = None,
) -> int | None:
    """Count the sources that `find` yields, by a second walk that downloads no image.

    Args:
        inputs, search, shard, list_members: as `find` has them.
        most: where to stop; None to count all.

    Returns:
        None where only reading everything would tell, as for compressed archives or a list of
        names in a pipe.
    """
    inputs = tuple(inputs)
    stream = _Finder(search, counting=True, shard=shard, list_members=list_members).all(inputs)
    stream = _once(stream) if _may_repeat(inputs, search) else stream
    try:
        return sum(1 for _ in islice(shard.take(stream) if shard is not None else stream, most))
    except _Uncountable:
        return None


def check_inputs(inputs: Sequence[str], search: Search) -> None:
    """Check that there is something to search. Raises `UsageError` if not, or if the options
    exclude each other."""
    listed = search.files_from
    if listed is None:
        if search.null:
            raise UsageError("--null is for --files-from")
        if not inputs:
            raise UsageError("no image is named", hint="name files or folders, or use --files-from")
        return
    if listed == STDIN and STDIN in inputs:
        raise UsageError("standard input can't be the image (-) and the list of names both")
    if os.path.isdir(listed):
        raise UsageError(f"--files-from {listed}: is a folder", hint="name it as an input")
    try:
        reason = why_no_list(list_start(listed), search.null)
    except OSError as error:
        reason = os_reason(error, listed)
    except ImageError as error:
        reason = str(error)
    if reason:
        raise UsageError(f"--files-from {listed}: {reason}")


class _Uncountable(Exception):
    """Raised when only reading everything would tell how many sources there are."""


class _Finder:
    """One search for sources.

    Args:
        search: how.
        counting: nobody is going to open what is found; raise `_Uncountable` where finding it
            takes as long as reading it.
        whole_archives: do not look into archives.
        shard: whose sources are wanted. All of them have a key then, unless it wants them all.
        list_members, skipped: as in `find`.
    """

    def __init__(
        self,
        search: Search,
        counting: bool = False,
        whole_archives: bool = False,
        *,
        shard: Shard | None = None,
        list_members: Lister | None = None,
        skipped: Skipped | None = None,
    ) -> None:
        self._search = search
        self._counting = counting
        self._whole_archives = whole_archives
        self._shard = shard
        self._list_members = list_members
        self._root = ""  # the keys of sources are relative to it
        self._filter = Filter(search)
        self._is_told = not counting and skipped is None
        if skipped is not None:
            self._filter.skipped = skipped
        self._walk = FolderWalk(search, self._filter, counting=counting)

    def all(self, inputs: Sequence[str]) -> Iterator[Source]:
        for path in inputs:
            yield from self._typed(path)
        if self._search.files_from is not None:
            yield from self._listed(self._search.files_from)
        if self._is_told:
            for line in self._filter.skipped.in_words():
                warnings.warn(line, stacklevel=2)

    def _typed(self, path: str) -> Iterator[Source]:
        if path.startswith("~") and not os.path.lexists(path):
            path = os.path.expanduser(path)  # it was quoted, so that no shell has expanded it
        if path == STDIN or os.path.lexists(path):
            yield from self._keyed(path, self.named(path))
        elif names.has_range(path):
            for each in names.expand_ranges(path):
                yield from self._keyed(names.glob_root(each), self._pattern(each))
        else:
            yield from self._keyed(names.glob_root(path), self._pattern(path))

    def _keyed(self, root: str, stream: Iterator[Source]) -> Iterator[Source]:
        if self._shard is None or self._shard.is_whole:
            yield from stream
            return
        if root.lower().startswith("file://"):
            root = names.local_path(root)
        self._root = root
        for source in stream:
            path = source.path
            if path.lower().startswith("file://"):
                path = names.local_path(path)
            key = source.key or key_of(masked(root), masked(path))
            yield source if source.key else replace(source, key=key)

    def _pattern(self, path: str) -> Iterator[Source]:
        literal = not names.has_magic(path) or "\0" in path
        if literal or _ADDRESS.match(path) or os.path.lexists(path):
            yield from self.named(path)
            return
        found = _or_failing(self._matches(path), path, "nothing matches this pattern")
        yield from _once(found) if names.may_repeat(path) else found

    def _matches(self, pattern: str) -> Iterator[Source]:
        for each in names.expand_glob(pattern, self._is_left):
            if isinstance(each, names.Unlisted):
                yield failing(each.path, os_reason(each.error))
            else:
                yield from self.named(each)

    def _is_left(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether a pattern's wildcards leave this name out."""
        if not self._filter.is_junk(entry.name):
            return False
        self._walk.leave(entry.path, names.is_folder(entry))
        return True

    def _listed(self, listed: str) -> Iterator[Source]:
        """Take names from a list literally: programs write them, and no shell has expanded them."""
        regular = listed != STDIN and os.path.isfile(listed)
        if self._counting and not regular:
            raise _Uncountable
        empty = True
        try:
            with nullcontext(open_stdin()) if listed == STDIN else Path(listed).open("rb") as file:
                for path in read_names(file, self._search.null):
                    empty = False
                    if listed == STDIN and path == STDIN:
                        yield failing(path, "standard input is the list of names")
                    else:
                        # The names in it may differ by their folders only.
                        yield from self._keyed("", self.named(path))
        except OSError as error:
            yield failing(listed, f"the list of names: {os_reason(error)}")
        except (ImageError, ValueError) as error:
            yield failing(listed, f"the list of names: {error}")
        else:
            if empty and not self._counting:
                warnings.warn(f"--files-from {listed}: the list names no file", stacklevel=2)

    def named(self, path: str) -> Iterator[Source]:
        """Find one input by its name; patterns are expanded already."""
        address = _ADDRESS.match(path)
        if path == STDIN or OPEN_FILE.fullmatch(path):
            yield Source(path, PipedInput(path, self._search.max_bytes))
        elif address and not os.path.lexists(path):
            yield from self._remote(path, address[1].lower())
        elif os.path.isdir(path):
            yield from self._folder(path, self._walk.walk(path))
        else:
            yield from self._file(path)

    def _folder(self, path: str, walk: Iterator[Source]) -> Iterator[Source]:
        self._walk.passed_over = ""
        yield from _or_failing(walk, path, self._filter.without_images("a folder"))
        if self._walk.passed_over and not self._counting:
            warnings.warn(
                f"{masked(path)} contains archives, which are skipped: to read them, name them, "
                f"like {self._walk.passed_over}",
                stacklevel=2,
            )

    def _file(self, path: str) -> Iterator[Source]:
        kind = kind_of_archive(path)
        if names.is_missing(path):
            yield failing(
                path, "no such file" if path else "an empty name, as of an unset variable"
            )
        elif kind is None:
            yield local_file(path, self._search)
        else:
            yield from self._archive(path, kind, LocalFile(path))

    def _archive(
        self, path: str, kind: str, place: Place, *, seekable: bool = True
    ) -> Iterator[Source]:
        """List an archive, or yield it as one source.

        Args:
            seekable: it can be opened anywhere and often; else it is read once, as it comes.
        """
        if self._whole_archives:
            yield Source(path, place, is_archive=True)
            return
        list_members = self._list_members or import_module("cvt_cli.images.archives").members
        found = list_members(
            path,
            kind,
            place,
            seekable=seekable,
            wanted=self._filter,
            max_bytes=self._search.max_bytes,
        )
        if kind in ("zip", "parquet") or (kind == "tar" and seekable):
            if self._counting and kind == "parquet":
                raise _Uncountable
            yield from found
        elif self._shard is None:
            if self._counting:
                raise _Uncountable
            yield from found
        else:
            key = key_of(self._root, path)
            if not self._shard.has(key):
                self._shard.has_others = True
                return
            if self._counting:
                raise _Uncountable
            for source in found:
                yield replace(source, key=key)

    def _remote(self, url: str, scheme: str) -> Iterator[Source]:
        if scheme == "file":
            yield from self._local_address(url)
            return
        kind = kind_of_archive(re.split("[?#]", url)[0] if scheme in ("http", "https") else url)
        try:
            if scheme in ("http", "https"):
                yield from self._http(url, kind)
            else:
                yield from self._store(url, kind)
        except ImageError as error:
            yield failing(url, error)

    def _local_address(self, url: str) -> Iterator[Source]:
        path = names.local_path(url)
        for source in self.named(path):
            yield replace(source, path=url) if source.path == path else source

    def _http(self, url: str, kind: str | None) -> Iterator[Source]:
        from cvt_cli.images.archives import NEEDS_SEEK
        from cvt_cli.images.http_images import Download, HttpStream

        timeout, max_bytes = self._search.timeout, self._search.max_bytes
        if kind is None:
            yield Source(url, Download(url, timeout, max_bytes))
        elif kind in NEEDS_SEEK:
            if self._counting:
                raise _Uncountable
            yield from self._archive(url, kind, Download(url, timeout, max_bytes))
        else:
            yield from self._archive(url, kind, HttpStream(url, timeout), seekable=False)

    def _store(self, url: str, kind: str | None) -> Iterator[Source]:
        from cvt_cli.images.store_images import Store

        store = Store(url, self._search.timeout, self._search.max_bytes)
        if names.has_magic(url) and not store.is_file():
            found = store.glob(self._filter, self._walk)
            for path, is_folder in found:
                if is_folder:
                    yield from self._stored_folder(store.url(path), store.at(path))
                elif kind_of_archive(path) is not None:
                    yield from self._stored_archive(store.url(path), store.at(path))
                else:
                    yield store.source(path)
            if not found:
                yield failing(url, "nothing matches this pattern")
        elif kind is not None:
            yield from self._stored_archive(url, store)
        # Asking for each of many photographs whether it is a folder would take too long.
        elif not url.lower().endswith(IMAGE_SUFFIXES) and (url.endswith("/") or store.is_folder()):
            yield from self._stored_folder(url, store)
        else:
            yield replace(store.source(store.path), path=url)

    def _stored_folder(self, url: str, store: "Store") -> Iterator[Source]:
        walk = store.walk(self._filter, self._search.recursive, self._walk)
        yield from self._folder(url, walk)

    def _stored_archive(self, url: str, store: "Store") -> Iterator[Source]:
        from cvt_cli.images.archives import NEEDS_SEEK
        from cvt_cli.images.store_images import StoreStream

        kind = kind_of_archive(url)
        assert kind is not None
        yield from self._archive(url, kind, StoreStream(store), seekable=kind in NEEDS_SEEK)


def _once(stream: Iterator[Source], tell: bool = False) -> Iterator[Source]:
    known: set[bytes] = set()
    repeated = 0
    for source in stream:
        # A hash is shorter than most paths, and the same for ./a.jpg and a.jpg.
        path = source.path
        # A signature is another one each time.
        path = masked(path) if _ADDRESS.match(path) else os.path.normcase(PurePath(path))
        key = hashlib.blake2b(os.fsencode(path), digest_size=16).digest()
        if key not in known:
            known.add(key)
            yield source
        else:
            repeated += 1
    if tell and repeated:
        are = "input is" if repeated == 1 else "inputs are"
        warnings.warn(
            f"{repeated} {are} the same as an earlier one: each is read once", stacklevel=2
        )


def _may_repeat(inputs: Sequence[str], search: Search) -> bool:
    """Tell whether a path may occur twice. A single folder of any size is searched without
    remembering paths."""
    if len(inputs) != 1 or search.files_from is not None:
        return True
    path = inputs[0]
    return names.has_magic(path) and names.has_range(path)


def _or_failing(stream: Iterator[Source], path: str, reason: str) -> Iterator[Source]:
    first = next(stream, None)
    if first is None:
        yield failing(path, reason)
    else:
        yield first
        yield from stream
