"""Folders of files, on this machine or at an address for fsspec."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from cvt_cli.errors import CvtError, UsageError
from cvt_cli.images.names import local_path
from cvt_cli.images.source import one_line
from cvt_cli.system.files import write_atomically
from cvt_cli.system.locks import lock_handle
from cvt_cli.system.text import reason_of

T = TypeVar("T")

KEPT = "finished parts are kept: fix that, then run the same command with --resume"


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, where: str) -> None:
        self._path = Path(where)

    def path(self, name: str) -> Path:
        """Return the path of a file of this name."""
        return self._path / name

    def is_file(self) -> bool:
        """Tell whether it is a file instead of a folder."""
        return self._path.is_file()

    def names(self) -> Sequence[str]:
        """List the names in it; empty if it does not exist."""
        return self._try(
            lambda: [each.name for each in self._path.iterdir()] if self._path.exists() else []
        )

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return self._try(lambda: self.path(name).open("rb"), name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""

        def write() -> None:
            self._path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(name), lambda file: file.write(data))

        self._try(write, name, KEPT)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Make the folder and lock it, at most until this process ends; returns whether it was
        free, which it always is on systems without such locks."""
        self._try(lambda: self._path.mkdir(parents=True, exist_ok=True), hint=KEPT)
        with ExitStack() as stack:
            try:
                handle = os.open(self._path, os.O_RDONLY)
                stack.callback(os.close, handle)
                lock_handle(handle)
            except BlockingIOError:
                yield False
                return
            except OSError:  # Windows can't open a folder
                pass
            yield True

    def delete(self, name: str) -> None:
        """Delete a file."""
        self._try(self.path(name).unlink, name)

    def _try(self, work: Callable[[], T], name: str = "", hint: str = "") -> T:
        try:
            return work()
        except OSError as error:
            raise CvtError(f"{self.path(name)}: {reason_of(error)}", hint=hint) from None


class RemoteFolder:
    """A folder at an address. Stores write an object whole or not at all; file systems that can
    rename may write half a file, so files are written under another name first."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._path = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url}: {one_line(error)}") from None
        self._url = url
        renames = type(self._fs).mv is not fsspec.AbstractFileSystem.mv
        self._is_store = self._fs.async_impl or not renames

    def is_file(self) -> bool:
        """Tell whether it is a file instead of a folder."""
        return self._try(lambda: bool(self._fs.isfile(self._path)))

    def names(self) -> Sequence[str]:
        """List the names in it; empty if it does not exist."""

        def names() -> list[str]:
            self._fs.invalidate_cache()
            try:
                entries: list[str] = self._fs.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
            return [name for each in entries if (name := each.rstrip("/").rsplit("/", 1)[-1])]

        return self._try(names)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return self._try(lambda: io.BytesIO(self._fs.cat_file(f"{self._path}/{name}")), name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        path = f"{self._path}/{name}"

        def write() -> None:
            if self._is_store:
                self._fs.pipe_file(path, data)
                return
            beside = f"{self._path}/.{name}.tmp"
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(beside, data)
            if self._fs.exists(path):  # some can't rename to an existing name
                self._fs.rm_file(path)
            self._fs.mv(beside, path)

        self._try(write, name, KEPT)

    def delete(self, name: str) -> None:
        """Delete a file."""
        self._try(lambda: self._fs.rm_file(f"{self._path}/{name}"), name)

    def _try(self, work: Callable[[], T], name: str = "", hint: str = "") -> T:
        try:
            return work()
        # Which errors a store's client raises is not documented.
        except Exception as error:
            where = f"{self._url}/{name}" if name else self._url
            raise CvtError(f"{where}: {one_line(error)}", hint=hint) from None


def open_folder(where: str) -> LocalFolder | RemoteFolder:
    """Return the folder of this name or address, whether or not it exists."""
    if where.lower().startswith("file://"):
        return LocalFolder(local_path(where))
    return RemoteFolder(where) if "://" in where else LocalFolder(where)
