"""The architecture of weights without a `config.json`: from the authors' YAML beside the file, or
inferred from the shapes and compared with the published ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

from PIL import Image

from cvt_cli.checkpoint.catalog import CVT_13, CVT_21, CVT_W24
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.system.text import reason_of

MAX_YAML_BYTES = 2**16
CROP_PCT = 0.875

# Names of our fields and of the authors' under MODEL.SPEC.
_SPEC = {
    "patch_sizes": "PATCH_SIZE",
    "patch_stride": "PATCH_STRIDE",
    "patch_padding": "PATCH_PADDING",
    "embed_dim": "DIM_EMBED",
    "num_heads": "NUM_HEADS",
    "depth": "DEPTH",
    "mlp_ratio": "MLP_RATIO",
    "attention_drop_rate": "ATTN_DROP_RATE",
    "drop_rate": "DROP_RATE",
    "drop_path_rate": "DROP_PATH_RATE",
    "qkv_bias": "QKV_BIAS",
    "cls_token": "CLS_TOKEN",
    "qkv_projection_method": "QKV_PROJ_METHOD",
    "kernel_qkv": "KERNEL_QKV",
    "padding_kv": "PADDING_KV",
    "stride_kv": "STRIDE_KV",
    "padding_q": "PADDING_Q",
    "stride_q": "STRIDE_Q",
}
_PUBLISHED = (CVT_13, CVT_21, CVT_W24)


@dataclass(frozen=True)
class AuthorsConfig:
    """The contents of a YAML file of the authors' code."""

    config: CvtConfig
    preprocessing: Preprocessing


def read_authors_yaml(name: str, path: Path, num_labels: int, *, hidden_act: str) -> AuthorsConfig:
    """Read an experiment's YAML file, by a loader that makes plain values only.

    Args:
        name: of the checkpoint, for messages.
        num_labels, hidden_act: what the file does not say.

    Raises:
        ModelError: if the file is corrupt, or describes no network.
    """
    import yaml

    try:
        with path.open("rb") as file:
            values = yaml.safe_load(file.read(MAX_YAML_BYTES))
    except OSError as error:
        raise ModelError(f"{name}: {path}: {reason_of(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{name}: {path} is corrupt: {reason}") from None
    spec = _section(_section(values, "MODEL"), "SPEC")
    fields: dict[str, Any] = {"num_labels": num_labels, "hidden_act": hidden_act}
    missing = [theirs for theirs in _SPEC.values() if theirs not in spec]
    if missing:
        raise ModelError(f"{name}: {path}: MODEL.SPEC has no {', '.join(missing)}")
    stages = spec.get("NUM_STAGES")
    try:
        for ours, theirs in _SPEC.items():
            value = spec[theirs]
            if isinstance(stages, int) and isinstance(value, list):
                value = value[:stages]  # the authors' code reads no more
            fields[ours] = value
        config = CvtConfig.from_dict(fields)
        return AuthorsConfig(config, _preprocessing(values))
    except ValueError as error:
        raise ModelError(f"{name}: {path}: {error}") from None


def _section(values: Any, name: str) -> Mapping[str, Any]:
    found = values.get(name) if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _preprocessing(values: Any) -> Preprocessing:
    """Build the preprocessing that the authors' code uses for tests, with its defaults."""
    test, colours = _section(values, "TEST"), _section(values, "INPUT")
    size = test.get("IMAGE_SIZE", [224, 224])  # width, height
    resample = test.get("INTERPOLATION", int(Image.Resampling.BILINEAR))
    if not (
        isinstance(size, list)
        and list(map(type, size)) == [int, int]
        and all(0 < edge < 2**12 for edge in size)
    ):
        raise ValueError(f"TEST.IMAGE_SIZE is {repr_of(size)}, not a width and a height in pixels")
    if type(resample) is not int or resample not in set(Image.Resampling):
        raise ValueError(f"TEST.INTERPOLATION is {repr_of(resample)}, not one of Pillow's filters")
    common: dict[str, Any] = {
        "resample": resample,
        "mean": _channels("MEAN", colours.get("MEAN", list(IMAGENET_MEAN))),
        "std": _channels("STD", colours.get("STD", list(IMAGENET_STD))),
    }
    width, height = size
    if test.get("CENTER_CROP", True):
        return Preprocessing(shortest_edge=int(width / CROP_PCT), crop=(width, width), **common)
    return Preprocessing((height, width), None, None, **common)


def _channels(name: str, value: Any) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or len(value) != CHANNELS
        or not all(type(each) in (int, float) for each in value)
        or (name == "STD" and not all(value))
    ):
        raise ValueError(f"INPUT.{name} is {repr_of(value)}, not a number for each of 3 channels")
    return tuple(map(float, value))


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], hidden_act: str
) -> tuple[CvtConfig, str]:
    """Infer the architecture from the shapes of weights without a configuration.

    Heads, strides and the like leave no trace in the shapes: they are those of the published
    architecture with the same shapes, or else a guess.

    Args:
        shapes: the shape of each weight, under our names. Without a head there are two labels,
            Transformers' default.

    Returns:
        The architecture, and what of it is guessed, in words; empty for a published one.

    Raises:
        ValueError: if the weights are not a CvT's.
    """
    guess = _guess(shapes, hidden_act)
    for known in _PUBLISHED:
        if _traced(known) == _traced(guess):
            return replace(known, num_labels=guess.num_labels, hidden_act=hidden_act), ""
    words = [
        f"{name} {', '.join(map(str, values))}"
        for name, values in (
            ("heads", guess.num_heads),
            ("patch strides", guess.patch_stride),
            ("key strides", guess.stride_kv),
        )
    ]
    pooled = [
        f"stage {i + 1}" for i, each in enumerate(guess.qkv_projection_method) if each == "avg"
    ]
    if pooled:
        words.append(f"keys by average pooling in {', '.join(pooled)}")
    return guess, "; ".join(words)


def _traced(config: CvtConfig) -> tuple[Any, ...]:
    """Infer from shapes the part of an architecture that they determine."""
    return (
        config.num_channels,
        config.patch_sizes,
        config.embed_dim,
        config.depth,
        config.mlp_ratio,
        config.qkv_bias,
        config.cls_token,
        config.qkv_projection_method,
        config.kernel_qkv,
    )


def _guess(shapes: Mapping[str, tuple[int, ...]], hidden_act: str) -> CvtConfig:
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
    # Pooling and the identity have no weights; the authors' default without weights is "avg".
    methods = ["dw_bn" if conv_proj(stage) in shapes else "avg" for stage in stages]
    kernels = [
        shape(conv_proj(stage), 4)[-1] if methods[stage] == "dw_bn" else 3 for stage in stages
    ]
    every = len(depth)
    sizes = [weight[-1] for weight in embed]
    # Stride and padding as in the published ones: 4 and 2 for a window of 7, 2 and 1 for one of 3.
    strides = tuple((size + 1) // 2 for size in sizes)
    return CvtConfig(
        num_channels=embed[0][1],
        patch_sizes=tuple(sizes),
        patch_stride=strides,
        patch_padding=tuple(stride // 2 for stride in strides),
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
        hidden_act=hidden_act,
        num_labels=shape("head.weight", 2)[0] if "head.weight" in shapes else 2,
    )
