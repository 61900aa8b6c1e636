"""Text for people: names, numbers and reasons in messages."""

import errno
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TextIO, cast

# Characters of a foreign text that a message quotes, at most.
MAX_QUOTED = 200


def short_reason(error: object) -> str:
    """Return the message of a foreign exception as one line, cut after `MAX_QUOTED` characters."""
    return " ".join(str(error).split())[:MAX_QUOTED] or type(error).__name__


def visible(text: str) -> str:
    """Escape control characters, so that a name can't control the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def neutral(text: str) -> str:
    """Escape what may steer a terminal in a document of lines: control characters but for tabs and
    line ends, what turns the direction of writing, and line ends of other kinds. As JSON has it, so
    that JSON stays JSON."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(
        each
        if each.isprintable() or each in _HARMLESS or unicodedata.category(each) == "Zs"
        else _escaped(each)
        for each in text
    )


_HARMLESS = "\n\t"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


class _Neutral:
    """A text stream to a terminal, which gets `neutral` text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(neutral(text))

    def flush(self) -> None:
        self._stream.flush()


def for_reading(stream: TextIO) -> TextIO:
    """Return the stream, or if it is a terminal one that makes all text `neutral`: bytes are exact
    in files and pipes."""
    return cast(TextIO, _Neutral(stream)) if stream.isatty() else stream


# Errors of a disk that has no room left, for this user or for a file of this size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason_of(error: Exception) -> str:
    """Return the operating system's reason for an error, or the error itself if it has none."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def folded(name: str) -> str:
    """Fold a name so that names people or file systems take for the same become equal: in other
    capitals, or with accents as separate characters, as macOS has them."""
    return unicodedata.normalize("NFC", name).casefold()


def counted(count: int, noun: str) -> str:
    """Format a number of things: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def what_differs(before: object, now: object) -> str:
    """Describe the difference of two values: `2 then, 3 now`; of two mappings only the keys that
    differ: `size.height 32 then, 64 now`."""
    return "; ".join(f"{name} {values}".lstrip() for name, values in _differences(before, now))


def _differences(before: object, now: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}".lstrip(".")
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield name, f"{before!r} then, {now!r} now"
