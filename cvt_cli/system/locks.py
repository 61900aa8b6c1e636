"""Locks on files, so that two processes don't write the same one."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(path: Path, flags: int = os.O_CREAT) -> BinaryIO:
    """Lock a file that one process at a time may write, until the result is closed or the process
    ends. Links are not followed.

    Args:
        flags: 0 for a file that is there, `O_CREAT` makes one where there is none, and with
            `O_EXCL` one where there may be none.

    Raises:
        BlockingIOError: if another has it.
        FileExistsError: if there is one, with `O_EXCL`.
        OSError: if it can't be opened, or is a link.
    """
    held = os.fdopen(open_itself(path, os.O_WRONLY | os.O_APPEND | flags), "ab")
    try:
        if fcntl is None:
            held.close()
            try:
                path.rename(path)  # fails on Windows if another process has it open
            except PermissionError:
                raise BlockingIOError from None
        else:
            lock_handle(held.fileno())
            if not (path.exists() and os.path.samestat(os.fstat(held.fileno()), path.stat())):
                raise BlockingIOError  # its owner has renamed or replaced it
    except BaseException:
        held.close()
        raise
    return held


def open_itself(path: str | Path, flags: int) -> int:
    """Open a file as `os.open` does, unless it is a link. Raises: OSError, if it is one."""
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):  # Windows
        raise OSError(errno.ELOOP, "Is a link", str(path))
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        if os.path.islink(path) and error.errno != errno.EEXIST:
            raise OSError(errno.ELOOP, "Is a link", str(path)) from None
        raise


def is_locked(path: Path) -> bool:
    """Tell whether another process has locked an existing file. Raises OSError as `lock`."""
    try:
        lock(path, 0).close()
    except BlockingIOError:
        return True
    return False


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder that one process at a time may fill, for as long as the context lasts. Windows
    has no such locks.

    Raises:
        BlockingIOError: if another has it.
        OSError: if it can't be opened.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock_handle(handle)
        yield
    finally:
        os.close(handle)


def lock_handle(handle: int) -> None:
    """Lock an open file or folder until it is closed. Does nothing on systems without such locks.

    Raises:
        BlockingIOError: if another process has it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks: go on without
        return
