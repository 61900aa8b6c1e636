"""XMP sidecars: a file of metadata beside a picture."""

import contextlib
import enum
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cvt_cli.images.formats import RAW_SUFFIXES
from cvt_cli.system.files import write_atomically
from cvt_cli.system.text import reason_of
from cvt_cli.tagging.keywords import Keyword
from cvt_cli.tagging.xmp import MAX_BYTES, Packet, TagError


class Naming(enum.StrEnum):
    """Conventions for the names of sidecars."""

    DARKTABLE = "darktable"  # and digiKam: IMG_1.jpg.xmp
    LIGHTROOM = "lightroom"  # IMG_1.xmp


def sidecar_of(picture: Path, naming: Naming) -> Path:
    """Return the path of a picture's sidecar.

    Raises:
        TagError: if Lightroom reads none for such a picture.
    """
    if naming is Naming.DARKTABLE:
        return picture.with_name(picture.name + ".xmp")
    if picture.suffix.lower() not in RAW_SUFFIXES:
        raise TagError("Lightroom reads sidecars of raw files only: --embed writes into the file")
    return picture.with_suffix(".xmp")


def check_own(path: Path) -> os.stat_result | None:
    """Check that a file may be written in place; returns its status, or None if it does not exist.

    Raises:
        TagError: if it is a link, no file, or read-only.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TagError(f"{path.name}: {reason_of(error)}") from None
    if stat.S_ISLNK(found.st_mode):
        raise TagError(f"{path.name} is a link, and links are not written through")
    if not stat.S_ISREG(found.st_mode):
        raise TagError(f"{path.name} is not a regular file")
    if not found.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise TagError(f"{path.name} is read-only")
    return found


def tag_sidecar(
    path: Path,
    keywords: Sequence[Keyword],
    model: str,
    *,
    keep_dates: bool = False,
    dry_run: bool = False,
) -> bool:
    """Put keywords into a sidecar, in place of those of an earlier run, and tell whether that
    changed anything. One that holds nothing else is deleted with its last keyword.

    Raises:
        TagError: if what is there is broken or read-only, or can't be replaced.
        OSError: if the disk is full or read-only.
    """
    before = check_own(path)
    if before is None and not keywords:
        return False
    data = None
    if before is not None:
        if before.st_size > MAX_BYTES:
            raise TagError(f"{path.name} has more than {MAX_BYTES >> 20} MB")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TagError(f"{path.name}: {reason_of(error)}") from None
    try:
        packet = Packet(data)
        packet.tag(keywords, model)
        content = packet.write()
    except TagError as error:
        raise TagError(f"{path.name} stays as it is: {error}") from None
    if dry_run or not packet.is_changed:
        return packet.is_changed
    if packet.is_empty:
        path.unlink()
        return True

    put(path, content, before, keep_dates=keep_dates)
    return True


def put(path: Path, content: bytes, before: os.stat_result | None, *, keep_dates: bool) -> None:
    """Write a whole file, with the owner, the permissions and the attributes that it had.

    Args:
        before: its status; None where there is none yet.
        keep_dates: with its dates, too.

    Raises:
        OSError: if it can't be written; the old content is still there.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        if before is None:
            return
        with contextlib.suppress(OSError, AttributeError):
            os.chown(file.name, before.st_uid, before.st_gid)
        shutil.copystat(path, file.name)
        if not keep_dates:
            os.utime(file.name)

    write_atomically(path, write)
