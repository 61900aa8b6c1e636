"""Transfers of a file to its place: copy, move or link, also between file systems."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cvt_cli.errors import CvtError
from cvt_cli.system.files import (
    keep_from_sweeps,
    new_beside,
    rename_new,
    sweep_once,
    sync,
    sync_folder,
    temporary_name,
    unlink_renamed,
)

CHUNK_BYTES = 2**20


class SortError(CvtError):
    """A file could not be sorted; becomes the outcome of its record."""


def copy_file(file: Path, target: Path) -> None:
    """Copy a file, with its times and permissions; the copy is there whole or not at all."""
    with _beside(target) as copy:
        with file.open("rb") as source, copy.open("xb") as out:
            keep_from_sweeps(out)
            shutil.copyfileobj(source, out, CHUNK_BYTES)
        rename_new(copy, target)
    _copy_times(file, target)


def move_file(file: Path, target: Path) -> None:
    """Move a file, also to another file system."""
    if file.is_symlink():
        # A relative link would lead nowhere from its new place.
        target.symlink_to(real(file))
        unlink_renamed(file, target)
        return
    try:
        rename_new(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(file, target)


def _move_across(file: Path, target: Path) -> None:
    """Move a file to another file system: it is deleted once its copy is safe."""
    before = file.stat()
    with _beside(target) as copy:
        digest = hashlib.sha256()
        with file.open("rb") as source, copy.open("xb") as out:
            keep_from_sweeps(out)
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            sync(out.fileno())
            with copy.open("rb") as written:
                if hasattr(os, "posix_fadvise"):
                    # The copy is read back from the disk, not from the cache.
                    os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                verified = hashlib.file_digest(written, "sha256").digest() == digest.digest()
        after = file.stat()
        if not verified:
            raise SortError("its copy differs from it: left where it is")
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SortError("it has changed while it was copied: left where it is")
        rename_new(copy, target)
    _copy_times(file, target)
    sync_folder(target.parent)
    unlink_renamed(file, target)


def hard_link(file: Path, target: Path) -> None:
    """Make a hard link to a file."""
    try:
        os.link(real(file), target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise SortError(
                f"on another file system than {target.parent}: no hard link can reach it"
            ) from None
        raise


def symlink(file: Path, target: Path) -> None:
    """Make a symbolic link to a file."""
    target.symlink_to(file.absolute())


def remove_moved(file: Path, target: Path) -> None:
    """Delete a file that is in its place already, unless both are the same file: links, mounts and
    letter case can give a file several paths."""
    if not target.samefile(file):
        file.unlink()
        return
    aside = new_beside(file)
    file.rename(aside)
    if os.path.lexists(target):
        aside.unlink()
    else:
        aside.rename(file)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Name a temporary file in the folder of the target, gone when the context ends."""
    sweep_once(os.path.abspath(target.parent))
    path = temporary_name(target)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _copy_times(file: Path, copy: Path) -> None:
    """Copy times and permissions. Done after the file has its name, because macOS does not rename a
    photograph that the camera has locked."""
    # Some file systems have no such permissions.
    with contextlib.suppress(OSError):
        shutil.copystat(file, copy)


def real(file: Path) -> Path:
    """Return the file behind links."""
    return Path(os.path.realpath(file))
