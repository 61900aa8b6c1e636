"""Starts the installed command many times for the price of one: a process that has imported what
it needs, torch above all, forks for each start.

`ForkServer` is what tests use. Run as a program, this file is the server: it imports, computes
nothing and starts no thread, and makes of each copy of itself what a new Python would be.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# Read by the command each time that it runs, or when it imports what the server has not imported.
# All others may have been read by the server, or by its Python, as it started.
READ_LATE = frozenset(
    ("COLUMNS", "COMP_CWORD", "COMP_WORDS", "HOME", "LINES", "NO_COLOR", "TERM", "TMPDIR", "TZ")
)
READ_LATE_PREFIXES = ("_CVT_", "AWS_", "CVT_", "HF_", "HUGGING", "RAY_")
# Imported by the server, where they are installed: what huggingface_hub needs among them.
OFTEN = (
    *("torch", "numpy", "safetensors.torch", "jinja2", "typer._adapters", "rich.table"),
    *("cvt_cli.cli.app", "cvt_cli.inference.classifier", "cvt_cli.inspection.facts"),
    *("httpx", "httpx2", "anyio", "trio", "filelock", "yaml", "tqdm.auto", "attrs"),
)
# A variable: tests run as on a processor without bfloat16.
WITHOUT_BFLOAT16 = "TESTS_WITHOUT_BFLOAT16"
# A request and a report: lengths of the descriptions, process ids and wait statuses.
NUMBER = struct.Struct("q")


class ForkServer:
    """Forks for starts of `script`.

    Args:
        script: the installed command.
        env: the environment that the server is started in, and the starts that it can make.
    """

    def __init__(self, script: Path, env: Mapping[str, str]) -> None:
        self.script = script
        self._env = dict(env)
        self._ours, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), str(script)],
                # numpy's library starts threads as it is loaded.
                env={**env, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    def can_start(self, env: Mapping[str, str], options: Mapping[str, Any]) -> bool:
        """Whether a fork is the same as a start in this environment, with these of `Popen`'s
        options."""
        changed = {name for name, _ in self._env.items() ^ env.items()}
        return options.keys() <= {"stdin", "stdout", "stderr", "encoding", "errors"} and all(
            name in READ_LATE or name.startswith(READ_LATE_PREFIXES) for name in changed
        )

    def start(
        self,
        arguments: Sequence[str | bytes],
        env: Mapping[str, str],
        cwd: Path,
        code: str | None = None,
        **options: Any,
    ) -> "Fork":
        """Start the command, or this code as `python -c` does; `options` are `Popen`'s for streams
        and text."""
        return Fork(self, code, arguments, env=env, cwd=cwd, **options)

    def request(self, what: Mapping[str, Any], streams: Sequence[int]) -> tuple[int, socket.socket]:
        """Have the server fork.

        Returns:
            The process id, and the socket on which its wait status comes.
        """
        ours, theirs = socket.socketpair()
        description = json.dumps(what).encode()
        with theirs, self._lock:
            socket.send_fds(
                self._ours, [NUMBER.pack(len(description))], [*streams, theirs.fileno()]
            )
            self._ours.sendall(description)
        pid = ours.recv(NUMBER.size)
        if not pid:
            raise RuntimeError("the fork server has ended")
        return NUMBER.unpack(pid)[0], ours

    def close(self) -> None:
        """End it. What it has started goes on."""
        self._ours.close()
        self._process.wait()


class Fork(subprocess.Popen[Any]):
    """A `Popen` of what the server started: a child of the server's, not of this process."""

    def __init__(
        self, server: ForkServer, code: str | None, *arguments: Any, **options: Any
    ) -> None:
        self._server, self._code = server, code
        super().__init__(*arguments, **options)

    def _execute_child(  # type: ignore[override]
        self,
        args: Sequence[str | bytes],
        executable: None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: tuple[()],
        cwd: Path,
        env: Mapping[str, str],
        startupinfo: None,
        creationflags: int,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *_: Any,
    ) -> None:
        wanted = (p2cread, c2pwrite, errwrite)
        streams = [own if fd == -1 else fd for own, fd in enumerate(wanted)]
        what = {
            "arguments": [os.fsdecode(argument) for argument in args],
            "code": self._code,
            "env": dict(env),
            "cwd": os.fspath(cwd),
        }
        self.pid, self._status = self._server.request(what, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        flags = socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0
        try:
            status = self._status.recv(NUMBER.size, flags)
        except BlockingIOError:
            return 0, 0
        self._status.close()
        # The server was killed: nobody knows any more.
        return self.pid, NUMBER.unpack(status)[0] if status else signal.SIGKILL

    def _internal_poll(self, _deadstate: int | None = None, *_: Any) -> int | None:
        # Popen's own in the end, which waits by another function.
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def take_bfloat16_away() -> None:
    """Have torch say of this processor that it is one without bfloat16."""
    import torch

    for place, name in (
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
    ):
        setattr(place, name, lambda: False)


def _import() -> None:
    """What most commands import, except what reads the environment as it is imported, as
    huggingface_hub and matplotlib do, and what starts threads."""
    import PIL.Image

    for name in OFTEN:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    PIL.Image.init()
    if os.environ.get(WITHOUT_BFLOAT16):
        take_bfloat16_away()


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until no more can come, which ends the process.

    Returns:
        In each fork, and only there: what was asked for and its standard streams.
    """
    running: dict[int, socket.socket] = {}
    # A child's end wakes us.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C goes to whoever runs the tests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bell, ringer = socket.socketpair()
    for each in (bell, ringer):
        each.setblocking(False)
    signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    selector.register(bell, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if bell in ready:
            bell.recv(4096)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            # Nobody may be waiting for it.
            with running.pop(pid) as report, contextlib.suppress(OSError):
                report.send(NUMBER.pack(status))
        if connection not in ready:
            continue
        head, streams, *_ = socket.recv_fds(connection, NUMBER.size, 4)
        if not head:
            sys.exit()
        size = NUMBER.unpack(head)[0]
        description = b""
        while len(description) < size:
            description += connection.recv(size - len(description))
        report = socket.socket(fileno=streams.pop())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            selector.close()
            for each in (connection, bell, ringer, report, *running.values()):
                each.close()
            return json.loads(description), streams
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for stream in streams:
            os.close(stream)
        running[pid] = report
        report.send(NUMBER.pack(pid))


def _become(what: Mapping[str, Any], streams: Sequence[int]) -> ModuleType:
    """Make of this process what a new Python would be as it begins to run a script.

    Returns:
        The module of the script.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        new = _text_stream(number, name, old.encoding, old.errors)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.environ.clear()
    os.environ.update(what["env"])
    time.tzset()
    tempfile.tempdir = None
    os.chdir(what["cwd"])
    sys.argv = what["arguments"]
    module = ModuleType("__main__")
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    if what["code"] is None:
        module.__file__ = sys.argv[0]
    else:
        sys.path[0] = ""
    sys.modules["__main__"] = module
    return module


def _text_stream(number: int, name: str, encoding: str, errors: str) -> Any:
    """A standard stream as Python opens it."""
    mode = "w" if number else "r"
    binary: Any = open(number, f"{mode}b", closefd=False)  # noqa: SIM115
    stream: Any = io.TextIOWrapper(
        binary, encoding, errors, "\n", line_buffering=number == 2 or binary.isatty()
    )
    binary.raw.name = f"<{name}>"
    stream.mode = mode
    return stream


if __name__ == "__main__":
    _connection = socket.socket(fileno=int(sys.argv[1]))
    _script = sys.argv[2]
    sys.path[0] = str(Path(_script).parent)
    _code = compile(Path(_script).read_bytes(), _script, "exec")
    _import()
    if sys.platform == "linux":  # a fork has none of the other threads, and all of their locks
        assert len(os.listdir("/proc/self/task")) == 1
    gc.collect()
    gc.freeze()
    _what, _streams = _serve(_connection)
    _module = _become(_what, _streams)
    if _what["code"] is not None:
        _code = compile(_what["code"], "<string>", "exec")
    exec(_code, _module.__dict__)
