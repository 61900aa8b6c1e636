"""The inference form: the same function as `cvt.py`, for every architecture and projection."""

import copy
import platform
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cvt_cli.model import fused
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.fused import FusedCvt
from tests.model.test_cvt import ARCHITECTURES, randomise, stages, tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "dw_bn": {},
    "avg": {"qkv_projection_method": ("avg",) * 3},
    "linear": {"qkv_projection_method": ("linear",) * 3},
    "mixed": {"qkv_projection_method": ("linear", "avg", "dw_bn")},
    "mean of the tokens": {"cls_token": (False, False, False)},
    "a class token in every stage": {"cls_token": (True, True, True)},
    "a class token in the first stage only": {"cls_token": (True, False, False)},
    "QuickGELU": {"hidden_act": "quick_gelu"},
    "no q/k/v bias": {"qkv_bias": (False, False, False)},
    "avg without bias": {"qkv_projection_method": ("avg",) * 3, "qkv_bias": (False,) * 3},
    "no stride": {"stride_kv": (1, 1, 1)},
    "no block in the last stage": {"depth": (1, 2, 0)},
}


def check(config: CvtConfig, *shape: int, dtype: torch.dtype = torch.float32) -> None:
    with torch.device("meta"):  # all weights are replaced
        model = Cvt(config)
    randomise(model.to_empty(device="cpu"))
    network = FusedCvt(copy.deepcopy(model).to(dtype))
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(x)
        features = model.forward_features(x)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03 * float(expected.abs().max())
    torch.testing.assert_close(network(x.to(dtype)).float(), expected, rtol=0, atol=tolerance)
    if dtype == torch.float32:
        torch.testing.assert_close(network.forward_features(x), features, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_for_every_architecture(name: str) -> None:
    check(ARCHITECTURES[name], 2, 3, 96, 128)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 50, 71)], ids=["square", "not square"])
def test_equal_for_every_variant(variant: dict[str, Any], shape: tuple[int, ...]) -> None:
    check(tiny(**variant), *shape)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_equal_for_any_number_of_stages(count: int) -> None:
    check(stages(count), 2, 3, 64, 64)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_equal_in_tiles(variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MIN_QUERIES", 1)
    monkeypatch.setattr(fused, "QUERY_TILE", 7)  # comes out even nowhere
    check(tiny(**variant), 3, 3, 50, 71)


@pytest.mark.parametrize("min_queries", [1, fused.MIN_QUERIES])
def test_bfloat16_is_near(min_queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MIN_QUERIES", min_queries)
    check(tiny(), 2, 3, 64, 64, dtype=torch.bfloat16)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_large_blocks_of_memory_stay_with_the_process() -> None:
    import resource

    def pages_asked_for() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(64 << 20, dtype=torch.uint8)  # 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    FusedCvt(Cvt(tiny()))
    # glibc's blocks with an alignment leave scraps behind, which it uses up first.
    assert min(pages_asked_for() for _ in range(12)) == 0


def test_too_small_an_input_names_the_smallest() -> None:
    network = FusedCvt(Cvt(tiny()).eval())
    with pytest.raises(ValueError, match="the smallest is 3x3"):
        network(torch.randn(1, 3, 2, 64))


def test_torch_compile_takes_it_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "has_packed_linear", lambda dtype: False)  # as on a GPU
    network = FusedCvt(randomise(Cvt(tiny(depth=(1, 1, 1)))).eval())
    # `forward_features` is part of it.
    compiled = torch.compile(network.__call__, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for size in (1, 2):
            x = torch.randn(size, 3, 32, 32)
            torch.testing.assert_close(compiled(x), network(x))
    torch._dynamo.reset()


def test_no_convolution_has_a_pass_for_its_batch_norm() -> None:
    biases: list[bool] = []

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.convolution.default and args[8] > 1:  # groups
                biases.append(args[2] is not None)
            return func(*args, **(kwargs or {}))

    network = FusedCvt(randomise(Cvt(tiny())).eval())
    with torch.no_grad(), Convolutions():
        network(torch.randn(1, 3, 64, 64))
    # Three a block, but for the query of the last, where only the class token asks.
    assert biases == [False] * (3 * sum(tiny().depth) - 1)


@pytest.mark.cuda
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_equal_on_cuda(variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Torch's own default are 10 bits of mantissa in convolutions.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = randomise(Cvt(tiny(**variant))).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(x)
        found = FusedCvt(copy.deepcopy(model).cuda())(x.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
