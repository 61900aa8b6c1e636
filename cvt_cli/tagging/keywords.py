"""Keywords made from the labels of a record."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cvt_cli.checkpoint.group_table import GroupedLabel
from cvt_cli.checkpoint.imagenet import SYNSETS, class_names
from cvt_cli.records import Record

# Characters that XML 1.0 can't hold.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Characters that end a level in photo programs.
_LEVEL_ENDS = re.compile(r"\s*[|/]\s*")


@dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword of a picture.

    Attributes:
        levels: from the most general to the label itself, one at least.
        label: as the model has it.
        score: the label's.
    """

    levels: tuple[str, ...]
    label: str
    score: float

    @property
    def flat(self) -> str:
        """Return the keyword for `dc:subject`: its last level."""
        return self.levels[-1]

    def joined(self, separator: str) -> str:
        """Return the keyword with all its levels."""
        return separator.join(self.levels)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rules for the labels of a record that become keywords, and the keywords above them.

    Attributes:
        top_k: labels at most.
        min_score: the least score of a label; None for any.
        prefix: the levels above each keyword, apart by `|` or `/`.
        group_of: names the group of a label, which is the level above it; None for no group.
    """

    top_k: int = 1
    min_score: float | None = None
    prefix: str = ""
    group_of: Callable[[str], str | None] = lambda label: None

    def keywords(self, record: Record) -> tuple[Keyword, ...]:
        """Choose the keywords of a record, best first."""
        chosen: dict[str, Keyword] = {}
        above = [level for level in map(clean, _LEVEL_ENDS.split(self.prefix)) if level]
        for each in record.predictions[: self.top_k]:
            if self.min_score is not None and not each.score >= self.min_score:
                continue
            group = self.group_of(each.label)
            # The first synonym of a label: a comma ends a keyword in many programs.
            names = [*([group] if group else ()), each.label.split(", ")[0]]
            own = [clean(_LEVEL_ENDS.sub("-", name)) for name in names]
            own = [level for level in own if level]
            levels = tuple(dict.fromkeys([*above, *own]))
            if own:
                chosen.setdefault(levels[-1], Keyword(levels, clean(each.label), each.score))
        return tuple(chosen.values())


def clean(text: str) -> str:
    """Return text that XML can hold, on one line."""
    return " ".join(_NO_XML.sub("", text).split())


def group_finder(rows: Iterable[GroupedLabel]) -> Callable[[str], str | None]:
    """Return a function that names the group of a label, or None.

    Args:
        rows: labels, synonyms or WordNet ids, and their groups.
    """
    names: Sequence[str] = ()
    groups: dict[str, str] = {}
    for row in rows:
        label = row.label
        if label in SYNSETS:
            names = names or class_names()
            label = names[SYNSETS.index(label)]
        groups.setdefault(label.casefold(), row.group)

    def find(label: str) -> str | None:
        tried = (label, *label.split(", "))
        return next((groups[each.casefold()] for each in tried if each.casefold() in groups), None)

    return find
