"""The network through Triton's kernels: the same function, and a fallback where they don't do.

Triton's interpreter runs the kernels without a GPU, where Triton is installed.
"""

import os
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from cvt_cli.model import cuda, graphs
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.graphs import Graphed
from tests.model.test_cvt import randomise, tiny
from tests.model.test_graphs import Network, Recorded, recorded

__all__ = ["recorded"]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


@needs_triton
@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("cls_token", [(False, False, True), (True, True, True)])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_the_kernels_compute_the_same(cls_token: Any, size: tuple[int, int]) -> None:
    model = Cvt(tiny(cls_token=cls_token)).eval()
    randomise(model)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        faster = cuda.with_kernels(FusedCvt(model))
        assert faster is not None
        assert (faster(images) - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.cuda
@needs_triton
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)]
)
def test_the_kernels_on_cuda(dtype: str, tolerance: float) -> None:
    torch.backends.cudnn.allow_tf32 = False
    model = Cvt(tiny(cls_token=(False, False, True))).eval()
    randomise(model)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        network = FusedCvt(model.to("cuda", getattr(torch, dtype)))
        faster = cuda.with_kernels(network)
        assert faster is not None
        graphed = Graphed(network, faster)
        batch = images.to("cuda", getattr(torch, dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                found = graphed(batch).float().cpu()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_none_for_projections_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: object())
    linear = Cvt(tiny(qkv_projection_method=("linear",) * 3)).eval()
    assert cuda.with_kernels(FusedCvt(linear)) is None
    average = Cvt(tiny(qkv_projection_method=("avg",) * 3)).eval()
    assert cuda.with_kernels(FusedCvt(average)) is None


def test_none_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert cuda.with_kernels(FusedCvt(Cvt(tiny()).eval())) is None


def test_what_is_faster_is_recorded_if_it_is_equal(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[Any] = []

    def record(network: Any, images: torch.Tensor) -> Recorded:
        networks.append(network)
        return Recorded(network, images)

    monkeypatch.setattr(graphs, "_Recorder", lambda: record)
    images = torch.randn(2, 3, 4, 4)
    network, equal = Network(), Network()
    graphed = Graphed(network, equal)
    assert graphed(images).equal(network(images))
    assert not equal.sizes  # a single batch does not wait for a compiler
    graphed(images)
    assert networks == [equal]

    def wrong(images: torch.Tensor) -> torch.Tensor:
        return network(images) + 1

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise ImportError("no compiler\nat all")

    for faster, said in ((wrong, "other results"), (broken, "no compiler")):
        networks.clear()
        graphed = Graphed(network, faster)
        graphed(images)
        with pytest.warns(UserWarning, match="without Triton's kernels, slower: .*" + said):
            assert graphed(images).equal(network(images))
        graphed(torch.cat([images, images, images]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            graphed(torch.cat([images, images, images]))
        assert networks == [network, network]
