"""Maps of the parts of a picture that a label comes from.

Three methods: gradient-weighted class activation of the last stage's tokens (Grad-CAM, arXiv
1610.02391), integrated gradients of the pixels (arXiv 1703.01365), and where the class token of
the last stage looks.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import UsageError
from cvt_cli.images.reading import ImageReader
from cvt_cli.inference.devices import use_exact_float32
from cvt_cli.inference.scores import kind_of, scores_of
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Block, Cvt, Stage
from cvt_cli.output.csv_tsv import score_text
from cvt_cli.records import Prediction, ScoreKind

# Steps between a grey picture and the real one; with Gauss-Legendre few are enough.
STEPS = 24
STEPS_AT_ONCE = 4


class Method(StrEnum):
    """Methods that make a map."""

    GRADCAM = "gradcam"
    ATTENTION = "attention"
    INTEGRATED_GRADIENTS = "integrated-gradients"


@dataclass(frozen=True)
class Explanation:
    """A map of a label over a picture.

    Attributes:
        values: (rows, columns) float32, none below 0: how much each point speaks for the label,
            or for attention how much of it falls there. Only their proportions mean something.
        offset: where the first point is, in pixels of the network's input from the centre of its
            first pixel, on both axes.
        step: from point to point, in the same pixels.
        input_size: (height, width) of the network's input in pixels.
        visible_box: (left, top, right, bottom) of what the network saw, in pixels of the picture.
        picture_size: (width, height) of the picture in pixels.
        label: what is explained.
        predictions: the best labels, best first.
        score_kind: what made their scores.
    """

    values: np.ndarray
    offset: float
    step: float
    input_size: tuple[int, int]
    visible_box: tuple[float, float, float, float]
    picture_size: tuple[int, int]
    label: Prediction
    predictions: tuple[Prediction, ...]
    score_kind: ScoreKind = ScoreKind.SOFTMAX

    def to_dict(self) -> dict[str, Any]:
        """Return the raw map as a JSON value, with what is needed to lay it over the picture."""
        return {
            "label": self.label.label,
            "score": float(score_text(self.label.score, {"scores": self.score_kind})),
            "scores": str(self.score_kind),
            "index": self.label.index,
            "width": self.picture_size[0],
            "height": self.picture_size[1],
            "seen": list(self.visible_box),
            "input_size": list(self.input_size),
            "offset": self.offset,
            "step": self.step,
            "map": [[float(f"{value:.6g}") for value in row] for row in self.values.tolist()],
        }

    def over_picture(self, width: int, height: int) -> np.ndarray:
        """Interpolate the map over the whole picture, at a size of this many pixels.

        Returns:
            (height, width) float32, bilinear between the points; NaN where the network saw
            nothing.
        """
        left, top, right, bottom = self.visible_box
        scales = width / self.picture_size[0], height / self.picture_size[1]
        columns = self._points(
            width, left * scales[0], right * scales[0], inputs=self.input_size[1]
        )
        rows = self._points(height, top * scales[1], bottom * scales[1], inputs=self.input_size[0])
        return _interpolated(self.values, rows, columns)

    def _points(self, pixels: int, start: float, end: float, *, inputs: int) -> np.ndarray:
        """Locate the pixels along a picture's side, counted in points of the map; NaN outside."""
        part = (np.arange(pixels) + 0.5 - start) / (end - start)
        points = (part * inputs - 0.5 - self.offset) / self.step
        return np.where((part >= 0) & (part <= 1), points, np.nan)


class Explainer:
    """A checkpoint, ready to explain: float32, gradients for inputs only.

    Args:
        checkpoint: what to explain.
        method: how.
        device: where.

    Raises:
        UsageError: if the method does not fit the model.
    """

    def __init__(self, checkpoint: Checkpoint, method: Method, device: torch.device) -> None:
        if method is Method.ATTENTION and not checkpoint.config.cls_token[-1]:
            raise UsageError(
                f"{checkpoint.name} has no class token in its last stage, so no attention to show",
                hint="--method gradcam",
            )
        self.checkpoint = checkpoint
        self.method = method
        self._device = device
        use_exact_float32(device, torch.float32)
        self._model = _TokensInView(checkpoint.model().float().to(device).requires_grad_(False))

    def __call__(
        self, picture: Image.Image, label_index: int | None = None, top_k: int = 5
    ) -> Explanation:
        """Explain one label of a picture.

        Args:
            picture: upright, RGB, any size.
            label_index: the class index; None for the best label's.
            top_k: predictions to tell beside.

        Raises:
            ValueError, ImageError: as `ImageReader.check_size`.
        """
        preprocessing = self.checkpoint.preprocessing
        ImageReader(self.checkpoint.config, preprocessing).check_size(picture)
        pixels = preprocessing.pixels(picture)
        batch = torch.from_numpy(pixels.copy())[None].to(self._device)
        x = preprocessing.normalize(batch).contiguous()
        kind = kind_of(self.checkpoint)
        with torch.no_grad():
            scores = scores_of(self._model(x), kind)[0]
        best = [int(index) for index in scores.topk(min(top_k, len(scores))).indices]
        index = best[0] if label_index is None else label_index
        values, (offset, step) = self._map(x, index)
        return Explanation(
            values.clamp(min=0).cpu().numpy(),
            offset=offset,
            step=step,
            input_size=(pixels.shape[0], pixels.shape[1]),
            visible_box=preprocessing.visible_box(*picture.size),
            picture_size=picture.size,
            label=self._prediction(index, scores),
            predictions=tuple(self._prediction(each, scores) for each in best),
            score_kind=kind,
        )

    def _prediction(self, index: int, scores: Tensor) -> Prediction:
        return Prediction(self.checkpoint.labels[index], float(scores[index]), index)

    def _map(self, x: Tensor, index: int) -> tuple[Tensor, tuple[float, float]]:
        """Compute the map (rows, columns), and the offset and the step of its points."""
        config = self.checkpoint.config
        if self.method is Method.ATTENTION:
            with torch.no_grad():
                return self._model.class_attention(x)[0], key_positions(config)
        if self.method is Method.GRADCAM:
            from captum.attr import LayerGradCam

            cam = LayerGradCam(self._model, self._model.tokens)
            # The weights need no gradient, so the hooked layer must get one from the input.
            values = cam.attribute(x.requires_grad_(), target=index)
            return values.detach()[0, 0], token_positions(config)
        from captum.attr import IntegratedGradients

        # The baseline is 0: the mean colour of the training images where it was subtracted, else
        # black.
        gradients = IntegratedGradients(self._model).attribute(
            x, target=index, n_steps=STEPS, internal_batch_size=STEPS_AT_ONCE
        )
        return gradients.detach()[0].sum(dim=0).float(), (0.0, 1.0)


def token_positions(config: CvtConfig) -> tuple[float, float]:
    """Locate the last stage's tokens on the input, in pixels: the distance of the first patch's
    centre from the centre of the first pixel, and that from token to token.

    The paddings of CvT are not even: with 16 pixels a token, the first one's centre is at pixel 1.
    """
    offset, step = 0.0, 1.0
    for kernel, stride, padding in zip(
        config.patch_sizes, config.patch_stride, config.patch_padding, strict=True
    ):
        offset += step * ((kernel - 1) / 2 - padding)
        step *= stride
    return offset, step


def key_positions(config: CvtConfig) -> tuple[float, float]:
    """Locate the keys of the last stage's attention likewise: its tokens after the projection."""
    offset, step = token_positions(config)
    if config.qkv_projection_method[-1] == "linear":
        return offset, step
    kernel, stride, padding = config.kernel_qkv[-1], config.stride_kv[-1], config.padding_kv[-1]
    return offset + step * ((kernel - 1) / 2 - padding), step * stride


class _TokensInView(nn.Module):
    """The network as one function, in which the tokens that the label is made from appear as an
    image (B, C, H, W) where a hook can reach them: the `tokens` layer.

    A class token reads the others in the last block's attention: there they are taken, after the
    norm. Without a class token they are averaged at the end, and taken there.
    """

    def __init__(self, model: Cvt) -> None:
        super().__init__()
        self.model = model
        self.tokens = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self._before_last_block(x)
        block = self._blocks[-1]
        if self.model.config.cls_token[-1]:
            cls_token, image = _split(block.norm1(x), height, width)
            y = torch.cat([cls_token, _flat(self.tokens(image))], dim=1)
            x = x + block.attn(y, height, width)
            x = x + block.mlp(block.norm2(x))
            features = self.model.norm(x[:, 0])
        else:
            x = self.model.norm(block(x, height, width))
            features = _flat(self.tokens(_split(x, height, width)[1])).mean(dim=1)
        logits: Tensor = self.model.head(features)
        return logits

    def class_attention(self, x: Tensor) -> Tensor:
        """Return the attention that the class token of the last block gives to each other key, as a
        mean over the heads: (B, num_channels, H, W) -> (B, rows, columns), with a sum below 1."""
        x, height, width = self._before_last_block(x)
        block = self._blocks[-1]
        attn = block.attn
        cls_token, image = _split(block.norm1(x), height, width)
        keys = attn.conv_proj_k(image)
        q = attn.proj_q(cls_token).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        k = attn.proj_k(torch.cat([cls_token, _flat(keys)], dim=1))
        k = k.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
        weights = (q @ k.transpose(2, 3) * attn.scale).softmax(dim=-1)  # (B, heads, 1, T)
        attention: Tensor = weights.mean(dim=1)[:, 0, 1:].unflatten(1, keys.shape[2:])
        return attention

    @property
    def _stage(self) -> Stage:
        return cast(Stage, self.model.stages[-1])

    @property
    def _blocks(self) -> list[Block]:
        """The blocks of the last stage."""
        return cast(list[Block], list(self._stage.blocks))

    def _before_last_block(self, x: Tensor) -> tuple[Tensor, int, int]:
        for stage in self.model.stages[:-1]:
            x, _ = stage(x)
        x = self._stage.embed(x)
        height, width = x.shape[2:]
        x = _flat(x)
        if self._stage.cls_token is not None:
            x = torch.cat([self._stage.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self._blocks[:-1]:
            x = block(x, height, width)
        return x, height, width


def _split(x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Split (B, T, C) into the class token (B, 0 or 1, C) and the others as an image (B, C, H,
    W)."""
    cls_token, x = x.split([x.shape[1] - height * width, height * width], dim=1)
    return cls_token, x.transpose(1, 2).unflatten(2, (height, width))


def _flat(image: Tensor) -> Tensor:
    """Flatten an image of tokens: (B, C, H, W) -> (B, H * W, C)."""
    return image.flatten(2).transpose(1, 2)


def _interpolated(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Interpolate at fractional rows and columns; the outermost values extend to the edge."""
    seen = np.isfinite(rows)[:, None] & np.isfinite(columns)
    low_rows, part_rows = _neighbours(rows, values.shape[0])
    low_columns, part_columns = _neighbours(columns, values.shape[1])
    high_rows = np.minimum(low_rows + 1, values.shape[0] - 1)
    high_columns = np.minimum(low_columns + 1, values.shape[1] - 1)
    across = (
        values[:, low_columns] * (1 - part_columns) + values[:, high_columns] * part_columns
    ).astype(np.float32)
    part = part_rows[:, None].astype(np.float32)
    result = across[low_rows] * (1 - part) + across[high_rows] * part
    return np.where(seen, result, np.float32(np.nan))


def _neighbours(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the point before each position, and the distance to the next."""
    inside = np.clip(np.nan_to_num(points), 0, count - 1)
    low = np.floor(inside).astype(np.intp)
    return low, inside - low
