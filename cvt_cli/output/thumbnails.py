"""The folder of thumbnails beside a report: nothing else is in it, and nothing else is removed."""

import errno
import os
import re
import shutil
from pathlib import Path

from cvt_cli.errors import UsageError

# And what file managers leave in every folder that they show.
_OURS = re.compile(r"[0-9]{6,}\.jpg|\.DS_Store|Thumbs\.db|desktop\.ini")


def thumbnails_of(path: Path) -> Path:
    """The folder of thumbnails beside a page."""
    return path.with_name(f"{path.stem}_files")


def unfinished(folder: Path) -> Path:
    """Its name while it is made."""
    return folder.with_name(folder.name + ".part")


def file_name(number: int) -> str:
    """Of a thumbnail; `page.js` knows it too."""
    return f"{number:06d}.jpg"


def check_thumbnails(path: Path, overwrite: bool) -> None:
    """See that the folder of thumbnails can be made.

    Args:
        path: the page.
        overwrite: whether thumbnails that are there may be replaced.

    Raises:
        UsageError: if the folder is there, or holds what are no thumbnails.
    """
    final = thumbnails_of(path)
    for folder in (final, unfinished(final)):
        if not os.path.lexists(folder):
            continue
        if folder.is_symlink() or not folder.is_dir():
            raise UsageError(f"{folder}, where the thumbnails go, is no folder")
        if not all(map(_OURS.fullmatch, os.listdir(folder))):
            raise UsageError(
                f"{folder}, where the thumbnails go, holds other files",
                hint="give the report another name",
            )
        if not overwrite:
            raise UsageError(f"{folder} exists", hint="--overwrite replaces it")


def remove_thumbnails(folder: Path) -> None:
    """Remove the folder, if it is there.

    Raises:
        OSError: if other files have come into it since it was checked.
    """
    if folder.exists():
        if not all(map(_OURS.fullmatch, os.listdir(folder))):
            raise FileExistsError(errno.EEXIST, f"{folder.name} holds other files")
        shutil.rmtree(folder)
