"""Differences between two checkpoints."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cvt_cli.inspection.facts import Inspection
from cvt_cli.inspection.weights import TensorDifference, weights_difference


@dataclass(frozen=True)
class Setting:
    """A setting that differs, with both values as JSON has them."""

    aspect: str
    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """The differences between two checkpoints."""

    first: Inspection
    second: Inspection

    @cached_property
    def settings(self) -> list[Setting]:
        """Settings of configuration and preprocessing that differ. The number of labels is left to
        `labels`."""
        pairs = (
            ("configuration", self.first.config, self.second.config),
            ("preprocessing", self.first.preprocessing, self.second.preprocessing),
        )
        found = [
            Setting(
                aspect, field.name, getattr(first, field.name), second=getattr(second, field.name)
            )
            for aspect, first, second in pairs
            for field in dataclasses.fields(first)
            if getattr(first, field.name) != getattr(second, field.name)
            and field.name != "num_labels"
        ]
        kinds = self.first.score_kind, self.second.score_kind
        if kinds[0] is not kinds[1]:
            found.insert(0, Setting("configuration", "scores", *map(str, kinds)))
        return found

    @cached_property
    def labels(self) -> list[Setting]:
        """Class indexes whose labels differ, with both labels; None for no label."""
        first, second = self.first.labels or (), self.second.labels or ()
        return [
            Setting("labels", str(index), *pair)
            for index in range(max(len(first), len(second)))
            if len(set(pair := (_at(first, index), _at(second, index)))) > 1
        ]

    @property
    def not_here(self) -> list[str]:
        """Names of the checkpoints whose weights are not on this machine, and so are not
        compared."""
        return [one.name for one in (self.first, self.second) if not one.has_local_weights]

    @cached_property
    def weights(self) -> list[TensorDifference] | None:
        """Comparison of every weight; None if some weights are not on this machine.

        Raises:
            ModelError: naming the file, if one is corrupt, truncated, or holds code.
        """
        if self.not_here or self.first.files is None or self.second.files is None:
            return None
        return weights_difference(self.first.config, self.first.files, self.second.files)

    def as_json(self) -> dict[str, Any]:
        """Return the differing settings and labels, and every weight, as a JSON value."""
        return {
            "models": [self.first.name, self.second.name],
            "parameters": [one.cost.total.parameters for one in (self.first, self.second)],
            "macs": [one.cost.total.macs for one in (self.first, self.second)],
            "image_size": [list(one.image_size) for one in (self.first, self.second)],
            "num_labels": [one.config.num_labels for one in (self.first, self.second)],
            **{
                aspect: {s.name: [s.first, s.second] for s in self.settings if s.aspect == aspect}
                for aspect in ("configuration", "preprocessing")
            },
            "labels": {label.name: [label.first, label.second] for label in self.labels},
            "weights": None
            if self.weights is None
            else [dataclasses.asdict(weight) for weight in self.weights],
        }


def _at(labels: tuple[str, ...], index: int) -> str | None:
    return labels[index] if index < len(labels) else None
