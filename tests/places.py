"""Places that do to a reading process what hostile files would. It imports this, so little more."""

import io
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import BinaryIO

from cvt_cli.errors import ImageError


@dataclass(frozen=True)
class Deadly:
    """A place that ends the process that opens it."""

    number: int = signal.SIGSEGV
    is_local: bool = True

    def open(self) -> BinaryIO:
        os.kill(os.getpid(), self.number)
        time.sleep(60)
        raise AssertionError


@dataclass(frozen=True)
class Hanging:
    """One that never answers."""

    is_local: bool = True

    def open(self) -> BinaryIO:
        time.sleep(600)
        raise AssertionError


class _PausingFile(io.BytesIO):
    """Pauses once, after half of its bytes."""

    seconds = 0.0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        if self.tell() > len(self.getvalue()) // 2:
            time.sleep(self.seconds)
            self.seconds = 0.0
        return found


@dataclass(frozen=True)
class Pausing:
    """One that takes so many seconds to open, and as many to read."""

    content: bytes
    seconds: float
    is_local: bool = True

    def open(self) -> BinaryIO:
        time.sleep(self.seconds)
        file = _PausingFile(self.content)
        file.seconds = self.seconds
        return file


@dataclass(frozen=True)
class Hungry:
    """One that takes memory."""

    size: int
    is_local: bool = True

    def open(self) -> BinaryIO:
        return io.BytesIO(bytes(bytearray(self.size)[:1]))


@dataclass(frozen=True)
class Telling:
    """One that says what its process has imported."""

    is_local: bool = True

    def open(self) -> BinaryIO:
        heavy = {"torch", "pyarrow", "typer", "transformers"} & sys.modules.keys()
        raise ImageError(f"imported {sorted(heavy)}")
