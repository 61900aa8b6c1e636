"""Signals that ask for an end."""

import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 0.5
STUCK_SECONDS = 10.0

Handler = Callable[[int, FrameType | None], None]


class _Last:
    """When a handler ran last."""

    handled = -math.inf


def once(act: Callable[[], None]) -> Handler:
    """Return a signal handler that acts. What sends a signal on, as `timeout` does, may send it
    twice: those that come at once are one."""
    last = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = _Last.handled = time.monotonic()
        if now - last > REPEAT_SECONDS:
            last = now
            act()

    return handle


@contextmanager
def interruptible() -> Iterator[None]:
    """Run code in C++ or Rust, which may make an error of its own out of the KeyboardInterrupt that
    a handler of `once` raised within it: that is a KeyboardInterrupt again."""
    start = time.monotonic()
    try:
        yield
    except Exception as error:
        if _Last.handled >= start:
            raise KeyboardInterrupt from error
        raise


def act_if_stuck(act: Callable[[], None]) -> None:
    """Act from another thread on a signal for which no handler of `once` runs within
    `STUCK_SECONDS`. Python runs them between two instructions of the main thread, and one product
    of large matrices may take minutes. Called in the main thread."""
    bell, ringer = socket.socketpair()
    ringer.setblocking(False)
    signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with ringer:  # open as long as this waits
            while number := bell.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    asked = time.monotonic()
                    time.sleep(STUCK_SECONDS)
                    # Which may have been a moment before we were woken.
                    if _Last.handled < asked - STUCK_SECONDS:
                        act()

    threading.Thread(target=watch, name="signals", daemon=True).start()
