"""Lists of names: what --files-from reads."""

import codecs
import io
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from cvt_cli.images.standard_input import STDIN, open_stdin

# Bytes of a name, at most: a file that is not a list must not fill the memory.
_MAX_NAME = 2**20
CHUNK = 2**16


def why_no_list(start: bytes, null: bool) -> str | None:
    """Return the reason why this is not a list of names, or nothing.

    Args:
        start: how it begins.
        null: as for `read_names`.
    """
    has_null = b"\0" in start
    if has_null and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16; save it as UTF-8"
    if has_null and not null:
        return (
            "has NUL bytes, so it is no list of names, one a line; --null is for names that end "
            "with NUL, and an image is named without --files-from"
        )
    if null and not has_null and b"\n" in start and not os.path.lexists(_decoded(start)):
        return "has lines but no NUL byte; --null is for names that end with NUL"
    return None


def read_names(file: BinaryIO, null: bool) -> Iterator[str]:
    """Yield the names in a list, as they are read.

    Args:
        file: binary; a pipe may be written to meanwhile.
        null: they end with NUL bytes; else with newlines, with or without a carriage return.

    Raises:
        OSError: if the list can't be read further.
        ValueError: at a name of more than a MiB, and where `why_no_list` knows a reason.
    """
    end = b"\0" if null else b"\n"
    rest = b""
    start = unchecked = True
    # read1 returns what has arrived, without waiting for more.
    read = getattr(file, "read1", file.read)
    while True:
        chunk = read(CHUNK)
        rest += chunk
        if unchecked and (end in rest or b"\0" in rest or not chunk or len(rest) > _MAX_NAME):
            unchecked = False
            if reason := why_no_list(rest, null):
                raise ValueError(reason)
        *whole, rest = rest.split(end)
        if not chunk:
            whole, rest = [*whole, rest], b""
        for line in whole:
            name = line if null else line.removesuffix(b"\r")
            if start and not null:
                name = name.removeprefix(b"\xef\xbb\xbf")
            start = False
            if name:
                yield _decoded(name)
        if len(rest) > _MAX_NAME:
            raise ValueError("a name of more than a MiB: is this a list of names?")
        if not chunk:
            return


def _decoded(name: bytes) -> str:
    # On Windows os.fsdecode refuses bytes other than UTF-8, which old programs write.
    return name.decode(sys.getfilesystemencoding(), "surrogateescape")


def list_start(listed: str) -> bytes:
    """Read the first bytes of a list of names, if it is a regular file: others can't be read
    twice."""
    if listed != STDIN:
        if not stat.S_ISREG(os.stat(listed).st_mode):
            return b""
        with Path(listed).open("rb") as file:
            return file.read(CHUNK)
    stdin = open_stdin()
    try:
        regular = stat.S_ISREG(os.fstat(stdin.fileno()).st_mode)
    except io.UnsupportedOperation:
        return b""
    return cast(io.BufferedReader, stdin).peek() if regular else b""
