"""Loading: local files become a `Checkpoint` with configuration, labels, preprocessing and weights.

One warning names everything that is assumed because no file tells it.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as repr_of
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint import imagenet
from cvt_cli.checkpoint.architecture import config_from_shapes, read_authors_yaml
from cvt_cli.checkpoint.build import build
from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, bundled_names
from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles, no_cvt, read_json
from cvt_cli.checkpoint.class_names import MAX_LABELS
from cvt_cli.checkpoint.layouts import MICROSOFT, TRANSFORMERS
from cvt_cli.checkpoint.preparation import (
    DEFAULT_IMAGE_SIZE,
    image_size_in_name,
    preprocessing_of,
)
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.checkpoint.weights_file import (
    first_of,
    layout_of,
    read_weights,
    state_dict,
)
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.images.preprocess import CHANNELS, Preprocessing
from cvt_cli.images.reading import MAX_TOKENS
from cvt_cli.model.config import ACTIVATIONS, CvtConfig
from cvt_cli.model.cost import needed_macs
from cvt_cli.records import is_text

if TYPE_CHECKING:
    import torch

    from cvt_cli.model.cvt import Cvt

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# A larger input is warned of from so many multiply-adds on, which take a CPU some seconds, and so
# many times those of the usual size.
MANY_MACS = 10**11
MANY_TIMES = 100


@dataclass(frozen=True)
class Checkpoint:
    """A model that is ready to be built.

    Attributes:
        files: where it came from.
        labels: one for each class index.
        problem_type: one of `PROBLEM_TYPES`, or None where the configuration names none; with the
            number of labels it decides what the logits become.
        layout: whose names the weights have: "Transformers", "Microsoft" or "cvt".
    """

    files: ResolvedFiles
    config: CvtConfig
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    problem_type: str | None = None
    layout: str = TRANSFORMERS.name

    @property
    def name(self) -> str:
        """The name that it was asked for by."""
        return self.files.name

    def with_image_size(self, size: tuple[int, int]) -> "Checkpoint":
        """Return the same checkpoint for another input size. Warns if that costs a hundred times as
        much.

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
            if times > MANY_TIMES:
                warnings.warn(
                    f"{' × '.join(map(str, size))} pixels: {macs / 1e9:,.0f} GMACs per image, "
                    f"{times:,.0f} times as many as at {' × '.join(map(str, usual))}",
                    stacklevel=2,
                )
        return replace(self, preprocessing=self.preprocessing.scaled_to(size))

    def model(self) -> "Cvt":
        """Build the network with its weights, on the CPU, in evaluation mode, in the dtype of the
        file.

        Raises:
            ModelError: if a file is corrupt, the weights are another architecture's, or have no
                head.
        """
        weights = state_dict(self.files)
        if weights and not _has_head(weights):
            other = [name for name in weights if name.startswith("head.")]
            if other:
                raise ModelError(
                    f"{self.name}: its head is not one linear layer, weight and bias, but has "
                    f"{first_of(other)}",
                    hint=f"`cvt train FOLDER --model {self.name} --output NEW` gives it another",
                )
            raise ModelError(
                f"{self.name} has no head: it gives features, not labels",
                hint=f"`cvt train FOLDER --model {self.name} --output NEW` gives it one",
            )
        return build(self.name, self.config, weights)

    def weights_to_train(self) -> "tuple[dict[str, torch.Tensor], bool]":
        """Return the weights in float32, and whether the head is the checkpoint's. Where the file
        has none, the last norm and the head are what they are before any training.

        Raises:
            ModelError: as `model` does, but for the head.
        """
        import torch

        weights = state_dict(self.files)
        has_head = _has_head(weights)
        if not has_head:
            weights = {k: value for k, value in weights.items() if not k.startswith("head.")}
            width = self.config.embed_dim[-1]
            weights.setdefault("norm.weight", torch.ones(width))
            weights.setdefault("norm.bias", torch.zeros(width))
            weights["head.weight"] = torch.zeros(self.config.num_labels, width)
            weights["head.bias"] = torch.zeros(self.config.num_labels)
        model = build(self.name, self.config, weights)
        return {name: value.float() for name, value in model.state_dict().items()}, has_head


def load(
    files: ResolvedFiles,
    hidden_act: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Checkpoint:
    """Read configuration, labels and preprocessing.

    Args:
        files: what `resolve` found.
        hidden_act: "gelu" or "quick_gelu" in place of the checkpoint's own activation.
        class_names: labels by class index, in place of the checkpoint's own.

    Raises:
        ModelError: if a file is corrupt, or this is not a CvT.
        UsageError: if there is no such activation, or not one name for each class.
    """
    if hidden_act not in (None, *ACTIVATIONS):
        raise UsageError(
            f"{hidden_act}: no such activation", hint=f"one of {', '.join(ACTIVATIONS)}"
        )
    if files.config is None:
        checkpoint = _from_weights_alone(files, class_names is None)
    else:
        checkpoint = _from_config(files, files.config)
    _check_tokens(checkpoint)
    if class_names is not None:
        count = checkpoint.config.num_labels
        if len(class_names) != count:
            raise UsageError(
                f"--class-names has {len(class_names)} names, but {files.name} has {count} classes"
            )
        checkpoint = replace(checkpoint, labels=tuple(class_names))
    if hidden_act is not None:
        config = replace(checkpoint.config, hidden_act=hidden_act)
        return replace(checkpoint, config=config)
    if checkpoint.layout == TRANSFORMERS.name and checkpoint.config.hidden_act != "gelu":
        warnings.warn(
            f"{files.name}: using QuickGELU, as its config.json says; transformers always uses "
            "GELU and gives different scores (--activation gelu matches it)",
            stacklevel=2,
        )
    return checkpoint


def _check_tokens(checkpoint: Checkpoint) -> None:
    """Refuse an input size that takes more memory and time than any image; see `ImageReader`.

    Raises:
        ModelError: if the checkpoint's own is one.
    """
    size = checkpoint.preprocessing.image_size
    if size is None or min(size) < checkpoint.config.smallest_image_size:
        return  # each image is checked, or the size is refused where it is used
    rows, columns = checkpoint.config.tokens(*size)[0]
    if rows * columns > MAX_TOKENS:
        raise ModelError(
            f"{checkpoint.name}: images of {size[0]}x{size[1]} pixels make {rows * columns} "
            f"tokens, more than the limit of {MAX_TOKENS}"
        )


def _from_config(files: ResolvedFiles, path: Path) -> Checkpoint:
    values = read_json(files.name, path)
    kind = values.get("model_type")
    if kind != "cvt":
        raise no_cvt(files.name, kind)
    labels = _labels(files.name, values)
    if not labels:
        labels = _numbered(_count_labels(files, values))
    layout = (layout_of(files) if files.weights else None) or TRANSFORMERS
    # The authors trained with QuickGELU; Transformers knows no other activation than GELU.
    assumed = {"hidden_act": "quick_gelu"} if layout is MICROSOFT else {}
    try:
        config = CvtConfig.from_dict(assumed | values | {"num_labels": len(labels)})
    except ValueError as error:
        raise ModelError(f"{files.name}: {path.name}: {error}") from None
    _check_channels(files.name, config)
    problem_type = _problem_type(files.name, path, values, num_labels=len(labels))
    preprocessing = preprocessing_of(files, values)
    return Checkpoint(
        files,
        config=config,
        labels=labels,
        preprocessing=preprocessing,
        problem_type=problem_type,
        layout=layout.name,
    )


def _problem_type(
    name: str, path: Path, values: Mapping[str, Any], *, num_labels: int
) -> str | None:
    """Read what kind of problem the logits are for.

    Raises:
        ModelError: if Transformers knows no such problem, or none with so many labels.
    """
    problem_type = values.get("problem_type")
    if problem_type is None:
        return None
    if problem_type not in PROBLEM_TYPES:
        raise ModelError(
            f"{name}: {path.name}: problem_type is {repr_of(problem_type)}",
            hint=f"one of {', '.join(PROBLEM_TYPES)}, or null",
        )
    if problem_type == "single_label_classification" and num_labels == 1:
        raise ModelError(
            f"{name}: {path.name}: problem_type is {problem_type}, but there is only one label",
            hint="null or multi_label_classification gives it a sigmoid, regression the raw value",
        )
    return str(problem_type)


def _from_weights_alone(files: ResolvedFiles, needs_labels: bool) -> Checkpoint:
    twin = _bundled_twin(files)
    if twin is not None:
        return replace(load(twin), files=files)
    weights = read_weights(files)
    hidden_act = "quick_gelu" if weights.layout is MICROSOFT else "gelu"
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items()}
    assumed = []
    try:
        config, guessed = config_from_shapes(shapes, hidden_act)
    except ValueError as error:
        raise ModelError(f"{files.name}: {error}") from None
    if config.num_labels > MAX_LABELS:
        raise ModelError(f"{files.name}: {config.num_labels} labels are too many")
    if files.authors_yaml is not None:
        said = read_authors_yaml(
            files.name, files.authors_yaml, config.num_labels, hidden_act=hidden_act
        )
        config, preprocessing = said.config, said.preprocessing
    else:
        # The authors put the input size into the name of the file.
        size = image_size_in_name(files.name)
        preprocessing = Preprocessing.convnext(size or DEFAULT_IMAGE_SIZE)
        assumed += [guessed] if guessed else []
        assumed += [] if size else [f"an input of {DEFAULT_IMAGE_SIZE} × {DEFAULT_IMAGE_SIZE}"]
    _check_channels(files.name, config)
    labels = _numbered(config.num_labels)
    if len(labels) == len(imagenet.SYNSETS) and _has_head(weights.tensors):
        labels = imagenet.class_names()
        assumed += ["the labels of ImageNet-1k"] if needs_labels else []
    if assumed:
        warnings.warn(
            f"{files.name} has no configuration beside it; assuming {'; '.join(assumed)}. To "
            "set these, put a config.json or the authors' YAML file beside it",
            stacklevel=2,
        )
    return Checkpoint(
        files, config, labels, preprocessing=preprocessing, layout=weights.layout.name
    )


def _bundled_twin(files: ResolvedFiles) -> ResolvedFiles | None:
    """Find the bundled checkpoint that this file of weights is a copy of."""
    size = sum(path.stat().st_size for path in files.weights)
    for name in bundled_names():
        file = BUNDLED_FOLDER / name / "model.safetensors"
        if file.stat().st_size == size:
            twin = resolve(name)
            if twin.weights_digest() == files.weights_digest():
                return twin
    return None


def _has_head(weights: Mapping[str, Any]) -> bool:
    return "head.weight" in weights or "head.bias" in weights


def _check_channels(name: str, config: CvtConfig) -> None:
    if config.num_channels != CHANNELS:
        raise ModelError(f"{name}: it takes images of {config.num_channels} channels, not RGB's 3")


def _labels(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the labels by class index; empty if the configuration has none."""
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
    if not all(label is None or is_text(label) for label in named.values()):
        raise ModelError(f"{name}: id2label has a label that is not Unicode text")
    return tuple(
        _unnamed(index) if label is None else label
        for index, label in ((index, named.get(index)) for index in range(max(named) + 1))
    )


def _label(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise ValueError("not a label")


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(_unnamed, range(count)))


def _unnamed(index: int) -> str:
    """Name a class that has no label as Transformers does."""
    return f"LABEL_{index}"


def _count_labels(files: ResolvedFiles, values: Mapping[str, Any]) -> int:
    if files.weights:
        head = state_dict(files).get("head.weight")
        if head is not None and head.ndim and 0 < len(head) <= MAX_LABELS:
            return len(head)
    count = values.get("num_labels", 2)  # Transformers' own default
    return count if isinstance(count, int) and 0 < count <= MAX_LABELS else 2
