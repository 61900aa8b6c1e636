"""Files that exist whole or not at all, whatever happens during writing."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from cvt_cli.errors import UsageError
from cvt_cli.system.locks import lock_handle, open_itself
from cvt_cli.system.text import reason_of

# Names of what is temporary beside an output, with the machine's id.
_TEMPORARY = re.compile(r"\.cvt-([0-9a-f]{8})-[0-9a-f]{16}\.tmp")
_DAY = 86400.0
_MOMENT = 1.0
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
# Errors of a file system without hard links, or for a file that this user may not link to.
_NO_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)
TO_STDOUT = "for standard output, leave --output out and choose the form with --format"
_FILE_ONLY = "this can only be written to a file"
# Errors of file systems that can't flush a folder (SMB, FUSE, shared folders of virtual machines),
# or for a folder that this user may not read.
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
    """Check that a path names a file.

    Args:
        instead: hint shown if the user passes `-` for standard output.

    Raises:
        UsageError: if it is empty, `-` or a folder's.
    """
    if path == Path():  # an empty name is Path(), too
        raise UsageError("no name is given for the file to write", hint="is a variable empty?")
    if path == Path("-"):
        raise UsageError("-: no name for a file", hint=instead)
    if os.path.isdir(path):  # Path.is_dir raises an error if this user may not look
        raise UsageError(f"{path} is a folder", hint="name a file in it")


def check_file(path: Path, instead: str = _FILE_ONLY, *, with_folder: bool = False) -> None:
    """Check that a file can be written, before the work that will fill it. Leaves nothing behind.

    Args:
        instead: as `check_name` has it.
        with_folder: whether its folder will be made, if there is none.

    Raises:
        UsageError: if it can't be, or something else is there; as `check_name`.
    """
    check_name(path, instead)
    check_regular(path)
    folder = path.parent
    while with_folder and not os.path.lexists(folder):
        folder = folder.parent
    check_folder(folder, path)


def check_regular(path: Path) -> None:
    """Check that a path is free or a file's, not a device's or a pipe's.

    Raises:
        UsageError: if it is not, or nothing can be there.
    """
    try:
        replaceable = is_replaceable(path)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {reason_of(error)}") from None
    if not replaceable:
        raise UsageError(f"{path} is not a regular file", hint="name a file")


def check_folder(folder: Path, path: Path | None = None) -> None:
    """Check that files can be written to a folder, before the work that will fill them.

    Args:
        path: what is to be written there, for the message.

    Raises:
        UsageError: if none can be made there.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{path or folder} can't be written: {folder} is not a folder")
    trial = new_beside(folder / "trial")
    try:
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        raise UsageError(f"{path or folder} can't be written: {reason_of(error)}") from None


def read_text(path: Path, most: int) -> str:
    """Read a file of UTF-8, without the byte-order mark of Windows' editors.

    Args:
        most: its bytes.

    Raises:
        OSError: also if it has more.
        UnicodeDecodeError: if it is something else.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content.decode("utf-8-sig")


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, private: bool = False
) -> None:
    """Write beside the file, flush to the disk, then rename: at every moment the path holds the
    old content or the new.

    Args:
        write: is given a binary stream, open for writing.
        private: nobody but its owner may read it.

    Raises:
        OSError: with the path, if the disk is full or the folder not writable, or a device, a pipe
            or a folder is there; the old content is still there.
    """
    sweep_once(os.path.abspath(path.parent))
    beside = temporary_name(path)
    try:
        mode = 0o600 if private else 0o666
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            keep_from_sweeps(file)
            write(file)
            file.flush()
            sync(file.fileno())
            if os.name != "nt":  # Windows can't rename an open file
                replace(beside, path)
        if os.name == "nt":
            replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            error.filename = str(path)  # of which the system's own error says nothing
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside a file, for what it takes to write that, gone when the context ends.

    Raises:
        OSError: if it can't be made.
    """
    folder = temporary_name(path)
    folder.mkdir(0o700)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if fcntl is not None:  # Windows can't open a folder
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            with contextlib.suppress(BlockingIOError):
                lock_handle(handle)
        yield folder


def temporary_name(path: Path) -> Path:
    """Return a name beside a file that `sweep` knows."""
    return path.with_name(f".cvt-{_machine()}-{secrets.token_hex(8)}.tmp")


def keep_from_sweeps(file: BinaryIO) -> None:
    """Lock a new temporary file, which `sweep` leaves alone until it is closed."""
    with contextlib.suppress(BlockingIOError):
        lock_handle(file.fileno())


def sweep(folder: Path) -> None:
    """Delete temporary files and folders, those with a `temporary_name`, that were left when their
    process was killed: those of this machine at once, those of others after a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                is_left = _is_left(entry) if found[1] == _machine() else None
                if is_left is None:
                    is_left = time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
                if is_left and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif is_left:
                    os.unlink(entry.path)


@cache
def sweep_once(folder: str) -> None:
    """Sweep a folder the first time that this process writes there."""
    sweep(Path(folder))


def _is_left(entry: "os.DirEntry[str]") -> bool | None:
    """Tell whether no process writes a file or folder any more; None if locks can't tell."""
    if fcntl is None:
        return None
    is_folder = entry.is_dir(follow_symlinks=False)
    handle = open_itself(entry.path, os.O_RDONLY if is_folder else os.O_WRONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    else:
        # What is just being made is locked a moment later. The clock may have been set back since,
        # so that the time may be one to come.
        return abs(time.time() - os.fstat(handle).st_ctime) > _MOMENT
    finally:
        os.close(handle)


@cache
def _machine() -> str:
    """Return an id that tells processes of this system from those of others, whose locks may not be
    visible here, and from those before it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
    except OSError:
        boot = f"{platform.node()} {uuid.getnode()}"
    return hashlib.blake2b(boot.encode(), digest_size=4).hexdigest()


def make_parent(path: Path) -> bool:
    """Make the folder of a file, and its parents; returns whether it was missing.

    Raises:
        OSError: if it can't be made.
    """
    if os.path.isdir(path.parent):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    return True


def replace(file: Path, path: Path) -> None:
    """Rename a file to a path that may exist already.

    Raises:
        OSError: if it can't be, or something other than a file is there.
    """
    if not is_replaceable(path):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    file.replace(path)


def rename_new(file: Path, path: Path) -> None:
    """Rename a file without replacing one that has come there meanwhile.

    Raises:
        FileExistsError: if something has.
        OSError: if it can't be.
    """
    if os.name == "nt":  # renaming never replaces there, and a read-only link could not be deleted
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
    """Delete the old path of a file that also has a new one.

    Raises:
        OSError: if it can't be, in a folder that is not ours to change; the other path goes.
    """
    try:
        file.unlink()
    except FileNotFoundError:
        return  # another process was quicker: the new path may be the last one
    except OSError:
        path.unlink()
        raise


def is_replaceable(path: Path) -> bool:
    """Tell whether a path is free or holds a file: as root one could even replace `/dev/null`.

    Raises:
        OSError: if nothing can be there: a name that is too long, or a folder that is not for this
            user.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def new_beside(path: Path) -> Path:
    """Return a name in a file's folder that no other process uses and nobody can guess: on other
    machines, and in other containers, processes have the same numbers. `sweep` does not know it, so
    that a user's own file may have it for a moment."""
    return path.with_name(f".cvt-{secrets.token_hex(8)}.tmp")


def sync(handle: int) -> None:
    """Flush an open file or folder to the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS fsync leaves the data in the disk's cache
        with contextlib.suppress(OSError):  # some file systems do not support it
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder: only then a rename in it is safe, on file systems that can do that at all."""
    if os.name == "nt":  # Windows can't open a folder
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
