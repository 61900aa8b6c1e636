"""Groups of labels: their scores are made from the scores of labels."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_cli.checkpoint.group_table import GroupedLabel, read_groups
from cvt_cli.checkpoint.imagenet import SYNSETS, class_names
from cvt_cli.errors import UsageError
from cvt_cli.inference.labels import LabelMatcher
from cvt_cli.inference.scores import kind_of
from cvt_cli.records import ScoreKind
from cvt_cli.system.text import visible

if TYPE_CHECKING:
    from torch import Tensor

    from cvt_cli.checkpoint.load import Checkpoint


class LabelGroups:
    """The labels of a model that belong together as one answer.

    A label in no group stands for itself, or for the group of its name if there is one. The class
    index of a group is the lowest of its labels'.

    Args:
        labels: the model's, one for each class index.
        rows: labels and their groups. A WordNet id that is none of the model's labels is passed
            over, so that one table suits several models; any other name must be one.
        kind: what the scores are. Raw scores have no sum.

    Attributes:
        names: for each class index, its group, or the label itself.
        first: for each class index, the lowest class index of its group.

    Raises:
        UsageError: if a name is not a label, a label is in two groups, no label is in any, or the
            scores are raw.
    """

    def __init__(
        self, labels: Sequence[str], rows: Iterable[GroupedLabel], kind: ScoreKind
    ) -> None:
        if kind is ScoreKind.RAW:
            raise UsageError("--groups: the scores of this model are raw and can't be added up")
        self._kind = kind
        groups = _group_of_each(labels, rows)
        own = set(groups.values())
        names = [
            groups.get(index, label if label in own else None) for index, label in enumerate(labels)
        ]
        lowest: dict[str, int] = {}
        for index, name in enumerate(names):
            if name is not None:
                lowest.setdefault(name, index)
        self.names = tuple(
            label if name is None else name for name, label in zip(names, labels, strict=True)
        )
        self.first = tuple(
            index if name is None else lowest[name] for index, name in enumerate(names)
        )
        self._by_name = {name.casefold(): index for name, index in lowest.items()}

    def find(self, name: str) -> int | None:
        """Return the class index of the group of that name, in any case; None if there is none."""
        return self._by_name.get(name.strip().casefold())

    def answers(self, indexes: Iterable[int]) -> list[int]:
        """List the remaining ones of some class indexes: one for each group, and each label that
        stands for itself."""
        return sorted({self.first[index] for index in indexes})

    def combine(self, scores: "Tensor", indexes: Sequence[int]) -> "Tensor":
        """Combine the scores of labels into scores of groups.

        Where one label of all is right (softmax) a group's score is the sum. Where each label
        is right or not (sigmoid) it is the highest, as an image shows a cat if it shows any.

        Args:
            scores: (B, labels) float32 on the CPU.
            indexes: the class index of each column.

        Returns:
            (B, groups) float32, in the order of `answers(indexes)`. NaN stays NaN.
        """
        import torch

        answers = self.answers(indexes)
        column = {index: at for at, index in enumerate(answers)}
        columns = torch.tensor([column[self.first[index]] for index in indexes])
        combined = torch.zeros(len(scores), len(answers))
        if self._kind is ScoreKind.SIGMOID:
            return combined.scatter_reduce_(1, columns.expand_as(scores), scores, "amax")
        # A sum of rounded numbers may be a digit above 1.
        return combined.index_add_(1, columns, scores).clamp_(max=1)

    def digest(self) -> str:
        """Return a hexadecimal digest that identifies these groups."""
        text = "\n".join(self.names)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def from_mapping(groups: Mapping[str, str]) -> list[GroupedLabel]:
    """Return the rows of a map from label to group."""
    return [GroupedLabel(label, group, f"groups[{label!r}]") for label, group in groups.items()]


def _group_of_each(labels: Sequence[str], rows: Iterable[GroupedLabel]) -> dict[int, str]:
    matcher = LabelMatcher(labels)
    groups: dict[int, str] = {}
    for row in rows:
        index = _find(row, matcher)
        if index is None:
            continue
        if groups.setdefault(index, row.group) != row.group:
            raise UsageError(
                f"{row.where}: {visible(labels[index])} is in two groups: "
                f"{visible(groups[index])} and {visible(row.group)}"
            )
    if not groups:
        raise UsageError(
            "--groups: none of the model's labels is in a group",
            hint="`cvt inspect MODEL --labels` lists them",
        )
    return groups


def _find(row: GroupedLabel, matcher: LabelMatcher) -> int | None:
    """Find the class index of a row's label; None for a WordNet id that the model does not have.

    Raises:
        UsageError: if it is not a label.
    """
    if not matcher.is_imagenet and row.label in SYNSETS:
        # A model with some of ImageNet's classes has their names. Two cranes share a name.
        name = class_names()[SYNSETS.index(row.label)]
        found = matcher.classes(name) if class_names().count(name) == 1 else ()
        return min(found, default=None)
    index = matcher.find(row.label)
    if isinstance(index, int):
        return index
    nearest = matcher.nearest(row.label)
    raise UsageError(
        f"{row.where}: {visible(row.label)}: {index}",
        hint=f"did you mean {visible(nearest[0])}?" if nearest else "",
    )


def groups_of(
    groups: str | Path | Mapping[str, str] | Sequence[GroupedLabel] | None, checkpoint: "Checkpoint"
) -> LabelGroups | None:
    """Return the groups of a checkpoint's labels, as `Classifier` takes them; None for none.

    Raises:
        UsageError: as `read_groups` and `LabelGroups`.
    """
    if groups is None:
        return None
    if isinstance(groups, Mapping):
        groups = from_mapping(groups)
    elif isinstance(groups, str | Path):
        groups = read_groups(str(groups))
    return LabelGroups(checkpoint.labels, groups, kind_of(checkpoint))
