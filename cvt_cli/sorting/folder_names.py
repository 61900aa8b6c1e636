"""Names of folders and files that every file system accepts."""

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

UNCERTAIN = "_uncertain"

# Bytes of a folder's name, without the digits that make it unique; and of a file's name.
FOLDER_BYTES = 200
NAME_BYTES = 255
# Characters that some file systems do not allow in names.
_FORBIDDEN = frozenset('/\\<>:"|?*')
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)


def folder_name(label: str) -> str:
    """Return a folder name for a label that every file system accepts. A label that has to be
    changed gets some digits of its own, so that no two labels share a folder."""
    name = _clean(label)
    return name if name == label != UNCERTAIN else f"{name}-{digest(label)}"


def numbered(name: str, number: int) -> str:
    """Return the name with a number: `name.jpg`, `name-2.jpg`, `name-3.jpg`…"""
    if number == 1:
        return name
    stem, suffix = os.path.splitext(name)
    suffix = f"-{number}{suffix}"
    while len(os.fsencode(stem + suffix)) > NAME_BYTES and stem:
        stem = stem[:-1]
    return stem + suffix


def base_name(path: str, file: Path | None) -> str:
    """Return the name that a record's file gets in a folder."""
    if file is not None or not is_inside(path):
        return (file or Path(path)).name or "_"
    name = path.rsplit("::", 1)[-1]
    if "://" in name:
        name = unquote(urlsplit(name).path)
    return _clean(name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1])


def _clean(text: str) -> str:
    """Reduce a text to a name that every file system accepts."""
    name = "".join(
        "_"
        if character in _FORBIDDEN or unicodedata.category(character) in _FORBIDDEN_CATEGORIES
        else character
        for character in text
    )
    name = name.encode()[:FOLDER_BYTES].decode(errors="ignore").strip(" ").rstrip(" .")
    if name.startswith("."):
        name = "_" + name[1:]
    if _RESERVED.fullmatch(name):
        name = "_" + name
    return name or "_"


def digest(label: str) -> str:
    """Return digits of its own for a label."""
    return hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def is_inside(path: str) -> bool:
    """Tell whether a path may be a member of an archive, or not on a disk."""
    return "::" in path or "://" in path
