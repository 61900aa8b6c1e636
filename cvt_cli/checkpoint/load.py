"""Local files become a `Checkpoint`: configuration, labels, preprocessing, weights.

Loading never runs code from a checkpoint: safetensors, or `torch.load(weights_only=True)`.
"""

import json
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint.layouts import LAYOUTS, config_from_shapes
from cvt_cli.checkpoint.processors import read_processor
from cvt_cli.checkpoint.resolve import IMAGE_PROCESSOR, PROCESSOR, ResolvedFiles
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import ACTIVATIONS, CvtConfig
from cvt_cli.model.cost import needed_macs
from cvt_cli.system.signals import interruptible
from cvt_cli.system.text import reason_of

if TYPE_CHECKING:
    import torch

    from cvt_cli.model.cvt import Cvt

MAX_NAMED_KEYS = 3
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MAX_LABELS = 2**20
MANY_MACS = 10**11  # some seconds of a CPU
DEFAULT_IMAGE_SIZE = 224
MAX_IMAGE_SIZE = 2048
# In a name, other numbers are those of layers, classes or epochs.
_IMAGE_SIZES = frozenset({"224", "256", "288", "320", "384", "448", "512"})

_ZIP = b"PK"
_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be built.

    Attributes:
        files: where it came from.
        labels: one for each class index.
        problem_type: one of `PROBLEM_TYPES`, or None where the configuration names none; with the
            number of labels it decides what the logits become.
    """

    files: ResolvedFiles
    config: CvtConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    problem_type: str | None = None

    @property
    def name(self) -> str:
        """As it was named."""
        return self.files.name

    def with_image_size(self, size: tuple[int, int]) -> "Checkpoint":
        """The same for another input size. Warns if that costs a hundred times as much.

        Args:
            size: (height, width) in pixels, to which the preprocessing is scaled.

        Raises:
            UsageError: if it is too small for the network.
        """
        try:
            self.config.tokens(*size)
        except ValueError as error:
            raise UsageError(str(error)) from None
        usual = self.preprocessing.image_size
        macs = needed_macs(self.config, size)
        if usual is not None and macs > MANY_MACS:
            times = macs / needed_macs(self.config, usual)
            if times > 100:
                warnings.warn(
                    f"{' × '.join(map(str, size))} pixels: {macs / 1e9:,.0f} GMACs an image, "
                    f"{times:,.0f} times those of {' × '.join(map(str, usual))}",
                    stacklevel=2,
                )
        return replace(self, preprocessing=self.preprocessing.scaled_to(size))

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
        UsageError: if there is no such activation.
    """
    if hidden_act not in (None, *ACTIVATIONS):
        raise UsageError(
            f"{hidden_act}: no such activation", hint=f"one of {', '.join(ACTIVATIONS)}"
        )
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
    _check_channels(files.name, config)
    problem_type = _problem_type(files.name, path, values, len(labels))
    return Checkpoint(files, config, labels, _preprocessing(files, values), problem_type)


def _problem_type(name: str, path: Path, values: Mapping[str, Any], num_labels: int) -> str | None:
    """What the configuration says that the logits are for.

    Raises:
        ModelError: if Transformers knows no such problem, or none with so many labels.
    """
    problem_type = values.get("problem_type")
    if problem_type is None:
        return None
    if problem_type not in PROBLEM_TYPES:
        raise ModelError(
            f"{name}: {path.name}: problem_type is {problem_type!r}",
            hint=f"one of {', '.join(PROBLEM_TYPES)}, or null",
        )
    if problem_type == "single_label_classification" and num_labels == 1:
        raise ModelError(
            f"{name}: {path.name}: problem_type is {problem_type}, but there is only one label",
            hint="null or multi_label_classification gives it a sigmoid, regression the raw value",
        )
    return str(problem_type)


def _from_weights_alone(files: ResolvedFiles) -> Checkpoint:
    weights = state_dict(files)
    try:
        config = config_from_shapes({key: tuple(value.shape) for key, value in weights.items()})
    except ValueError as error:
        raise ModelError(f"{files.name}: {error}") from None
    _check_channels(files.name, config)
    if config.num_labels > MAX_LABELS:
        raise ModelError(f"{files.name}: {config.num_labels} labels are too many")
    # The authors' file names carry the input size.
    size = image_size_in_name(files.name) or DEFAULT_IMAGE_SIZE
    labels = _numbered(config.num_labels)
    return Checkpoint(files, config, labels, Preprocessing.convnext(size))


def _check_channels(name: str, config: CvtConfig) -> None:
    if config.num_channels != 3:
        raise ModelError(f"{name}: its images have {config.num_channels} channels, not RGB's 3")


def _preprocessing(files: ResolvedFiles, config: Mapping[str, Any]) -> Preprocessing:
    path = files.preprocessor
    if path is None:
        size, source = _image_size_of(files)
        warnings.warn(
            f"{files.name} has no preprocessor_config.json: assumed are {size} × {size} pixels "
            f"({source}), prepared as for the published models",
            stacklevel=2,
        )
        return Preprocessing.convnext(size)
    values = _read_json(files.name, path)
    if path.name == PROCESSOR:
        values = values[IMAGE_PROCESSOR]
        if not isinstance(values, dict):
            raise ModelError(f"{files.name}: {path.name}: its {IMAGE_PROCESSOR} is no object")
    try:
        return read_processor(values, config)
    except ValueError as error:
        raise ModelError(f"{files.name}: {path.name}: {error}") from None


def _image_size_of(files: ResolvedFiles) -> tuple[int, str]:
    """The side of the input in pixels that the name or the model card tells, and which it was."""
    size = image_size_in_name(files.name)
    if size is not None:
        return size, "as its name says"
    try:
        card = files.card.read_text("utf-8", "replace") if files.card is not None else ""
    except OSError:
        card = ""
    found = re.search(r"\b(\d{2,4}) ?[x×] ?\1\b", card)
    if found and 32 <= int(found[1]) <= MAX_IMAGE_SIZE:
        return int(found[1]), "as its model card says"
    return DEFAULT_IMAGE_SIZE, "the usual size"


def image_size_in_name(name: str) -> int | None:
    """The side of the input in pixels that a name tells, `CvT-13-384x384-IN-1k.pth` or
    `org/cvt-13-384`; None where it doesn't."""
    for found in re.finditer(r"(?<![^-_])(\d{2,4})(?:x\1)?(?![^-_.])", os.path.basename(name)):
        if found[1] in _IMAGE_SIZES or "x" in found[0]:
            return int(found[1])
    return None


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{name}: {path}: {error.strerror}") from None
    except RecursionError:
        raise ModelError(f"{name}: {path} is corrupt: nested too deep") from None
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
        named = {int(index): _label(label) for index, label in id2label.items()}
    except (AttributeError, ValueError):
        raise ModelError(f"{name}: id2label is not a map from class index to label") from None
    if min(named) < 0 or max(named) >= MAX_LABELS:
        raise ModelError(f"{name}: id2label has a class index out of range")
    if len(named) != len(id2label):
        raise ModelError(f"{name}: id2label names a class index twice")
    return tuple(
        f"class {index}" if label is None else label
        for index, label in ((index, named.get(index)) for index in range(max(named) + 1))
    )


def _label(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise ValueError("not a label")


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _count_labels(files: ResolvedFiles, values: Mapping[str, Any]) -> int:
    if files.weights:
        head = state_dict(files).get("head.weight")
        if head is not None and head.ndim and 0 < len(head) <= MAX_LABELS:
            return len(head)
    count = values.get("num_labels", 2)  # Transformers' own default
    return count if isinstance(count, int) and 0 < count <= MAX_LABELS else 2


def state_dict(files: ResolvedFiles) -> "dict[str, torch.Tensor]":
    """Every weight under our names, on the CPU, memory-mapped where the format allows.

    Raises:
        ModelError: naming the file, if one is corrupt, truncated, or holds code.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in files.weights:
        weights |= _read_weights(files.name, path)
    for key, value in weights.items():
        if not _is_plain(value):
            raise ModelError(f"{files.name}: {key} is no plain tensor of numbers")
    for layout in LAYOUTS:
        if layout.matches(weights):
            return layout.to_ours(weights)
    return weights


def _is_plain(value: "torch.Tensor") -> bool:
    """Whether it is dense and all of it is in the file. Strides of zero make a tensor of any size
    out of one number."""
    import torch

    return (
        not value.is_nested
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _read_weights(name: str, path: Path) -> "dict[str, torch.Tensor]":
    if path.suffix == ".safetensors":
        return _read_safetensors(name, path)
    return _read_pickle(name, path)


def _read_safetensors(name: str, path: Path) -> "dict[str, torch.Tensor]":
    import safetensors.torch

    try:
        with interruptible():
            return safetensors.torch.load_file(path)
    # Its own error, or OSError, KeyError and others for what its header claims.
    except Exception as error:
        raise _corrupt(name, path, error) from error


def _read_pickle(name: str, path: Path) -> "dict[str, torch.Tensor]":
    import torch

    try:
        with warnings.catch_warnings(), interruptible():
            warnings.simplefilter(
                "ignore"
            )  # about the age of the format, and how to open it anyhow
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _calls_something(path):
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
    if isinstance(error, PermissionError | IsADirectoryError):
        return ModelError(f"{name}: {path}: {reason_of(error)}")
    return ModelError(
        f"{name}: {path} is corrupt or truncated ({_reason(error)})",
        hint="fetch or copy it again; a file from the Hub is fetched again once it is deleted",
    )


def _calls_something(path: Path) -> bool:
    """Whether a bare pickle names a function or class; it is read, not run. Where it is newer than
    torch's own reader, that one stops before it gets there."""
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                return False
            file.seek(0)
            return any(operation.name in _CALLS for operation, _, _ in pickletools.genops(file))
    except Exception:  # bytes of no pickle, of which there are many kinds
        return False


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights_only" in text:  # torch's advice is to open the file without the safeguard
        return "not a pickle of weights"
    return text[:150] or type(error).__name__


def _build(name: str, config: CvtConfig, weights: "dict[str, torch.Tensor]") -> "Cvt":
    import torch

    from cvt_cli.model.cvt import Cvt

    # A network of more blocks than there are weights is not built to find out which are missing.
    if config.num_stages + sum(config.depth) > len(weights):
        raise ModelError(
            f"{name}: the weights do not fit the configuration: {len(weights)} tensors for "
            f"{sum(config.depth)} blocks in {config.num_stages} stages"
        )
    # On the meta device nothing is allocated or initialised; the weights are put in as they are.
    try:
        with torch.device("meta"):
            model = Cvt(config)
    except RuntimeError as error:  # more bytes than an integer counts
        raise ModelError(
            f"{name}: the configuration is of no network that fits anywhere"
        ) from error
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
    no_number = [
        key
        for key, value in weights.items()
        if not value.is_floating_point() and not key.endswith("num_batches_tracked")
    ]
    problems = [
        f"{len(keys)} {what} ({_first(keys)})"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("of another shape", other_shape),
            ("not of floating point", no_number),
        )
        if keys
    ]
    if problems:
        raise ModelError(f"{name}: the weights do not fit the configuration: {'; '.join(problems)}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_NAMED_KEYS]) + (", …" if len(keys) > MAX_NAMED_KEYS else "")
