"""Ways to take Ctrl-C and SIGTERM: later, once, or in the middle of foreign code.

What a run then keeps and says is in `cli/run.py`, its exit code in `cli/app.py`.
"""

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
    """The time at which a handler last ran."""

    handled = -math.inf


def once(act: Callable[[], None]) -> Handler:
    """Make a signal handler that acts once on signals that come together: `timeout`, for one, may
    send the same signal twice."""
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
    """Run C++ or Rust code, which may replace the KeyboardInterrupt of a `once` handler by an error
    of its own; raises KeyboardInterrupt again."""
    start = time.monotonic()
    try:
        yield
    except Exception as error:
        if _Last.handled >= start:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def deferred_interrupts() -> Iterator[threading.Event]:
    """Make Ctrl-C and SIGTERM set the event instead of interrupting; a second one interrupts."""
    event = threading.Event()

    def stop() -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    on_signal = once(stop)
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield event
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def act_if_stuck(act: Callable[[], None]) -> None:
    """Act in another thread on a signal for which no `once` handler runs within `STUCK_SECONDS`.
    Python runs handlers between two instructions of the main thread, and a product of large
    matrices may take minutes. Call it in the main thread."""
    bell, ringer = socket.socketpair()
    ringer.setblocking(False)
    signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with ringer:  # stays open while the thread waits
            while number := bell.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    asked = time.monotonic()
                    time.sleep(STUCK_SECONDS)
                    # The handler may have run just before this thread woke up.
                    if _Last.handled < asked - STUCK_SECONDS:
                        act()

    threading.Thread(target=watch, name="signals", daemon=True).start()
