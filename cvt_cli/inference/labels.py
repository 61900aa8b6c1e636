"""Names that people give to classes, matched with a model's labels."""

import re
from collections.abc import Iterable, Sequence

from cvt_cli.checkpoint.imagenet import SYNSETS
from cvt_cli.system.text import folded

_WORDNET_ID = re.compile(r"n\d{8}")


class LabelMatcher:
    """Finds the class that a name means.

    A name is a whole label or one of its synonyms ("tench" in "tench, Tinca tinca"), capitals
    and underscores aside, or the WordNet id of an ImageNet-1k class.

    Args:
        labels: the model's, one for each class index.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._whole = _by_name((label, index) for index, label in enumerate(labels))
        self._synonyms = _by_name(
            (synonym, index) for index, label in enumerate(labels) for synonym in label.split(",")
        )
        self._is_imagenet = (
            len(labels) == len(SYNSETS)
            and "tench" in _normal(labels[0])
            and _normal(labels[-1]).startswith("toilet tissue")
        )

    def find(self, name: str) -> int | str:
        """The class index that the name means, or why it means none."""
        normal = _normal(name)
        found = self._whole.get(normal) or self._synonyms.get(normal)
        if found is not None:
            if len(found) > 1:
                classes = ", ".join(map(str, sorted(found)))
                return f"the model has several of that name: classes {classes}"
            return next(iter(found))
        if _WORDNET_ID.fullmatch(normal):
            if not self._is_imagenet:
                return "a WordNet id, but the model's labels are not those of ImageNet-1k"
            if normal in SYNSETS:
                return SYNSETS.index(normal)
            return "a WordNet id that is none of ImageNet-1k's"
        return "not one of the model's labels"


def _normal(name: str) -> str:
    return " ".join(folded(name.replace("_", " ")).split())


def _by_name(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, index in pairs:
        found.setdefault(_normal(name), set()).add(index)
    return found
