"""Recognises a device whose memory is full."""

import torch

# In what torch, cuBLAS, cuDNN and Metal say of it. cuDNN finds no engine where none of its
# algorithms gets the memory that it works in.
_FULL = (
    "can't allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "Invalid buffer size",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed because the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    )
