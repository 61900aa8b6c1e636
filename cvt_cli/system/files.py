"""Files that are there whole or not at all, whatever happens while they are written."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

from cvt_cli.errors import UsageError
from cvt_cli.system.text import reason_of

# What `write_atomically` writes to, with the machine that does.
_TEMPORARY = re.compile(r"\.cvt-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")
_DAY = 86400.0
_MOMENT = 1.0

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A file system without hard links, or a file that this user may not link to.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)

TO_STDOUT = "leave --output out for standard output, and --format picks the form"
_FILE_ONLY = "this goes to a file only"
# What a file system says that can't flush a folder, or a folder that is not for this user: SMB,
# FUSE, shared folders of virtual machines.
_NO_FOLDER_SYNC = frozenset(
    {
        errno.EINVAL,
        errno.EACCES,
        errno.EPERM,
        errno.EBADF,
        errno.EISDIR,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
    }
)


def check_name(path: Path, instead: str = _FILE_ONLY) -> None:
    """See that a path names a file.

    Args:
        instead: what to do for who means standard output by `-`.

    Raises:
        UsageError: if it is empty, `-` or a folder's.
    """
    if path == Path():  # which an empty name is, too
        raise UsageError("no name is given for the file to write", hint="is a variable empty?")
    if path == Path("-"):
        raise UsageError("-: no name for a file", hint=instead)
    if os.path.isdir(path):  # which Path.is_dir raises for, where it is not for this user
        raise UsageError(f"{path} is a folder", hint="name a file in it")


def check_file(path: Path, instead: str = _FILE_ONLY, *, with_folder: bool = False) -> None:
    """See that a file can be written there, before the work that is to fill it. Leaves nothing
    behind.

    Args:
        instead: as `check_name` has it.
        with_folder: whether its folder will be made, if there is none.

    Raises:
        UsageError: if it can't, or what is there is no file; as `check_name`.
    """
    check_name(path, instead)
    try:
        replaceable = is_replaceable(path)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {reason_of(error)}") from None
    if not replaceable:
        raise UsageError(f"{path} is not a regular file")
    folder = path.parent
    while with_folder and not os.path.lexists(folder):
        folder = folder.parent
    check_folder(folder, path)


def check_folder(folder: Path, path: Path | None = None) -> None:
    """See that files can be written in a folder, before the work that is to fill them.

    Args:
        path: what is to be written there, for the message.

    Raises:
        UsageError: if none can be made there.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{path or folder} can't be written: {folder} is no folder")
    trial = new_beside(folder / "trial")
    try:
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        raise UsageError(f"{path or folder} can't be written: {reason_of(error)}") from None


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside the file, flush to the disk, then rename: at every moment the path holds the
    old content or the new.

    Args:
        write: is given a binary stream, open for writing.

    Raises:
        OSError: if the disk is full or the folder not writable, or a device, a pipe or a folder is
            there; the old content is still there.
    """
    beside = path.with_name(f".cvt-{_machine()}-{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            # As long as it is locked, `sweep` leaves it alone.
            with contextlib.suppress(BlockingIOError):
                lock_handle(file.fileno())
            write(file)
            file.flush()
            sync(file.fileno())
            if os.name != "nt":  # which renames nothing that is open
                replace(beside, path)
        if os.name == "nt":
            replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Delete what `write_atomically` left there when its process was killed: on this machine at
    once, of other machines after a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if found and entry.is_file(follow_symlinks=False):
                    old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
                    if old or (found[1] == _machine() and _is_left(entry.path)):
                        os.unlink(entry.path)


def _is_left(path: str) -> bool:
    """Whether no process writes a file any more; False where nobody can tell."""
    if fcntl is None:
        return False
    handle = open_itself(path, os.O_WRONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # One that is being made is locked a moment later.
        return time.time() - os.fstat(handle).st_ctime > _MOMENT
    except OSError:
        return False
    finally:
        os.close(handle)


@cache
def _machine() -> str:
    """What tells the processes of this system from those of others, whose locks may not be seen
    here, and from those of before it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
    except OSError:
        boot = f"{platform.node()} {uuid.getnode()}"
    return hashlib.blake2b(boot.encode(), digest_size=4).hexdigest()


def make_parent(path: Path) -> bool:
    """Make the folder of a file, and those that it lies in: whether it was not there.

    Raises:
        OSError: if it can't be made.
    """
    if os.path.isdir(path.parent):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    return True


def replace(file: Path, path: Path) -> None:
    """Rename a file to a path where there may be another.

    Raises:
        OSError: if it can't be, or what is there is no file.
    """
    if not is_replaceable(path):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    file.replace(path)


def rename_new(file: Path, path: Path) -> None:
    """Rename without replacing what may have come there meanwhile.

    Raises:
        FileExistsError: if something has.
        OSError: if it can't be.
    """
    if os.name == "nt":  # where that is what to rename means, and a read-only link stays for ever
        file.rename(path)
        return
    try:
        os.link(file, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "exists", str(path)) from None
        file.rename(path)
    else:
        unlink_renamed(file, path)


def unlink_renamed(file: Path, path: Path) -> None:
    """Delete a file that has another path by now.

    Raises:
        OSError: if it can't be, in a folder that is not ours to change; the other path goes.
    """
    try:
        file.unlink()
    except OSError:
        path.unlink()
        raise


def is_replaceable(path: Path) -> bool:
    """Tell whether nothing is there but a file: root can put one in place of `/dev/null`, too.

    Raises:
        OSError: if nothing can be there: a name that is too long, or a folder that is not for this
            user.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def new_beside(path: Path) -> Path:
    """Return a name in the folder of a file that no other process has, and that nobody can know
    before it is there: on other machines, and in other containers, processes have the same
    numbers."""
    return path.with_name(f".cvt-{secrets.token_hex(8)}.tmp")


def lock(path: Path, flags: int = os.O_CREAT) -> BinaryIO:
    """Take a file that one process at a time may write. It is free again when what is returned is
    closed, and when the process ends, however it does. A link is not followed.

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
                path.rename(path)  # which Windows does with no file that is open, as another's is
            except PermissionError:
                raise BlockingIOError from None
        else:
            lock_handle(held.fileno())
            if not (path.exists() and os.path.samestat(os.fstat(held.fileno()), path.stat())):
                raise BlockingIOError  # renamed or replaced by who had it
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
    """Tell whether another process has a file that is there. Raises OSError as `lock`."""
    try:
        lock(path, 0).close()
    except BlockingIOError:
        return True
    return False


def lock_handle(handle: int) -> None:
    """Lock an open file or folder until it is closed. Nothing where the system has no such locks.

    Raises:
        BlockingIOError: if another process has it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems: better without than not at all
        return


def sync(handle: int) -> None:
    """Flush an open file or folder to the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS', whose fsync leaves it in the disk's own memory
        with contextlib.suppress(OSError):  # some file systems have no such thing
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Flush the folder itself: a rename in it is safe only then, where the file system can do that
    at all."""
    if os.name == "nt":  # which can't open one
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
