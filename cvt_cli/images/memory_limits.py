"""Limits on the memory of a reading process."""

import mmap
import sys
from collections.abc import Callable
from contextlib import suppress

from cvt_cli.images import formats

# Bytes beyond those of an image's pixels: the encoded image, and what the allocator keeps.
_SPARE = 2**27


class MemoryLimits:
    """The memory that this process may have, on systems that limit it (not macOS or Windows).

    Attributes:
        max_pixels: of an image.
        room: bytes that it may take now, beyond what the process has had from the start.
    """

    def __init__(self) -> None:
        self.max_pixels = 0
        self.room = 0
        self._base = 0
        self._set: Callable[[int], None] | None = None
        if sys.platform != "linux":
            return
        import resource

        with suppress(OSError), open("/proc/self/statm", "rb") as file:
            self._base = int(file.read().split()[0]) * mmap.PAGESIZE
            _, hard = resource.getrlimit(resource.RLIMIT_AS)

            def limit(size: int) -> None:
                size = min(size, sys.maxsize)
                if hard != resource.RLIM_INFINITY:
                    size = min(size, hard)
                with suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_AS, (size, hard))

            self._set = limit

    def set(self, name: str | None) -> None:
        """Set the limit for an image of this format, or of one that is not known yet."""
        self.set_room(formats.bytes_per_pixel(name) * self.max_pixels + _SPARE)

    def set_data(self, room: int) -> None:
        """Allow this many bytes for what it writes to, whatever it reserves. For good: a process
        that lists an archive does nothing else."""
        if self._set is None:
            return
        import resource

        with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
            size = int(file.read().split()[5]) * mmap.PAGESIZE + room
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))

    def set_room(self, room: int) -> None:
        """Set the limit to this many bytes more than the process had when it started."""
        if room != self.room:
            self.room = room
            if self._set is not None:
                self._set(self._base + room)
