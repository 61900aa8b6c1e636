"""Architectures that training can start from, by name. Imports no torch."""

from dataclasses import replace

from cvt_cli.checkpoint.catalog import CVT_13, CVT_21, CVT_W24

# For inputs of 32x32: 16x16, 8x8 and 4x4 tokens. At these widths the
# paper's deviation of 0.02 leaves the first epochs with hardly a signal.
CVT_TINY = replace(
    CVT_13,
    patch_sizes=(3, 3, 3),
    patch_stride=(2, 2, 2),
    patch_padding=(1, 1, 1),
    embed_dim=(64, 128, 256),
    num_heads=(1, 2, 4),
    depth=(1, 2, 3),  # Transformers builds no stage with fewer blocks than its number
    mlp_ratio=(2.0, 2.0, 2.0),
    cls_token=(False, False, True),
    stride_kv=(2, 2, 1),
    initializer_range=0.05,
)

# For inputs of 64x64: also 16x16, 8x8 and 4x4 tokens, at about the same cost.
CVT_SMALL = replace(
    CVT_TINY,
    patch_sizes=(7, 3, 3),
    patch_stride=(4, 2, 2),
    patch_padding=(2, 1, 1),
    depth=(2, 4, 3),
)

ARCHITECTURES = {
    "cvt-13": CVT_13,
    "cvt-21": CVT_21,
    "cvt-w24": CVT_W24,
    "cvt-tiny": CVT_TINY,
    "cvt-small": CVT_SMALL,
}
# Height and width in pixels of their inputs, if not 224.
IMAGE_SIZES = {"cvt-tiny": 32, "cvt-small": 64}
IMAGE_SIZE = 224
