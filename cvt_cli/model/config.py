"""The architecture of a CvT as data. Imports no torch, so that it is quick to read."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as repr_of
from typing import Any, Self, cast

PROJECTION_METHODS = ("dw_bn", "avg", "linear")
# No network that fits anywhere has more of these; what is built, or listed layer by layer, grows
# with them.
MAX_STAGES = 32
_AT_MOST = {
    "num_channels": 2**10,
    "patch_sizes": 2**10,
    "patch_stride": 2**10,
    "embed_dim": 2**16,
    "num_heads": 2**16,
    "depth": 2**10,
    "mlp_ratio": 2**10,
    "kernel_qkv": 2**10,
    "stride_kv": 2**10,
    "num_labels": 2**20,
}
ACTIVATIONS = ("gelu", "quick_gelu")


@dataclass(frozen=True)
class CvtConfig:
    """The architecture of a CvT. Tuples have one entry per stage; the defaults are CvT-13 (paper,
    table 2).

    The field names are those of a `config.json` in the Transformers layout, so that
    `CvtConfig.from_dict(json.load(file))` is all there is to reading one.

    Raises:
        ValueError: at construction, naming the field, if the values describe no network.
    """

    num_channels: int = 3
    patch_sizes: tuple[int, ...] = (7, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2)
    patch_padding: tuple[int, ...] = (2, 1, 1)
    embed_dim: tuple[int, ...] = (64, 192, 384)
    num_heads: tuple[int, ...] = (1, 3, 6)
    depth: tuple[int, ...] = (1, 2, 10)
    mlp_ratio: tuple[float, ...] = (4.0, 4.0, 4.0)
    attention_drop_rate: tuple[float, ...] = (0.0, 0.0, 0.0)
    drop_rate: tuple[float, ...] = (0.0, 0.0, 0.0)
    drop_path_rate: tuple[float, ...] = (0.0, 0.0, 0.1)
    qkv_bias: tuple[bool, ...] = (True, True, True)
    cls_token: tuple[bool, ...] = (False, False, True)
    qkv_projection_method: tuple[str, ...] = ("dw_bn", "dw_bn", "dw_bn")
    kernel_qkv: tuple[int, ...] = (3, 3, 3)
    padding_kv: tuple[int, ...] = (1, 1, 1)
    stride_kv: tuple[int, ...] = (2, 2, 2)
    padding_q: tuple[int, ...] = (1, 1, 1)
    stride_q: tuple[int, ...] = (1, 1, 1)
    initializer_range: float = 0.02
    hidden_act: str = "gelu"
    num_labels: int = 1000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                kind = type(field.default[0])
                _check_stages(field.name, value, kind, num_stages=self.num_stages)
            elif isinstance(field.default, int):
                _check_number(field.name, value, minimum=1)
            elif isinstance(field.default, float):
                _check_number(field.name, value, minimum=0, whole=False)
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {repr_of(self.hidden_act)}, not one of {ACTIVATIONS}")
        for stage in range(self.num_stages):
            self._check_stage(stage)

    def _check_stage(self, stage: int) -> None:
        method = self.qkv_projection_method[stage]
        for name, window in (("patch_padding", "patch_sizes"), ("padding_kv", "kernel_qkv")):
            padding, size = getattr(self, name)[stage], getattr(self, window)[stage]
            if padding > size:
                raise ValueError(f"{name}[{stage}] = {padding} is more than {window} {size}")
        if method not in PROJECTION_METHODS:
            raise ValueError(
                f"qkv_projection_method[{stage}] is {repr_of(method)}, "
                f"not one of {PROJECTION_METHODS}"
            )
        if self.embed_dim[stage] % self.num_heads[stage]:
            raise ValueError(
                f"embed_dim[{stage}] = {self.embed_dim[stage]} is no multiple of "
                f"num_heads[{stage}] = {self.num_heads[stage]}"
            )
        if self.mlp_dim[stage] < 1:
            raise ValueError(f"mlp_ratio[{stage}] = {self.mlp_ratio[stage]} leaves no hidden width")
        for name in ("attention_drop_rate", "drop_rate"):
            if getattr(self, name)[stage] > 1:
                raise ValueError(f"{name}[{stage}] = {getattr(self, name)[stage]} is above 1")
        if self.drop_path_rate[stage] >= 1:  # outputs are divided by 1 - rate
            raise ValueError(
                f"drop_path_rate[{stage}] = {self.drop_path_rate[stage]} is not below 1"
            )
        if method == "avg" and 2 * self.padding_kv[stage] > self.kernel_qkv[stage]:
            raise ValueError(
                f"padding_kv[{stage}] = {self.padding_kv[stage]} is more than half of "
                f"kernel_qkv[{stage}] = {self.kernel_qkv[stage]}: a window would see no pixel"
            )
        # The residual connection adds a block's output to its input, token by token.
        same_size = self.kernel_qkv[stage] == 2 * self.padding_q[stage] + 1
        if method == "dw_bn" and not (self.stride_q[stage] == 1 and same_size):
            raise ValueError(
                f"stage {stage}: the query's convolution must keep the number of tokens "
                "(stride_q 1, kernel_qkv = 2 padding_q + 1)"
            )

    @property
    def num_stages(self) -> int:
        """Number of stages, the length of `depth`."""
        return len(self.depth)

    @property
    def mlp_dim(self) -> tuple[int, ...]:
        """Hidden width of each stage's MLP."""
        return tuple(
            int(dim * ratio) for dim, ratio in zip(self.embed_dim, self.mlp_ratio, strict=True)
        )

    def tokens(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return rows and columns of tokens after each stage's embedding, for an input in pixels.

        Raises:
            ValueError: if a stage would have no token; names the smallest input.
        """
        smallest = self.smallest_image_size
        if height < smallest or width < smallest:
            raise ValueError(
                f"an input of {height}x{width} pixels is too small for this network: "
                f"the smallest is {smallest}x{smallest}"
            )
        sizes = []
        for k, s, p in zip(self.patch_sizes, self.patch_stride, self.patch_padding, strict=True):
            height, width = (height + 2 * p - k) // s + 1, (width + 2 * p - k) // s + 1
            sizes.append((height, width))
        return sizes

    @property
    def smallest_image_size(self) -> int:
        """Smallest height and width in pixels that leave a token in every stage."""
        size = 1
        for stage in reversed(range(self.num_stages)):
            if self.qkv_projection_method[stage] != "linear":
                size = max(size, self.kernel_qkv[stage] - 2 * self.padding_kv[stage])
            kernel, padding = self.patch_sizes[stage], self.patch_padding[stage]
            size = max(1, (size - 1) * self.patch_stride[stage] + kernel - 2 * padding)
        return size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the contents of a `config.json`; keys that are not the architecture's are ignored.

        Raises:
            ValueError: if a value is of the wrong kind, or lists differ in length.
        """
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        known: dict[str, Any] = {}
        for name, default in fields.items():
            if name not in values:
                continue
            value = values[name]
            if isinstance(default, tuple) and not isinstance(value, list | tuple):
                raise ValueError(f"{name} is {repr_of(value)}, not a list with one entry a stage")
            known[name] = tuple(value) if isinstance(default, tuple) else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of a `config.json`, without labels. `hidden_act` only where it is not
        the one that Transformers applies."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), cast(Any, field.default)
            # Transformers does not accept 0 for 0.0.
            kind = type(default[0] if isinstance(value, tuple) else default)
            values[field.name] = [*map(kind, value)] if isinstance(value, tuple) else kind(value)
        del values["num_labels"]
        if self.hidden_act == "gelu":
            del values["hidden_act"]
        return {"architectures": ["CvtForImageClassification"], "model_type": "cvt"} | values


def _check_stages(name: str, value: object, kind: type, *, num_stages: int) -> None:
    if not num_stages:
        raise ValueError("depth is empty: no stage")
    if num_stages > MAX_STAGES:
        raise ValueError(f"depth has {num_stages} stages, more than {MAX_STAGES}")
    if not isinstance(value, tuple) or len(value) != num_stages:
        raise ValueError(
            f"{name} = {repr_of(value)} has not one entry for each of {num_stages} stages"
        )
    for entry in value:
        if kind is bool or kind is str:
            if not isinstance(entry, kind):
                raise ValueError(f"{name} has {repr_of(entry)}, not a {kind.__name__}")
        elif kind is float:
            _check_number(name, entry, minimum=0, whole=False)
        else:
            zero_is_fine = name in ("patch_padding", "padding_kv", "padding_q", "depth")
            _check_number(name, entry, minimum=0 if zero_is_fine else 1)


def _check_number(name: str, value: object, minimum: int, *, whole: bool = True) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} has {repr_of(value)}, not a {'whole ' if whole else ''}number")
    most = _AT_MOST.get(name, 2**31 - 1)
    if not minimum <= value <= most:
        raise ValueError(f"{name} has {repr_of(value)}, out of range ({minimum} to {most})")
