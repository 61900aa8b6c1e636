"""Sizes of batches that suit a network and its device."""

import torch

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.model.cost import count_cost

MAX_AUTO_BATCH_SIZE = 256
# Bytes of a batch's activations: on a CPU as many as caches help with, on a GPU this share of its
# memory.
CPU_BATCH_BYTES = 160 * 10**6
GPU_BATCH_SHARE = 1 / 8


def auto_batch_size(checkpoint: Checkpoint, device: torch.device, share: float = 1.0) -> int:
    """Choose a power of two whose activations fit. It is the same on every run on a machine, so
    that an interrupted run can be resumed.

    Args:
        share: of a GPU's memory that is ours.
    """
    each = count_cost(checkpoint.config, usual_size(checkpoint)).peak_activation_bytes
    room: float = CPU_BATCH_BYTES
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory * GPU_BATCH_SHARE * share
    fitting = min(MAX_AUTO_BATCH_SIZE, max(1, int(room / each)))
    return 1 << (fitting.bit_length() - 1)


def usual_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return (height, width) in pixels of the images in a batch; where the preprocessing leaves
    each its own, of those that fill one."""
    return checkpoint.preprocessing.image_size or (224, 224)
