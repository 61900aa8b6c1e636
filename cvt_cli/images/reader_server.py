"""The server that starts reading processes. Imports neither torch nor pyarrow.

It is a process with one thread that has imported what reading takes, so that to start a reader is a
fork of a few milliseconds, and never a fork of the driver with torch's threads. It ends with the
driver, however that ends, and takes the readers with it.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection

from cvt_cli.images import formats
from cvt_cli.images.worker import serve
from cvt_cli.system.signals import ENDING

# Seconds to wait for a process to end: it may hang in the kernel.
_REAP_SECONDS = 0.5


def serve_readers(control: int, debug: bool) -> None:
    """Run the server: start readers on request, until the driver is gone.

    Args:
        control: the socket to the driver.
        debug: let them write to stderr.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # the driver decides
    formats.register()
    die_with_parent = _death_signal()
    driver: Connection = Connection(control)
    alive: set[int] = set()
    ended: dict[int, int] = {}
    with suppress(EOFError, OSError):
        while True:
            asked = driver.recv()
            _reap(alive, ended)
            if asked is None:
                process = _fork(driver, die_with_parent, debug)
                if process > 0:
                    alive.add(process)
                driver.send(process)
            elif asked < 0:  # end one; until it is reaped here no other has its number
                if -asked in alive:
                    os.kill(-asked, signal.SIGKILL)
            else:  # how did one end?
                end = time.monotonic() + _REAP_SECONDS
                while asked in alive and asked not in ended and time.monotonic() < end:
                    time.sleep(0.002)
                    _reap(alive, ended)
                driver.send(ended.pop(asked, None))
    for process in alive:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _fork(driver: Connection, die_with_parent: Callable[[], None], debug: bool) -> int:
    """Start a reader, with the connection and the file of shared memory that follow.

    Returns:
        Its number; that of the error, below zero, if there can't be one.
    """
    handles = [reduction.recv_handle(driver) for _ in range(2)]
    try:
        process = os.fork()
    except OSError as error:
        process = -(error.errno or errno.EAGAIN)
    if process == 0:
        try:
            die_with_parent()
            driver.close()
            shared = os.fstat(handles[1]).st_size > 0
            serve(Connection(handles[0]), handles[1] if shared else None, debug)
        finally:
            os._exit(0)
    for handle in handles:
        os.close(handle)
    return process


def _reap(alive: set[int], ended: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            alive.discard(found[0])
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])


def _death_signal() -> Callable[[], None]:
    """Make the system end this process with its parent, if it can."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)

    return ask
