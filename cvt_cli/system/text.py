"""Text on its way to a person."""

import unicodedata
from collections.abc import Iterator, Mapping


def visible(text: str) -> str:
    """Escape control characters, so that a name can't steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def reason_of(error: Exception) -> str:
    """Return what the operating system says went wrong, or the error itself where that says
    nothing."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def folded(name: str) -> str:
    """Fold a name so that those that people or some file system take for the same are equal:
    capitals aside, and an accent in its letter or, as macOS has it, behind it."""
    return unicodedata.normalize("NFC", name).casefold()


def counted(count: int, noun: str) -> str:
    """Write a number of things: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def what_differs(before: object, now: object) -> str:
    """Tell two values apart: `2 then, 3 now`; of mappings the keys alone that differ: `size.height
    32 then, 64 now`."""
    return "; ".join(f"{name} {values}".lstrip() for name, values in _differences(before, now))


def _differences(before: object, now: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}".lstrip(".")
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield name, f"{before!r} then, {now!r} now"
