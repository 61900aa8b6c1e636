"""What other systems do otherwise, done to the installed command by a stand-in."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_failures import check_line
from tests.conftest import RunCvt

TinyCvt = Callable[..., Path]

# Text in a pipe, and a pipe whose reader has gone, on Windows.
PIPES = """
import errno, io, signal, sys

class Pipe(io.FileIO):
    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            raise OSError(errno.EINVAL, "Invalid argument") from None

del signal.SIGPIPE
sys.stdout = io.TextIOWrapper(
    io.BufferedWriter(Pipe(1, "w", closefd=False)), "cp1252", newline="\\r\\n"
)
"""

# Processes are not forked, as on macOS, and since Python 3.14.
SPAWN = """
import multiprocessing
multiprocessing.set_start_method("spawn")
"""

# Of torch's libraries one is missing.
NO_LIBRARY = """
import sys

class Finder:
    def find_spec(self, name, *arguments):
        if name == "torch":
            raise OSError(22, "[WinError 126] The specified module could not be found. c10.dll")

sys.meta_path.insert(0, Finder())
"""

# A clock that ticks once in a while, as Windows' does 64 times a second.
CLOCK = """
import time
time.monotonic = lambda: 1.0
"""


@pytest.fixture
def system(run_cvt: RunCvt, tmp_path: Path) -> Callable[[str], None]:
    """Has the command run such code before anything else."""

    def use(code: str) -> None:
        folder = tmp_path / "system"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        run_cvt.env["PYTHONPATH"] = str(folder)

    return use


def test_documents_are_the_same_bytes_everywhere(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path, system: Callable[[str], None]
) -> None:
    names = ["Müller ≥ 猫.jpg", "missing.jpg"]
    cat.rename(cat.with_name(names[0]))
    model = tiny_cvt()
    system(PIPES)
    done = run_cvt("classify", *names, "-m", model, "-f", "csv", expect=1)
    rows = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [row["path"] for row in rows] == names
    assert "\r\r" not in done.stdout
    done = run_cvt("classify", *names, "-m", model, "-f", "jsonl", expect=1)
    assert [json.loads(line)["path"] for line in done.stdout.split("\n")[:-1]] == names


def test_a_reader_that_goes_away(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path, system: Callable[[str], None]
) -> None:
    system(PIPES)
    process = run_cvt.start("classify", cat, "-m", tiny_cvt())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_nothing_is_left_behind_that_is_warned_of(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path, system: Callable[[str], None]
) -> None:
    system(SPAWN)
    done = run_cvt("classify", cat, "-m", tiny_cvt(), "-o", "labels.csv", "--progress", expect=0)
    # A slow run has a bar, which is drawn over.
    (line,) = re.findall(r"^(?!.*images/s\]).*\S.*$", done.stderr.replace("\r", "\n"), re.MULTILINE)
    assert line.startswith("cvt: labels.csv: 1 input, ")


def test_torch_without_the_library_that_it_needs(
    run_cvt: RunCvt, cat: Path, system: Callable[[str], None]
) -> None:
    system(NO_LIBRARY)
    done = run_cvt("classify", cat, "-m", "cvt-tiny-cifar10")
    line = check_line(done, 4, "a library can't be loaded: ", "c10.dll", "Visual C++")
    assert "bug" not in line


def test_a_run_that_is_over_before_the_clock_ticks(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path, system: Callable[[str], None]
) -> None:
    system(CLOCK)
    run_cvt("classify", cat, "-m", tiny_cvt(), "-o", "labels.csv", expect=0)
    assert (cat.parent / "labels.csv").exists()
