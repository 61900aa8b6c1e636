"""The cost of a CvT from its configuration alone: parameters, multiply-adds, activations.

Imports no torch and allocates nothing: the numbers are exact Python integers, for any input size.

MACs are the multiply-adds of matrix products and convolutions, one for a multiplication with its
addition; the paper's "FLOPs" count the same way, and FLOPs proper are twice as many. Biases, norms,
activation functions, softmax and pooling do not count. Shapes are written as in `cvt.py`:
(B, C, H, W) for tokens as an image, (B, T, C) for a sequence.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from cvt_cli.model.config import CvtConfig

TOKEN_EMBEDDING = "token embedding"
CONV_PROJECTION = "convolutional projection"
LINEAR_PROJECTION = "linear projection"
ATTENTION = "attention"
MLP = "MLP"
NORM = "norm"
HEAD = "head"
KINDS = (TOKEN_EMBEDDING, CONV_PROJECTION, LINEAR_PROJECTION, ATTENTION, MLP, NORM, HEAD)

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}

# Layers of a block whose cost is proportional to the number of queries.
_OF_EACH_QUERY = {"attn.proj_q", "attn.attention", "attn.proj", "mlp.fc1", "mlp.fc2"}

Shape = tuple[int, ...]
IMAGE_DIMENSIONS = 4  # (B, C, H, W)


@dataclass(frozen=True)
class Total:
    """A sum over layers.

    Attributes:
        parameters: what training changes.
        buffers: what it only records: the running mean and variance of batch norms.
        macs: multiply-adds for the whole batch.
        activation_bytes: of all outputs together, which is about what training has to keep.
    """

    parameters: int = 0
    buffers: int = 0
    macs: int = 0
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-add."""
        return 2 * self.macs

    def __add__(self, other: Self) -> Self:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return type(self)(*(a + b for a, b in pairs))

    def __mul__(self, times: int) -> Self:
        return type(self)(*(a * times for a in dataclasses.astuple(self)))


@dataclass(frozen=True)
class Layer:
    """One operation of the network that has weights, or does arithmetic worth counting.

    Attributes:
        name: of the module in `cvt.py`, for instance `stages.2.blocks.0.mlp.fc1`. Attention's two
            matrix products, which have no module, are `attn.attention`.
        kind: one of `KINDS`.
        shape_in, shape_out: with the batch first.
    """

    name: str
    kind: str
    shape_in: Shape
    shape_out: Shape
    total: Total


@dataclass(frozen=True)
class StageCost:
    """A stage: its embedding once, and `depth` blocks that all cost the same.

    Attributes:
        tokens: rows and columns of tokens, without the class token.
        embed: the layers in front of the blocks.
        block: the layers of one block, their names without the `stages.S.blocks.B.`.
        peak_bytes: the most that its input and its own tensors take at once in inference.
    """

    index: int
    tokens: tuple[int, int]
    depth: int
    embed: tuple[Layer, ...]
    block: tuple[Layer, ...]
    peak_bytes: int

    @property
    def block_total(self) -> Total:
        """Total of one block."""
        return _total(self.block)

    @property
    def total(self) -> Total:
        """Total of the embedding and the blocks."""
        return _total(self.embed) + self.block_total * self.depth

    def layers(self) -> Iterator[Layer]:
        """List every layer in the order of the computation, under its full name."""
        yield from self.embed
        for block in range(self.depth):
            for layer in self.block:
                name = f"stages.{self.index}.blocks.{block}.{layer.name}"
                yield dataclasses.replace(layer, name=name)


@dataclass(frozen=True)
class Cost:
    """A whole network at one input size.

    Attributes:
        image_size: (height, width) in pixels.
        last: the layers behind the last stage, the norm and the head.
    """

    image_size: tuple[int, int]
    batch_size: int
    dtype: str
    stages: tuple[StageCost, ...]
    last: tuple[Layer, ...]

    @property
    def total(self) -> Total:
        """Total of the whole network, for the whole batch."""
        return sum((stage.total for stage in self.stages), _total(self.last))

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers in `dtype`, in memory and in a file."""
        total = self.total
        return (total.parameters + total.buffers) * BYTES_PER_VALUE[self.dtype]

    @property
    def peak_activation_bytes(self) -> int:
        """Peak bytes of the activations in inference, including the input images. Memory that a
        backend needs inside one operation comes on top."""
        first, *others = self.stages
        images = math.prod(first.embed[0].shape_in) * BYTES_PER_VALUE[self.dtype]
        return max([first.peak_bytes, *(images + stage.peak_bytes for stage in others)])

    def layers(self) -> Iterator[Layer]:
        """List every layer in the order of the computation."""
        for stage in self.stages:
            yield from stage.layers()
        yield from self.last

    def by_kind(self) -> dict[str, Total]:
        """Sum up the layers of each of `KINDS`."""
        totals = dict.fromkeys(KINDS, Total())
        for layer in self.last:
            totals[layer.kind] += layer.total
        for stage in self.stages:
            for layers, times in ((stage.embed, 1), (stage.block, stage.depth)):
                for layer in layers:
                    totals[layer.kind] += layer.total * times
        return totals


def count_cost(
    config: CvtConfig, image_size: tuple[int, int], batch_size: int = 1, *, dtype: str = "float32"
) -> Cost:
    """Count the cost of one forward pass over images of `image_size`, (height, width) in pixels.

    Args:
        dtype: of the weights and activations, one of `BYTES_PER_VALUE`.

    Raises:
        ValueError: if the images are too small for the network; names the smallest size.
    """
    counter = _Counter(batch_size, BYTES_PER_VALUE[dtype])
    sizes = [image_size, *config.tokens(*image_size)]
    stages = tuple(
        counter.stage(config, index, sizes[index], tokens=sizes[index + 1])
        for index in range(config.num_stages)
    )
    dim, (rows, columns) = config.embed_dim[-1], sizes[-1]
    tokens = 1 if config.cls_token[-1] else rows * columns
    last = (
        counter.norm("norm", (batch_size, tokens, dim)),
        counter.linear("head", HEAD, (batch_size, dim), width=config.num_labels),
    )
    return Cost(image_size, batch_size, dtype, stages=stages, last=last)


def needed_macs(config: CvtConfig, image_size: tuple[int, int], batch_size: int = 1) -> int:
    """Count the multiply-adds that logits depend on, those that `fused.py` computes.

    With a class token in the last stage, its last block's other tokens are read by nothing behind
    them but keys and values: their queries, output projections and MLPs do not count.

    Args:
        image_size: (height, width) in pixels.

    Raises:
        ValueError: if the images are too small for the network; names the smallest size.
    """
    cost = count_cost(config, image_size, batch_size)
    stage = cost.stages[-1]
    if not config.cls_token[-1] or not stage.depth:
        return cost.total.macs
    others = math.prod(stage.tokens)
    unneeded_macs = 0
    for layer in stage.block:
        if layer.name.startswith("attn.conv_proj_q."):
            unneeded_macs += layer.total.macs
        elif layer.name in _OF_EACH_QUERY:
            unneeded_macs += layer.total.macs // (others + 1) * others
    return cost.total.macs - unneeded_macs


@dataclass(frozen=True)
class _Counter:
    batch: int
    itemsize: int

    def stage(
        self, config: CvtConfig, index: int, size_in: tuple[int, int], *, tokens: tuple[int, int]
    ) -> StageCost:
        channels = config.embed_dim[index - 1] if index else config.num_channels
        dim, kernel = config.embed_dim[index], config.patch_sizes[index]
        image_in, image = (self.batch, channels, *size_in), (self.batch, dim, *tokens)
        sequence = (self.batch, math.prod(tokens) + config.cls_token[index], dim)
        name = f"stages.{index}"
        embed = [
            self.layer(
                f"{name}.embed.proj",
                TOKEN_EMBEDDING,
                image_in,
                shape_out=image,
                parameters=dim * (channels * kernel**2 + 1),
                macs=math.prod(image) * channels * kernel**2,
            ),
            self.norm(f"{name}.embed.norm", image),
        ]
        if config.cls_token[index]:
            without = (self.batch, math.prod(tokens), dim)
            embed.append(
                self.layer(
                    f"{name}.cls_token",
                    TOKEN_EMBEDDING,
                    without,
                    shape_out=sequence,
                    parameters=dim,
                )
            )
        block = self.block(config, index, image, sequence=sequence)
        return StageCost(
            index,
            tokens,
            depth=config.depth[index],
            embed=tuple(embed),
            block=tuple(block),
            peak_bytes=self.peak(config, index, image_in, tokens=tokens),
        )

    def block(
        self, config: CvtConfig, stage: int, image: Shape, *, sequence: Shape
    ) -> Iterator[Layer]:
        batch, queries, dim = sequence
        cls_token = int(config.cls_token[stage])
        bias = config.qkv_bias[stage]
        kv_image = (batch, dim, *kv_tokens(config, stage, (image[2], image[3])))
        keys = (batch, math.prod(kv_image[2:]) + cls_token, dim)
        yield self.norm("norm1", sequence)
        for letter, out in (("q", image), ("k", kv_image), ("v", kv_image)):
            yield from self.conv_projection(
                config, stage, f"attn.conv_proj_{letter}", image=image, out=out
            )
        for letter, shape in (("q", sequence), ("k", keys), ("v", keys)):
            yield self.linear(f"attn.proj_{letter}", LINEAR_PROJECTION, shape, width=dim, bias=bias)
        # q k' and its product with v, whatever the number of heads. One fused operation: its
        # queries x keys scores are never in memory.
        macs = 2 * batch * queries * keys[1] * dim
        yield self.layer("attn.attention", ATTENTION, sequence, shape_out=sequence, macs=macs)
        yield self.linear("attn.proj", LINEAR_PROJECTION, sequence, width=dim)
        yield self.norm("norm2", sequence)
        hidden = (batch, queries, config.mlp_dim[stage])
        yield self.linear("mlp.fc1", MLP, sequence, width=hidden[-1])
        yield self.layer("mlp.act", MLP, hidden, shape_out=hidden)
        yield self.linear("mlp.fc2", MLP, hidden, width=dim)

    def conv_projection(
        self, config: CvtConfig, stage: int, name: str, *, image: Shape, out: Shape
    ) -> Iterator[Layer]:
        method, kernel = config.qkv_projection_method[stage], config.kernel_qkv[stage]
        dim = image[1]
        if method == "dw_bn":
            yield self.layer(
                f"{name}.conv",
                CONV_PROJECTION,
                image,
                shape_out=out,
                parameters=dim * kernel**2,
                macs=math.prod(out) * kernel**2,
            )
            yield self.norm(f"{name}.bn", out, buffers=2 * dim)
        elif method == "avg" and not name.endswith("q"):
            yield self.layer(f"{name}.avg", CONV_PROJECTION, image, shape_out=out)

    def norm(self, name: str, shape: Shape, buffers: int = 0) -> Layer:
        is_image = len(shape) == IMAGE_DIMENSIONS
        width = shape[1] if is_image else shape[-1]
        return self.layer(name, NORM, shape, shape_out=shape, parameters=2 * width, buffers=buffers)

    def linear(self, name: str, kind: str, shape: Shape, *, width: int, bias: bool = True) -> Layer:
        return self.layer(
            name,
            kind,
            shape,
            shape_out=(*shape[:-1], width),
            parameters=width * (shape[-1] + bias),
            macs=math.prod(shape) * width,
        )

    def layer(
        self,
        name: str,
        kind: str,
        shape_in: Shape,
        *,
        shape_out: Shape,
        parameters: int = 0,
        buffers: int = 0,
        macs: int = 0,
    ) -> Layer:
        activation_bytes = math.prod(shape_out) * self.itemsize
        total = Total(
            parameters=parameters, buffers=buffers, macs=macs, activation_bytes=activation_bytes
        )
        return Layer(name, kind, shape_in, shape_out=shape_out, total=total)

    def peak(
        self, config: CvtConfig, stage: int, image_in: Shape, *, tokens: tuple[int, int]
    ) -> int:
        """Bytes of the stage's input and the most alive beside it, which is one of three.

        The embedding before and after its norm; in attention the residual, the normalised tokens,
        q, k, v and the result; in the MLP the block's input, the residual, the normalised tokens,
        and the hidden layer before and after its activation.
        """
        dim, hidden_dim = config.embed_dim[stage], config.mlp_dim[stage]
        queries = math.prod(tokens) + config.cls_token[stage]
        keys = math.prod(kv_tokens(config, stage, tokens)) + config.cls_token[stage]
        embed = 2 * queries * dim
        attention = (4 * queries + 2 * keys) * dim
        mlp = queries * (3 * dim + 2 * hidden_dim)
        values = math.prod(image_in) + self.batch * max(embed, attention, mlp)
        return values * self.itemsize


def kv_tokens(config: CvtConfig, stage: int, tokens: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of keys and values for that many of queries (section 3.3)."""
    method = config.qkv_projection_method[stage]
    if method == "linear":
        return tokens
    kernel, stride = config.kernel_qkv[stage], config.stride_kv[stage]
    padding = config.padding_kv[stage]

    def length(size: int) -> int:
        if method == "dw_bn":
            return (size + 2 * padding - kernel) // stride + 1
        out = -((kernel - size - 2 * padding) // stride) + 1  # rounded up, as `ceil_mode` does
        # A last window that would start in the padding after the image is left out.
        return out - 1 if (out - 1) * stride >= size + padding else out

    return length(tokens[0]), length(tokens[1])


def _total(layers: Iterable[Layer]) -> Total:
    return sum((layer.total for layer in layers), Total())
