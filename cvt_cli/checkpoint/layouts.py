"""How two code bases name the same weights, as tables.

Each table maps our name of a module or parameter to the layout's. `{s}` and `{b}` stand for a
stage and a block.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from cvt_cli.model.config import CvtConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """A table of names, and how to read it in both directions."""

    name: str
    table: Mapping[str, str]

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(theirs, ours) for ours, theirs in self.table.items()]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str]]:
        return [_rule(ours, theirs) for ours, theirs in self.table.items()]

    def to_ours(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """The same values under our names; names that the table does not know stay."""
        return {_translate(name, self._to_ours): value for name, value in state_dict.items()}

    def to_theirs(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """The same values under the layout's names."""
        return {_translate(name, self._to_theirs): value for name, value in state_dict.items()}

    def matches(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether any name is one of the layout's."""
        return any(rule.fullmatch(name) for name in state_dict for rule, _ in self._to_ours)


def _rule(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source)
    for group in ("s", "b"):
        pattern = pattern.replace(re.escape(f"{{{group}}}"), rf"(?P<{group}>\d+)")
        target = target.replace(f"{{{group}}}", rf"\g<{group}>")
    return re.compile(pattern + r"(?P<rest>\..+|)"), target + r"\g<rest>"


def _translate(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(target)
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
)

LAYOUTS = (TRANSFORMERS, MICROSOFT)


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CvtConfig:
    """The architecture of a Microsoft checkpoint, which carries none, read off its weights.

    Strides, paddings and the head width (64) leave no trace in the shapes: they are the ones
    that every published CvT has. The authors trained with QuickGELU.

    Args:
        shapes: the shape of each weight, under our names.

    Raises:
        ValueError: if the weights are no CvT's.
    """
    depth: dict[int, int] = {}
    for name in shapes:
        match = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?", name)
        if match:
            stage, block = int(match[1]), int(match[2] or -1)
            depth[stage] = max(depth.get(stage, 0), block + 1)
    stages = range(len(depth))
    if not depth or sorted(depth) != list(stages):
        raise ValueError("its weights are not those of a CvT")

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in shapes:
            raise ValueError(f"{name} is missing")
        if len(shapes[name]) != dimensions or not all(shapes[name]):
            raise ValueError(f"{name} is {shapes[name]}, not of {dimensions} dimensions")
        return shapes[name]

    def conv_proj(stage: int) -> str:
        return f"stages.{stage}.blocks.0.attn.conv_proj_k.conv.weight"

    embed = [shape(f"stages.{stage}.embed.proj.weight", 4) for stage in stages]
    mlp = [shape(f"stages.{stage}.blocks.0.mlp.fc1.weight", 2) for stage in stages]
    # Pooling and the identity have no weights; the authors' default without them is "avg".
    methods = ["dw_bn" if conv_proj(stage) in shapes else "avg" for stage in stages]
    kernels = [
        shape(conv_proj(stage), 4)[-1] if methods[stage] == "dw_bn" else 3 for stage in stages
    ]
    every = len(depth)
    return CvtConfig(
        num_channels=embed[0][1],
        patch_sizes=tuple(weight[-1] for weight in embed),
        patch_stride=(4, *(2,) * (every - 1)),
        patch_padding=(2, *(1,) * (every - 1)),
        embed_dim=tuple(weight[0] for weight in embed),
        num_heads=tuple(max(1, weight[0] // 64) for weight in embed),
        depth=tuple(depth[stage] for stage in stages),
        mlp_ratio=tuple(rows / columns for rows, columns in mlp),
        attention_drop_rate=(0.0,) * every,
        drop_rate=(0.0,) * every,
        drop_path_rate=(*(0.0,) * (every - 1), 0.1),
        qkv_bias=tuple(f"stages.{stage}.blocks.0.attn.proj_q.bias" in shapes for stage in stages),
        cls_token=tuple(f"stages.{stage}.cls_token" in shapes for stage in stages),
        qkv_projection_method=tuple(methods),
        kernel_qkv=tuple(kernels),
        padding_kv=tuple((kernel - 1) // 2 for kernel in kernels),
        stride_kv=(2,) * every,
        padding_q=tuple((kernel - 1) // 2 for kernel in kernels),
        stride_q=(1,) * every,
        hidden_act="quick_gelu",
        num_labels=shape("head.weight", 2)[0],
    )
