"""Fixtures: a Hub on the loopback interface, the installed command, checkpoints and images."""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

# Containers often set it. Every process would then compile all tests anew, for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A port that is taken but never answers: no test may reach the network.
_NOWHERE = socket.socket()
_NOWHERE.bind(("127.0.0.1", 0))
NOWHERE = f"http://127.0.0.1:{_NOWHERE.getsockname()[1]}"

_HOME = tempfile.TemporaryDirectory(prefix="cvt-tests-")

# Read once, when `huggingface_hub` is imported; for what tests do in their own process.
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING", "CVT_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]
# Tests run beside each other: threads of several networks would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_ENDPOINT=NOWHERE, HF_HOME=_HOME.name, HF_HUB_DISABLE_TELEMETRY="1")
# Its list of fonts takes seconds to make: all processes share it.
os.environ.setdefault("MPLCONFIGDIR", f"{_HOME.name}/matplotlib")

from tests.fork_server import (  # noqa: E402
    OFTEN,
    READING,
    WITHOUT_BFLOAT16,
    ForkClient,
    ForkServer,
    reading_by,
    take_bfloat16_away,
)
from tests.hub_server import HubServer  # noqa: E402
from tests.photos import PHOTOS, make_photo, picture  # noqa: E402
from tests.tiny import save_tiny  # noqa: E402

# Variables that the command sees as the tests do: where things are, and what processor to be.
PASSED_ON = (
    *("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "OMP_NUM_THREADS", "TMPDIR"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", WITHOUT_BFLOAT16),
)
USUAL_ENVIRONMENT = dict(os.environ)

# Where the fork servers are kept, and in what xdist tells its processes.
SERVERS = "fork_servers"

# The files whose tests take longest, in order: of several processes each begins with one of them,
# so that none still has one to do when the others are done. Ray's take a process's whole time.
LONGEST = (
    "tests/distributed/test_ray.py",
    "tests/cli/test_train.py",
    "tests/benchmark/test_benchmark.py",
    "tests/test_docs.py",
    "tests/model/test_cvt.py",
    "tests/cli/test_benchmark.py",
    "tests/cli/test_export.py",
    "tests/cli/test_inspect.py",
    "tests/cli/test_classify.py",
    "tests/cli/test_update.py",
    "tests/images/test_pool.py",
    "tests/cli/test_resume.py",
    "tests/test_startup.py",
    "tests/test_fork_server.py",
    "tests/tagging/test_tag.py",
    "tests/output/test_report_page.py",
    "tests/cli/test_train_head.py",
    "tests/cli/test_circle.py",
    "tests/cli/test_unattended.py",
)
if os.environ.get(WITHOUT_BFLOAT16):
    take_bfloat16_away()


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: Ray's tests wait most of their time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_cmdline_main(config: pytest.Config) -> None:
    """Of several processes one runs all tests of a file: what a module shares is made once, a Ray
    cluster above all."""
    if config.getoption("numprocesses", None) and config.getoption("dist") == "no":
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # `LONGEST` orders them


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the processes of xdist fork servers of this one."""
    servers: Servers | None = getattr(node.config, SERVERS, None)
    if servers is None:
        servers = Servers()
        setattr(node.config, SERVERS, servers)
        node.config.add_cleanup(servers.close)
    node.workerinput[SERVERS] = [
        (each.address, each.env) for each in (servers.readers, servers.commands)
    ]


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Have each process of xdist compile files of its own first, and read what others compiled.
    What is imported stays: looking for garbage in it takes longer than many a test."""
    gc.disable()
    about = getattr(session.config, "workerinput", None)
    if about is not None:
        number, count = int(about["workerid"].removeprefix("gw")), about["workercount"]
        files = [
            file
            for file in sorted(session.config.rootpath.glob("tests/**/test_*.py"))
            if any(file.is_relative_to(Path(each).absolute()) for each in session.config.args)
        ]
        for file in files[number::count]:
            name = ".".join(file.relative_to(session.config.rootpath).with_suffix("").parts)
            # What it raises is said when it is collected. To skip is no `Exception`.
            with contextlib.suppress(Exception, pytest.skip.Exception):
                importlib.import_module(name)
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put `LONGEST` first in the processes of xdist, then files of many tests. Tests marked `cuda`
    run where torch has a CUDA device."""
    if hasattr(config, "workerinput"):
        files = [item.nodeid.partition("::")[0] for item in items]
        sizes = Counter(files)
        first = {file: place - len(LONGEST) for place, file in enumerate(LONGEST)}
        places = {
            id(item): (first.get(file, 0), -sizes[file], file)
            for item, file in zip(items, files, strict=True)
        }
        items.sort(key=lambda item: places[id(item)])
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how long to fuzz."""
    parser.addoption(
        "--fuzz", type=int, default=40, help="damaged inputs of each kind in tests/fuzz (40)"
    )


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub; `run_cvt` talks to it in tests that ask for it."""
    with HubServer() as server:
        yield server


class Completed(subprocess.CompletedProcess[str]):
    """A finished command; `returncode`, `stdout` and `stderr`."""

    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.stdout)

    def jsonl(self) -> list[Any]:
        """Standard output as one JSON value a line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


class RunCvt:
    """The installed `cvt` in a clean environment of its own.

    Where it can't matter it is a fork of a process that has imported torch: a start takes two
    seconds, a fork some milliseconds. Tests of starting are marked `real_start`.

    Attributes:
        server: what forks for it; None for real starts only.
        hf_home: its HF_HOME, empty at first.
        env: what it sees of the environment, and nothing more; tests may change it.
        cwd: where it runs.
    """

    script = Path(sys.executable).with_name("cvt")

    def __init__(self, folder: Path, endpoint: str, server: ForkClient | None = None) -> None:
        self.server = server
        self.cwd = folder
        self.hf_home = folder / ".hf"
        home = folder / ".home"
        home.mkdir()
        self.env = {
            "PATH": os.pathsep.join((str(self.script.parent), os.defpath)),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "HF_HOME": str(self.hf_home),
            "HF_ENDPOINT": endpoint,
            "CVT_DEVICE": "cpu",
        }
        self.env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def start(
        self,
        *arguments: object,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        first: str = "",
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start the command and leave it running, for tests that interrupt it or feed it.

        Its three streams are text pipes unless `options` for `Popen` say otherwise. A value of
        None in `env` takes a variable away. Its process runs the code `first`, to be another
        user's, say, before it is the command.
        """
        wanted = {
            name: value for name, value in {**self.env, **(env or {})}.items() if value is not None
        }
        command = [self.script, *(a if isinstance(a, str | bytes) else str(a) for a in arguments)]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        options = {**text, **streams, **options}
        if self.server and self.server.can_start(wanted, options):
            return self.server.start(command, wanted, cwd or self.cwd, first=first, **options)

        def before() -> None:
            # What runs the tests in the background may have had them ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            exec(first, {})

        options.setdefault("preexec_fn", before)
        return subprocess.Popen(command, env=wanted, cwd=cwd or self.cwd, **options)

    def __call__(
        self,
        *arguments: object,
        stdin: bytes | str | Path = b"",
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        columns: int | None = None,
        no_color: bool = False,
        tty: bool = False,
        expect: int | None = None,
        timeout: float = 600,
    ) -> Completed:
        """Run the command to its end.

        Args:
            arguments: its arguments; all but bytes become text.
            stdin: what it reads: contents, or a file to redirect.
            env: variables on top of the usual ones; None takes one away.
            cwd: where it runs.
            columns: COLUMNS, and the width of the terminal.
            no_color: set NO_COLOR.
            tty: give it a terminal as standard output.
            expect: fail unless this is its exit code.
            timeout: in seconds.
        """
        extra: dict[str, str | None] = {**(env or {})}
        if columns is not None:
            extra["COLUMNS"] = str(columns)
        if no_color:
            extra["NO_COLOR"] = "1"
        if isinstance(stdin, str):
            stdin = stdin.encode()
        with contextlib.ExitStack() as stack:
            source: Any = subprocess.PIPE
            if isinstance(stdin, Path):
                source = stack.enter_context(stdin.open("rb"))
            text, sink = None, subprocess.PIPE
            if tty:
                extra.setdefault("TERM", "xterm-256color")
                text, sink = _terminal(columns or 80)
            process = self.start(
                *arguments,
                env=extra,
                cwd=cwd,
                stdin=source,
                stdout=sink,
                encoding=None,
                errors=None,
            )
            stack.enter_context(process)
            if text is not None:
                os.close(sink)
                text.start()
            try:
                out, err = process.communicate(
                    None if isinstance(stdin, Path) else stdin, timeout=timeout
                )
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if text is not None:
            out = text.result()
        done = Completed(process.args, process.returncode, *map(_decode, (out, err)))
        if expect is not None:
            assert done.returncode == expect, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class _Screen(threading.Thread):
    """Collects what a program writes to a terminal."""

    def __init__(self, end: int) -> None:
        super().__init__(daemon=True)
        self._end = end
        self._data = b""

    def run(self) -> None:
        # The other end's closing is an error on Linux, an empty read elsewhere.
        with contextlib.suppress(OSError):
            while data := os.read(self._end, 2**16):
                self._data += data
        os.close(self._end)

    def result(self) -> bytes:
        self.join()
        return self._data.replace(b"\r\n", b"\n")


def _terminal(columns: int) -> tuple[_Screen, int]:
    """A terminal of this width: what reads its screen, and the file to write to."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return _Screen(ours), theirs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for next to nothing, to be remounted with more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if mount is None or subprocess.call([mount, *options], stderr=subprocess.DEVNULL):
        pytest.skip("needs leave to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def run_cvt(request: pytest.FixtureRequest, tmp_path: Path) -> RunCvt:
    """Runs the installed `cvt`; see `RunCvt`."""
    uses_hub = "hub" in request.fixturenames
    server = None
    if not request.node.get_closest_marker("real_start"):
        server = request.getfixturevalue("fork_server")
    return RunCvt(tmp_path, request.getfixturevalue("hub").url if uses_hub else NOWHERE, server)


@pytest.fixture
def run_python(tmp_path: Path, fork_server: ForkClient) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts code as `python -c` does, with its arguments, in a fork of what has imported torch:
    for what may end its process. In the environment of `run_cvt`, with text pipes as streams."""
    run = RunCvt(tmp_path, NOWHERE)

    def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = ["-c", *map(str, arguments)]
        return fork_server.start(command, run.env, tmp_path, code, encoding="utf-8", **pipes)

    return start


class Servers:
    """What forks for the starts of readers, and for `run_cvt`."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory()
        usual = RunCvt(Path(self._home.name), NOWHERE)
        self.readers = ForkServer(READING, usual.env)
        self.commands = ForkServer(OFTEN, usual.env, usual.script, readers=self.readers)

    def close(self) -> None:
        """End them."""
        self.commands.close()
        self.readers.close()
        self._home.cleanup()


@pytest.fixture(scope="session")
def fork_servers(request: pytest.FixtureRequest) -> Iterator[tuple[ForkClient, ForkClient]]:
    """What forks for the starts of readers, and for `run_cvt`, in all tests."""
    about = getattr(request.config, "workerinput", None)
    if about is not None:
        readers, commands = (ForkClient(*each) for each in about[SERVERS])
        yield readers, commands
        return
    servers = Servers()
    yield servers.readers, servers.commands
    servers.close()


@pytest.fixture(scope="session")
def fork_server(fork_servers: tuple[ForkClient, ForkClient]) -> ForkClient:
    """What forks for `run_cvt`."""
    return fork_servers[1]


@pytest.fixture(autouse=True)
def forked_readers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Readers of pools in this process are forks, too, but in tests marked `real_start`."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("real_start"):
            forking = reading_by(
                lambda: request.getfixturevalue("fork_servers")[0].address, USUAL_ENVIRONMENT
            )
            patch.setattr("cvt_cli.images.reader_processes.subprocess", forking)
        yield


@pytest.fixture(scope="session")
def tiny_cvt(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save_tiny` into a new folder each time, so that a test may damage what it gets."""
    return lambda *args, **options: save_tiny(tmp_path_factory.mktemp("cvt"), *args, **options)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every one of `PHOTOS` by name; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    return {name: make_photo(name, folder) for name in PHOTOS}


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """One picture, `cat.jpg` in the folder where `run_cvt` runs."""
    picture().save(tmp_path / "cat.jpg")
    return tmp_path / "cat.jpg"


@pytest.fixture(params=PHOTOS)
def photo(request: pytest.FixtureRequest, photos: dict[str, Path]) -> Path:
    """One test for each of `PHOTOS`."""
    return photos[request.param]
