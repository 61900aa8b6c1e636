"""The network: equal to `transformers`, and to a plain reading of the paper beyond it."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt_cli.checkpoint.architecture import config_from_shapes
from cvt_cli.checkpoint.catalog import CVT_13, CVT_21, CVT_W24
from cvt_cli.checkpoint.layouts import MICROSOFT, TRANSFORMERS
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt, DropPath, quick_gelu
from tests.tiny import microsoft_names, tiny_model

TINY = CvtConfig(embed_dim=(16, 32, 64), num_heads=(1, 2, 4), depth=(1, 2, 3), num_labels=5)
# W24 at its own widths and heads; all 24 blocks are 277M parameters.
ARCHITECTURES = {
    "cvt-13": CVT_13,
    "cvt-21": CVT_21,
    "cvt-w24-shallow": CvtConfig(**{**vars(CVT_W24), "depth": (2, 2, 3)}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**changes: Any) -> CvtConfig:
    return CvtConfig(**{**vars(TINY), **changes})


def stages(count: int, **changes: Any) -> CvtConfig:
    """The tiny network with another number of stages."""
    values = vars(CvtConfig())
    lists = {
        name: (value * count)[:count] for name, value in values.items() if isinstance(value, tuple)
    }
    lists |= {
        "embed_dim": tuple(16 * (stage + 1) for stage in range(count)),
        "num_heads": tuple(stage + 1 for stage in range(count)),
        "depth": (2,) * count,
        "cls_token": (*(False,) * (count - 1), True),
    }
    return CvtConfig(**{**values, **lists, "num_labels": 5, **changes})


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and every batch-norm statistic random: no term of the network is idle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                spread = 0.2 if value.ndim == 1 else value[0].numel() ** -0.5
                offset = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
                value.normal_(offset, spread, generator=generator)
    return model.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(config: CvtConfig) -> tuple[Cvt, Any]:
    """Our network and the one of `transformers` with the same random weights."""
    from transformers import CvtConfig as TheirConfig
    from transformers import CvtForImageClassification

    values = config.to_dict()
    # First without weights, as all are replaced: to draw those of the largest takes half a minute.
    with torch.device("meta"):
        theirs = CvtForImageClassification(TheirConfig(**values, num_labels=config.num_labels))
        ours = Cvt(config).eval()
    randomise(theirs.to_empty(device="cpu"))
    ours.load_state_dict(TRANSFORMERS.to_ours(theirs.state_dict()), strict=True, assign=True)
    return ours, theirs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_transformers(name: str) -> None:
    ours, theirs = both(ARCHITECTURES[name])
    with torch.inference_mode():
        for x in (images(1, 3, 224, 224), images(2, 3, 96, 161, seed=1)):
            expected = theirs(x).logits
            assert expected.std() > 0.1  # weights that say something
            torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)
    back = TRANSFORMERS.to_theirs(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(back, strict=True)


@pytest.mark.slow
def test_w24_whole_equals_transformers() -> None:
    ours, theirs = both(CVT_W24)
    assert sum(p.numel() for p in ours.parameters()) == 277_196_392
    with torch.inference_mode():
        x = images(1, 3, 96, 96)
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": (False, True, False)},
        {"mlp_ratio": (2.0, 3.5, 1.0)},
        {"kernel_qkv": (3, 5, 3), "padding_q": (1, 2, 1), "padding_kv": (1, 2, 1)},
        {"stride_kv": (4, 1, 2)},
        {"patch_sizes": (5, 3, 2), "patch_stride": (3, 2, 2), "patch_padding": (0, 1, 0)},
        {"num_labels": 1},
    ],
    ids=str,
)
def test_every_option_equals_transformers(changes: dict[str, Any]) -> None:
    ours, theirs = both(tiny(**changes))
    x = images(2, 3, 64, 90)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=1e-4)


def average_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Average pooling one window at a time. Zeros of the padding count; a last window, which
    `ceil_mode` adds, counts only as far as the padding goes."""

    def windows(length: int) -> list[tuple[int, int]]:
        count = math.ceil((length + 2 * padding - kernel) / stride) + 1
        starts = [i * stride - padding for i in range(count)]
        # No window starts behind the last pixel and the padding of the left.
        return [(at, min(at + kernel, length + padding)) for at in starts if at < length]

    def slice_of(at: int, end: int, length: int) -> slice:
        return slice(max(at, 0), min(end, length))

    rows, columns = windows(x.shape[2]), windows(x.shape[3])
    out = x.new_empty(*x.shape[:2], len(rows), len(columns))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            part = x[:, :, slice_of(top, bottom, x.shape[2]), slice_of(left, right, x.shape[3])]
            out[:, :, i, j] = part.sum(dim=(2, 3)) / ((bottom - top) * (right - left))
    return out


def reference(config: CvtConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits, written down plainly from the paper: no module, one head after the other."""

    def linear(name: str, x: Tensor) -> Tensor:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def project(name: str, stage: int, image: Tensor, query: bool) -> Tensor:
        method = config.qkv_projection_method[stage]
        stride = (config.stride_q if query else config.stride_kv)[stage]
        padding = (config.padding_q if query else config.padding_kv)[stage]
        if method == "avg" and not query:
            return average_pool(image, config.kernel_qkv[stage], stride, padding)
        if method == "dw_bn":
            kernel = weights[f"{name}.conv.weight"]
            image = F.conv2d(image, kernel, None, stride, padding, groups=len(kernel))
            mean, var = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
            scale = weights[f"{name}.bn.weight"] / (var + 1e-5).sqrt()
            shift = weights[f"{name}.bn.bias"] - mean * scale
            return image * scale[:, None, None] + shift[:, None, None]
        return image

    act = {"gelu": F.gelu, "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x))}
    cls = None
    for s in range(config.num_stages):
        name = f"stages.{s}"
        weight, bias = (weights[f"{name}.embed.proj.{kind}"] for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, config.patch_stride[s], config.patch_padding[s])
        batch, dim, height, width = x.shape
        tokens = norm(f"{name}.embed.norm", x.flatten(2).transpose(1, 2))
        extra = int(config.cls_token[s])
        if extra:
            tokens = torch.cat([weights[f"{name}.cls_token"].repeat(batch, 1, 1), tokens], 1)
        for b in range(config.depth[s]):
            block = f"{name}.blocks.{b}"
            y = norm(f"{block}.norm1", tokens)
            image = y[:, extra:].transpose(1, 2).reshape(batch, dim, height, width)
            q, k, v = (
                linear(
                    f"{block}.attn.proj_{each}",
                    torch.cat(
                        [
                            y[:, :extra],
                            project(f"{block}.attn.conv_proj_{each}", s, image, each == "q")
                            .flatten(2)
                            .transpose(1, 2),
                        ],
                        1,
                    ),
                )
                for each in "qkv"
            )
            size = dim // config.num_heads[s]
            heads = []
            for head in range(config.num_heads[s]):
                part = slice(head * size, (head + 1) * size)
                scores = q[..., part] @ k[..., part].transpose(1, 2) * dim**-0.5
                heads.append(scores.softmax(-1) @ v[..., part])
            tokens = tokens + linear(f"{block}.attn.proj", torch.cat(heads, -1))
            y = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens))
            tokens = tokens + linear(f"{block}.mlp.fc2", act[config.hidden_act](y))
        cls, tokens = tokens[:, :extra], tokens[:, extra:]
        x = tokens.transpose(1, 2).reshape(batch, dim, height, width)
    final = norm("norm", cls if config.cls_token[-1] else tokens)
    return linear("head", final.mean(1))


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize(
    "token",
    # `transformers` runs none but the first.
    [(False, False, True), (False, False, False), (True, False, True), (True, True, False)],
    ids=["class-token", "mean", "two-class-tokens", "early-class-tokens"],
)
@pytest.mark.parametrize(
    "methods",
    [("dw_bn",) * 3, ("avg",) * 3, ("linear",) * 3, ("linear", "avg", "dw_bn")],
    ids="-".join,
)
def test_equal_to_the_plain_reference(
    methods: tuple[str, ...], token: tuple[bool, ...], act: str
) -> None:
    config = tiny(qkv_projection_method=methods, cls_token=token, hidden_act=act)
    model = randomise(Cvt(config))
    for size in ((32, 48), (45, 19)):  # even and odd rows of tokens
        x = images(2, 3, *size)
        with torch.inference_mode():
            expected = reference(config, model.state_dict(), x)
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (2, 3, 0), (3, 3, 1), (5, 4, 2)]
)
def test_average_pooling(kernel: int, stride: int, padding: int) -> None:
    """Where the pooling's window, stride and rim differ from the usual."""
    config = tiny(
        qkv_projection_method=("avg",) * 3,
        kernel_qkv=(kernel,) * 3,
        stride_kv=(stride,) * 3,
        padding_kv=(padding,) * 3,
    )
    model = randomise(Cvt(config))
    x = images(1, 3, 75, 110)
    with torch.inference_mode():
        expected = reference(config, model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("token", [True, False])
def test_any_number_of_stages(count: int, token: bool) -> None:
    config = stages(count, cls_token=(*(False,) * (count - 1), token))
    model = randomise(Cvt(config))
    x = images(1, 3, 130, 97)
    with torch.inference_mode():
        expected = reference(config, model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)


def test_quick_gelu() -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
    assert (quick_gelu(x) - F.gelu(x)).abs().max() > 0.01


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        stages(1),
        stages(5),
        tiny(patch_padding=(0, 0, 0)),
        tiny(patch_sizes=(16, 4, 4), patch_stride=(16, 4, 4), patch_padding=(0, 0, 0)),
        tiny(kernel_qkv=(7,) * 3, padding_q=(3,) * 3, padding_kv=(0,) * 3),
        tiny(qkv_projection_method=("linear",) * 3, patch_padding=(3, 1, 1)),
    ],
    ids=lambda config: f"{config.num_stages}-{config.patch_sizes}-{config.kernel_qkv}",
)
def test_the_smallest_input(config: CvtConfig) -> None:
    smallest = config.smallest_image_size
    model = randomise(Cvt(config))
    with torch.inference_mode():
        assert model(images(1, 3, smallest, smallest)).shape == (1, 5)
        assert model(images(1, 3, smallest, smallest + 7)).shape == (1, 5)
        for size in ((smallest - 1, smallest + 9), (smallest + 9, smallest - 1)):
            if 0 in size:
                continue
            with pytest.raises(ValueError, match=f"smallest is {smallest}x{smallest}"):
                model(images(1, 3, *size))


def test_tokens_of_every_stage() -> None:
    assert CVT_13.tokens(224, 224) == [(56, 56), (28, 28), (14, 14)]
    assert CVT_13.tokens(384, 200) == [(96, 50), (48, 25), (24, 13)]


def test_drop_path_grows_linearly_over_a_stage() -> None:
    model = Cvt(tiny(depth=(1, 2, 5), drop_path_rate=(0.3, 0.2, 0.4)))
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.stages]
    assert rates[0] == [0]
    assert rates[1] == [0, 0.2]
    assert rates[2] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_keeps_the_expected_value() -> None:
    drop = DropPath(0.25)
    x = torch.ones(40_000, 2, 3)
    torch.manual_seed(0)
    y = drop.train()(x)
    kept = y[:, 0, 0] != 0
    assert (y == y[:, :1, :1]).all()  # whole images
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert drop.eval()(x) is x


def test_dropped_branches_leave_the_residual() -> None:
    """Both branches of a block are dropped each on its own, the input never."""
    config = stages(1, depth=(2,), drop_path_rate=(0.5,), cls_token=(False,))
    block = randomise(Cvt(config)).stages[0].blocks[1]
    assert block.drop_path.rate == 0.5
    x = images(1, 16, 16)
    attention = block.attn(block.norm1(x), 4, 4)

    def mlp(x: Tensor) -> Tensor:
        return block.mlp(block.norm2(x))

    seen = set()
    for bits in range(4):
        y = x + 2 * attention if bits & 1 else x
        y = y + 2 * mlp(y) if bits & 2 else y
        seen.add(y.sum().item())
    block.drop_path.train()
    torch.manual_seed(0)
    found = {block(x, 4, 4).sum().item() for _ in range(60)}
    assert sorted(found) == pytest.approx(sorted(seen), rel=1e-4)


def test_dropout_acts_in_training_only() -> None:
    config = tiny(attention_drop_rate=(0.5,) * 3, drop_rate=(0.5,) * 3)
    model = randomise(Cvt(config))
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference(config, model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)
        for module in model.modules():  # all but the batch norms
            module.training = not isinstance(module, nn.BatchNorm2d)
        assert not torch.allclose(model(x), model(x))


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = Cvt(CvtConfig(depth=(1, 1, 2), num_labels=1000))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.weight.mean().abs() < 0.002, name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any(), name
        elif isinstance(module, nn.Conv2d):  # as torch initialises it: uniform, by the fan-in
            bound = (module.in_channels // module.groups * module.kernel_size[0] ** 2) ** -0.5
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
    token = model.stages[2].cls_token
    assert token.std().item() == pytest.approx(0.02, rel=0.15)
    wider = Cvt(tiny(initializer_range=0.1))
    assert wider.stages[2].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"depth": (1, 2)}, "has not one entry"),
        ({"depth": ()}, "depth"),
        ({"embed_dim": (16, 32, 63)}, "no multiple"),
        ({"embed_dim": (16, 32, 64.0)}, "whole number"),
        ({"embed_dim": (16, 32, "64")}, "whole number"),
        ({"embed_dim": (16, 32, 2**31)}, "out of range"),
        ({"num_heads": (1, 2, 0)}, "out of range"),
        ({"num_heads": (1, 2, True)}, "whole number"),
        ({"mlp_ratio": (4.0, 4.0, math.nan)}, "out of range"),
        ({"mlp_ratio": (4.0, 4.0, math.inf)}, "out of range"),
        ({"mlp_ratio": (4.0, 4.0, 0.001)}, "mlp_ratio"),
        ({"drop_rate": (0.0, 0.0, 1.5)}, "drop_rate"),
        ({"drop_path_rate": (0.0, 0.0, 1)}, "drop_path_rate"),
        ({"qkv_projection_method": ("dw_bn", "dw_bn", "conv")}, "qkv_projection_method"),
        ({"qkv_projection_method": ("dw_bn", "dw_bn", None)}, "qkv_projection_method"),
        ({"cls_token": (False, False, 1)}, "cls_token"),
        ({"stride_q": (1, 1, 2)}, "query"),
        ({"padding_q": (1, 1, 0)}, "query"),
        ({"qkv_projection_method": ("avg",) * 3, "padding_kv": (2, 2, 2)}, "padding_kv"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"initializer_range": "0.02"}, "initializer_range"),
        ({"initializer_range": math.nan}, "initializer_range"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 2.0}, "num_labels"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_network(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        tiny(**changes)


def test_from_dict_wants_lists() -> None:
    with pytest.raises(ValueError, match="depth"):
        CvtConfig.from_dict({"depth": 3})
    assert CvtConfig.from_dict({"model_type": "cvt", "layer_norm_eps": 1e-12}) == CVT_13
    assert CvtConfig.from_dict(TINY.to_dict() | {"num_labels": 5}) == TINY


def test_microsoft_names_both_ways() -> None:
    theirs = tiny_model().state_dict()
    microsoft = microsoft_names(theirs)
    ours = MICROSOFT.to_ours(microsoft)
    assert ours.keys() == TRANSFORMERS.to_ours(theirs).keys()
    assert MICROSOFT.to_theirs(ours).keys() == microsoft.keys()
    assert MICROSOFT.matches(microsoft) and not TRANSFORMERS.matches(microsoft)
    assert TRANSFORMERS.matches(theirs) and not MICROSOFT.matches({"cvt.x": 0, "conv1.weight": 0})


@pytest.mark.parametrize(
    "config",
    [
        CvtConfig(**{**vars(CVT_13), "depth": (1, 2, 2)}),
        CvtConfig(**{**vars(CVT_W24), "depth": (1, 1, 2), "num_labels": 7}),
        tiny(num_heads=(1, 1, 1), qkv_projection_method=("avg",) * 3, qkv_bias=(False,) * 3),
        stages(4, num_heads=(1, 1, 1, 1), patch_sizes=(7, 3, 3, 3), cls_token=(False,) * 4),
    ],
    ids=["13", "w24", "avg", "four"],
)
def test_the_architecture_off_the_shapes(config: CvtConfig) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in Cvt(config).state_dict().items()}
    found, _ = config_from_shapes(shapes, "quick_gelu")
    for name in ("embed_dim", "num_heads", "depth", "mlp_ratio", "cls_token", "qkv_bias"):
        assert getattr(found, name) == getattr(config, name), name
    assert found.qkv_projection_method == config.qkv_projection_method
    assert found.hidden_act == "quick_gelu"
    assert found.num_labels == config.num_labels


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"fc.weight": (10, 10)},
        {"stages.1.embed.proj.weight": (16, 3, 7, 7)},
        {"stages.0.embed.proj.weight": (16, 3, 7, 7)},
        {"stages.0.embed.proj.weight": (), "stages.0.blocks.0.mlp.fc1.weight": (1,)},
        {
            "stages.0.embed.proj.weight": (64, 3, 7, 7),
            "stages.0.blocks.0.mlp.fc1.weight": (64, 0),
            "head.weight": (5, 64),
        },
        {
            "stages.0.embed.proj.weight": (64, 3, 7, 7),
            "stages.0.blocks.0.attn.conv_proj_k.conv.weight": (),
            "stages.0.blocks.0.mlp.fc1.weight": (64, 64),
            "head.weight": (),
        },
    ],
    ids=lambda shapes: "+".join(shapes)[-50:],
)
def test_shapes_of_no_cvt(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError):
        config_from_shapes(shapes, "quick_gelu")
