"""Errors of a device whose memory is full."""

import torch

# Phrases in the messages of torch, cuBLAS, cuDNN and Metal. cuDNN finds no engine if none of its
# algorithms gets the memory it needs.
_FULL = (
    "can't allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "Invalid buffer size",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch failed because the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    )
