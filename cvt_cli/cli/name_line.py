"""Lists of names, as --files-from reads them."""

import os
import re


def encoded_name(path: str, null: bool) -> bytes | None:
    """Return a name with its end, a line end or with `null` NUL; None for a name with a line break,
    which a line can't hold."""
    name = os.fsencode(_as_found(path))
    if null:
        return name + b"\0"
    return None if re.search(rb"\n|\r\Z", name) else name + b"\n"


def _as_found(path: str) -> str:
    """Return a file's name on the disk: a record shows bytes that are not text as escapes."""
    unescaped = re.sub(r"\\ud[c-f][0-9a-f]{2}", lambda found: chr(int(found[0][2:], 16)), path)
    return path if unescaped == path or os.path.lexists(path) else unescaped
