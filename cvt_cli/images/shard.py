"""Shards: one job's share of the inputs, where many jobs split them without asking each other."""

import hashlib
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from cvt_cli.errors import UsageError
from cvt_cli.images.source import Source

_OF_A_RUN = re.compile(r"([0-9]{1,9})/([0-9]{1,9}) by path", re.ASCII)


@dataclass
class Shard:
    """The inputs whose `Source.key` a hash deals to this job: the same ones whatever other inputs
    come or go, on every machine and below every mount point.

    Attributes:
        number: which job this is, from 1.
        of: how many there are.
        has_others: whether an input has gone to another job, one that may well be read.
    """

    number: int
    of: int
    has_others: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse `3/64`. Raises: UsageError."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: K/N, with K from 1 to N, like 3/64")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_run(cls, description: object) -> "Shard | None":
        """Parse the shard in the description of a run; None for a run without one."""
        match = _OF_A_RUN.fullmatch(description) if isinstance(description, str) else None
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def is_whole(self) -> bool:
        """Whether every input belongs to it."""
        return self.of == 1

    def has(self, key: str) -> bool:
        """Tell whether an input with this key belongs to this job."""
        return self.is_whole or _hash(key) % self.of == self.number - 1

    def take(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Yield this job's share of the sources, in order."""
        for source in sources:
            if self.has(source.key):
                yield source
            elif source.error is None:
                self.has_others = True

    def __str__(self) -> str:
        # Earlier versions dealt by position; only their 1/1 means the same.
        return "1/1" if self.is_whole else f"{self.number}/{self.of} by path"


def key_of(root: str, path: str) -> str:
    """Return the key that an input is dealt by: its path below the input as typed, with slashes;
    for a file that was typed itself, its name."""
    below = path.removeprefix(root) if path.startswith(root) else path
    below = below.replace(os.sep, "/").removeprefix("::").lstrip("/")
    return (
        posixpath.normpath(below)
        if below
        else path.replace(os.sep, "/").rstrip("/").rpartition("/")[2]
    )


def _hash(key: str) -> int:
    # macOS decomposes accents. Bytes that are not text stay as they are.
    text = unicodedata.normalize("NFC", key)
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which Windows allows
        data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
