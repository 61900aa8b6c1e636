"""The peak of a device: its fastest product of matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cvt_cli.benchmark.engines import OUT_OF_MEMORY, limit_of, synchronize
from cvt_cli.benchmark.statistics import times
from cvt_cli.model.fused import Linear

# Sides of the square matrices that are multiplied to find the peak, within `PEAK_SECONDS`.
PRODUCT_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (2048, 4096, 8192), "mps": (1024, 2048, 4096)}


@dataclass(frozen=True)
class Peak:
    """The rate of the fastest large matrix product.

    Attributes:
        tflops: 10^12 floating-point operations a second.
        product: what computed it, and the shape.
    """

    tflops: float
    product: str


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> Peak | None:
    """Time the fastest product of two large square matrices: torch.matmul, and on a CPU oneDNN's
    linear layer with packed weights, which its own library outruns on some processors.

    Args:
        seconds: for all; each size is tried at least once, as long as the memory holds it.

    Returns:
        None if the memory does not even hold the smallest.
    """
    best: Peak | None = None
    sizes = PRODUCT_SIZES[device.type]
    for size in sizes:
        slowest = 0.0
        try:
            for name, product in _products(device, dtype, size):
                product()
                fastest = min(times(product, seconds / (2 * len(sizes))))
                peak = Peak(2 * size**3 / fastest / 1e12, f"{name}, {size} × {size}")
                best = peak if best is None else max(best, peak, key=lambda p: p.tflops)
                slowest = max(slowest, fastest)
        except (RuntimeError, MemoryError) as error:
            if limit_of(error) == OUT_OF_MEMORY:
                break
            raise
        if slowest > seconds / 4:  # the next size takes eight times as long
            break
    return best


def _products(
    device: torch.device, dtype: torch.dtype, size: int
) -> list[tuple[str, Callable[[], None]]]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    @torch.inference_mode()
    def run(product: Callable[[Tensor, Tensor], Tensor]) -> None:
        product(a, b)
        synchronize(device)

    products: list[tuple[str, Callable[[], None]]] = [("torch.matmul", partial(run, torch.matmul))]
    packed = Linear(b, None)
    if packed.packed:
        products.append(("oneDNN's packed linear", partial(run, lambda a, _: packed(a))))
    return products
