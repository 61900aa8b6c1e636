"""A peer in a process of its own, as its users run it: our settings, such as those of the
allocator, do not reach it, nor do its threads disturb ours."""

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

from cvt_cli.system.cores import unshared
from cvt_cli.system.signals import FROM_TERMINAL

# The exit code of a process that the system killed, as it does if memory is full.
KILLED = -9


class Apart:
    """An object in another process, which ends with the `with` block.

    Args:
        make: makes it there, called with the arguments; all of them are pickled.

    Raises:
        Exception: what `make` raises.
    """

    def __init__(self, make: Callable[..., object], *arguments: object, **named: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, partial(make, *arguments, **named)),
            name="peer",
            daemon=True,
        )
        with unshared():
            self._process.start()
        theirs.close()
        try:
            self._result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: object) -> Any:
        """Call the method of that name, and return its result.

        Raises:
            Exception: what it raises.
            MemoryError: if the system ended the process.
        """
        return self._result((method, arguments))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _result(self, request: tuple[str, tuple[object, ...]] | None = None) -> Any:
        try:
            if request is not None:
                self._connection.send(request)
            result, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            if code == KILLED:
                raise MemoryError from None
            raise RuntimeError(f"its process ended with code {code}") from None
        if error is not None:
            raise error
        return result


def _serve(connection: Connection, make: Callable[[], object]) -> None:
    for number in FROM_TERMINAL:  # the parent process handles them
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    served: object = None

    def answer(work: Callable[[], Any]) -> None:
        try:
            reply: tuple[Any, Exception | None] = work(), None
        except Exception as error:
            reply = None, error
        try:
            connection.send(reply)
        except (TypeError, AttributeError, ValueError) as error:  # can't be pickled
            connection.send((None, RuntimeError(str(reply[1] or error))))

    def begin() -> None:
        nonlocal served
        served = make()

    with suppress(EOFError, ConnectionError):  # until the parent is gone
        answer(begin)
        while True:
            method, values = connection.recv()
            answer(lambda: getattr(served, method)(*values))  # noqa: B023  called at once
