"""Processor cores of this process, and settings that depend on them."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A setting of libgomp, which torch uses on Linux: how often a thread checks whether the others are
# done before it gives up its core.
SPIN_COUNT = "GOMP_SPINCOUNT"
FEW = "1000"


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return what tells processors apart: name, family, model and stepping on Linux, else what the
    system calls it."""
    try:
        text = cpuinfo.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        text = ""
    names = (
        "model name",
        "Model",
        "cpu family",
        "model",
        "stepping",
        "CPU implementer",
        "CPU part",
    )
    found = re.findall(rf"^({'|'.join(names)})\s*: *(.+)$", text, re.MULTILINE)
    facts = " ".join(f"{name} {value.strip()}" for name, value in found)
    return facts or f"{platform.machine()} {platform.processor()}".strip()


# Threads that decode images: a GPU computes an image faster than a core decodes one. On a machine
# with few cores there are a few more threads than cores, for images from the network.
DECODE_THREADS = min(32, max(4, cores()))


def share_cores() -> None:
    """Make the network's waiting threads give their cores to decoders and other processes. By
    default they hold them for milliseconds: beside a process that takes one core of two, a run then
    has a quarter less images/s. Call before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPIN_COUNT, FEW)


@contextmanager
def unshared() -> Iterator[None]:
    """Undo the settings of `share_cores` for another program's process, started within the
    context."""
    if os.environ.get(SPIN_COUNT) != FEW:
        yield
        return
    del os.environ[SPIN_COUNT]
    try:
        yield
    finally:
        os.environ[SPIN_COUNT] = FEW
