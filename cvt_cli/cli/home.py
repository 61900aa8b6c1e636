"""Expansion of `~` in file names. The shell has done it already, unless the name was quoted or
comes after an equals sign, as in --output=~/labels.csv."""

import os
import re
from pathlib import Path
from typing import Any

# Placeholders in help texts for values that name a file or a folder.
_NAMES = re.compile(r"FILE|FOLDER|DIR|LABELS|IMAGE")


def expand_home(value: str) -> str:
    """Return a file name with `~` and `~user` expanded. Existing files keep their names.
    `@~/labels.txt` is expanded after its @."""
    if value.startswith("@~"):
        return "@" + expand_home(value[1:])
    if not value.startswith("~") or os.path.lexists(value):
        return value
    return os.path.expanduser(value)


def with_home(metavar: str | None, value: Any) -> Any:
    """Return the value of an argument or option, with `~` expanded if it names files.

    Args:
        metavar: its placeholder in the help.
        value: as it was converted: a path, a text, several of those, or anything else.
    """
    if isinstance(value, Path):
        return Path(expand_home(str(value)))
    if isinstance(value, list | tuple):
        return type(value)(with_home(metavar, each) for each in value)
    if isinstance(value, str) and metavar and _NAMES.search(metavar):
        return expand_home(value)
    return value
