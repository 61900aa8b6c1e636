"""Facts about the machine that figures were measured on."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cvt_cli import __version__
from cvt_cli.system.cores import cores

# Instruction sets that decide how fast a matrix product is, by Linux's names.
FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("transformers", "onnxruntime", "openvino")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
DRIVER = Path("/proc/driver/nvidia/version")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
BUSY = 0.25


@dataclass(frozen=True)
class Machine:
    """Processor, device and software of this process.

    Attributes:
        cores: that this process may use.
        load: processes that wanted to run in the last minute before the start; None if unknown.
        device: torch's name for it, such as "cuda:0", and its model.
        driver: of an NVIDIA device, and the versions of CUDA and cuDNN; empty for others.
        threads: that torch computes with on the CPU.
        versions: of the packages that matter, by name.
    """

    system: str
    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_bytes: int | None
    load: float | None
    device: str
    device_name: str
    driver: str
    threads: int
    float32_precision: str
    versions: dict[str, str]

    @property
    def is_busy(self) -> bool:
        """Whether other processes used a good part of the processor at the start."""
        return self.load is not None and self.load > BUSY * self.cores

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {
            "system": self.system,
            "cpu": self.cpu,
            "cores": self.cores,
            "cpu_flags": list(self.flags),
            "memory_bytes": self.memory_bytes,
            "load": self.load,
            "device": self.device,
            "device_name": self.device_name,
            "driver": self.driver or None,
            "threads": self.threads,
            "float32_precision": self.float32_precision,
            "versions": self.versions,
        }


def describe_machine(device: torch.device, peer: str | None = None) -> Machine:
    """Describe this machine, and the versions of the software that is measured.

    Args:
        device: what the network runs on.
        peer: the package of the baseline.
    """
    cpuinfo = _read(CPUINFO)
    model = re.search(r"^(?:model name|Model)\s*: (.+)$", cpuinfo, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.MULTILINE)
    known = set(listed[1].split()) if listed else set()
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    versions = {"cvt": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if peer is not None:
        try:
            versions[peer] = version(peer)
        except PackageNotFoundError:  # importable, but not installed as a package
            versions[peer] = "unknown"
    return Machine(
        f"{platform.system()} {platform.release()}",
        cpu=cpu,
        cores=cores(),
        flags=tuple(flag for flag in FLAGS if flag in known),
        memory_bytes=total_memory(),
        load=_load(),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        driver=_driver() if device.type == "cuda" else "",
        threads=torch.get_num_threads(),
        float32_precision=torch.get_float32_matmul_precision(),
        versions=versions,
    )


def total_memory() -> int | None:
    """Return the memory of this machine or of this container, in bytes; None if unknown."""
    return _least(_meminfo("MemTotal"), _number(CGROUP_LIMIT))


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping; None if unknown."""
    limit, used = _number(CGROUP_LIMIT), _number(CGROUP_USED)
    left = None if limit is None or used is None else max(0, limit - used)
    return _least(_meminfo("MemAvailable"), left)


def reset_peak_memory(device: torch.device) -> None:
    """Make `peak_memory` count from here on, if the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:  # some containers forbid it, and the peak counts from the start
            return


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: on a CUDA device what torch took, with what CUDA graphs
    keep, else the resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = re.search(r"^VmHWM:\s*(\d+) kB$", _read(STATUS), re.MULTILINE)
    if peak:
        return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not on Windows
        return None


def _driver() -> str:
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", _read(DRIVER))
    cudnn = torch.backends.cudnn.version()
    amd = torch.version.hip
    library = "MIOpen" if amd else "cuDNN"
    parts = [
        f"driver {found[1]}" if found and not amd else "",
        f"ROCm {amd}" if amd else f"CUDA {torch.version.cuda}",
        f"{library} {cudnn}" if cudnn else "",
    ]
    return ", ".join(filter(None, parts))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _meminfo(name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
