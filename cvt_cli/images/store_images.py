"""Images in stores on the network, such as S3, by fsspec.

A server may send anything, late or never: size and time are bounded.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.folder_walk import FolderWalk
from cvt_cli.images.names import has_magic
from cvt_cli.images.retries import T, with_retries
from cvt_cli.images.source import Filter, Source, failing, one_line
from cvt_cli.images.spool import Spool
from cvt_cli.images.web import LEAST_BYTES, LEAST_RATE, PATIENCE, TooSlow
from cvt_cli.system.extras import install_hint
from cvt_cli.system.text import reason_of

# Bytes of a store's object per request. Nearly every photograph is smaller.
_FIRST_REQUEST = 2**22
# Extras that install the clients of stores.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


class Store:
    """A file system on the network, opened for one address.

    Args:
        url: as fsspec takes it, `s3://bucket/photos/` say.
        timeout, max_bytes: as for `open_http`.

    Raises:
        ImageError: if the package for such addresses is missing (named), or they make no sense.
    """

    def __init__(self, url: str, timeout: float, max_bytes: int) -> None:
        import fsspec

        self._timeout = timeout
        self._max_bytes = max_bytes
        self._url = url
        self._scheme = url.split("://", 1)[0]
        try:
            kind = fsspec.get_filesystem_class(self._scheme)
            # Host, user and port, if such addresses have them.
            place = kind._get_kwargs_from_urls(url)
            self._fs = fsspec.filesystem(self._scheme, **place, **self._options())
            self.path: str = kind._strip_protocol(url)
        except ImportError as error:
            extra = _EXTRAS.get(self._scheme)
            install = f": {install_hint(extra)}" if extra else f" ({one_line(error)})"
            raise ImageError(f"{self._scheme}:// needs another package{install}") from None
        except OSError as error:
            raise ImageError(reason_of(error)) from None
        except TypeError:
            raise ImageError(f"{self._scheme}:// needs more than an address") from None
        except Exception as error:
            raise ImageError(one_line(error)) from None
        if self._is_s3():
            self._fs.retries = 1  # as in _options

    def __reduce__(self) -> tuple[type["Store"], tuple[str, float, int]]:
        """Return the arguments, with which another process connects anew."""
        return Store, (self._url, self._timeout, self._max_bytes)

    def _is_s3(self) -> bool:
        return self._scheme in ("s3", "s3a")

    def _options(self) -> dict[str, Any]:
        if self._scheme == "ftp":
            return {"timeout": self._timeout}
        if not self._is_s3():
            return {}
        from fsspec.config import conf

        # Attempts are counted here.
        ours = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"total_max_attempts": 1},
        }
        return {"config_kwargs": ours | conf.get(self._scheme, {}).get("config_kwargs", {})}

    def url(self, path: str) -> str:
        """Return the address of a path in this store."""
        return f"{self._scheme}://{path.lstrip('/')}"

    def is_folder(self) -> bool:
        """Tell whether the address is a folder. Raises: ImageError."""
        return bool(self._try(lambda: self._fs.isdir(self.path)))

    def is_file(self) -> bool:
        """Tell whether such a file exists. Raises: ImageError."""
        return bool(self._try(lambda: self._fs.isfile(self.path)))

    def at(self, path: str) -> "Store":
        """Return this store, opened for another path."""
        return Store(self.url(path), self._timeout, self._max_bytes)

    def glob(self, wanted: Filter, left_out: FolderWalk) -> list[tuple[str, bool]]:
        """Return the paths that match the address, sorted, and whether each is a folder. As on
        disks, hidden names need a pattern with a leading dot, what other programs leave among
        photographs has to be named, and `**` finds files only.

        Args:
            wanted: says what is left among photographs.
            left_out: counts it.

        Raises:
            ImageError
        """
        found = self._try(lambda: self._fs.glob(self.path, detail=True))
        pattern = self.path.split("/")
        magic = (index for index, part in enumerate(pattern) if has_magic(part))
        first = next(magic, len(pattern))
        shows_hidden = any(part.startswith(".") for part in pattern[first:])
        named = {part for part in pattern[first:] if not has_magic(part)}
        taken: list[tuple[str, bool]] = []
        left: dict[str, bool] = {}
        for path, entry in sorted(found.items()):
            is_folder = entry["type"] == "directory"
            parts = path.rstrip("/").split("/")
            below = parts[first:]
            junk = [part not in named and wanted.is_junk(part) for part in below]
            hidden = not shows_hidden and any(part.startswith(".") for part in below)
            if any(junk):
                end = first + junk.index(True) + 1
                left["/".join(parts[:end])] = is_folder or end < len(parts)
            elif not hidden and not (is_folder and "**" in pattern):
                taken.append((path, is_folder))
        for path, is_folder in left.items():
            if not left_out.is_counting:
                files = self._count(path) if is_folder else 1
                wanted.skipped.add_junk(self.url(path), files)
        return taken

    def walk(self, wanted: Filter, recursive: bool, left_out: FolderWalk) -> Iterator[Source]:
        """Yield the images below this address, sorted within each folder. A folder that can't be
        listed is a `Source` that fails.

        Args:
            left_out: counts what is left out.
        """
        top = self.path.rstrip("/")
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                entries = self._list(folder)
            except ImageError as error:
                yield failing(self._url if folder == top else self.url(folder), error)
                continue
            inner, images = [], []
            for path, is_folder in entries:
                name = path.rsplit("/", 1)[-1]
                relative = path.removeprefix(top).lstrip("/")
                if not is_folder:
                    if wanted.wants_file(name, relative):
                        images.append(name)
                        yield self.source(path)
                    else:
                        left_out.note(self.url(path), name, relative)
                elif recursive and wanted.wants_folder(name, relative):
                    inner.append(path)
                elif recursive and wanted.is_junk(name) and not left_out.is_counting:
                    wanted.skipped.add_junk(self.url(path), self._count(path))
            if not left_out.is_counting:
                wanted.skipped.add_pairs(images)
            folders += reversed(inner)

    def _count(self, folder: str) -> int:
        """Count the files below a folder; 0 if it can't be listed."""
        with suppress(ImageError):
            return self._try(lambda: len(self._fs.find(folder)))
        return 0

    def source(self, path: str) -> Source:
        """Return one file of this store as a source."""
        return Source(self.url(path), StoreFile(self, path))

    def open(self, path: str) -> BinaryIO:
        """Download a file. Raises: ImageError."""

        def download(spool: Spool) -> None:
            start = self._start(path)
            spool.write(start)
            if len(start) == _FIRST_REQUEST:
                with self._fs.open(path, "rb") as file:
                    file.seek(len(start))
                    spool.copy(file)

        return with_retries(
            lambda: _download(download, self._timeout, self._max_bytes), self._timeout
        )

    def _start(self, path: str) -> bytes:
        try:
            start: bytes = self._fs.cat_file(path, start=0, end=_FIRST_REQUEST)
        except OSError as error:
            # Some servers refuse a range of bytes in an empty file.
            lasting = (FileNotFoundError, PermissionError, TimeoutError, ConnectionError)
            if isinstance(error, lasting) or self._fs.info(path).get("size") != 0:
                raise
            return b""
        return start

    def stream(self) -> BinaryIO:
        """Open the file at this address, seekable, to be read piece by piece. Raises: ImageError;
        during reading, whatever its client raises."""
        file: BinaryIO = self._try(lambda: self._fs.open(self.path, "rb"))
        return file

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        def names() -> list[tuple[str, bool]]:
            found = self._fs.ls(folder, detail=True)
            # The client would keep each folder's listing in memory.
            self._fs.invalidate_cache()
            return sorted(
                (path, entry["type"] == "directory")
                for entry in found
                # Stores list a folder's own marker among its contents.
                if (path := entry["name"].rstrip("/")) != folder
            )

        return self._try(names)

    def _try(self, work: Callable[[], T]) -> T:
        return with_retries(work, self._timeout)


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A place: a file of a store."""

    store: Store
    path: str
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Download all of it. Raises: ImageError."""
        return self.store.open(self.path)


@dataclass(frozen=True, slots=True)
class StoreStream:
    """A place: a file of a store, read piece by piece."""

    store: Store
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Open the file; see `Store.stream`. Raises: ImageError."""
        return self.store.stream()


def _download(work: Callable[[Spool], None], timeout: float, max_bytes: int) -> BinaryIO:
    """Let `work` fill a spool, as long as bytes arrive."""
    spool = Spool(max_bytes)
    try:
        _in_time(lambda: work(spool), lambda: spool.received, timeout)
    except BaseException:
        # The thread ends when the next byte arrives, if ever.
        spool.close()
        raise
    return spool.take()


def _in_time(work: Callable[[], None], received: Callable[[], int], timeout: float) -> None:
    """Run `work`, as long as bytes arrive.

    It runs in a thread of its own: not every client has timeouts, and most timeouts start anew
    with each byte.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="download", daemon=True).start()
    before = windows = 0
    while not ended.wait(timeout):
        windows += 1
        if received() - before < LEAST_BYTES:
            raise TimeoutError
        before = received()
        if windows >= PATIENCE and before < (windows - PATIENCE) * timeout * LEAST_RATE:
            raise TooSlow
    if errors:
        raise errors[0]
