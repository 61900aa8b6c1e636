"""Capabilities of this processor and this release of torch. Asked here and nowhere else."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


def pack(weight: Tensor) -> Tensor:
    """Lay out a weight (C_out, C_in) in the blocks that oneDNN's matrix product reads, for
    `packed_linear`, if `has_packed_linear` allows it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def packed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute act(x W' + b), or x W' + b + residual, by one call of oneDNN. (…, C_in) -> (…,
    C_out), in the dtype of the weight, which is packed or plain."""
    linear: Any = torch.ops.mkldnn._linear_pointwise
    if residual is None:
        y: Tensor = linear(x, weight, bias, activation, [], "none")
    else:
        y = linear.binary(x, residual, weight, bias, "add")
    return y


@cache
def has_packed_linear(dtype: torch.dtype) -> bool:
    """Tell whether `packed_linear` computes in this dtype on this processor.

    oneDNN's products in bfloat16 need AVX-512 or AVX-NE-CONVERT, and torch's operators for them are
    private, so that a release may drop them: both are tried.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not _torch_says("_is_mkldnn_bf16_supported", True):
        return False
    x = torch.ones(2, 2, dtype=dtype)
    try:
        with torch.inference_mode():
            weight = pack(x)
            tried = (
                packed_linear(x, weight, x[0], activation="gelu"),
                packed_linear(x, weight, None, residual=x),
            )
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(y.dtype == dtype and y.shape == x.shape for y in tried)


def has_fast_products() -> bool:
    """Tell whether oneDNN's products, with what it computes within them, are faster than torch's
    own kernels: not with AVX2 alone. Measured with AVX-512 and with AVX2; others, as ARM, are taken
    for the first."""
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def multiplies_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 in hardware (AVX512-BF16, AMX)."""
    # torch's own checks, which are not public in every supported release.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def is_slow(dtype: torch.dtype) -> bool:
    """Tell whether this processor computes a dtype an order of magnitude more slowly than
    float32."""
    if dtype == torch.bfloat16:
        return not has_packed_linear(dtype)
    return dtype == torch.float16 and not _torch_says("_is_mkldnn_fp16_supported", False)


def _torch_says(check: str, without: bool) -> bool:
    """Ask one of torch's private checks; returns `without` if this release no longer has it."""
    return bool(getattr(torch.ops.mkldnn, check, lambda: without)())
