"""How far two right computations may be apart."""

import math

import torch
from torch import Tensor


def rounding(
    expected: Tensor, terms: int, layers: int, dtype: torch.dtype = torch.float32
) -> float:
    """How far a network's outputs may differ by the order of its sums alone, which is the
    processor's and the library's.

    A sum of n random numbers errs by about eps √n of its size, and the errors of layers add as
    random numbers do. A wrong weight makes a difference of another order of magnitude.

    Args:
        expected: the outputs.
        terms: numbers in the longest sum.
        layers: one behind the other.
        dtype: what is computed in.
    """
    eps = torch.finfo(dtype).eps
    return eps * math.sqrt(terms * layers) * max(1.0, float(expected.abs().max()))
