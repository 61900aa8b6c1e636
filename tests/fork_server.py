"""Starts Python many times for the price of one: a process that has imported what it needs, torch
above all, forks for each start.

`ForkServer` is what tests use: one for the installed command, one for the processes with which it
reads images. Run as a program, this file is the server: it imports and builds what all need,
computes nothing and starts no thread, and makes of each copy of itself what a new Python would be.
"""

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# Read by the command each time that it runs, or when it imports what the server has not imported.
# All others may have been read by the server, or by its Python, as it started.
READ_LATE = frozenset(
    {
        *("COLUMNS", "COMP_CWORD", "COMP_WORDS", "HOME", "LINES", "NO_COLOR", "TERM", "TMPDIR"),
        *("PYTHONDONTWRITEBYTECODE", "TZ"),
    }
)
READ_LATE_PREFIXES = ("_CVT_", "AWS_", "CVT_", "HF_", "HUGGING", "RAY_")
# Read by a reader's Python as it starts.
READ_EARLY_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_")
# With which numpy's library and pyarrow's start no thread as they are loaded.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Imported for the command: what huggingface_hub and Ray need among them.
OFTEN = (
    *("torch", "torch._dynamo", "numpy", "safetensors.torch", "jinja2", "typer._adapters"),
    *("rich.table",),
    *("cvt_cli.cli.app", "cvt_cli.inference.classifier", "cvt_cli.inspection.facts"),
    *("cvt_cli.inspection.weights", "cvt_cli.output.report_tables", "httpcore2", "configparser"),
    *("httpx", "httpx2", "anyio", "trio", "filelock", "yaml", "tqdm.auto", "attrs"),
    *("pandas", "pyarrow.parquet", "jsonschema", "requests", "google.protobuf.json_format"),
)
# Imported for its readers, which begin by that; but torch, which they never need.
READING = ("cvt_cli.images.reader_server", "pi_heif", "pillow_jxl", "rawpy")
# A variable: tests run as on a processor without bfloat16.
WITHOUT_BFLOAT16 = "TESTS_WITHOUT_BFLOAT16"
# A request and a report: lengths of the descriptions, process ids and wait statuses.
NUMBER = struct.Struct("q")


class ForkClient:
    """Starts of Python by a `ForkServer`, be it another process's.

    Args:
        address: the server's.
        env: the environment that it was started in.
    """

    def __init__(self, address: str, env: Mapping[str, str]) -> None:
        self.address, self.env = address, dict(env)

    def can_start(self, env: Mapping[str, str], options: Mapping[str, Any]) -> bool:
        """Whether a fork is the same as a start in this environment, with these of `Popen`'s
        options."""
        changed = {name for name, _ in self.env.items() ^ env.items()}
        return options.keys() <= {"stdin", "stdout", "stderr", "encoding", "errors"} and all(
            name in READ_LATE or name.startswith(READ_LATE_PREFIXES) for name in changed
        )

    def start(
        self,
        arguments: Sequence[str | bytes],
        env: Mapping[str, str],
        cwd: Path,
        code: str | None = None,
        *,
        first: str = "",
        **options: Any,
    ) -> "Fork":
        """Start the script, or this code as `python -c` does; `options` are `Popen`'s for streams
        and text. `first` is code in place of its `preexec_fn`."""
        return Fork(self.address, code, arguments, first=first, env=env, cwd=cwd, **options)


class ForkServer(ForkClient):
    """Forks for starts of Python.

    Args:
        imports: the modules that it imports, where they are installed.
        env: the environment that it is started in.
        script: what is run where no code is given.
        readers: what forks for the starts of the command's readers.
    """

    def __init__(
        self,
        imports: Collection[str],
        env: Mapping[str, str],
        script: Path | None = None,
        *,
        readers: ForkClient | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-")
        super().__init__(f"{self._folder.name}/server", env)
        self._ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(100)
            what = {
                "imports": list(imports),
                "script": script and str(script),
                "readers": readers and readers.address,
                "sockets": [listening.fileno(), theirs.fileno()],
            }
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(what)],
                env={**env, **WITHOUT_THREADS},
                pass_fds=what["sockets"],
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    def close(self) -> None:
        """End it. What it has started goes on."""
        self._ours.close()
        self._process.wait()
        self._folder.cleanup()


class Fork(subprocess.Popen[Any]):
    """A `Popen` of what the server at an address starts: a child of the server's, not of this
    process."""

    def __init__(
        self, address: str, code: str | None, *arguments: Any, first: str = "", **options: Any
    ) -> None:
        self._address, self._code, self._first = address, code, first
        super().__init__(*arguments, **options)

    def _execute_child(  # type: ignore[override]
        self,
        args: Sequence[str | bytes],
        executable: None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: tuple[int, ...],
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
            "first": self._first,
            "env": dict(env),
            "cwd": os.fspath(cwd),
            "files": [0, 1, 2, *pass_fds],
        }
        description = json.dumps(what).encode()
        # On it come the process id, and its wait status in the end.
        self._status = socket.socket(socket.AF_UNIX)
        self._status.connect(self._address)
        head = NUMBER.pack(len(description))
        socket.send_fds(self._status, [head], [*streams, *pass_fds])
        self._status.sendall(description)
        pid = self._status.recv(NUMBER.size)
        if not pid:
            raise RuntimeError("the fork server has ended")
        (self.pid,) = NUMBER.unpack(pid)
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


def reading_by(address: Callable[[], str], usual: Mapping[str, str]) -> SimpleNamespace:
    """`subprocess` for `images.reader_processes`: its processes are forks of the server at that
    address, where one is the same as a start, as in the usual environment."""

    def start(command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> Any:
        changed = {name for name, _ in usual.items() ^ env.items()}
        early = any(name.startswith(READ_EARLY_PREFIXES) for name in changed)
        if early or command[:2] != [sys.executable, "-c"]:
            return subprocess.Popen(command, env=env, **options)
        code = command[2]
        return Fork(address(), code, command[1:2], env=env, cwd=Path.cwd(), **options)

    return SimpleNamespace(**{**vars(subprocess), "Popen": start})


def take_bfloat16_away() -> None:
    """Have torch say of this processor that it is one without bfloat16."""
    import torch

    for place, name in (
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
    ):
        setattr(place, name, lambda: False)


def _import(names: Sequence[str]) -> None:
    """What is often imported, except what reads the environment as it is imported, as
    huggingface_hub and matplotlib do, and what starts threads."""
    import PIL.Image

    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    PIL.Image.init()
    if os.environ.get(WITHOUT_BFLOAT16) and "torch" in sys.modules:
        take_bfloat16_away()


def _build_once() -> None:
    """Build what each command builds as it starts, always the same: Typer's command with its types,
    the patterns of weights' names, the certificates that huggingface_hub trusts."""
    import typer.main

    from cvt_cli.checkpoint.layouts import LAYOUTS
    from cvt_cli.cli.app import app

    build = typer.main.get_command
    command: Any = build(app)
    typer.main.get_command = lambda instance: command if instance is app else build(instance)
    context: Any = None
    for each in (
        command,
        *(command.get_command(context, name) for name in command.list_commands(context)),
    ):
        for parameter in each.params:
            if hasattr(parameter, "get_runtime_param"):  # of newer Typers
                parameter.get_runtime_param()
    for layout in LAYOUTS:
        layout.to_ours({layout.first: None})
    with contextlib.suppress(ImportError):
        import httpcore2

        trusted = httpcore2.default_ssl_context()
        httpcore2.default_ssl_context = lambda **_: trusted


def _serve(listening: socket.socket, alive: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until the other end of `alive` is closed, which ends the process.

    Returns:
        In each fork, and only there: what was asked for and its open files.
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
    for each in (listening, alive, bell):
        selector.register(each, selectors.EVENT_READ)
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
                report.send(NUMBER.pack(status), socket.MSG_NOSIGNAL)
        if alive in ready:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # nothing is left to be woken
            sys.exit()
        if listening not in ready:
            continue
        report, _ = listening.accept()
        try:
            what, files = _receive(report)
        except EOFError:
            continue
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            selector.close()
            for each in (listening, alive, bell, ringer, report, *running.values()):
                each.close()
            return what, files
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for file in files:
            os.close(file)
        running[pid] = report
        with contextlib.suppress(OSError):
            report.send(NUMBER.pack(pid), socket.MSG_NOSIGNAL)


def _receive(report: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and its open files. Raises: EOFError, if who asked has ended."""
    head, files, *_ = socket.recv_fds(report, NUMBER.size, 16)
    size = NUMBER.unpack(head)[0] if head else 0
    description = b""
    while len(description) < size and (more := report.recv(size - len(description))):
        description += more
    if not head or len(description) < size:
        for file in files:
            os.close(file)
        report.close()
        raise EOFError
    return json.loads(description), files


def _become(what: Mapping[str, Any], files: Sequence[int]) -> ModuleType:
    """Make of this process what a new Python would be as it begins to run a script.

    Returns:
        The module of the script.
    """
    # Out of the way of where they are wanted.
    beyond = max(what["files"]) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, beyond) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip(what["files"], moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(what["env"])
    time.tzset()
    tempfile.tempdir = None
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    os.chdir(what["cwd"])
    if what["first"]:
        before = _inherited()
        exec(what["first"], {})
        if _inherited() != before and _processes in sys.modules:
            vars(sys.modules[_processes])["subprocess"] = subprocess
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        new = _text_stream(number, name, old.encoding, old.errors)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    sys.argv = what["arguments"]
    module = ModuleType("__main__")
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    if what["code"] is None:
        module.__file__ = sys.argv[0]
    else:
        sys.path[0] = ""
    sys.modules["__main__"] = module
    return module


def _inherited() -> tuple[object, ...]:
    """What the processes that this one starts would have of it."""
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return (
        *(dict(os.environ), os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getpgrp()),
        [resource.getrlimit(getattr(resource, name)) for name in limits],
        [signal.getsignal(each) for each in signal.valid_signals()],
        [os.path.exists(name) for name in (".", "/dev/fd/0", "/dev/fd/1", "/dev/fd/2")],
    )


def _text_stream(number: int, name: str, encoding: str, errors: str) -> Any:
    """A standard stream as Python opens it; None if it is closed."""
    mode = "w" if number else "r"
    try:
        binary: Any = open(number, f"{mode}b", closefd=False)  # noqa: SIM115
    except OSError:
        return None
    stream: Any = io.TextIOWrapper(
        binary, encoding, errors, "\n", line_buffering=number == 2 or binary.isatty()
    )
    binary.raw.name = f"<{name}>"
    stream.mode = mode
    return stream


if __name__ == "__main__":
    _about = json.loads(sys.argv[1])
    _sockets = [socket.socket(fileno=number) for number in _about["sockets"]]
    _script, _code = _about["script"], None
    if _script is not None:
        sys.path[0] = str(Path(_script).parent)
        _code = compile(Path(_script).read_bytes(), _script, "exec")
    else:
        sys.path[0] = ""
    _import(_about["imports"])
    if "cvt_cli.cli.app" in sys.modules:
        _build_once()
    _processes = "cvt_cli.images.reader_processes"
    if _about["readers"] is not None and _processes in sys.modules:
        _forking = reading_by(lambda: _about["readers"], dict(os.environ))
        vars(sys.modules[_processes])["subprocess"] = _forking
    if sys.platform == "linux":  # a fork has none of the other threads, and all of their locks
        assert len(os.listdir("/proc/self/task")) == 1
    gc.collect()
    gc.freeze()
    _what, _files = _serve(*_sockets)
    _module = _become(_what, _files)
    if _what["code"] is not None:
        _code = compile(_what["code"], "<string>", "exec")
    assert _code is not None
    exec(_code, _module.__dict__)
