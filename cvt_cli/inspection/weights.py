"""Statistics of a checkpoint's weights, and the differences between two sets of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.weights_file import read_weights
from cvt_cli.errors import ModelError
from cvt_cli.model.config import CvtConfig

if TYPE_CHECKING:
    from torch import Tensor

# A counter of training steps in each batch norm, which inference ignores.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class TensorFacts:
    """Facts about a weight. The statistics are those of its finite values; None if there are none.

    Attributes:
        name: ours, as in `cvt.py`.
        shape, dtype: as in the file.
        nan, infinite: the number of values that are neither.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    nan: int
    infinite: int


@dataclass(frozen=True)
class WeightsFacts:
    """Facts about all weights, compared with what the configuration needs.

    Attributes:
        missing: names that the network has and the file has not.
        left_over: names that the file has and the network has not.
        other_shape: names whose shapes differ, with both.
    """

    tensors: tuple[TensorFacts, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors of each dtype."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
        return counts

    @property
    def not_finite(self) -> tuple[TensorFacts, ...]:
        """Tensors with NaN or infinite values."""
        return tuple(tensor for tensor in self.tensors if tensor.nan or tensor.infinite)

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {
            "dtypes": self.dtypes,
            "missing": list(self.missing),
            "left_over": list(self.left_over),
            "other_shape": list(self.other_shape),
            "nan": sum(tensor.nan for tensor in self.tensors),
            "infinite": sum(tensor.infinite for tensor in self.tensors),
            "tensors": [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors],
        }


@dataclass(frozen=True)
class TensorDifference:
    """The difference of a weight between two checkpoints.

    Attributes:
        status: "equal", "different", "other shape", "only in the first", "only in the second".
        largest: of the absolute differences; None where they can't be taken.
        relative: the norm of the difference over the norm of the first.
    """

    name: str
    status: str
    largest: float | None = None
    relative: float | None = None


def weights_facts(config: CvtConfig, files: ResolvedFiles) -> WeightsFacts:
    """Read the weights and collect facts about each.

    Raises:
        ModelError: naming the file, if one is corrupt, truncated, or holds code; or if the
            configuration is of a far larger network.
    """
    weights = _read(files)
    wanted = _wanted(config, len(weights))
    return WeightsFacts(
        tuple(_facts(name, weights[name]) for name in _in_order(weights, wanted)),
        tuple(name for name in wanted if name not in weights),
        tuple(name for name in weights if name not in wanted),
        other_shape=tuple(
            f"{name}: {list(weights[name].shape)}, not {list(shape)}"
            for name, shape in wanted.items()
            if name in weights and tuple(weights[name].shape) != shape
        ),
    )


def weights_difference(
    config: CvtConfig, first: ResolvedFiles, second: ResolvedFiles
) -> list[TensorDifference]:
    """Compare two checkpoints weight by weight. `config` is that of the first.

    Raises:
        ModelError: as for `weights_facts`.
    """
    ours, theirs = _read(first), _read(second)
    names = _in_order({**ours, **theirs}, _wanted(config, len(ours)))
    return [_difference(name, ours, theirs) for name in names]


def _read(files: ResolvedFiles) -> "dict[str, Tensor]":
    weights = read_weights(files)
    everything = {**weights.left_out, **weights.tensors}
    return {name: value for name, value in everything.items() if not name.endswith(COUNTER)}


def _in_order(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Sort weights in the order of the network, whatever the file's; those that the network does
    not have come last."""
    present = dict.fromkeys(names)
    return list({name: None for name in wanted if name in present} | present)


def _wanted(config: CvtConfig, tensors: int) -> dict[str, tuple[int, ...]]:
    """List name and shape of each weight of the network."""
    import torch

    from cvt_cli.model.cvt import Cvt

    # A network with more blocks than there are weights is not built only to name the missing ones.
    if sum(config.depth) > tensors:
        raise ModelError(
            f"the configuration has {sum(config.depth):,} blocks, the file {tensors:,} weights"
        )
    with torch.device("meta"):
        weights = Cvt(config).state_dict()
    return {
        name: tuple(value.shape) for name, value in weights.items() if not name.endswith(COUNTER)
    }


def _facts(name: str, tensor: "Tensor") -> TensorFacts:
    values = tensor.float()
    finite = values[values.isfinite()]
    nan = int(values.isnan().sum())
    some = finite.numel() > 0
    return TensorFacts(
        name,
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        mean=float(finite.mean()) if some else None,
        std=float(finite.std(correction=0)) if some else None,
        min=float(finite.min()) if some else None,
        max=float(finite.max()) if some else None,
        nan=nan,
        infinite=values.numel() - finite.numel() - nan,
    )


def _difference(
    name: str, ours: "Mapping[str, Tensor]", theirs: "Mapping[str, Tensor]"
) -> TensorDifference:
    if name not in theirs:
        return TensorDifference(name, "only in the first")
    if name not in ours:
        return TensorDifference(name, "only in the second")
    first, second = ours[name].float(), theirs[name].float()
    if first.shape != second.shape:
        return TensorDifference(name, "other shape")
    if first.equal(second):
        return TensorDifference(name, "equal", 0.0, relative=0.0)
    difference = first - second
    largest, norm = float(difference.abs().max()), float(first.norm())
    relative = float(difference.norm()) / norm if norm else math.inf
    if not (math.isfinite(largest) and math.isfinite(relative)):
        # With NaN in one of them there is no distance.
        return TensorDifference(name, "different")
    return TensorDifference(name, "different", largest, relative=relative)
