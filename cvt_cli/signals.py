"""Signals that ask for an end."""

import math
import time
from collections.abc import Callable
from types import FrameType

REPEAT_SECONDS = 0.5

Handler = Callable[[int, FrameType | None], None]


def once(act: Callable[[], None]) -> Handler:
    """A handler that acts. What sends a signal on, as `timeout` does, may send it twice: those
    that come at once are one."""
    last = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > REPEAT_SECONDS:
            last = now
            act()

    return handle
