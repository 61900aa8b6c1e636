"""Foreign files: adapters, exports, quantised weights and others in place of a checkpoint.

None of them is read. They are recognised by their names, so that an error can say what they are and
what to do."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from cvt_cli.checkpoint.checkpoint_files import CONFIG

_FROM = (
    "cvt reads the PyTorch weights that it was made from: model.safetensors beside a config.json"
)
_MERGE = "merge it into its base with PEFT: model.merge_and_unload().save_pretrained('merged')"
# What a trainer saves beside the weights, in files of the same suffixes.
_NO_WEIGHTS = (
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "scaler*",
    "random_states*",
)
# Folders that are searched for a checkpoint: a Hub's cache has two levels.
_MAX_FOLDERS = 256


@dataclass(frozen=True)
class Foreign:
    """Something that is no checkpoint.

    Attributes:
        what: it is, as in "it holds an ONNX export".
        hint: what to do.
    """

    what: str
    hint: str


_DCP = Foreign(
    "a distributed checkpoint of PyTorch",
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth` writes "
    "the weights",
)
_FILES = (
    ("adapter_config.json", Foreign("a PEFT adapter, not a whole model", _MERGE)),
    ("*.onnx", Foreign("an ONNX export", _FROM)),
    ("openvino_*.xml", Foreign("an OpenVINO export", _FROM)),
    ("*.h5", Foreign("weights of TensorFlow", _FROM)),
    ("*.msgpack", Foreign("weights of Flax", _FROM)),
    (
        "zero_to_fp32.py",
        Foreign("a checkpoint of DeepSpeed", "run zero_to_fp32.py in it, which writes the weights"),
    ),
    (
        "pytorch_model_fsdp*",
        Foreign("a sharded checkpoint of FSDP", "`accelerate merge-weights` writes the weights"),
    ),
    ("*.distcp", _DCP),
    ("*.gguf", Foreign("weights of GGUF", _FROM)),
    ("*.tflite", Foreign("a LiteRT (TensorFlow Lite) export", _FROM)),
    ("*.mlmodel", Foreign("a Core ML export", _FROM)),
    ("saved_model.pb", Foreign("a SavedModel of TensorFlow", _FROM)),
    ("*.ckpt.index", Foreign("weights of TensorFlow", _FROM)),
    (
        "*-00001-of-*",
        Foreign("shards without the file that lists them", "copy its *.index.json file too"),
    ),
)

# Names that a repository on the Hub is asked for; each is a request.
ON_THE_HUB = ("adapter_config.json", "model.onnx", "tf_model.h5")

_ONE_FILE = {
    ".onnx": "an ONNX export",
    ".h5": "weights of TensorFlow",
    ".msgpack": "weights of Flax",
    ".xml": "an OpenVINO export",
    ".keras": "weights of Keras",
    ".pb": "a graph of TensorFlow",
    ".gguf": "weights of GGUF",
    ".tflite": "a LiteRT (TensorFlow Lite) export",
    ".mlmodel": "a Core ML export",
    ".engine": "a TensorRT engine",
}
_SHARD = re.compile(r".+-\d{5}-of-(?!00001)\d{5}\.\w+")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst", ".7z")

_TENSORS = (
    (
        re.compile(r"(?:.*\.)?_?flat_param(?:_\d+)?", re.DOTALL),
        Foreign(
            "weights that FSDP has flattened",
            "save them with StateDictType.FULL_STATE_DICT",
        ),
    ),
    (
        re.compile(r"(?:.*\.)?(?:lora_\w+|base_layer|modules_to_save)\..+", re.DOTALL),
        Foreign("a LoRA adapter that is not merged into the weights", _MERGE),
    ),
    (
        re.compile(
            r".*\.(?:SCB|absmax|quant_map|quant_state\..+|q(?:weight|zeros)|scale|zero_point|"
            r"weight_(?:scale|scale_inv|zero_point))"
        ),
        Foreign(
            "quantised weights",
            "save them in floating point: model.dequantize().save_pretrained('floats')",
        ),
    ),
)


def foreign_files(names: Iterable[str]) -> Foreign | None:
    """Recognise what a folder or repository holds by the names of its files."""
    names = list(names)
    for pattern, foreign in _FILES:
        if any(fnmatch(name, pattern) for name in names):
            return foreign
    return None


def foreign_file(path: Path) -> Foreign | None:
    """Recognise a single file by its name, or by the one beside it."""
    what = _ONE_FILE.get(path.suffix.lower())
    if what is None and path.suffix.lower() == ".bin" and path.with_suffix(".xml").is_file():
        what = _ONE_FILE[".xml"]
    if path.suffix.lower() == ".distcp":
        return _DCP
    if _SHARD.fullmatch(path.name):
        return Foreign("one shard of several", f"name their folder: {path.parent}")
    name = path.name.lower()
    if name.endswith(_ARCHIVES) and not name.endswith((".pth.tar", ".pt.tar")):
        return Foreign("an archive", "unpack it, and name the folder or file in it")
    return Foreign(what, _FROM) if what else None


def foreign_tensors(names: Iterable[str]) -> Foreign | None:
    """Recognise weights that aren't a network's own by their names."""
    names = list(names)
    for pattern, foreign in _TENSORS:
        if any(pattern.fullmatch(name) for name in names):
            return foreign
    return None


def checkpoint_below(folder: Path) -> Path | None:
    """Find the newest checkpoint in the folders of a folder: a trainer's `checkpoint-500`, or a
    commit in the Hub's cache."""
    try:
        level = [each for each in sorted(folder.iterdir()) if each.is_dir()][:_MAX_FOLDERS]
        if (folder / "snapshots").is_dir():
            level = sorted((folder / "snapshots").iterdir())[:_MAX_FOLDERS]
        found = [each for each in level if os.path.isfile(each / CONFIG)]
        return max(found, key=lambda each: (_step(each.name), each.stat().st_mtime), default=None)
    except OSError:
        return None


def _step(name: str) -> int:
    """Return the step in `checkpoint-500`; 0 for other names."""
    step = re.fullmatch(r"checkpoint-(\d{1,15})", name)
    return int(step[1]) if step else 0


def weights_among(names: Iterable[str], suffixes: tuple[str, ...]) -> str | None:
    """Find the first file of weights of any other name than the usual ones."""
    return next(
        (
            name
            for name in sorted(names)
            if name.lower().endswith(suffixes)
            and not any(fnmatch(name, pattern) for pattern in _NO_WEIGHTS)
        ),
        None,
    )
