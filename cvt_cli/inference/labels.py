"""Labels as people type them, matched with a model's class indexes."""

import difflib
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cvt_cli.checkpoint.imagenet import SYNSETS
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import UsageError
from cvt_cli.inference.scores import kind_of
from cvt_cli.records import ScoreKind
from cvt_cli.system.text import folded, visible

# Classes that a message lists, at most, if they share a name.
NAMED = 5
# Names with a word in common that a message suggests, at most.
SUGGESTED = 3

_WORDNET_ID = re.compile(r"n\d{8}")
_INDEX = re.compile(r"#(\d{1,9})", re.ASCII)
_COMMA = re.compile(r"(?<!\\),")
_UNKNOWN = "not one of the model's labels"


class LabelMatcher:
    """Finds the class that a name stands for.

    A name is a whole label, as it is written or with other capitals, underscores and spaces; or one
    of its synonyms ("tench" in "tench, Tinca tinca"); or the WordNet id of an ImageNet-1k class; or
    `#638`, a class index. What comes first here is meant.

    Args:
        labels: the model's, one for each class index.

    Attributes:
        most_commas: in any label.
        is_imagenet: whether the labels are those of ImageNet-1k, so that they have WordNet ids.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._exact: dict[str, set[int]] = {}
        for index, label in enumerate(labels):
            self._exact.setdefault(label, set()).add(index)
        self._whole = _by_name((label, index) for index, label in enumerate(labels))
        self._synonyms = _by_name(
            (synonym, index) for index, label in enumerate(labels) for synonym in label.split(",")
        )
        self.most_commas = max(label.count(",") for label in labels)
        self.is_imagenet = (
            len(labels) == len(SYNSETS)
            and "tench" in _normal(labels[0])
            and _normal(labels[-1]).startswith("toilet tissue")
        )

    def find(self, name: str) -> int | str:
        """Return the class index that a name stands for, or why it stands for none. Warns if it is
        also the synonym of another label."""
        found = self.classes(name)
        if len(found) > 1:
            classes = ", ".join(map(str, sorted(found)))
            return f"the model has several of that name: classes {classes}"
        if not found:
            return self._why_none(name)
        (index,) = found
        others = self._synonyms.get(_normal(name), set()) - found
        if others:
            warnings.warn(
                f"{visible(name)}: taken for {self.listed(found)}, whose label that is; also a "
                f"name of {self.listed(others)}",
                stacklevel=2,
            )
        return index

    def is_label(self, name: str) -> bool:
        """Tell whether a name is a whole label, ignoring case."""
        return _normal(name) in self._whole

    def classes(self, name: str) -> set[int]:
        """Return the class indexes that a name may stand for: several only if it is ambiguous."""
        normal = _normal(name)
        for names, key in ((self._exact, name), (self._whole, normal), (self._synonyms, normal)):
            if key in names:
                return names[key]
        if self.is_imagenet and normal in SYNSETS:
            return {SYNSETS.index(normal)}
        number = _INDEX.fullmatch(name.strip())
        if number is not None and int(number[1]) < len(self._labels):
            return {int(number[1])}
        return set()

    def listed(self, indexes: Iterable[int]) -> str:
        """List labels as `#134 crane, #517 crane`; with their WordNet ids if they have any."""
        indexes = sorted(indexes)
        named = [
            f"#{index} {visible(self._labels[index])}"
            + (f" ({SYNSETS[index]})" if self.is_imagenet else "")
            for index in indexes[:NAMED]
        ]
        more = len(indexes) - len(named)
        return "; ".join([*named, f"{more} more"] if more else named)

    def nearest(self, name: str, most: int = 1) -> list[str]:
        """Return similar names, of one class each: those that have the name as a word, or else the
        closest one. A name with a comma is a whole label.

        Args:
            most: how many, of which none is of the same class.
        """
        name = name.strip()
        if name.isascii() and name.isdigit() and self.classes(f"#{name}"):
            return [f"#{name}"]
        wanted = _normal(name)
        names = {**self._synonyms, **self._whole}
        classes = {key: next(iter(found)) for key, found in names.items() if len(found) == 1}
        with_word = {
            index: key for key, index in reversed(classes.items()) if wanted in key.split()
        }
        if with_word:
            keys = sorted(with_word.values(), key=lambda key: ("," in key, classes[key]))[:most]
        else:
            keys = difflib.get_close_matches(wanted, classes, n=1)
        return [self._as_written(key, classes[key]) for key in keys]

    def _as_written(self, key: str, index: int) -> str:
        label = self._labels[index]
        names = (label, *(synonym.strip() for synonym in label.split(",")))
        return next((each for each in names if _normal(each) == key), label)

    def _why_none(self, name: str) -> str:
        normal = _normal(name)
        if _WORDNET_ID.fullmatch(normal):
            if not self.is_imagenet:
                return "a WordNet id, but the model's labels are not those of ImageNet-1k"
            return "a WordNet id that is none of ImageNet-1k's"
        number = _INDEX.fullmatch(name.strip())
        if number is not None:
            return f"the model has classes #0 to #{len(self._labels) - 1}"
        return _UNKNOWN


def pick_indexes(
    names: Sequence[str | int], checkpoint: Checkpoint, option: str = "--labels"
) -> list[int]:
    """Return the class indexes of labels to choose from, in order. Warns if there is one alone, of
    which softmax makes 1.

    Args:
        names: each a class index; or one label, or several between commas. What is a label as a
            whole is not taken apart, nor are parts that are one together. A comma with a backslash
            before it does not part.
        option: what they were given by, for the advice.

    Raises:
        UsageError: if a name means no class, or nothing tells which.
    """
    matcher = LabelMatcher(checkpoint.labels)
    indexes: set[int] = set()
    for each in names:
        if isinstance(each, int):
            indexes.add(each)
            continue
        parts = list(_parts(each, matcher))
        if not parts:
            raise UsageError(f"{option} names no label", hint=_listing(checkpoint))
        indexes |= {_pick(part, matcher, checkpoint, option=option) for part in parts}
    typed = any(isinstance(each, str) for each in names)
    alone = len(indexes) == 1 < len(checkpoint.labels) and option == "--labels"
    if typed and alone and kind_of(checkpoint) is ScoreKind.SOFTMAX:
        warnings.warn(
            "one label to choose from: its score is 1, whatever an image shows", stacklevel=2
        )
    return sorted(indexes)


def pick_index(name: str, checkpoint: Checkpoint, option: str) -> int:
    """Return the class index of one label. Arguments and errors are those of `pick_indexes`.

    Raises:
        UsageError: if it names several, too.
    """
    found = pick_indexes([name], checkpoint, option)
    if len(found) > 1:
        classes = LabelMatcher(checkpoint.labels).listed(found)
        raise UsageError(f"{option} {visible(name)} names more than one label: {classes}")
    return found[0]


def _pick(name: str, matcher: LabelMatcher, checkpoint: Checkpoint, *, option: str) -> int:
    found = matcher.find(name)
    if isinstance(found, int):
        return found
    model = checkpoint.name
    several = matcher.classes(name)
    if several:
        raise UsageError(
            f"{visible(name)}: {model} has {len(several)} classes of that name: "
            f"{matcher.listed(several)}",
            hint=f"{option} {shlex.quote(f'#{min(several)}')} is the first of them",
        )
    if found != _UNKNOWN:
        raise UsageError(f"{visible(name)}: {found}", hint=_listing(checkpoint))
    nearest = ",".join(matcher.nearest(name, SUGGESTED if option == "--labels" else 1))
    hint = f"did you mean {option} {shlex.quote(nearest)}? " if nearest else ""
    raise UsageError(
        f"{visible(name)}: {model} has no such label", hint=hint + _listing(checkpoint)
    )


def _parts(value: str, matcher: LabelMatcher) -> Iterator[str]:
    """Split a value into names, the longest that are labels first."""
    commas = [match.start() for match in _COMMA.finditer(value)]
    starts = [0, *(comma + 1 for comma in commas)]
    ends = [*commas, len(value)]
    first = 0
    while first < len(starts):
        last = min(first + matcher.most_commas, len(starts) - 1)
        while last > first and not matcher.is_label(_plain(value[starts[first] : ends[last]])):
            last -= 1
        name = _plain(value[starts[first] : ends[last]]).strip()
        if name:
            yield name
        first = last + 1


def _plain(name: str) -> str:
    return name.replace("\\,", ",")


def _listing(checkpoint: Checkpoint) -> str:
    return f"`cvt inspect {shlex.quote(checkpoint.name)} --labels` lists them"


def _normal(name: str) -> str:
    return " ".join(folded(name.replace("_", " ")).split())


def _by_name(pairs: Iterable[tuple[str, int]]) -> Mapping[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, index in pairs:
        found.setdefault(_normal(name), set()).add(index)
    return found
