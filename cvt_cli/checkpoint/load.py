"""Local files become a `Checkpoint`: configuration, labels, preprocessing, weights.

Loading never runs code from a checkpoint: safetensors, or `torch.load(weights_only=True)`.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint.layouts import LAYOUTS, config_from_shapes
from cvt_cli.checkpoint.resolve import ResolvedFiles
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig

if TYPE_CHECKING:
    import torch

    from cvt_cli.model.cvt import Cvt

MAX_NAMED_KEYS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be built.

    Attributes:
        files: where it came from.
        labels: one for each class index.
    """

    files: ResolvedFiles
    config: CvtConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """As it was named."""
        return self.files.name

    def model(self) -> "Cvt":
        """The network with its weights, on the CPU, in evaluation mode, in the dtype of the file.

        Raises:
            ModelError: if a file is corrupt or the weights are another architecture's.
        """
        return _build(self.name, self.config, state_dict(self.files))


def load(files: ResolvedFiles, hidden_act: str | None = None) -> Checkpoint:
    """Read configuration, labels and preprocessing.

    Args:
        files: what `resolve` found.
        hidden_act: "gelu" or "quick_gelu" in place of the checkpoint's own activation.

    Raises:
        ModelError: if a file is corrupt, or this is no CvT.
    """
    if files.config is None:
        checkpoint = _from_weights_alone(files)
    else:
        checkpoint = _from_config(files, files.config)
    if hidden_act is not None:
        config = replace(checkpoint.config, hidden_act=hidden_act)
        checkpoint = replace(checkpoint, config=config)
    return checkpoint


def _from_config(files: ResolvedFiles, path: Path) -> Checkpoint:
    values = _read_json(files.name, path)
    kind = values.get("model_type")
    if kind != "cvt":
        raise ModelError(f"{files.name} is not a CvT: its model_type is {kind!r}")
    labels = _labels(files.name, values)
    if not labels:
        labels = _numbered(_count_labels(files, values))
    try:
        config = CvtConfig.from_dict(values | {"num_labels": len(labels)})
    except ValueError as error:
        raise ModelError(f"{files.name}: {path.name}: {error}") from None
    return Checkpoint(files, config, labels, _preprocessing(files))


def _from_weights_alone(files: ResolvedFiles) -> Checkpoint:
    weights = state_dict(files)
    try:
        config = config_from_shapes({key: tuple(value.shape) for key, value in weights.items()})
    except ValueError as error:
        raise ModelError(f"{files.name}: {error}") from None
    # The authors' file names carry the input size, CvT-13-384x384-IN-1k.pth.
    size = 384 if "384x384" in Path(files.name).name else 224
    labels = _numbered(config.num_labels)
    return Checkpoint(files, config, labels, Preprocessing.convnext(size))


def _preprocessing(files: ResolvedFiles) -> Preprocessing:
    if files.preprocessor is None:
        return Preprocessing.convnext(224)
    try:
        return Preprocessing.from_dict(_read_json(files.name, files.preprocessor))
    except ValueError as error:
        raise ModelError(f"{files.name}: {files.preprocessor.name}: {error}") from None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{name}: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{name}: {path} is corrupt: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{name}: {path} is corrupt: not a JSON object")
    return values


def _labels(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """By class index; empty where the configuration has none."""
    id2label = values.get("id2label")
    if not id2label:
        return ()
    try:
        named = {int(index): str(label) for index, label in id2label.items()}
    except (AttributeError, ValueError):
        raise ModelError(f"{name}: id2label is not a map from class index to label") from None
    if min(named) < 0 or max(named) >= 2**20:
        raise ModelError(f"{name}: id2label has a class index out of range")
    return tuple(named.get(index, f"class {index}") for index in range(max(named) + 1))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _count_labels(files: ResolvedFiles, values: Mapping[str, Any]) -> int:
    if files.weights:
        head = state_dict(files).get("head.weight")
        if head is not None:
            return len(head)
    count = values.get("num_labels", 2)  # Transformers' own default
    return count if isinstance(count, int) and 0 < count < 2**20 else 2


def state_dict(files: ResolvedFiles) -> "dict[str, torch.Tensor]":
    """Every weight under our names, on the CPU, memory-mapped where the format allows.

    Raises:
        ModelError: naming the file, if one is corrupt, truncated, or holds code.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in files.weights:
        weights |= _read_weights(files.name, path)
    for layout in LAYOUTS:
        if layout.matches(weights):
            return layout.to_ours(weights)
    return weights


def _read_weights(name: str, path: Path) -> "dict[str, torch.Tensor]":
    if path.suffix == ".safetensors":
        return _read_safetensors(name, path)
    return _read_pickle(name, path)


def _read_safetensors(name: str, path: Path) -> "dict[str, torch.Tensor]":
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _corrupt(name, path, error) from error


def _read_pickle(name: str, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ModelError(
                f"{name}: {path} holds more than weights: a pickle that could run code; refused",
                hint="ask its author for a .safetensors file",
            ) from error
        raise _corrupt(name, path, error) from error
    # A broken archive or pickle makes the reader raise nearly anything.
    except Exception as error:
        raise _corrupt(name, path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ModelError(f"{name}: {path} holds no state dict")
    return {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _corrupt(name: str, path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:150]
    return ModelError(
        f"{name}: {path} is corrupt or truncated ({reason})",
        hint="fetch or copy it again; a file from the Hub is fetched again once it is deleted",
    )


def _build(name: str, config: CvtConfig, weights: "dict[str, torch.Tensor]") -> "Cvt":
    import torch

    from cvt_cli.model.cvt import Cvt

    # On the meta device nothing is allocated or initialised; the weights are put in as they are.
    with torch.device("meta"):
        model = Cvt(config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, shape in wanted.items():
        if key.endswith("num_batches_tracked"):
            # A counter of training steps that older files lack and inference ignores.
            weights.setdefault(key, torch.zeros(shape, dtype=torch.int64))
    missing = [key for key in wanted if key not in weights]
    left_over = [key for key in weights if key not in wanted]
    other_shape = [
        f"{key} is {tuple(weights[key].shape)}, not {shape}"
        for key, shape in wanted.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    problems = [
        f"{len(keys)} {what} ({_first(keys)})"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("of another shape", other_shape),
        )
        if keys
    ]
    if problems:
        raise ModelError(f"{name}: the weights do not fit the configuration: {'; '.join(problems)}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_NAMED_KEYS]) + (", …" if len(keys) > MAX_NAMED_KEYS else "")
