"""What is done on processors and with releases of torch that lack something."""

import copy
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cvt_cli.inference.devices import pick_dtype
from cvt_cli.model import fused, processor
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.processor import has_packed_linear, is_slow
from tests.model.test_cvt import randomise, tiny

CPU = torch.device("cpu")
OPERATORS = torch.ops.mkldnn


def no_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    if weight.dtype == torch.bfloat16:
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw")
    reordered: torch.Tensor = OPERATORS._reorder_linear_weight(weight)
    return reordered


# Each with the dtypes that oneDNN still packs.
LACKS: dict[str, tuple[dict[str, Any], set[torch.dtype]]] = {
    "all operators": ({"_reorder_linear_weight": None, "_linear_pointwise": None}, set()),
    "one": ({"_linear_pointwise": None}, set()),
    "an argument": ({"_reorder_linear_weight": lambda: None}, set()),
    "a binary form": ({"_linear_pointwise": lambda *arguments: arguments[0]}, set()),
    "bfloat16, as torch says": ({"_is_mkldnn_bf16_supported": lambda: False}, {torch.float32}),
    "bfloat16": ({"_reorder_linear_weight": no_bfloat16}, {torch.float32}),
}


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes operators away from torch, or replaces them."""

    def lack(changed: dict[str, Any]) -> None:
        names = ("_reorder_linear_weight", "_linear_pointwise")
        checks = ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported")
        kept = {name: getattr(OPERATORS, name) for name in (*names, *checks)} | changed
        there = {name: each for name, each in kept.items() if each is not None}
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**there))
        has_packed_linear.cache_clear()

    has_packed_linear.cache_clear()
    yield lack
    has_packed_linear.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("min_queries", [1, fused.MIN_QUERIES])
@pytest.mark.parametrize(("changed", "packed"), LACKS.values(), ids=list(LACKS))
def test_the_network_computes_without(
    changed: dict[str, Any],
    packed: set[torch.dtype],
    min_queries: int,
    dtype: torch.dtype,
    lack: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "MIN_QUERIES", min_queries)
    lack(changed)
    assert has_packed_linear(dtype) == (dtype in packed)
    model = randomise(Cvt(tiny())).eval()
    x = torch.randn(2, 3, 50, 71, generator=torch.Generator().manual_seed(1))
    network = FusedCvt(copy.deepcopy(model).to(dtype))
    assert network.stages[0].blocks[0].fc1.packed == (dtype in packed)
    with torch.inference_mode():
        expected = model(x)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03 * float(expected.abs().max())
    torch.testing.assert_close(network(x.to(dtype)).float(), expected, rtol=0, atol=tolerance)


def test_one_warning_of_a_dtype_that_is_slow(
    lack: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: False)

    def said(*names: str, device: torch.device = CPU) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for name in names:
                pick_dtype(name, device)
        return [str(each.message) for each in caught]

    lack({"_is_mkldnn_bf16_supported": lambda: True, "_is_mkldnn_fp16_supported": lambda: True})
    monkeypatch.setattr(processor, "has_packed_linear", lambda _: True)
    assert said("auto", "float32", "bfloat16", "float16") == []
    monkeypatch.undo()
    lack({"_is_mkldnn_bf16_supported": lambda: False, "_is_mkldnn_fp16_supported": None})
    assert is_slow(torch.bfloat16) and is_slow(torch.float16) and not is_slow(torch.float32)
    assert said("float32", device=CPU) == []
    assert said("bfloat16", "float16", device=torch.device("cuda")) == []
    (line,) = said("bfloat16", "bfloat16", "float32")
    assert line.startswith("bfloat16 is slow on this processor") and "--dtype float32" in line
    assert len(said("bfloat16", "float16")) == 2
