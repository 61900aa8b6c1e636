"""A fork of the server is what a start of the installed command is."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunCvt
from tests.fork_server import Fork, ForkClient, ForkServer

# Says what a process is told by the system, and by Python from it.
ABOUT = """
import locale, os, signal, sys, tempfile, time
print(sys.argv, os.getcwd(), tempfile.gettempdir(), time.tzname, sorted(os.environ.items()))
print(sys.path[0], __name__, __file__, locale.getencoding(), os.path.expanduser("~"))
print([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.name, stream.mode, stream.encoding, stream.errors, stream.isatty())
    print(stream.line_buffering, stream.write_through, type(stream.buffer))
print(sorted(fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")))
print(len(os.listdir("/proc/self/task")), os.getpgrp() == os.getppid() or os.getpgrp())
sys.stdout.buffer.write(os.fsencode(sys.stdin.read()))
sys.exit(3)
"""


@pytest.fixture
def starts(tmp_path: Path, fork_server: ForkClient) -> tuple[RunCvt, RunCvt]:
    """The command forked and really started, in the same folder and environment."""
    forked = RunCvt(tmp_path, "http://127.0.0.1:9", fork_server)
    real = object.__new__(RunCvt)
    real.__dict__ |= {**forked.__dict__, "server": None}
    return forked, real


@pytest.mark.parametrize(
    ("arguments", "tty"),
    [
        (["--version"], False),
        ([], True),
        (["classify", "--help"], True),
        (["classify", "--nonsense"], False),
        (["classify", "-m", "no/such", b"\xff.jpg"], False),
        (["classify", "cat.jpg", b"\xff.jpg", "-m", "cvt-tiny-cifar10", "-f", "json"], False),
        (["classify", "cat.jpg", "missing.jpg", "-m", "cvt-tiny-cifar10"], True),
    ],
    ids=str,
)
def test_says_the_same(
    starts: tuple[RunCvt, RunCvt], cat: Path, arguments: list[Any], tty: bool
) -> None:
    forked, real = (run(*arguments, tty=tty, columns=70) for run in starts)
    assert forked.returncode == real.returncode
    assert forked.stdout == real.stdout
    assert forked.stderr == real.stderr


@pytest.fixture
def about(tmp_path: Path) -> Any:
    """A server for a script that tells what it is."""
    script = tmp_path / "about"
    script.write_text(f"#!{sys.executable}\n{ABOUT}")
    script.chmod(0o755)
    run = RunCvt(tmp_path, "http://127.0.0.1:9")
    run.script = script
    server = ForkServer((), run.env, script)
    yield run, server
    server.close()


def test_is_the_same_process(about: tuple[RunCvt, ForkServer], tmp_path: Path) -> None:
    run, server = about
    (tmp_path / "here").mkdir()
    env = {
        "TZ": "Asia/Tokyo",
        "TMPDIR": str(tmp_path / "here"),
        "COLUMNS": "50",
        "HOME": "/nowhere",
    }

    def say(tty: bool) -> tuple[int, str, str]:
        done = run(b"\xff", "ü", env=env, cwd=tmp_path / "here", stdin=b"\xfe\r\nx", tty=tty)
        return done.returncode, done.stdout, done.stderr

    for tty in (False, True):
        run.server = None
        real = say(tty)
        assert real[0] == 3
        run.server = server
        assert say(tty) == real


def test_ends_by_a_signal(starts: tuple[RunCvt, RunCvt]) -> None:
    process = starts[0].start("classify", "-", "-m", "cvt-tiny-cifar10")
    assert isinstance(process, Fork)
    assert process.poll() is None
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL == process.poll()
    process.communicate()


def test_what_a_fork_can_not_be_is_started(starts: tuple[RunCvt, RunCvt]) -> None:
    forked, _ = starts
    server = forked.server
    assert server and server.can_start(forked.env, {"stdin": None})
    assert server.can_start({**forked.env, "HF_TOKEN": "x", "TZ": "UTC"}, {})
    assert not server.can_start({**forked.env, "PYTHONPATH": "x"}, {})
    assert not server.can_start({**forked.env, "LANG": "C"}, {})
    without = {name: value for name, value in forked.env.items() if name != "OMP_NUM_THREADS"}
    assert not server.can_start(without, {})
    assert not server.can_start(forked.env, {"preexec_fn": os.getpid})


def test_runs_first_what_is_to_be_run_first(tmp_path: Path) -> None:
    run = RunCvt(tmp_path, "http://127.0.0.1:9")
    run.script = tmp_path / "about"
    about = "import os, sys; print(os.getpgrp() == os.getpid(), os.getcwd(), sys.stdin)"
    run.script.write_text(f"#!{sys.executable}\n{about}")
    run.script.chmod(0o755)
    server = ForkServer((), run.env, run.script)
    first = "import os; os.setsid(); os.chdir('..'); os.close(0)"
    said = []
    for run.server in (None, server):
        said.append(run.start(first=first).communicate()[0])
    server.close()
    assert said == [f"True {tmp_path.parent} None\n"] * 2
