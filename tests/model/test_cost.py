"""Counts against independent ones: torch's own counter, the state dict, the paper's table."""

import math
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cvt_cli.checkpoint.catalog import PUBLISHED
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cost import KINDS, StageCost, count_cost, kv_tokens, needed_macs
from cvt_cli.model.cvt import Cvt, Stage

CVT_13 = CvtConfig()
CVT_21 = CvtConfig(depth=(1, 4, 16))
CVT_W24 = CvtConfig(embed_dim=(192, 768, 1024), num_heads=(3, 12, 16), depth=(2, 2, 20))
SHALLOW = CvtConfig(depth=(1, 2, 3))
AVG = replace(SHALLOW, qkv_projection_method=("avg",) * 3, num_labels=10)
LINEAR = replace(SHALLOW, qkv_projection_method=("linear",) * 3, qkv_bias=(False,) * 3)
MEAN_POOLED = replace(SHALLOW, cls_token=(False,) * 3, mlp_ratio=(2.0, 3.5, 1.0))
WIDE_KERNEL = replace(SHALLOW, kernel_qkv=(5,) * 3, padding_q=(2,) * 3, padding_kv=(2,) * 3)
ONE_STAGE = CvtConfig(
    num_channels=1,
    **{name: value[-1:] for name, value in vars(SHALLOW).items() if isinstance(value, tuple)},
)
ARCHITECTURES = {
    "13": CVT_13,
    "21": CVT_21,
    "W24": CVT_W24,
    "avg": AVG,
    "linear": LINEAR,
    "mean-pooled": MEAN_POOLED,
    "wide-kernel": WIDE_KERNEL,
    "one-stage": ONE_STAGE,
}
SIZES = [(224, 224), (97, 250)]

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
# The other's blocks are the same, only more.
every_kind = pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "21"])
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def architecture(name: str, size: tuple[int, int]) -> CvtConfig:
    """One of `ARCHITECTURES`, the paper's smallest whole for one size: more blocks are more of the
    same."""
    config = ARCHITECTURES[name]
    if config == CVT_13 and size == SIZES[0]:
        return config
    return replace(config, depth=(2,) * len(config.depth))


@cache
def network(config: CvtConfig) -> Cvt:
    with torch.device("meta"):
        return Cvt(config).eval()


def images(config: CvtConfig, batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.empty(batch, config.num_channels, *size, device="meta")


def test_averaged_tokens_are_as_many_as_torch_makes() -> None:
    for kernel, stride, padding in product((1, 2, 3), (1, 2, 3), (0, 1)):
        if 2 * padding > kernel:
            continue
        config = replace(
            AVG, kernel_qkv=(kernel,) * 3, stride_kv=(stride,) * 3, padding_kv=(padding,) * 3
        )
        for size in range(kernel, 13):
            pooled = F.avg_pool2d(
                torch.empty(1, 1, size, 7, device="meta"), kernel, stride, padding, ceil_mode=True
            )
            assert kv_tokens(config, 0, (size, 7)) == pooled.shape[2:], (kernel, stride, padding)


def test_all_is_needed_where_the_last_stage_has_no_block() -> None:
    config = CvtConfig(depth=(1, 1, 0))
    assert needed_macs(config, (64, 64)) == count_cost(config, (64, 64)).total.macs


@every_architecture
def test_parameters_and_buffers_equal_the_state_dict(name: str) -> None:
    config = ARCHITECTURES[name]
    model = network(config)
    total = count_cost(config, (224, 224)).total
    assert total.parameters == sum(p.numel() for p in model.parameters())
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    assert total.parameters + total.buffers == sum(v.numel() for v in weights.values())
    for dtype in ("float32", "float16", "bfloat16"):
        expected = sum(v.to(getattr(torch, dtype)).nbytes for v in weights.values())
        assert count_cost(config, (224, 224), dtype=dtype).weight_bytes == expected


@every_kind
@every_size
@torch.inference_mode()
def test_macs_equal_torchs_flop_counter(name: str, size: tuple[int, int]) -> None:
    config = architecture(name, size)
    model = network(config)
    with FlopCounterMode(display=False) as counter:
        model(images(config, 2, size))
    cost = count_cost(config, size, batch_size=2)
    assert cost.total.flops == counter.get_total_flops()
    by_module = counter.get_flop_counts()
    for stage in cost.stages:
        assert stage.total.flops == sum(by_module[f"Cvt.stages.{stage.index}"].values())
        block = by_module[f"Cvt.stages.{stage.index}.blocks.0"]
        assert stage.block_total.flops == sum(block.values())


@every_kind
@every_size
@torch.inference_mode()
def test_shapes_and_parameters_equal_each_modules(name: str, size: tuple[int, int]) -> None:
    config = architecture(name, size)
    model = network(config)
    seen: dict[str, tuple[int, int]] = {}
    hooks = []
    for module_name, module in model.named_modules():

        def hook(_: Any, args: Any, out: Any, key: str = module_name) -> None:
            seen[key] = (args[0].numel(), out.numel()) if isinstance(out, torch.Tensor) else (0, 0)

        hooks.append(module.register_forward_hook(hook))
    model(images(config, 3, size))
    for each in hooks:
        each.remove()
    layers = {layer.name: layer for layer in count_cost(config, size, batch_size=3).layers()}
    modules = dict(model.named_modules())
    for key, layer in layers.items():
        if key.endswith((".attention", ".act", ".cls_token")):
            continue
        assert (math.prod(layer.shape_in), math.prod(layer.shape_out)) == seen[key], key
        assert layer.total.parameters == sum(p.numel() for p in modules[key].parameters()), key
        assert layer.total.activation_bytes == 4 * seen[key][1]
    # And none is forgotten: what holds parameters itself is a layer (a stage's is its class token).
    for key, module in modules.items():
        if list(module.parameters(recurse=False)):
            assert (f"{key}.cls_token" if isinstance(module, Stage) else key) in layers


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@every_kind
@every_size
@torch.inference_mode()
def test_peak_of_the_activations(name: str, size: tuple[int, int]) -> None:
    config = architecture(name, size)
    model = network(config)
    with LiveBytes() as live:
        model(images(config, 2, size))
    expected = count_cost(config, size, batch_size=2).peak_activation_bytes
    assert expected == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_the_papers_table(entry: Any) -> None:
    cost = count_cost(entry.config, (entry.image_size, entry.image_size))
    assert cost.total.macs / 1e9 == pytest.approx(entry.gmacs, rel=0.02)
    parameters = {"13": 19_997_480, "21": 31_622_696, "w24": 277_196_392}
    assert cost.total.parameters == parameters[entry.name.split("-")[1]]


@every_architecture
def test_every_breakdown_adds_up(name: str) -> None:
    cost = count_cost(ARCHITECTURES[name], (320, 224), batch_size=5)
    total = cost.total
    assert sum((layer.total for layer in cost.layers()), type(total)()) == total
    assert sum(cost.by_kind().values(), type(total)()) == total
    assert list(cost.by_kind()) == list(KINDS)


def test_batch_and_dtype_scale_the_activations_only() -> None:
    one, eight = count_cost(CVT_13, (224, 224)), count_cost(CVT_13, (224, 224), 8, dtype="bfloat16")
    assert eight.total.macs == 8 * one.total.macs
    assert eight.total.activation_bytes == 4 * one.total.activation_bytes
    assert eight.peak_activation_bytes == 4 * one.peak_activation_bytes
    assert eight.total.parameters == one.total.parameters
    assert eight.weight_bytes * 2 == one.weight_bytes


def test_a_size_far_beyond_memory_is_counted_exactly() -> None:
    cost = count_cost(CVT_13, (10**9, 10**9))
    assert cost.stages[0].tokens == (25 * 10**7, 25 * 10**7)
    assert cost.total.macs > 10**30
    # Attention in a stage of T tokens and T / 4 keys is 2 T * T / 4 * C.
    tokens, width = (25 * 10**7) ** 2, 64
    assert cost.stages[0].block[-6].total.macs == 2 * tokens * (tokens // 4) * width


def test_too_small_names_the_smallest() -> None:
    with pytest.raises(ValueError, match="the smallest is"):
        count_cost(CVT_13, (0, 224))


def test_a_deep_network_is_counted_without_listing_its_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(StageCost, "layers")
    deep = count_cost(CvtConfig(depth=(1, 2, 2**10)), (224, 224))
    usual = count_cost(CVT_13, (224, 224))
    assert len(deep.stages[2].block) == len(usual.stages[2].block)
    more = usual.stages[2].block_total * (2**10 - 10)
    assert deep.total == usual.total + more
    assert sum(deep.by_kind().values(), type(more)()) == deep.total


def test_needs_no_torch() -> None:
    code = "import sys, cvt_cli.model.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
