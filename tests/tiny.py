"""Small random CvTs, saved by `transformers` or laid out as others lay them out."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAYOUTS = ("safetensors", "bin", "sharded", "sharded-bin", "microsoft")
# Images of other proportions stay so: the preprocessing leaves the size of the input open.
KEEPS_ASPECT = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 32}}
LABELS = ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead, shark")

_MICROSOFT_FILE = "CvT-tiny-64x64-IN-1k.pth"
# Files of `save_tiny` by its arguments: to build and save a network takes 90 ms, and the same few
# are wanted hundreds of times.
_MADE: dict[str, dict[str, bytes]] = {}
_TINY: dict[str, Any] = {
    "embed_dim": [16, 32, 64],
    "num_heads": [1, 1, 1],
    "depth": [1, 2, 3],  # `transformers` builds no stage of fewer blocks than its number
}

_MICROSOFT = [
    (r"cvt\.encoder\.stages\.(\d+)\.embedding\.convolution_embeddings\.", r"stage\1.patch_embed."),
    (r"cvt\.encoder\.stages\.(\d+)\.layers\.", r"stage\1.blocks."),
    (r"cvt\.encoder\.stages\.(\d+)\.", r"stage\1."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"patch_embed\.normalization\.", "patch_embed.norm."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (
        r"attention\.attention\.convolution_projection_(.)\w+\.convolution_projection\.",
        r"attn.conv_proj_\1.",
    ),
    (r"(conv_proj_.)\.convolution\.", r"\1.conv."),
    (r"(conv_proj_.)\.normalization\.", r"\1.bn."),
    (r"attention\.attention\.projection_(.)\w+\.", r"attn.proj_\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]


def tiny_model(labels: Sequence[str] | None = LABELS, seed: int = 0, **config: Any) -> Any:
    """A `CvtForImageClassification` in eval mode with random weights and batch-norm statistics.

    Args:
        labels: its labels; None for `transformers`' own LABEL_0, LABEL_1.
        seed: of every random number.
        config: fields of `transformers.CvtConfig`, in place of the tiny ones.
    """
    import torch
    from transformers import CvtConfig, CvtForImageClassification

    names: dict[str, Any] = {}
    if labels is not None:
        names["id2label"] = dict(enumerate(labels))
        names["label2id"] = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CvtForImageClassification(CvtConfig(**{**_TINY, **names, **config}))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
            for parameter in model.parameters():
                # Small initial weights would give every image the same label.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_tiny(
    folder: Path,
    layout: str = "safetensors",
    processor: str | Mapping[str, Any] | None = "convnext",
    size: int = 64,
    model: Any = None,
    **options: Any,
) -> Path:
    """Save a small CvT.

    Args:
        folder: where to; made if it is missing.
        layout: one of `LAYOUTS`.
        processor: "convnext", "vit", the contents of a `preprocessor_config.json`, or None for
            no such file.
        size: the side in pixels of the input that the processor makes.
        model: what to save; None for a `tiny_model` of the other options.

    Returns:
        The folder; for the Microsoft layout the `.pth` file in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        return _save(folder, layout, processor, size, model)
    what = repr((layout, processor, size, sorted(options.items())))
    if what not in _MADE:
        with tempfile.TemporaryDirectory() as made:
            _save(Path(made), layout, processor, size, tiny_model(**options))
            _MADE[what] = {path.name: path.read_bytes() for path in Path(made).iterdir()}
    for name, content in _MADE[what].items():
        (folder / name).write_bytes(content)
    return folder / _MICROSOFT_FILE if layout == "microsoft" else folder


def _save(
    folder: Path, layout: str, processor: str | Mapping[str, Any] | None, size: int, model: Any
) -> Path:
    import torch

    if layout == "microsoft":
        file = folder / _MICROSOFT_FILE
        torch.save(microsoft_names(model.state_dict()), file)
        return file

    if layout == "safetensors":
        model.save_pretrained(folder)
    elif layout == "sharded":
        model.save_pretrained(folder, max_shard_size="100KB")
    elif layout in ("bin", "sharded-bin"):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        _save_bin(folder, model.state_dict(), shards=3 if layout == "sharded-bin" else 1)
    else:
        raise ValueError(f"no layout {layout!r}")
    _save_processor(folder, processor, size)
    return folder


def microsoft_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A `transformers` state dict under the names of the authors' code."""
    renamed = {}
    for name, value in state_dict.items():
        for pattern, replacement in _MICROSOFT:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        renamed[name] = value
    return renamed


def _save_bin(folder: Path, state_dict: dict[str, Any], shards: int) -> None:
    import torch

    if shards == 1:
        torch.save(state_dict, folder / "pytorch_model.bin")
        return
    names = list(state_dict)
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {name: state_dict[name] for name in names[shard::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.nbytes for value in state_dict.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _save_processor(folder: Path, processor: str | Mapping[str, Any] | None, size: int) -> None:
    if processor is None:
        return
    if isinstance(processor, Mapping):
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(processor)))
    elif processor == "convnext":
        from transformers import ConvNextImageProcessorPil

        ConvNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_pct=0.875,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ).save_pretrained(folder)
    elif processor == "vit":
        from transformers import ViTImageProcessorPil

        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    else:
        raise ValueError(f"no processor {processor!r}")
