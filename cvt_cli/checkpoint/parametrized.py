"""Parametrised weights: torch.nn.utils' ways to keep a weight in parts become the weight.

Pruning keeps it with a mask, weight norm as direction and length, spectral norm with the vectors
that its largest singular value follows from. Names: those of `torch.nn.utils.parametrizations`, and
of the older hooks.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cvt_cli.errors import ModelError
from cvt_cli.system.text import MAX_QUOTED, visible

if TYPE_CHECKING:
    import torch

_NEW = "parametrizations."
_LEFT = re.compile(r"(?:.*\.)?parametrizations\.\w+\.(?:original\d*|\d+\..+)", re.DOTALL)


@dataclass(frozen=True)
class _Kind:
    """A way to keep a weight in parts.

    Attributes:
        parts: their names, after the name of the module, with {} for that of the weight.
        whole: makes the weight of them.
    """

    parts: Sequence[str]
    whole: "Callable[..., torch.Tensor]"


def _pruned(weight: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    if weight.shape != mask.shape:
        raise ValueError(f"a mask of {tuple(mask.shape)} for weights of {tuple(weight.shape)}")
    return weight * mask.to(weight.dtype)


def _weight_norm(length: "torch.Tensor", direction: "torch.Tensor") -> "torch.Tensor":
    if length.ndim == 0:  # of the whole weight
        return direction * (length / direction.square().sum().sqrt())
    if length.ndim != direction.ndim or any(
        one not in (1, each) for one, each in zip(length.shape, direction.shape, strict=True)
    ):
        raise ValueError(
            f"lengths of {tuple(length.shape)} for weights of {tuple(direction.shape)}"
        )
    over = [axis for axis, count in enumerate(length.shape) if count == 1]
    squares = direction.square()
    # No axes are all axes to torch.
    return direction * (length / (squares.sum(over, keepdim=True) if over else squares).sqrt())


def _spectral_norm(
    weight: "torch.Tensor", left: "torch.Tensor", right: "torch.Tensor"
) -> "torch.Tensor":
    if left.ndim != 1 or right.ndim != 1:
        raise ValueError("singular vectors that are none")
    largest: torch.Tensor = left @ (weight.flatten(1) @ right)
    return weight / largest


def is_plain(value: "torch.Tensor") -> bool:
    """Tell whether a tensor is dense and completely in the file: with strides of zero a single
    number makes a tensor of any size."""
    import torch

    return (
        not value.is_nested
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


_KINDS = (
    _Kind(("{}_orig", "{}_mask"), _pruned),
    _Kind(("{}_g", "{}_v"), _weight_norm),
    _Kind(("{}_orig", "{}_u", "{}_v"), _spectral_norm),
    _Kind((f"{_NEW}{{}}.original0", f"{_NEW}{{}}.original1"), _weight_norm),
    _Kind((f"{_NEW}{{}}.original", f"{_NEW}{{}}.0._u", f"{_NEW}{{}}.0._v"), _spectral_norm),
)
# What torch raises of parts that are no tensors, or of other shapes.
_UNFIT = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
_PARAMETERS = ("weight", "bias")


class Budget:
    """Bytes that weights made of parts may take: no more than what is in the file, where many parts
    may name the same numbers."""

    def __init__(self, size: int) -> None:
        self._left = size

    @classmethod
    def of(cls, content: Mapping[str, Any], levels: int) -> "Budget":
        """Count the bytes in a dict of tensors, or of such dicts, so many levels deep."""
        sizes: dict[int, int] = {}
        waiting = [(content, levels)]
        while waiting:
            each, below = waiting.pop()
            for value in each.values():
                if isinstance(value, Mapping) and below:
                    waiting.append((value, below - 1))
                elif hasattr(value, "untyped_storage") and is_plain(value):
                    storage = value.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
        return cls(sum(sizes.values()))

    def take(self, parts: Sequence["torch.Tensor"]) -> None:
        """Take what the whole of some parts needs. Raises: ValueError, if too little is left."""
        self._left -= max(part.nbytes for part in parts)
        if self._left < 0:
            raise ValueError("they share their numbers with others")


def without_parts(name: str, tensors: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Put weights in place of their parts.

    Args:
        name: of the checkpoint, for messages.
        tensors: by name. None for one is a tensor that was not read: so is the weight then.

    Raises:
        ModelError: if parts do not fit together, or are of a kind that is not known here.
    """
    whole = dict(tensors)
    for kind in _KINDS:
        for parameter in _PARAMETERS:
            first, *others = (part.format(parameter) for part in kind.parts)
            for key in [key for key in whole if key.endswith(first)]:
                module = key.removesuffix(first)
                keys = [key, *(module + other for other in others)]
                if module[-1:] in ("", ".") and all(each in whole for each in keys):
                    parts = [whole.pop(each) for each in keys]
                    try:
                        whole[module + parameter] = _made(kind, parts, budget)
                    except _UNFIT as error:
                        raise ModelError(
                            f"{name}: the parts of {visible(module[:MAX_QUOTED])}{parameter} "
                            f"do not fit: {error}"
                        ) from None
    left = next((key for key in whole if _LEFT.fullmatch(key)), None)
    if left is not None:
        raise ModelError(
            f"{name}: it holds a parametrised weight, {visible(left[:MAX_QUOTED])}",
            hint="torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') before "
            "saving makes it a plain one",
        )
    return whole


def _made(kind: _Kind, parts: list[Any], budget: Budget) -> Any:
    if any(part is None for part in parts):
        return None
    if not all(map(is_plain, parts)):
        raise ValueError("not plain tensors of numbers")
    budget.take(parts)
    return kind.whole(*parts)
