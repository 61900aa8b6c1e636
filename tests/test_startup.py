"""What answers at once must not wait for torch."""

import os
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cvt_cli.cli.commands import NAMES
from cvt_cli.system import cores
from tests.conftest import RunCvt

HEAVY = {"torch", "numpy", "transformers", "huggingface_hub", "PIL", "safetensors"}

# Runs the command line in a process of its own and says what it has imported by its end.
CODE = """
import atexit, os, sys
def report():
    sys.stderr.write(" ".join(sys.modules))
    sys.stderr.flush()
atexit.register(report)
sys.argv = ["cvt", *sys.argv[1:]]
from cvt_cli.__main__ import main
main()
"""


def imported(*arguments: str) -> set[str]:
    """The modules that a command has imported by its end."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["classify", "--help"],
        [],
        ["classify", "x.jpg", "--format", "nonsense"],
        ["classify", "x.jpg", "-o", "x.nonsense"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    names = imported(*arguments)
    assert {"cvt_cli", "typer"} <= names
    assert not names & HEAVY


def test_a_list_of_models_needs_no_torch() -> None:
    assert not imported("models") & {"torch", "transformers"}


@pytest.mark.parametrize(("typed", "command"), [(["--version"], None), (["merge"], "merge")])
def test_no_other_command_is_imported(typed: list[str], command: str | None) -> None:
    names = imported(*typed)
    assert {name for name in NAMES if f"cvt_cli.cli.{name}" in names} == {command} - {None}
    assert not names & {"rich", *HEAVY}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cvt_cli; print(' '.join(sys.modules)); cvt_cli.Classifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize(("count", "threads"), [(1, 4), (6, 6), (128, 32)])
def test_threads_follow_from_the_cores_of_this_process(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
    found = runpy.run_path(cores.__file__)
    assert (found["cores"](), found["DECODE_THREADS"]) == (count, threads)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert found["cores"]() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="libgomp's variable is meant")
@pytest.mark.parametrize("variable", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_that_wait_give_their_cores_away(
    run_cvt: RunCvt, cat: Path, variable: str | None
) -> None:
    """What libgomp says of itself as it is loaded; what the user set is left alone."""
    value = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE"}.get(variable or "")
    env = {"OMP_DISPLAY_ENV": "verbose", "GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None}
    env |= {variable: value} if variable else {}
    said = run_cvt("classify", cat, "-m", "cvt-tiny-cifar10", env=env, expect=0).stderr
    (count,) = set(re.findall(r"GOMP_SPINCOUNT = '(.*)'", said))
    if variable == "OMP_WAIT_POLICY":
        assert int(count) > 10**6
    else:
        assert count == (value or "1000")
