"""The folder of thumbnails beside a report. A file in it marks it as ours: the user's own
photographs may have such names, too, and none of them is ever removed."""

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from cvt_cli.errors import UsageError

MARK = ".cvt-thumbnails"
_MARK_TEXT = "The thumbnails of a report by cvt, which deletes this folder with them.\n"
# Files that may be in it besides: file managers leave them in every folder that they show.
_OURS = re.compile(r"[0-9]{6,}\.jpg|\.cvt-thumbnails|\.DS_Store|Thumbs\.db|desktop\.ini")


def thumbnails_of(path: Path) -> Path:
    """Return the path of the folder beside a page."""
    return path.with_name(f"{path.stem}_files")


def unfinished_folder(folder: Path) -> Path:
    """Return the path of the folder while it is being made."""
    return folder.with_name(folder.name + ".part")


def file_name(number: int) -> str:
    """Return the file name of a thumbnail. `page.js` follows the same rule."""
    return f"{number:06d}.jpg"


def is_marked(folder: Path) -> bool:
    """Tell whether `make_thumbnails` made a folder."""
    return not folder.is_symlink() and (folder / MARK).is_file()


def make_thumbnails(folder: Path) -> None:
    """Make the folder. Raises: OSError."""
    folder.mkdir()
    (folder / MARK).write_text(_MARK_TEXT, "utf-8")


def check_thumbnails(path: Path, overwrite: bool, inputs: Sequence[str] = ()) -> None:
    """Check that the folder of thumbnails can be made.

    Args:
        path: the page.
        overwrite: whether thumbnails that are there may be replaced.
        inputs: what is read: the folder, or what is in it, may not be.

    Raises:
        UsageError: if the folder is there, holds something other than our thumbnails, or is read.
    """
    final = thumbnails_of(path)
    real = os.path.realpath(final)
    for name in inputs:
        if os.path.lexists(name) and f"{os.path.realpath(name)}{os.sep}".startswith(real + os.sep):
            raise UsageError(
                f"{final}, where the thumbnails go, is one of the inputs",
                hint="give the report another name",
            )
    for folder in (final, unfinished_folder(final)):
        if not os.path.lexists(folder):
            continue
        if folder.is_symlink() or not folder.is_dir():
            raise UsageError(f"{folder}, where the thumbnails go, is not a folder")
        if not _is_ours(folder):
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
        if not _is_ours(folder):
            raise OSError(errno.ENOTEMPTY, f"{folder.name} holds other files")
        shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    names = os.listdir(folder)
    # A run that was killed before it marked the folder leaves an empty one.
    return not names or (is_marked(folder) and all(map(_OURS.fullmatch, names)))
