"""Layouts: the names that several code bases give to the same weights, as tables.

Each table maps our name of a module or parameter to the layout's. `{s}` and `{b}` stand for a
stage and a block.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """A table of names, and how to read it in both directions.

    Attributes:
        tree: a pattern of the names that belong to the network, known to the table or not.
    """

    name: str
    table: Mapping[str, str]
    tree: str

    @cached_property
    def first(self) -> str:
        """Return the name of the first weight, by which a network is found."""
        return next(iter(self.to_theirs({"stages.0.embed.proj.weight": None})))

    def owns(self, name: str) -> bool:
        """Tell whether a weight of this name belongs to the network."""
        return re.fullmatch(self.tree, name) is not None

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(theirs, ours) for ours, theirs in self.table.items()]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(ours, theirs) for ours, theirs in self.table.items()]

    def to_ours(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """Rename weights to our names; names that are not in the table stay."""
        return {_translate(name, self._to_ours): value for name, value in state_dict.items()}

    def to_theirs(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """Rename weights to the layout's names."""
        return {_translate(name, self._to_theirs): value for name, value in state_dict.items()}

    def matches(self, state_dict: Mapping[str, Any]) -> bool:
        """Tell whether any of the names is the layout's."""
        return any(rule.fullmatch(name) for name in state_dict for rule, _ in self._to_ours)


def _rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source)
    for group in ("s", "b"):
        pattern = pattern.replace(re.escape(f"{{{group}}}"), rf"(?P<{group}>\d+)")
    return re.compile(pattern + r"(?P<rest>\..+|)"), target + "{rest}"


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        match = pattern.fullmatch(name)
        if match:
            return target.format_map(match.groupdict())
    return name


TRANSFORMERS = Layout(
    "Transformers",
    {
        "stages.{s}.embed.proj": (
            "cvt.encoder.stages.{s}.embedding.convolution_embeddings.projection"
        ),
        "stages.{s}.embed.norm": (
            "cvt.encoder.stages.{s}.embedding.convolution_embeddings.normalization"
        ),
        "stages.{s}.cls_token": "cvt.encoder.stages.{s}.cls_token",
        **{
            f"stages.{{s}}.blocks.{{b}}.{ours}": f"cvt.encoder.stages.{{s}}.layers.{{b}}.{theirs}"
            for ours, theirs in {
                "norm1": "layernorm_before",
                **{
                    f"attn.conv_proj_{short}.{ours}": (
                        f"attention.attention.convolution_projection_{long}"
                        f".convolution_projection.{theirs}"
                    )
                    for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
                    for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
                },
                "attn.proj_q": "attention.attention.projection_query",
                "attn.proj_k": "attention.attention.projection_key",
                "attn.proj_v": "attention.attention.projection_value",
                "attn.proj": "attention.output.dense",
                "norm2": "layernorm_after",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
            }.items()
        },
        "norm": "layernorm",
        "head": "classifier",
    },
    r"(?:cvt\.encoder|layernorm|classifier)\..+",
)

MICROSOFT = Layout(
    "Microsoft",
    {
        "stages.{s}.embed": "stage{s}.patch_embed",
        "stages.{s}.cls_token": "stage{s}.cls_token",
        "stages.{s}.blocks.{b}": "stage{s}.blocks.{b}",
        "norm": "norm",
        "head": "head",
    },
    r"(?:stage\d+|norm|head)\..+",
)

# A `CvtModel` of Transformers, which has neither the last norm nor the head; others add their own.
TRANSFORMERS_BASE = Layout(
    "Transformers",
    {ours: theirs.removeprefix("cvt.") for ours, theirs in TRANSFORMERS.table.items()},
    r"(?:encoder|layernorm|classifier)\..+",
)

# Our own names, as in the state of an interrupted `cvt train`.
OURS = Layout("cvt", {}, r"(?:stages|norm|head)\..+")

LAYOUTS = (TRANSFORMERS, TRANSFORMERS_BASE, MICROSOFT, OURS)
