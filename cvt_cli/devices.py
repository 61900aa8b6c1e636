"""Names of devices and dtypes become torch's, once it is known that this machine has them."""

import torch

from cvt_cli.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first of cuda, mps, cpu that is here.

    Raises:
        UsageError: if there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"{name}: no such device", hint="one of auto, cpu, cuda, cuda:N, mps"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(f"{name}: this machine has {count or 'no'} CUDA devices")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(f"{name}: this machine has no such device")
    elif device.type != "cpu":
        raise UsageError(f"{name}: not supported", hint="one of auto, cpu, cuda, cuda:N, mps")
    return device


def pick_devices(names: str) -> tuple[torch.device, ...]:
    """One device, or several with commas between them: "cuda:0,cuda:1".

    Raises:
        UsageError: as `pick_device`.
    """
    return tuple(pick_device(name.strip()) for name in names.split(","))


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is the one that the device is fast at: float16 on CUDA,
    bfloat16 on a CPU that multiplies it in hardware (AVX512-BF16, AMX), else float32.

    Raises:
        UsageError: if there is none of that name.
    """
    if name == "auto":
        if device.type == "cpu" and has_bfloat16():
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(f"{name}: no such dtype", hint=f"one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    # Torch's own checks, not public in every release that we support.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed because the device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
