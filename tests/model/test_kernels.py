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


def laid_out(rows: int, channels: int, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Tokens (2, rows, channels) that a layer norm may find."""
    generator = torch.Generator().manual_seed(channels)
    x = 2 * torch.randn(2, rows, channels, generator=generator) + 3
    x = x.to(dtype)
    if layout == "channels first":  # as of a convolution that does not keep channels last
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "image":  # as the token embedding has it
        image = x.unflatten(1, (rows, 1)).permute(0, 3, 1, 2)
        assert image.is_contiguous(memory_format=torch.channels_last)
        return image.permute(0, 2, 3, 1).flatten(1, 2)
    if layout == "class token":  # of tokens that lie behind others
        return torch.cat([x, x], dim=1)[:, 1 : 1 + rows]
    return x


@needs_triton
@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["plain", "channels first", "image", "class token"])
@pytest.mark.parametrize(
    ("rows", "channels"), [(1, 384), (49, 192), (67, 64), (5, 1), (3, 17), (2, 2050)]
)
def test_the_layer_norm_is_torchs(
    rows: int, channels: int, layout: str, dtype: torch.dtype
) -> None:
    x = laid_out(rows, channels, layout, dtype)
    norm = torch.nn.LayerNorm(channels)
    torch.nn.init.normal_(norm.weight, 1, 0.2)
    torch.nn.init.normal_(norm.bias)
    norm = norm.to(dtype).requires_grad_(False)
    before = x.clone()
    found, expected = cuda._layer_norm(x, norm), norm(x)
    assert found.shape == expected.shape and found.dtype == dtype
    assert x.equal(before)
    # One rounding of the result apart, or a few of the sums in float32.
    unit = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(found.float(), expected.float(), rtol=unit, atol=unit)


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
