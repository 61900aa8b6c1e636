"""The network for inference: computes the same as `cvt.py` with fewer operations.

Tokens stay (B, T, C) in memory, which an image in channels-last order also is: no copy between
the two. Each idea has a comment; docs/performance.md says what each gave.
"""

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt_cli.model.cvt import NORM_EPS, Block, ConvAttention, ConvProjection, Cvt, Stage, quick_gelu
from cvt_cli.model.form import Form, StageForm
from cvt_cli.model.processor import has_packed_linear, pack, packed_linear

QUICK_GELU_FACTOR = 1.702
# Attention by oneDNN's products on a CPU: for no fewer queries, so many of them at once, and for no
# more keys.
MIN_QUERIES = 784
QUERY_TILE = 3136
MAX_KEYS = 4096
# Parameters of mallopt(3), and the bytes for both.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30
PACKED = StageForm(linear="packed", activation="fused")
LayerNorm = Callable[[Tensor, nn.LayerNorm], Tensor]
LAYOUTS = {
    "channels_last": torch.channels_last,
    "channels_first": torch.contiguous_format,
}


class Linear:
    """y = act(x W' + b), and optionally + residual, in one pass over memory where oneDNN can.

    (…, C_in) -> (…, C_out), in the dtype of the weights.

    Args:
        weight, bias: (C_out, C_in) and (C_out) or None.
        activation: "none", "gelu" or "swish".
        form: packed, and the activation within the product, where that is possible.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        activation: str = "none",
        *,
        form: StageForm = PACKED,
    ) -> None:
        self.bias = bias
        self.activation = activation
        is_possible = weight.device.type == "cpu" and has_packed_linear(weight.dtype)
        self.packed = is_possible and form.linear == "packed"
        self.weight = pack(weight) if self.packed else weight
        self._within = activation if self.packed and form.activation == "fused" else "none"

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.packed:
            # The residual sum, and maybe the activation, are done on each tile while it is in
            # cache.
            y = packed_linear(x, self.weight, self.bias, activation=self._within, residual=residual)
        else:
            y = F.linear(x, self.weight, self.bias)
        if self.activation != self._within:
            # In place: a pass over one tensor, not two.
            y = torch.ops.aten.gelu_(y) if self.activation == "gelu" else F.silu(y, inplace=True)
        return y if residual is None or self.packed else y.add_(residual)


class Depthwise:
    """A `ConvProjection` without its batch norm's shift: (B, C, H, W) -> (B, C, H', W').

    The batch norm's factor goes into the convolution: one pass instead of two. Its shift is the
    same for every token, so it goes into the bias of the linear layer behind: on a GPU, the bias of
    a convolution is a pass of its own.

    Attributes:
        shift: (C) what is to be added to each output; None for nothing.
    """

    def __init__(self, projection: ConvProjection, form: StageForm = PACKED) -> None:
        self._plain = projection
        self._layout = LAYOUTS[form.convolution]
        self.shift: Tensor | None = None
        self.weight: Tensor | None = None
        if not hasattr(projection, "conv"):
            return
        conv, bn = projection.conv, projection.bn
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None and bn.running_var is not None
        gain, shift, mean, var, kernel = (
            _double(each)
            for each in (bn.weight, bn.bias, bn.running_mean, bn.running_var, conv.weight)
        )
        factor = gain / (var + bn.eps).sqrt()
        self.shift = (shift - mean * factor).to(conv.weight)
        weight = (kernel * factor[:, None, None, None]).to(conv.weight)
        self.weight = weight.contiguous(memory_format=self._layout)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups

    @property
    def kernel(self) -> Tensor:
        """Return the convolution's weight with the batch norm's factor: (C, 1, rows, columns).

        Raises:
            ValueError: of a projection without a convolution.
        """
        if self.weight is None:
            raise ValueError("no convolution")
        return self.weight

    def __call__(self, image: Tensor) -> Tensor:
        if self.weight is None:
            y: Tensor = self._plain(image)
            return y
        image = image.contiguous(memory_format=self._layout)
        return F.conv2d(image, self.weight, None, self.stride, self.padding, 1, self.groups)

    def before(self, linear: nn.Linear, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the linear layer behind, which adds the shift, both times the
        scale."""
        weight: Tensor = linear.weight * scale
        bias: Tensor | None = None if linear.bias is None else linear.bias * scale
        if self.shift is not None:
            added = _double(weight) @ _double(self.shift)
            bias = (added if bias is None else _double(bias) + added).to(weight)
        return weight, bias

    def skip(self, cls_token: Tensor) -> Tensor:
        """Return the class token, which skips the convolution, as the linear layer behind expects
        it."""
        return cls_token if self.shift is None else cls_token - self.shift


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise tokens (B, T, C), without the module's overhead."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, NORM_EPS)


def _double(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (x.cpu() if x.device.type == "mps" else x).double()


class FusedAttention:
    """`ConvAttention` and the sum with its residual. (B, T, C) -> (B, T, C)."""

    def __init__(self, attn: ConvAttention, form: StageForm) -> None:
        self.num_heads = attn.num_heads
        self.with_cls_token = attn.with_cls_token
        self.conv_q, self.conv_k, self.conv_v = (
            Depthwise(projection, form)
            for projection in (attn.conv_proj_q, attn.conv_proj_k, attn.conv_proj_v)
        )
        # Without convolutions, keys and values have the same input: one product for both.
        self.same_kv = not hasattr(attn.conv_proj_k, "conv")
        # The scale of q k' goes into the weights of q: no activation is multiplied by it.
        self.proj_q = Linear(*self.conv_q.before(attn.proj_q, attn.scale), form=form)
        kv = (attn.proj_k, attn.proj_v)
        self.proj_kv = (
            [_stacked(kv, form)]
            if self.same_kv
            else [
                Linear(*conv.before(linear), form=form)
                for conv, linear in zip((self.conv_k, self.conv_v), kv, strict=True)
            ]
        )
        self.proj = Linear(attn.proj.weight, attn.proj.bias, form=form)
        self.by_products = form.attention == "products" and self.proj.packed

    def __call__(
        self, x: Tensor, residual: Tensor, height: int, *, width: int, cls_only: bool = False
    ) -> Tensor:
        y = self.attend(*self.project(x, height, width, cls_only))
        return self.proj(y, residual[:, :1] if cls_only else residual)

    def project(
        self, x: Tensor, height: int, width: int, cls_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values (B, T', C) of normalised tokens."""
        cls_token = x[:, :1] if self.with_cls_token else None
        # A copy if there is a class token, else a view.
        image = x[:, x.shape[1] - height * width :].contiguous()
        image = image.unflatten(1, (height, width)).permute(0, 3, 1, 2)

        def tokens(conv: Depthwise) -> Tensor:
            y = conv(image).permute(0, 2, 3, 1).flatten(1, 2)
            return y if cls_token is None else torch.cat([conv.skip(cls_token), y], dim=1)

        if cls_only:
            assert cls_token is not None
            q = self.proj_q(self.conv_q.skip(cls_token))
        else:
            q = self.proj_q(tokens(self.conv_q))
        if self.same_kv:
            k, v = self.proj_kv[0](tokens(self.conv_k)).chunk(2, dim=-1)
        else:
            k, v = self.proj_kv[0](tokens(self.conv_k)), self.proj_kv[1](tokens(self.conv_v))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute the attention of all heads: (B, T, C) each to (B, T, C), laid out like the
        queries."""
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        # SDPA's kernel on CPUs multiplies by MKL, which reaches half of oneDNN's speed on AMD with
        # AVX-512.
        is_long = q.shape[2] >= MIN_QUERIES
        if self.by_products and is_long and k.shape[2] <= MAX_KEYS:
            y = _attention_in_tiles(q, k, v)
        elif self.by_products and not is_long:
            y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2)
        return y.flatten(2)


def _attention_in_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k') v by oneDNN's matrix product: (B, heads, T, D) -> (B, T, heads, D)."""
    batch, heads, count, _ = q.shape
    y = q.new_empty(batch, count, heads, v.shape[3])
    # Rows that are not contiguous would be multiplied one by one.
    k, v = k.contiguous(), v.contiguous()
    for image in range(batch):
        for head in range(heads):
            keys, values = k[image, head], v[image, head].t()
            for tile, out in zip(
                q[image, head].split(QUERY_TILE), y[image, :, head].split(QUERY_TILE), strict=True
            ):
                scores = packed_linear(tile, keys)
                out.copy_(packed_linear(scores.softmax(-1), values))
    return y


def _stacked(linears: tuple[nn.Linear, nn.Linear], form: StageForm) -> Linear:
    """Stack several linear layers with the same input into one."""
    biases: list[Tensor] = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat(biases)
    weights: list[Tensor] = [linear.weight for linear in linears]
    return Linear(torch.cat(weights), bias, form=form)


class FusedBlock:
    """`Block`. (B, T, C) -> (B, T, C), or (B, 1, C) with `cls_only`."""

    def __init__(self, block: Block, form: StageForm) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = FusedAttention(block.attn, form)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        if block.mlp.act is quick_gelu:
            # x sigmoid(a x) = swish(a x) / a: both factors go into the weights.
            a = QUICK_GELU_FACTOR
            self.fc1 = Linear(fc1.weight * a, fc1.bias * a, "swish", form=form)
            self.fc2 = Linear(fc2.weight / a, fc2.bias, form=form)
        else:
            self.fc1 = Linear(fc1.weight, fc1.bias, "gelu", form=form)
            self.fc2 = Linear(fc2.weight, fc2.bias, form=form)

    def __call__(self, x: Tensor, height: int, width: int, *, cls_only: bool = False) -> Tensor:
        x = self.attn(self.norm1(x), x, height, width=width, cls_only=cls_only)
        return self.fc2(self.fc1(self.norm2(x)), x)


class FusedStage:
    """`Stage`. (B, C_in, H_in, W_in) -> tokens (B, T, C) with the class token first, if any, and
    the rows and columns of the others.

    Args:
        last: whether no stage follows.
        form: how it is computed.
        depth: of its blocks the first so many; None for all.
    """

    def __init__(
        self, stage: Stage, last: bool, form: StageForm, *, depth: int | None = None
    ) -> None:
        conv = stage.embed.proj
        self._layout = LAYOUTS[form.convolution]
        self._weight = conv.weight.contiguous(memory_format=self._layout)
        self._bias, self._stride, self._padding = conv.bias, conv.stride, conv.padding
        self.norm = stage.embed.norm
        self.cls_token = stage.cls_token
        self.blocks = [FusedBlock(block, form) for block in stage.blocks[:depth]]  # type: ignore[arg-type]
        # After the last block only the class token is read. Its query, output projection and MLP
        # are all that this block has to compute, which saves 7% of CvT-13's multiply-adds.
        self.cls_only_at = len(self.blocks) - 1 if last and self.cls_token is not None else -1

    def embed(self, x: Tensor, layer_norm: LayerNorm = layer_norm) -> tuple[Tensor, int, int]:
        """Compute the tokens before the first block."""
        x = x.contiguous(memory_format=self._layout)
        x = F.conv2d(x, self._weight, self._bias, self._stride, self._padding)
        x = x.permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        x = layer_norm(x.flatten(1, 2), self.norm)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x, height, width

    def __call__(self, x: Tensor) -> tuple[Tensor, int, int]:
        x, height, width = self.embed(x)
        for index, block in enumerate(self.blocks):
            x = block(x, height, width, cls_only=index == self.cls_only_at)
        return x, height, width


class FusedCvt:
    """A `Cvt` for inference: (B, num_channels, H, W) -> logits (B, num_labels), in its dtype.

    Args:
        model: on its final device and in its final dtype; its weights are shared or repacked,
            so drop it afterwards.
        form: one that this machine can compute; None for the usual one.

    Attributes:
        layer_norm: computes the last norm.
    """

    def __init__(self, model: Cvt, form: Form | None = None) -> None:
        weight = model.head.weight
        if weight.device.type == "cpu":
            _keep_freed_memory()
        self.form = form or Form.usual(model.config.num_stages, weight.device, weight.dtype)
        # Here, and not by inference_mode on the methods, which torch.compile does not take.
        model.requires_grad_(False)
        with torch.no_grad():
            last = len(model.stages) - 1
            self.stages = [
                FusedStage(stage, index == last, stage_form)  # type: ignore[arg-type]
                for index, (stage, stage_form) in enumerate(
                    zip(model.stages, self.form.stages, strict=True)
                )
            ]
        self.config = model.config
        self.norm, self.head = model.norm, model.head
        self.layer_norm: LayerNorm = layer_norm

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits of normalised images.

        Raises:
            ValueError: if the input is too small; names the smallest size.
        """
        logits: Tensor = self.head(self.forward_features(x))
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute what `Cvt.forward_features` does: (B, num_channels, H, W) -> (B,
        embed_dim[-1])."""
        self.config.tokens(*x.shape[2:])
        with_cls_token = self.config.cls_token
        for index, stage in enumerate(self.stages):
            x, height, width = stage(x)
            if index < len(self.stages) - 1:
                if with_cls_token[index]:  # the class token ends with its stage
                    x = x[:, 1:]
                x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        x = x[:, :1] if with_cls_token[-1] else x
        x = self.layer_norm(x, self.norm)
        return x.mean(dim=1)


def _keep_freed_memory() -> None:
    """Make the allocator reuse freed memory, even large blocks.

    glibc hands those of more than 32 MB back, and the kernel clears each page before it lends it
    again: a tenth of the time of a batch of 16 in float32, a third at 64.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # a libc other than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
