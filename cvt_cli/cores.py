"""How many processor cores there are for this process, and what follows from it."""

import os


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Threads that decode images: a GPU has an image done in less time than a core decodes one. A few
# more than cores where those are few, for images that come over a network.
DECODE_THREADS = min(32, max(4, cores()))
