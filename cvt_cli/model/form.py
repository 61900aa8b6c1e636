"""The forms that `fused.py` has of one and the same function: which is fastest depends on the
processor, the shapes and the library. They differ in the last digits of what they compute."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from cvt_cli.model.processor import has_fast_products, has_packed_linear

# What each choice may be; the first is the one where nothing is known.
CHOICES = {
    # torch's fused kernel, or oneDNN's matrix products with a softmax between them
    "attention": ("sdpa", "products"),
    # behind the first product of an MLP in a pass of its own, or on each tile of the product
    "activation": ("apart", "fused"),
    # torch's, or oneDNN's with weights in the order that it reads them in
    "linear": ("plain", "packed"),
    # channels in memory: one behind the other in each pixel, or one plane each
    "convolution": ("channels_last", "channels_first"),
}


@dataclass(frozen=True)
class StageForm:
    """The choices for one stage, each out of `CHOICES`."""

    attention: str = "sdpa"
    activation: str = "apart"
    linear: str = "plain"
    convolution: str = "channels_last"


@dataclass(frozen=True)
class Form:
    """The form of a whole network.

    Attributes:
        stages: one each.
        threads: that torch computes with; None for as many as it likes.
    """

    stages: tuple[StageForm, ...]
    threads: int | None = None

    @classmethod
    def usual(cls, stages: int, device: torch.device, dtype: torch.dtype) -> Self:
        """Return the form for a device where nothing was measured.

        Where oneDNN has AVX-512 its products win everywhere. With AVX2 alone its GELU takes three
        times as long as torch's, and torch's fused attention is the faster.
        """
        if device.type != "cpu" or not has_packed_linear(dtype):
            return cls((StageForm(),) * stages)
        products = StageForm("products", "fused", "packed")
        short = StageForm("sdpa", "apart", "packed")
        return cls(((products if has_fast_products() else short),) * stages)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the form that `to_dict` made these values of.

        Raises:
            ValueError: if they are none.
        """
        try:
            columns = {name: list(values[name]) for name in CHOICES}
            threads = values["threads"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"no form of a network: {error}") from None
        valid = all(set(chosen) <= set(CHOICES[name]) for name, chosen in columns.items())
        if not valid or not (threads is None or (isinstance(threads, int) and threads > 0)):
            raise ValueError("no form of a network")
        try:
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        except ValueError:
            raise ValueError("no form of a network: stages differ") from None
        return cls(tuple(StageForm(**row) for row in rows), threads)

    def to_dict(self) -> dict[str, Any]:
        """Return the choices by name, a list over the stages each, as JSON has them."""
        stages = [asdict(stage) for stage in self.stages]
        return {
            **{name: [stage[name] for stage in stages] for name in CHOICES},
            "threads": self.threads,
        }

    def why_not(self, stages: int, dtype: torch.dtype, cores: int) -> str | None:
        """Tell why this machine can't compute a network of so many stages in this form; None if it
        can."""
        if len(self.stages) != stages:
            return f"it is of a network of {len(self.stages)} stages"
        if any(stage.linear == "packed" for stage in self.stages) and not has_packed_linear(dtype):
            return "oneDNN packs no weights here"
        if self.threads is not None and self.threads > cores:
            return f"it is for {self.threads} threads, and there are {cores} cores"
        return None

    def __str__(self) -> str:
        """Name each choice once, or stage by stage with slashes between, for people to read."""
        columns = self.to_dict()
        columns.pop("threads")
        parts = [
            f"{name} {'/'.join(values if len(set(values)) > 1 else values[:1])}"
            for name, values in columns.items()
        ]
        if self.threads is not None:
            parts.append(f"{self.threads} thread{'s' if self.threads != 1 else ''}")
        return ", ".join(parts)
