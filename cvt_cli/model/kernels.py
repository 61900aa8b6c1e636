"""Two kernels for CUDA devices that torch does not have: a residual sum with the layer norm behind
it, or that norm alone, and the three depth-wise convolutions of an attention in one pass. Imported
on CUDA only.

Tokens are (B, T, C) in memory, the class token first, if there is one.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from cvt_cli.model.fused import Depthwise

# Elements that a program of the residual sum computes; tokens and channels for the convolutions.
ELEMENTS = 2048
TOKENS = 16
MAX_CHANNELS = 64


@triton.jit
def _add_norm(
    x_ptr,
    y_ptr,
    sum_ptr,
    out_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    eps,
    channels: tl.constexpr,
    HAS_Y: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    place = row[:, None] * channels + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    if HAS_Y:
        y = tl.load(y_ptr + place, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)  # rounded, as it is stored
        tl.store(sum_ptr + place, x, mask=inside)
    x = x.to(tl.float32)
    mean = tl.sum(x, axis=1) / channels
    x = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / channels + eps)
    weight = tl.load(weight_ptr + column, mask=column < channels, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)
    out = x * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + y and its layer norm, (B, T, C) both; x itself where y is None."""
    x = x.contiguous()
    channels = x.shape[-1]
    rows = x.numel() // channels
    out = torch.empty_like(x)
    total = x if y is None else torch.empty_like(x)
    columns = triton.next_power_of_2(channels)
    block = max(1, ELEMENTS // columns)
    _add_norm[(triton.cdiv(rows, block),)](
        x,
        x if y is None else y.contiguous(),
        total,
        out,
        weight,
        bias,
        rows,
        eps,
        channels=channels,
        HAS_Y=y is not None,
        ROWS=block,
        COLUMNS=columns,
        num_warps=4,
    )
    return total, out


@triton.jit
def _convolve(
    x_ptr,
    out_ptr,
    weight_ptr,
    shift_ptr,
    tile,
    image,
    height,
    width,
    out_height,
    out_width,
    first,
    c,
    channels: tl.constexpr,
    CLS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Compute a tile of tokens of one projection of one image, for some channels; with the first
    tile also the class token."""
    tokens = out_height * out_width
    t = tile * TOKENS + tl.arange(0, TOKENS)
    row, column = t // out_width, t % out_width
    there = c < channels
    x_ptr += image * (CLS + height * width) * channels
    out_ptr += image * (CLS + tokens) * channels
    total = tl.zeros((t.shape[0], c.shape[0]), dtype=tl.float32)
    for i in tl.static_range(KERNEL):
        for j in tl.static_range(KERNEL):
            r, k = row * STRIDE + i - PADDING, column * STRIDE + j - PADDING
            inside = (t < tokens) & (r >= 0) & (r < height) & (k >= 0) & (k < width)
            x = tl.load(
                x_ptr + (CLS + r * width + k)[:, None] * channels + c[None, :],
                mask=inside[:, None] & there[None, :],
                other=0.0,
            )
            w = tl.load(weight_ptr + (i * KERNEL + j) * channels + c, mask=there, other=0.0)
            total += x.to(tl.float32) * w.to(tl.float32)[None, :]
    tl.store(
        out_ptr + (CLS + t)[:, None] * channels + c[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(t < tokens)[:, None] & there[None, :],
    )
    if CLS == 1:
        cls = tl.load(x_ptr + c, mask=there, other=0.0).to(tl.float32)
        cls -= tl.load(shift_ptr + c, mask=there, other=0.0).to(tl.float32)
        # A block of comparisons, as newer interpreters of Triton take no scalar in a mask.
        is_first = c * 0 + first == 0
        tl.store(out_ptr + c, cls.to(out_ptr.dtype.element_ty), mask=there & is_first)


@triton.jit
def _project(
    x_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    weight_ptr,
    shift_ptr,
    height,
    width,
    q_height,
    q_width,
    kv_height,
    kv_width,
    q_tiles,
    channels: tl.constexpr,
    WITH_Q: tl.constexpr,
    CLS: tl.constexpr,
    KERNEL: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    KV_STRIDE: tl.constexpr,
    Q_PADDING: tl.constexpr,
    KV_PADDING: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tile = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    size = KERNEL * KERNEL * channels
    if tile < q_tiles:
        if WITH_Q:
            _convolve(
                x_ptr,
                q_ptr,
                weight_ptr,
                shift_ptr,
                tile,
                image,
                height,
                width,
                q_height,
                q_width,
                tile,
                c,
                channels,
                CLS,
                KERNEL,
                Q_STRIDE,
                Q_PADDING,
                TOKENS,
            )
    else:
        _convolve(
            x_ptr,
            k_ptr,
            weight_ptr + size,
            shift_ptr + channels,
            tile - q_tiles,
            image,
            height,
            width,
            kv_height,
            kv_width,
            tile - q_tiles,
            c,
            channels,
            CLS,
            KERNEL,
            KV_STRIDE,
            KV_PADDING,
            TOKENS,
        )
        _convolve(
            x_ptr,
            v_ptr,
            weight_ptr + 2 * size,
            shift_ptr + 2 * channels,
            tile - q_tiles,
            image,
            height,
            width,
            kv_height,
            kv_width,
            tile - q_tiles,
            c,
            channels,
            CLS,
            KERNEL,
            KV_STRIDE,
            KV_PADDING,
            TOKENS,
        )


class Projections:
    """The three convolutional projections of tokens (B, T, C), class token first, without the
    shifts of their batch norms: queries (B, T', C), keys and values (B, T'', C), each with the
    class token minus the shift.

    Args:
        q, k, v: `fused.Depthwise`, with as large a kernel each; k and v alike.
    """

    def __init__(self, q: "Depthwise", k: "Depthwise", v: "Depthwise") -> None:
        self.kernel = q.kernel.shape[-1]
        self.stride = q.stride[0], k.stride[0]
        self.padding = int(q.padding[0]), int(k.padding[0])
        # (3, kernel * kernel, C)
        three = (q, k, v)
        self.weight = torch.stack([p.kernel[:, 0].flatten(1).t() for p in three]).contiguous()
        self.shift = torch.stack([p.shift for p in three if p.shift is not None]).contiguous()

    def __call__(
        self, x: Tensor, height: int, width: int, with_cls: bool, with_q: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Project all tokens; without the queries if `with_q` is false, as a class token alone
        needs no convolution."""
        x = x.contiguous()
        batch, _, channels = x.shape
        sides = [
            [(side + 2 * padding - self.kernel) // stride + 1 for side in (height, width)]
            for stride, padding in zip(self.stride, self.padding, strict=True)
        ]
        q_count, kv_count = (with_cls + h * w for h, w in sides)
        k, v = (x.new_empty(batch, kv_count, channels) for _ in range(2))
        q = x.new_empty(batch, q_count, channels) if with_q else k
        tokens, block = TOKENS, min(MAX_CHANNELS, triton.next_power_of_2(channels))
        q_tiles = triton.cdiv(sides[0][0] * sides[0][1], tokens) if with_q else 0
        kv_tiles = triton.cdiv(sides[1][0] * sides[1][1], tokens)
        grid = (q_tiles + kv_tiles, triton.cdiv(channels, block), batch)
        _project[grid](
            x,
            q,
            k,
            v,
            self.weight,
            self.shift,
            height,
            width,
            *sides[0],
            *sides[1],
            q_tiles,
            channels=channels,
            WITH_Q=with_q,
            CLS=int(with_cls),
            KERNEL=self.kernel,
            Q_STRIDE=self.stride[0],
            KV_STRIDE=self.stride[1],
            Q_PADDING=self.padding[0],
            KV_PADDING=self.padding[1],
            TOKENS=tokens,
            CHANNELS=block,
            num_warps=4,
        )
        return (q if with_q else None), k, v
