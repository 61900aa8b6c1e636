"""CvT: Introducing Convolutions to Vision Transformers (arXiv 2103.15808), to read and to train.

Shapes are written with B images, C channels or width, H x W pixels or rows and columns of tokens,
T = H * W tokens (one more with a class token). `fused.py` computes the same function faster.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt_cli.model.config import CvtConfig

NORM_EPS = 1e-5


def quick_gelu(x: Tensor) -> Tensor:
    """Compute the sigmoid approximation of GELU, with which the authors trained."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
}


class ConvEmbed(nn.Module):
    """Convolutional token embedding (section 3.2): overlapping patches become tokens.

    A strided convolution shortens the sequence of tokens while it widens them; layer norm over
    the width follows. (B, C_in, H_in, W_in) -> (B, C, H, W), float.
    """

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        in_channels = config.embed_dim[stage - 1] if stage else config.num_channels
        dim = config.embed_dim[stage]
        self.proj = nn.Conv2d(
            in_channels,
            dim,
            kernel_size=config.patch_sizes[stage],
            stride=config.patch_stride[stage],
            padding=config.patch_padding[stage],
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.drop = nn.Dropout(config.drop_rate[stage])

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.drop(x)
        return x


class ConvProjection(nn.Sequential):
    """Convolutional projection (section 3.3), before the linear one: tokens see their neighbours.

    (B, C, H, W) -> (B, C, H', W'), float. `dw_bn`: depth-wise convolution and batch norm;
    `avg`: average pooling; `linear`: the identity, as in ViT. With a stride above 1 this is the
    "squeezed" projection of figure 2c: fewer keys and values than queries.
    """

    def __init__(self, method: str, dim: int, kernel: int, *, stride: int, padding: int) -> None:
        super().__init__()
        if method == "dw_bn":
            self.conv = nn.Conv2d(dim, dim, kernel, stride, padding, groups=dim, bias=False)
            self.bn = nn.BatchNorm2d(dim)
        elif method == "avg":
            self.avg = nn.AvgPool2d(kernel, stride, padding, ceil_mode=True)


class ConvAttention(nn.Module):
    """Multi-head attention over convolutional projections (section 3.3).

    Scaled by the whole width, not the head's, as the authors' code does: softmax(q k' / C^0.5) v.
    The class token, if there is one, comes first and skips the convolutions. (B, T, C) ->
    (B, T, C), float.
    """

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        dim = config.embed_dim[stage]
        method = config.qkv_projection_method[stage]
        kernel, bias = config.kernel_qkv[stage], config.qkv_bias[stage]
        stride, padding = config.stride_kv[stage], config.padding_kv[stage]
        # Pooling the queries would leave fewer tokens than came in: "avg" leaves them alone.
        self.conv_proj_q = ConvProjection(
            "linear" if method == "avg" else method,
            dim,
            kernel,
            stride=config.stride_q[stage],
            padding=config.padding_q[stage],
        )
        self.conv_proj_k = ConvProjection(method, dim, kernel, stride=stride, padding=padding)
        self.conv_proj_v = ConvProjection(method, dim, kernel, stride=stride, padding=padding)
        self.proj_q = nn.Linear(dim, dim, bias=bias)
        self.proj_k = nn.Linear(dim, dim, bias=bias)
        self.proj_v = nn.Linear(dim, dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.num_heads = config.num_heads[stage]
        self.scale = dim**-0.5
        self.with_cls_token = config.cls_token[stage]
        self.attn_drop = config.attention_drop_rate[stage]
        self.proj_drop = nn.Dropout(config.drop_rate[stage])

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        cls_token, x = x.split([int(self.with_cls_token), height * width], dim=1)
        image = x.transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)

        def tokens(conv_proj: nn.Module) -> Tensor:
            return torch.cat([cls_token, conv_proj(image).flatten(2).transpose(1, 2)], dim=1)

        def heads(x: Tensor) -> Tensor:  # (B, T, C) -> (B, heads, T, C / heads)
            x = x.unflatten(2, (self.num_heads, -1))
            return x.transpose(1, 2)

        q = heads(self.proj_q(tokens(self.conv_proj_q)))
        k = heads(self.proj_k(tokens(self.conv_proj_k)))
        v = heads(self.proj_v(tokens(self.conv_proj_v)))
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        x = self.proj(x.transpose(1, 2).flatten(2))
        x = self.proj_drop(x)
        return x


class Mlp(nn.Module):
    """The position-wise feed-forward network of a block. (B, T, C) -> (B, T, C), float."""

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim[stage], config.mlp_dim[stage]
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.act = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.drop = nn.Dropout(config.drop_rate[stage])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        x = self.drop(self.fc2(x))
        return x


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch for whole images
    at the given rate and scales the others up. Any shape with the batch first."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        """Return the rate, for `print(model)`."""
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """Convolutional transformer block (section 3.1): attention, then MLP, both residual, each
    behind a layer norm. (B, T, C) -> (B, T, C), float."""

    def __init__(self, config: CvtConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim[stage]
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ConvAttention(config, stage)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(config, stage)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """One level of the hierarchy (section 3.1): a token embedding, then blocks.

    (B, C_in, H_in, W_in) -> the tokens as an image (B, C, H, W) and the class token (B, 1, C),
    which is empty (B, 0, C) in a stage without one. The class token ends with its stage.
    """

    def __init__(self, config: CvtConfig, stage: int) -> None:
        super().__init__()
        dim, depth = config.embed_dim[stage], config.depth[stage]
        self.embed = ConvEmbed(config, stage)
        with_cls_token = config.cls_token[stage]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if with_cls_token else None
        # The paper's rule: the rate grows linearly from 0 to the stage's over its blocks.
        rates = [config.drop_path_rate[stage] * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in rates)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, height, width)
        cls_token, x = x.split([x.shape[1] - height * width, height * width], dim=1)
        return x.transpose(1, 2).unflatten(2, (height, width)), cls_token


class Cvt(nn.Module):
    """The whole network (figure 2): stages, a last layer norm, a linear head.

    Input: (B, num_channels, H, W) float, normalised; any H and W that leave a token in every
    stage. Output: logits (B, num_labels).
    """

    def __init__(self, config: CvtConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))
        self.norm = nn.LayerNorm(config.embed_dim[-1], eps=NORM_EPS)
        self.head = nn.Linear(config.embed_dim[-1], config.num_labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the weights as the authors' code does: linear layers and class tokens from a
        normal of deviation `initializer_range` (truncated at 2, which is far out), biases zero;
        convolutions as torch does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Stage) and module.cls_token is not None:
                nn.init.trunc_normal_(module.cls_token, std=self.config.initializer_range)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the vector behind the label: the class token after the last norm, or the mean of
        the normalised tokens without one. (B, num_channels, H, W) -> (B, embed_dim[-1]).

        Raises:
            ValueError: if the input is too small; names the smallest size.
        """
        self.config.tokens(*x.shape[2:])
        cls_token = x
        for stage in self.stages:
            x, cls_token = stage(x)
        tokens: Tensor = cls_token if self.config.cls_token[-1] else x.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens)
        return tokens.mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_labels), unnormalised, of images (B, num_channels, H, W)."""
        logits: Tensor = self.head(self.forward_features(x))
        return logits
