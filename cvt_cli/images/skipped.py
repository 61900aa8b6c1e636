"""Files that a search of folders leaves out, and the warnings about them."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import translate
from itertools import islice

from cvt_cli.images import formats

# Names, in lower case, that network drives, waste baskets, thumbnailers and archivers leave among
# photographs. They hold copies, small or thrown away.
JUNK = (
    "@eadir",
    "#recycle",
    "@recycle",
    "#snapshot",
    "$recycle.bin",
    ".trash-*",
    "system volume information",
    "lost+found",
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
)
_JUNK = re.compile("|".join(map(translate, JUNK)))
# Kinds that a line names, at most.
_MOST_NAMES = 8


def is_junk(name: str) -> bool:
    """Tell whether a file or folder of this name is left out by default, wherever it lies."""
    return _JUNK.match(name.lower()) is not None


class Skipped:
    """Counts the files that a search leaves out."""

    def __init__(self) -> None:
        self._by_suffix: Counter[str] = Counter()
        self._junk: Counter[str] = Counter()
        self._left: set[str] = set()
        self._pairs = 0
        self._pair = ("", "")

    def add_file(self, name: str) -> None:
        """Count a file that is not an image, by its suffix."""
        self._by_suffix[os.path.splitext(name)[1]] += 1

    def add_junk(self, path: str, files: int = 1) -> None:
        """Count a file, or the files in a folder, that is left out for its name."""
        if path in self._left:  # a pattern may find it more than once
            return
        self._left.add(path)
        name = os.path.basename(path)
        if files:
            self._junk[name] += files

    def add_junk_member(self, name: str) -> None:
        """Count a file of an archive that is left by its name, or by that of a folder around it."""
        self._junk[name] += 1

    def add(self, other: "Skipped") -> None:
        """Count what another search has counted."""
        self._by_suffix += other._by_suffix
        self._junk += other._junk

    def to_json(self) -> str:
        """Return what `add` takes of it, for another machine."""
        return json.dumps([self._by_suffix, self._junk])

    @classmethod
    def from_json(cls, text: str) -> "Skipped":
        """Read what `to_json` returns."""
        skipped = cls()
        skipped._by_suffix, skipped._junk = map(Counter, json.loads(text))
        return skipped

    def add_pairs(self, names: list[str]) -> None:
        """Count the pictures of a folder that are to be read both as a raw file and as another."""
        raw = formats.raw_suffixes()
        if not any(name.lower().endswith(raw) for name in names):
            return
        split = [(*os.path.splitext(name), name) for name in names]
        raws = {stem.lower(): name for stem, suffix, name in split if suffix.lower() in raw}
        if not raws:
            return
        others = {stem.lower(): name for stem, suffix, name in split if suffix.lower() not in raw}
        both = [stem for stem in raws if stem in others]
        if both and not self._pairs:
            self._pair = raws[both[0]], others[both[0]]
        self._pairs += len(both)

    def in_words(self) -> Iterator[str]:
        """Return the warnings at the end, one line each."""
        parts = []
        if count := self._by_suffix.total():
            files = (
                "1 file that is not an image"
                if count == 1
                else f"{count} files that are not images"
            )
            kinds = (_kind(*each) for each in _by_kind(self._by_suffix))
            parts.append(f"skipped {files}: {_listed(kinds)}")
        if self._junk:
            junk = _listed(f"{name} {count}" for name, count in sorted(self._junk.items()))
            parts.append(f"left out {junk} (--no-default-excludes takes them)")
        if parts:
            yield "; ".join(parts)
        if self._pairs:
            pictures = "1 picture is" if self._pairs == 1 else f"{self._pairs} pictures are"
            raw, other = self._pair
            suffix = os.path.splitext(raw)[1]
            yield (
                f"{pictures} there twice, as {raw} and {other}: --exclude '*{suffix}' leaves the "
                "raw files out"
            )


def _by_kind(by_suffix: Counter[str]) -> list[tuple[str, int]]:
    """Merge suffixes that differ in capitals only, spelled as most of the files do; the most
    frequent first."""
    kinds: dict[str, Counter[str]] = {}
    for suffix, count in sorted(by_suffix.items()):
        kinds.setdefault(suffix.lower(), Counter())[suffix] += count
    found = [(each.most_common(1)[0][0], each.total()) for each in kinds.values()]
    return sorted(found, key=lambda kind: -kind[1])


def _kind(suffix: str, count: int) -> str:
    extra = formats.extra_of(suffix.lower())
    return f"{suffix or 'no suffix'} {count}" + (f" (cvt-cli[{extra}])" if extra else "")


def _listed(names: Iterable[str]) -> str:
    first = [*islice(names, _MOST_NAMES + 1)]
    return ", ".join([*first[:_MOST_NAMES], "..."] if len(first) > _MOST_NAMES else first)
