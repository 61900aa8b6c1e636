"""Devices and dtypes: names become torch's, checked against this machine."""

import re
import warnings

import torch

from cvt_cli.errors import UsageError
from cvt_cli.model.processor import is_slow, multiplies_bfloat16
from cvt_cli.system.text import counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# sm_90 stands for kernels, compute_90 for code that the driver compiles, also for later devices.
_ARCH = re.compile(r"(sm|compute)_(\d+)[af]?")


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the first of cuda and cpu that exists here.

    Raises:
        UsageError: if there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            device = torch.device("cuda")
            if _has_kernels(device):
                return device
            warnings.warn(f"continuing without the GPU: {_no_kernels(device)}", stacklevel=2)
        # Apple's GPUs are used by name only: their results have not been checked, and torch has
        # silently computed wrong values there, for depthwise convolutions and for matrix products
        # (pytorch/pytorch#188335, #193487).
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"{name}: no such device", hint="one of auto, cpu, cuda, cuda:N, mps"
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        there = counted(count, "CUDA device") if count else "no CUDA devices"
        # torch.device wraps an index beyond 127.
        if (device.index or 0) >= count or str(device) != name:
            raise UsageError(f"{name}: this machine has {there}")
        if not torch.cuda.is_available():
            raise UsageError(
                f"{name}: torch can't use it", hint="a newer driver, or a torch for the one here"
            )
        if not _has_kernels(device):
            raise UsageError(f"{name}: {_no_kernels(device)}", hint="--device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(f"{name}: this machine has no such device")
    elif device.type != "cpu":
        raise UsageError(f"{name}: not supported", hint="one of auto, cpu, cuda, cuda:N, mps")
    return device


def pick_devices(names: str) -> tuple[torch.device, ...]:
    """Return one device, or several with commas between them: "cuda:0,cuda:1".

    Raises:
        UsageError: as `pick_device`.
    """
    return tuple(pick_device(name.strip()) for name in names.split(","))


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is the one that the device is fast at: float16 on CUDA,
    bfloat16 on a CPU that multiplies it in hardware (AVX512-BF16, AMX), else float32. One that this
    CPU is slow at is warned of.

    Raises:
        UsageError: if the name is unknown.
    """
    if name == "auto":
        if device.type == "cpu" and multiplies_bfloat16():
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(f"{name}: no such dtype", hint=f"one of auto, {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if device.type == "cpu" and is_slow(dtype):
        warnings.warn(
            f"{name} is slow on this processor, which has no instructions for it; "
            "--dtype float32 is many times faster",
            stacklevel=1,  # the same line each time, so that it is shown once
        )
    return dtype


def use_exact_float32(device: torch.device, dtype: torch.dtype) -> None:
    """Disable TF32 in cuDNN, which torch uses by default: it keeps 10 bits of mantissa. For the
    whole process."""
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False


def _has_kernels(device: torch.device) -> bool:
    """Tell whether this build of torch has kernels for a CUDA device, or code to make them from."""
    if torch.version.cuda is None:  # AMD's devices have other names
        return True
    major, minor = torch.cuda.get_device_capability(device)
    known = [_ARCH.fullmatch(name) for name in torch.cuda.get_arch_list()]
    versions = [(arch[1], divmod(int(arch[2]), 10)) for arch in known if arch]
    return not versions or any(
        version <= (major, minor) and (kind == "compute" or version[0] == major)
        for kind, version in versions
    )


def _no_kernels(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device)
    return f"torch {torch.__version__} has no kernels for an {name}; an older torch may"
