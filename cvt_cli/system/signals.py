"""Ways to take the signals that end a run, Ctrl-C, SIGTERM and SIGHUP: later, once, or in the
middle of foreign code.

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
from typing import Any

REPEAT_SECONDS = 0.5
STUCK_SECONDS = 10.0

# A terminal sends these to all of its processes: Ctrl-C; and SIGHUP as it is closed or its
# connection is lost, which Windows does not know. A shell may have a process ignore them: in the
# background of a script, or under nohup.
FROM_TERMINAL = (signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
ENDING = (*FROM_TERMINAL, signal.SIGTERM)

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


def handle_endings(handler: Handler) -> list[tuple[int, Any]]:
    """Install a handler of the signals that end a run, but for those from a terminal that are
    ignored; returns each with what it had before."""
    taken = [
        number
        for number in ENDING
        if number not in FROM_TERMINAL or signal.getsignal(number) != signal.SIG_IGN
    ]
    return [(number, signal.signal(number, handler)) for number in taken]


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
    """Make signals that end a run set the event instead of interrupting; a second one
    interrupts."""
    event = threading.Event()

    def stop() -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = handle_endings(once(stop))
    try:
        yield event
    finally:
        for number, handler in before:
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
                if number[0] in ENDING:
                    asked = time.monotonic()
                    time.sleep(STUCK_SECONDS)
                    # The handler may have run just before this thread woke up.
                    if _Last.handled < asked - STUCK_SECONDS:
                        act()

    threading.Thread(target=watch, name="signals", daemon=True).start()
