"""How many processor cores there are for this process, and what follows from it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# libgomp's, which torch computes with on Linux: how often a thread looks whether the others are
# done before it gives its core away.
SPIN_COUNT = "GOMP_SPINCOUNT"
FEW = "1000"


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Threads that decode images: a GPU has an image done in less time than a core decodes one. A few
# more than cores where those are few, for images that come over a network.
DECODE_THREADS = min(32, max(4, cores()))


def share_cores() -> None:
    """Let the network's threads give their cores to those that decode, and to other processes,
    when they wait for each other. By default they hold them for milliseconds: beside a process
    that takes one core of two, a run then has a quarter less images/s. Before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPIN_COUNT, FEW)


@contextmanager
def unshared() -> Iterator[None]:
    """Undo what `share_cores` sets, for a process of others that is started within."""
    if os.environ.get(SPIN_COUNT) != FEW:
        yield
        return
    del os.environ[SPIN_COUNT]
    try:
        yield
    finally:
        os.environ[SPIN_COUNT] = FEW
