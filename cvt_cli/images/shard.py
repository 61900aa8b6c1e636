"""One job's share of the inputs, where many jobs split them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from cvt_cli.errors import UsageError
from cvt_cli.images.source import Source


@dataclass(frozen=True)
class Shard:
    """Every `of`th input, from the `number`th on, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`3/64`. Raises: UsageError."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: K/N, with K from 1 to N, like 3/64")
        return cls(int(match[1]), int(match[2]))

    def take(self, sources: Iterator[Source]) -> Iterator[Source]:
        """This job's share, in order."""
        return islice(sources, self.number - 1, None, self.of)

    def count(self, total: int | None) -> int | None:
        """How many of so many are this job's; None for nobody knows."""
        return None if total is None else len(range(self.number - 1, total, self.of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
