"""The network on a CUDA device with kernels of our own; computes the same as `fused.py`.

Between its matrix products a CvT is bound by memory: what these kernels save is passes over the
tokens. docs/performance.md says what each gave.
"""

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cvt_cli.model.cvt import NORM_EPS
from cvt_cli.model.fused import FusedBlock, FusedCvt, FusedStage, Linear

if TYPE_CHECKING:
    from cvt_cli.model.kernels import Projections


def with_kernels(network: FusedCvt) -> FusedCvt | None:
    """Make the same network, with the same weights, from Triton's kernels.

    Returns:
        None if they are not available: without Triton, which torch for Linux brings, or for a
        network whose attention has projections of another kind.
    """
    if find_spec("triton") is None or not all(map(_fits, network.stages)):
        return None
    faster = copy.copy(network)
    faster.stages = [KernelStage(stage) for stage in network.stages]  # type: ignore[misc]
    faster.layer_norm = _layer_norm
    return faster


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    # Torch's takes ten times as long as its bytes for rows as short as these.
    from cvt_cli.model.kernels import add_norm

    return add_norm(x, None, norm.weight, norm.bias, NORM_EPS)[1]


def _fits(stage: FusedStage) -> bool:
    for block in stage.blocks:
        q, k, v = (getattr(block.attn, f"conv_{name}") for name in "qkv")
        if any(each.weight is None or each.shift is None for each in (q, k, v)):
            return False
        if not q.weight.shape == k.weight.shape == v.weight.shape:
            return False
        if (k.stride, k.padding) != (v.stride, v.padding):
            return False
    return True


class KernelStage:
    """`FusedStage` with a block's residual sum and the norm behind it in one pass, its three
    convolutions in another, and the norm of its token embedding by the kernel of the first.

    Args:
        stage: is shared, not changed.
    """

    def __init__(self, stage: FusedStage) -> None:
        from cvt_cli.model.kernels import Projections, add_norm

        self._stage = stage
        self._add_norm = add_norm
        self._projections = [
            Projections(block.attn.conv_q, block.attn.conv_k, block.attn.conv_v)
            for block in stage.blocks
        ]

    def __call__(self, x: Tensor) -> tuple[Tensor, int, int]:
        stage = self._stage
        x, height, width = stage.embed(x, _layer_norm)
        mlp: Tensor | None = None  # of the previous block, added where the next norm reads it
        for index, (block, projections) in enumerate(
            zip(stage.blocks, self._projections, strict=True)
        ):
            cls_only = index == stage.cls_only_at
            norm1, norm2 = block.norm1, block.norm2
            x, normed = self._add_norm(x, mlp, norm1.weight, norm1.bias, NORM_EPS)
            y = _attention(block, projections, normed, height, width, cls_only)
            kept = x[:, :1] if cls_only else x
            x, normed = self._add_norm(kept, y, norm2.weight, norm2.bias, NORM_EPS)
            mlp = block.fc2(_with_gelu(block.fc1, normed))
        return x if mlp is None else mlp.add_(x), height, width


def _attention(
    block: FusedBlock,
    projections: "Projections",
    x: Tensor,
    height: int,
    width: int,
    cls_only: bool,
) -> Tensor:
    attn = block.attn
    q, k, v = projections(x, height, width, attn.with_cls_token, with_q=not cls_only)
    if q is None:
        q = attn.conv_q.skip(x[:, :1])
    y = attn.attend(attn.proj_q(q), attn.proj_kv[0](k), attn.proj_kv[1](v))
    return attn.proj(y)


def _with_gelu(linear: Linear, x: Tensor) -> Tensor:
    """Apply a linear layer and GELU.

    In 16 bits GELU's tanh form, which cuBLASLt computes on each tile of the product while it is at
    hand: it differs from the exact one by up to 5e-4, half of what 16 bits round away at 1.
    """
    # A private operator: without it a release of torch is slower, but works.
    fused = getattr(torch, "_addmm_activation", None)
    if fused is None or linear.activation != "gelu" or x.dtype == torch.float32:
        return linear(x)
    y: Tensor = fused(linear.bias, x.flatten(0, 1), linear.weight.t(), use_gelu=True)
    y = y.unflatten(0, x.shape[:2])
    return y
