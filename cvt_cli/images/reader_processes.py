"""Starting and ending reading processes, with the memory that they share with their driver."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO

from cvt_cli.images.worker import serve
from cvt_cli.system.text import neutral

# Seconds beyond the time of an image for which a reader may do nothing.
GRACE = 10.0
# Seconds that the server may take to end by itself.
_GENTLY = 0.1


class ForkServer:
    """Starts readers by forking a process that has imported what they need."""

    has_files = True

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._start_server()

    def _start_server(self) -> None:
        ours, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from cvt_cli.images.reader_server import serve_readers; "
            f"serve_readers({theirs.fileno()}, {self._debug})"
        )
        # Only a process with one thread can fork safely.
        alone = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # What a codec says may be made of what is in the file.
        seen = self._debug and sys.stderr.isatty()
        unseen = None if self._debug else subprocess.DEVNULL
        stderr = subprocess.PIPE if seen else unseen
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **alone},
            )
        if self._server.stderr is not None:
            threading.Thread(target=_show, args=[self._server.stderr], daemon=True).start()
        self._control = ours
        # The server ends when its socket is closed, whatever becomes of this object.
        weakref.finalize(self, _end, self._server, ours)

    def start(self, memory: int | None) -> tuple[Connection, int]:
        """Start a reader. Raises: OSError."""
        with self._lock:
            try:
                connection, process = self._start(memory)
            except (EOFError, OSError):
                if self._closed:
                    raise OSError("the pool is closed") from None
                self._start_server()  # it was killed
                try:
                    connection, process = self._start(memory)
                except EOFError:
                    raise OSError("their server ends at once") from None
        if process < 0:
            connection.close()
            raise OSError(-process, os.strerror(-process))
        return connection, process

    def _start(self, memory: int | None) -> tuple[Connection, int]:
        ours, theirs = Pipe()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self._control.send(None)
            reduction.send_handle(self._control, theirs.fileno(), None)
            reduction.send_handle(self._control, null if memory is None else memory, None)
            process: int = self._control.recv()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(null)
        return ours, process

    def kill(self, process: int) -> None:
        """End a reader that has not ended yet."""
        if self._closed:
            return  # all end with the server
        # TypeError: another thread closes the connection just now.
        with self._lock, suppress(OSError, TypeError):
            self._control.send(-process)

    def status(self, process: int) -> int | None:
        """Return the exit code of a reader that has ended; None if it is unknown."""
        with self._lock, suppress(EOFError, OSError):
            self._control.send(process)
            code: int | None = self._control.recv()
            return code
        return None

    def close(self) -> None:
        """End the server, and with it all readers."""
        assert self._server is not None
        self._closed = True
        _end(self._server, self._control)


def _show(lines: Iterable[bytes]) -> None:
    """Write what codecs say to a terminal."""
    for line in lines:
        sys.stderr.write(neutral(line.decode("utf-8", "backslashreplace")))


def _end(server: "subprocess.Popen[bytes]", control: Connection) -> None:
    control.close()
    try:
        server.wait(_GENTLY)
    except subprocess.TimeoutExpired:
        # It may still be importing. The system ends its readers with it.
        server.kill()
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE)


class Spawner:
    """Starts readers as new processes, on systems without a fork server."""

    has_files = False

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        self._context = get_context("spawn")
        self._lock = threading.Lock()

    def start(self, memory: int | None) -> tuple[Connection, Any]:
        """Start a reader. Raises: OSError."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(theirs, memory, self._debug), daemon=True
        )
        # It would import the main program, and run a script that has no guard.
        with self._lock, theirs:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                process.start()
            finally:
                sys.modules["__main__"] = main
        return ours, process

    def kill(self, process: Any) -> None:
        """End a reader."""
        process.kill()

    def status(self, process: Any) -> int | None:
        """Return the exit code of a reader that has ended; None if it is unknown."""
        process.join(GRACE)
        code: int | None = process.exitcode
        return code

    def close(self) -> None:
        """Do nothing: there is no server to end."""


def process_starter(debug: bool) -> "ForkServer | Spawner":
    """Return what starts readers on this system.

    Args:
        debug: let codecs write to stderr.
    """
    return ForkServer(debug) if sys.platform == "linux" else Spawner(debug)


def cause_of_death(status: int | None) -> str:
    """Describe what a reader died of, by its exit code."""
    if status is None or status >= 0:
        return "the process that read it died"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            return "the process that read it was killed, as the system does where memory runs out"
        return f"the process that read it crashed ({name})"
    return f"the process that read it died of signal {-status}"


def shared_memory(size: int) -> BinaryIO | None:
    """Make a nameless file with reserved blocks; None if there is no room, because writing to
    memory that can't be had would kill the process."""
    try:
        if hasattr(os, "memfd_create"):
            file = os.fdopen(os.memfd_create("cvt-pixels", os.MFD_CLOEXEC), "w+b")
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 (who asked closes it)
    except OSError:
        return None
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (OSError, AttributeError):
        file.close()
        return None
    return file
