"""Maps: the numbers of each method, and where they lie on the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import UsageError
from cvt_cli.explanation.maps import (
    Explainer,
    Explanation,
    Method,
    _TokensInView,
    key_positions,
    token_positions,
)
from cvt_cli.explanation.picture import MARGIN, draw
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import ConvEmbed
from cvt_cli.records import Prediction
from tests.photos import picture
from tests.rounding import rounding

CPU = torch.device("cpu")
NO_CLASS_TOKEN = {"cls_token": [False, False, False]}

RULES = {
    "squeezed": Preprocessing.convnext(384),
    "cropped": Preprocessing.convnext(224),
    "as-it-is": Preprocessing(shortest_edge=None, crop=None),
    "crop-only": Preprocessing(shortest_edge=None, crop=(150, 170)),
    "padded": Preprocessing(shortest_edge=100, crop=(140, 120)),
    "padded-odd": Preprocessing(resize_to=(61, 90), shortest_edge=None, crop=(100, 101)),
    "squeezed-and-cropped": Preprocessing(resize_to=(200, 120), shortest_edge=None, crop=(97, 64)),
    "huge": Preprocessing(shortest_edge=3000, crop=(200, 200)),
}


@pytest.fixture(scope="module")
def checkpoints(tiny_cvt: Callable[..., Path]) -> dict[str, Checkpoint]:
    """With a class token and without, at 64 pixels."""
    return {
        "class token": load(resolve(str(tiny_cvt(num_heads=[1, 2, 4])))),
        "mean": load(resolve(str(tiny_cvt(**NO_CLASS_TOKEN)))),
    }


def pixels_of(checkpoint: Checkpoint, image: Image.Image) -> torch.Tensor:
    batch = torch.from_numpy(checkpoint.preprocessing.pixels(image).copy())[None]
    return checkpoint.preprocessing.normalize(batch).contiguous()


def explanation_of(values: np.ndarray, rule: Preprocessing, image: Image.Image) -> Explanation:
    label = Prediction("x", 1.0, 0)
    size = (values.shape[0], values.shape[1])
    return Explanation(
        values, 0, 1, size, rule.visible_box(*image.size), image.size, label, (label,)
    )


def box_of(bright: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(bright)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("size", [(331, 217), (217, 331), (300, 300)])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_bright_square_comes_back(rule: Preprocessing, size: tuple[int, int]) -> None:
    width, height = size
    # Small enough that every crop keeps it.
    square = (width // 2 - 8, height // 2 - 5, width // 2 + 9, height // 2 + 6)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), square)
    seen = rule.pixels(image)[..., 0].astype(np.float32)
    values = explanation_of(seen, rule, image).over_picture(width, height)
    assert values.shape == (height, width)
    # To a pixel of the picture, or to one of the network's where those are larger.
    left, top, right, bottom = rule.visible_box(width, height)
    coarse = max((right - left) / seen.shape[1], (bottom - top) / seen.shape[0], 1)
    found = box_of(np.nan_to_num(values) > 127)
    assert np.abs(np.subtract(found, square)).max() <= coarse
    centre = [(found[0] + found[2]) / 2, (found[1] + found[3]) / 2]
    wanted = [(square[0] + square[2]) / 2, (square[1] + square[3]) / 2]
    assert np.abs(np.subtract(centre, wanted)).max() <= 0.75 * coarse


def test_what_the_network_did_not_see() -> None:
    rule = Preprocessing.convnext(224)
    image = Image.new("RGB", (512, 256))
    assert rule.visible_box(512, 256) == (144, 16, 368, 240)
    values = explanation_of(np.ones((224, 224)), rule, image).over_picture(512, 256)
    assert np.isnan(values[:, :144]).all()
    assert np.isnan(values[:16]).all()
    assert (values[16:240, 144:368] == 1).all()


def test_over_a_picture_of_another_size() -> None:
    rule = Preprocessing.convnext(224)
    image = Image.new("RGB", (512, 256))
    values = explanation_of(np.ones((224, 224)), rule, image).over_picture(128, 64)
    assert np.isfinite(values).sum() == 56 * 56
    assert np.isfinite(values[4:60, 36:92]).all()


@pytest.mark.parametrize("kernel", [3, 7])
def test_tokens_are_where_their_patches_are(kernel: int) -> None:
    """The embeddings' convolutions alone, as means: a dot comes out at its place."""
    config = CvtConfig(
        patch_sizes=(kernel, 3, 3), patch_padding=(kernel // 2 - (kernel == 7), 1, 1), num_labels=2
    )
    offset, step = token_positions(config)
    assert step == 16
    position = torch.arange(224.0)
    image = position.expand(1, 1, 224, 224)
    for stage in range(3):
        proj = ConvEmbed(config, stage).proj
        size = proj.kernel_size[0]
        weight = torch.full((1, 1, size, size), 1 / size**2)
        image = F.conv2d(image, weight, None, proj.stride, proj.padding)
    # Means of positions are positions, but at the edges, where padding is in them.
    inner = image[0, 0, 5, 1:-1]
    assert torch.allclose(inner, offset + step * torch.arange(1.0, 13.0), atol=1e-3)


def test_keys_are_every_other_token() -> None:
    assert token_positions(CvtConfig()) == (1, 16)
    assert key_positions(CvtConfig()) == (1, 32)
    linear = CvtConfig(qkv_projection_method=("dw_bn", "dw_bn", "linear"))
    assert key_positions(linear) == (1, 16)
    # Without padding the first window's middle is the second token.
    assert key_positions(CvtConfig(stride_kv=(2, 2, 3), padding_kv=(1, 1, 0))) == (17, 48)


def test_the_raw_map_is_as_it_was_made() -> None:
    values = np.array([[0.1234567, 2]], np.float32)
    label = Prediction("x", 0.12345678, 3)
    found = Explanation(values, 1, 16, (32, 48), (1, 2, 3, 4), (100, 80), label, (label,))
    assert found.to_dict() == {
        **{"label": "x", "score": 0.123457, "scores": "softmax", "index": 3},
        **{"width": 100, "height": 80, "seen": [1, 2, 3, 4]},
        **{"input_size": [32, 48], "offset": 1, "step": 16, "map": [[0.123457, 2]]},
    }


@pytest.mark.parametrize("kind", ["class token", "mean"])
def test_the_function_is_the_network_s(kind: str, checkpoints: dict[str, Checkpoint]) -> None:
    model = checkpoints[kind].model()
    x = pixels_of(checkpoints[kind], picture(100, 80))
    with torch.no_grad():
        expected = model(x)
        tolerance = rounding(expected, terms=256, layers=36)
        torch.testing.assert_close(_TokensInView(model)(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["class token", "mean"])
def test_gradcam_by_hand(kind: str, checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints[kind]
    image = picture(100, 80)
    view = _TokensInView(checkpoint.model())
    kept: list[torch.Tensor] = []
    view.tokens.register_forward_hook(lambda *args: kept.append(args[2]))
    x = pixels_of(checkpoint, image).requires_grad_()
    view(x)[0, 2].backward(inputs=[kept_gradient(kept)])
    tokens = kept[0]
    assert tokens.grad is not None
    weights = tokens.grad.mean(dim=(2, 3), keepdim=True)
    wanted = (weights * tokens).sum(dim=1)[0].clamp(min=0).detach()
    assert wanted.max() > 0
    found = Explainer(checkpoint, Method.GRADCAM, CPU)(image, 2)
    assert found.values.shape == (4, 4)
    assert np.allclose(found.values, wanted.numpy(), atol=1e-5)
    assert (found.offset, found.step) == token_positions(checkpoint.config)
    assert found.visible_box == checkpoint.preprocessing.visible_box(100, 80)
    scores = view(x).softmax(dim=1)[0].tolist()
    order = sorted(range(5), key=lambda index: -scores[index])
    assert [each.index for each in found.predictions] == order
    for each in (found.label, *found.predictions):
        assert each.label == checkpoint.labels[each.index]
        assert each.score == pytest.approx(scores[each.index])
    assert found.label.index == 2
    best = Explainer(checkpoint, Method.GRADCAM, CPU)(image, top_k=2)
    assert [each.index for each in (best.label, *best.predictions)] == [order[0], *order[:2]]


def kept_gradient(kept: list[torch.Tensor]) -> torch.Tensor:
    kept[0].retain_grad()
    return kept[0]


def test_attention_by_hand(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints["class token"]
    image = picture(100, 80)
    calls: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    real = F.scaled_dot_product_attention

    def spy(q: Any, k: Any, v: Any, dropout_p: float, scale: float) -> torch.Tensor:
        calls.append((q, k, scale))
        return real(q, k, v, dropout_p=dropout_p, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        checkpoint.model()(pixels_of(checkpoint, image))
    q, k, scale = calls[-1]
    assert len(k[0]) == 4
    weights = [(q[0, head, 0] @ k[0, head].T * scale).softmax(dim=0) for head in range(4)]
    wanted = torch.stack(weights).mean(dim=0)[1:]
    found = Explainer(checkpoint, Method.ATTENTION, CPU)(image)
    assert np.allclose(found.values.ravel(), wanted.numpy(), atol=1e-5)
    assert 0 < found.values.sum() < 1
    assert (found.offset, found.step) == key_positions(checkpoint.config)


@pytest.mark.parametrize("kind", ["class token", "mean"])
def test_integrated_gradients_add_up(kind: str, checkpoints: dict[str, Checkpoint]) -> None:
    """The completeness axiom: all pixels together make the difference to no picture."""
    checkpoint = checkpoints[kind]
    x = pixels_of(checkpoint, picture(100, 80))
    explainer = Explainer(checkpoint, Method.INTEGRATED_GRADIENTS, CPU)
    values, position = explainer._map(x, 3)
    assert position == (0, 1)
    model = checkpoint.model()
    with torch.no_grad():
        wanted = float(model(x)[0, 3] - model(torch.zeros_like(x))[0, 3])
    assert float(values.sum()) == pytest.approx(wanted, rel=0.02, abs=0.02)
    assert values.min() < 0
    shown = explainer(picture(100, 80), 3).values
    assert np.allclose(shown, values.clamp(min=0).numpy(), atol=1e-5)


def test_without_a_class_token_there_is_no_attention(checkpoints: dict[str, Checkpoint]) -> None:
    with pytest.raises(UsageError, match="no class token") as raised:
        Explainer(checkpoints["mean"], Method.ATTENTION, CPU)
    assert "gradcam" in raised.value.hint


def test_drawn(checkpoints: dict[str, Checkpoint]) -> None:
    for size in ((100, 80), (80, 300), (9, 7), (1, 1)):
        image = picture(*size)
        found = Explainer(checkpoints["class token"], Method.ATTENTION, CPU)(image)
        drawn = draw(image, "attention", "a/model\n" * 30, explanation=found)
        assert drawn.mode == "RGB"
        assert 300 < drawn.width < 1600
        assert 300 < drawn.height < 1600
        # Nothing is cut off; letters may reach a pixel further.
        inside = ImageOps.invert(drawn).getbbox()
        assert inside is not None and min(inside[:2]) >= MARGIN
        assert inside[2] <= drawn.width - MARGIN + 1 and inside[3] <= drawn.height - MARGIN
