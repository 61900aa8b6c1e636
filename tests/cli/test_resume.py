"""Interrupted runs of `cvt classify`, taken up: the same bytes as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cvt_cli.output import writer_class
from cvt_cli.output.journal import Journal, part_of
from cvt_cli.records import Record, RecordShape
from tests.conftest import NOWHERE, RunCvt
from tests.endings import at_call
from tests.fork_server import ForkClient
from tests.photos import picture
from tests.recordings import LIKE_GRAPHS

BATCH = 4
TOP_K = 5
SHAPE = RecordShape(TOP_K)


@pytest.fixture(scope="module")
def model(tiny_cvt: Callable[..., Path]) -> Path:
    return tiny_cvt()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names that break formats, of images that differ; two are none."""
    folder = tmp_path_factory.mktemp("images")
    names = [f"{i}.png" for i in range(34)]
    names[3:3] = ['comma, and "quotes".png', "line\nbreak\r.png", os.fsdecode(b"caf\xe9.png")]
    paths = [str(folder / name) for name in names]
    for seed, path in enumerate(paths):
        picture(32, 32, seed).save(path)
    (folder / "5.png").write_text("no image")
    (folder / "30.png").unlink()
    return paths


def arguments(model: Path, output: Path, *more: str) -> list[object]:
    fixed = ["-m", model, "-k", TOP_K, "-b", BATCH, "--files-from", "-", "--null", "-o", output]
    return ["classify", *fixed, *more]


def listed(paths: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


@pytest.fixture(scope="module")
def expected(
    images: list[str],
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    fork_server: ForkClient,
) -> list[Record]:
    """The records of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = RunCvt(folder, NOWHERE, fork_server)
    run(*arguments(model, folder / "whole.jsonl"), stdin=listed(images), expect=1)
    with (folder / "whole.jsonl").open("rb") as file:
        records = list(writer_class("jsonl").documents(file))
    assert len(records) == len(images)
    assert sum(record.error is not None for record in records) == 2
    return records


def written(folder: Path, name: str, records: list[Record], run: dict[str, object]) -> bytes:
    path = folder / f"expected.{name}"
    journal = Journal(path, writer_class(name), SHAPE, run=run, resume=False, overwrite=True)
    journal.write(records)
    journal.finish()
    return path.read_bytes()


def stop(
    run_cvt: RunCvt,
    command: list[object],
    paths: Sequence[str],
    part: Path,
    signal_: int = signal.SIGKILL,
) -> tuple[int, str]:
    """Give the command so many names and no end of them; stop it when it can only wait for more.
    Returns how many records there are then, and what it said."""
    process = run_cvt.start(*command, encoding=None, errors=None)
    with process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(listed(paths))
        process.stdin.flush()
        # A batch goes through the network when another is there.
        due = len(paths) // BATCH * BATCH - BATCH
        deadline = time.monotonic() + 300
        while (count := records_in(part)) < due:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert count == due
        process.send_signal(signal_)
        said = process.stderr.read().decode()
        assert process.wait() == (-signal_ if signal_ == signal.SIGKILL else 130)
    return count, said


def records_in(part: Path) -> int:
    name = part.suffixes[-2][1:]
    try:
        with part.open("rb") as file:
            return sum(1 for _ in writer_class(name).read(file))
    except (FileNotFoundError, ValueError):
        return 0


@pytest.mark.parametrize(
    ("name", "moments", "cut"),
    [
        ("csv", (13, 33), 5),
        ("tsv", (16,), 31),
        ("json", (20,), 1),
        ("jsonl", (33,), 50),
        ("parquet", (25,), 3),
    ],
)
def test_killed_and_resumed(
    run_cvt: RunCvt,
    model: Path,
    images: list[str],
    expected: list[Record],
    tmp_path: Path,
    name: str,
    moments: Sequence[int],
    cut: int,
) -> None:
    output = tmp_path / f"labels.{name}"
    part = part_of(output)
    more: list[str] = []
    for moment in moments:
        count, _ = stop(run_cvt, arguments(model, output, *more), images[:moment], part)
        assert not output.exists()
        # What a power cut leaves: not even the last of what was written.
        os.truncate(part, part.stat().st_size - cut)
        assert records_in(part) in (count, count - 1)
        more = ["--resume"]
    run = json.loads(part.with_name(part.name + ".json").read_text())
    assert run.pop("replaces") is False
    done = run_cvt(*arguments(model, output, *more), stdin=listed(images), expect=1)
    assert f"{len(images)} inputs" in done.stderr
    assert "2 of 37 inputs could not be read" in done.stderr
    assert output.read_bytes() == written(tmp_path, name, expected, run)
    assert not list(tmp_path.glob("labels.*.part*"))


@pytest.mark.parametrize(
    ("command", "moments"),
    [
        # In the second batch, which goes through the network as it is; in the fourth, the second
        # network's first that is recorded; in the last, of three images, by which alone it is.
        (("classify", "-k", TOP_K), (2, 3, 6)),
        (("embed",), (4,)),
    ],
)
def test_resumed_on_a_gpu(
    command: tuple[object, ...],
    moments: tuple[int, ...],
    run_cvt: RunCvt,
    model: Path,
    images: list[str],
    tmp_path: Path,
) -> None:
    """Stand-ins show whether the same rows go through CUDA graphs, with two networks in turns as
    on a GPU."""
    name = "jsonl" if command[0] == "classify" else "parquet"
    fixed = [*command, "-m", model, "-b", BATCH, "--device", "cpu,cpu", "--dtype", "float32"]
    whole, output = tmp_path / f"whole.{name}", tmp_path / f"labels.{name}"

    def run(output: Path, *more: str, then: str = "") -> int:
        named = [*fixed, "--files-from", "-", "--null", "-o", output, *more]
        options = {"encoding": None, "errors": None}
        with run_cvt.start(*named, first=LIKE_GRAPHS + then, **options) as process:
            process.communicate(listed(images[:35]), timeout=300)
        return process.returncode

    assert run(whole) == 1
    more: list[str] = []
    for batches in moments:
        killed = at_call("cvt_cli.output.journal:Journal.write", batches)
        assert run(output, *more, then=killed) == -signal.SIGKILL
        part = part_of(output)
        os.truncate(part, part.stat().st_size - 1)
        more = ["--resume"]
    assert run(output, *more) == 1
    assert output.read_bytes() == whole.read_bytes()


def test_ctrl_c_then_other_options_then_resumed(
    run_cvt: RunCvt,
    model: Path,
    images: list[str],
    expected: list[Record],
    tmp_path: Path,
    tiny_cvt: Callable[..., Path],
) -> None:
    output = tmp_path / "labels.csv"
    part = part_of(output)
    command = arguments(model, output)
    count, said = stop(run_cvt, command, images[:12], part, signal.SIGINT)
    assert (
        said
        == f"cvt: error: interrupted after {count} inputs; {part} keeps them: --resume continues\n"
    )

    before = part.read_bytes()
    refusals = {
        (): "is left from an interrupted run; --resume continues it, --overwrite starts",
        ("--resume", "--overwrite"): "exclude each other",
        ("--resume", "-k", "2"): "another top-k: 5 then, 2 now",
        ("--resume", "-m", str(tiny_cvt(seed=1))): "another model",
        ("--resume", "--background", "white"): "another background",
        ("--resume", "--truncated", "accept"): "another truncated: 'refuse' then, 'accept' now",
    }
    for more, message in refusals.items():
        refused = run_cvt(*command, *more, stdin=listed(images), expect=2)
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert part.read_bytes() == before

    run_cvt(*command, "--resume", stdin=listed(images), expect=1)
    assert output.read_bytes() == written(tmp_path, "csv", expected, {})
    # A scheduler that repeats it is not to take it for a failure.
    again = run_cvt(*command, "--resume", stdin=listed(images), expect=0)
    said = f"cvt: {output}: finished, nothing to resume; --update does what is new, changed or "
    assert again.stderr == said + "failed; --overwrite does it again\n"
    # Another output is not left out for that, and a page can't be updated.
    report = tmp_path / "report.html"
    more = run_cvt(*command, "-o", report, "--resume", stdin=listed(images), expect=2)
    assert (
        f"{output} is finished; --overwrite replaces it" in more.stderr
    )  # a page can't be updated
    assert output.read_bytes() == written(tmp_path, "csv", expected, {})


def test_inputs_that_have_changed(
    run_cvt: RunCvt, model: Path, images: list[str], expected: list[Record], tmp_path: Path
) -> None:
    output = tmp_path / "labels.csv"
    done, _ = stop(run_cvt, arguments(model, output), images[:16], part_of(output))
    changed = [images[-1], *images[2:-1]]
    resumed = run_cvt(*arguments(model, output, "--resume"), stdin=listed(changed), expect=1)
    assert "the inputs have changed since" in resumed.stderr
    with output.open("rb") as file:
        paths = [record.path for record in writer_class("csv").documents(file)]
    names = [record.path.encode("utf-8", "backslashreplace").decode() for record in expected]
    assert paths == [*names[:done], names[-1], *names[done:-1]]


def test_a_full_disk(
    run_cvt: RunCvt, model: Path, images: list[str], expected: list[Record], tmp_path: Path
) -> None:
    output = tmp_path / "labels.csv"
    room = 4096
    process = run_cvt.start(
        *arguments(model, output),
        encoding=None,
        errors=None,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        first=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))",
    )
    out, said = process.communicate(listed(images), timeout=120)
    assert process.returncode == 4
    assert out == b""
    message, *more = said.decode().splitlines()
    assert message.startswith(f"cvt: error: {part_of(output)} can't be written: file too large; ")
    assert message.endswith("--resume")
    assert not more
    assert part_of(output).stat().st_size == room
    kept = records_in(part_of(output))
    assert 0 < kept < len(images)
    run_cvt(*arguments(model, output, "--resume"), stdin=listed(images), expect=1)
    assert output.read_bytes() == written(tmp_path, "csv", expected, {})


def test_a_run_that_another_is_busy_with(
    run_cvt: RunCvt, images: list[str], model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.csv"
    command = arguments(model, output)
    with run_cvt.start(*command, encoding=None, errors=None) as process:
        assert process.stdin is not None
        process.stdin.write(listed(images))
        process.stdin.flush()
        while not records_in(part_of(output)):
            assert process.poll() is None
            time.sleep(0.02)
        before = part_of(output).read_bytes()
        for more in ((), ("--resume",), ("--overwrite",)):
            second = run_cvt(*command, *more, stdin=listed(images), expect=2)
            assert "labels.csv.part is being written by another run; wait" in second.stderr
        assert part_of(output).read_bytes().startswith(before)
        process.stdin.close()
        process.wait()
    assert sum(1 for _ in output.open(newline="")) > len(images)


@pytest.mark.parametrize("wrong", [("--run-record", "no/run.json"), ("-o", "file/b.jsonl")])
def test_a_run_that_cannot_begin_leaves_nothing(
    run_cvt: RunCvt, images: list[str], model: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "file").touch()
    command = arguments(model, folder / "labels.csv")
    found = run_cvt(*command, *wrong, stdin=listed(images), expect=2)
    assert f"{wrong[1]} can't be written" in found.stderr
    assert list(folder.iterdir()) == []
    # A journal that an earlier run left is still there.
    stop(run_cvt, command, images[:16], part_of(folder / "labels.csv"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run_cvt(*command, *wrong, "--resume", stdin=listed(images), expect=2)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_record_that_cannot_be_written_hides_nothing(
    run_cvt: RunCvt, images: list[str], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    for closed, code in ((False, 130), (True, 4)):
        output = tmp_path / f"{code}.csv"
        command = arguments(model, output, "--run-record", str(folder / "run.json"))
        with run_cvt.start(*command) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write("\0".join(images[: 2 * BATCH]) + "\0")
            process.stdin.flush()
            while not records_in(part_of(output)):
                assert process.poll() is None
                time.sleep(0.02)
            shutil.rmtree(folder)
            if closed:
                process.stdin.close()
            else:
                process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait() == code
        assert "run.json can't be written" in said
        assert ("the output is whole" if closed else "--resume continues") in said
        assert output.exists() == closed
        folder.mkdir()


def test_a_small_disk(
    run_cvt: RunCvt,
    model: Path,
    images: list[str],
    expected: list[Record],
    small_disk: Path,
    tmp_path: Path,
) -> None:
    output = small_disk / "labels.csv"
    full = run_cvt(*arguments(model, output), stdin=listed(images), expect=4)
    assert "can't be written: no space left on device; " in full.stderr
    assert len(full.stderr.splitlines()) == 1
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    run_cvt(*arguments(model, output, "--resume"), stdin=listed(images), expect=1)
    assert output.read_bytes() == written(tmp_path, "csv", expected, {})


ODD = {  # the fastest form of no network
    "attention": ["sdpa"] * 3,
    "activation": ["apart"] * 3,
    "linear": ["plain"] * 3,
    "convolution": ["channels_first"] * 3,
    "threads": 1,
}


def test_a_resumed_run_computes_in_the_same_form(
    run_cvt: RunCvt, model: Path, images: list[str], tmp_path: Path
) -> None:
    """Whatever the cache says by then, and whatever is asked for."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "labels.jsonl"

    def form_of(path: Path) -> object:
        run = json.loads(path.read_text())
        return run.get("run", run)["form"]

    first = run_cvt(*arguments(model, whole, "--tune", "now"), stdin=listed(images), expect=1)
    assert "form" not in first.stderr  # nobody has to act on it, and cron mails all that is said
    (cache,) = (run_cvt.hf_home / "cvt" / "forms").iterdir()
    known = json.loads(cache.read_text())
    assert form_of(tmp_path / "whole.jsonl.run.json") == known["form"]
    cache.write_text(json.dumps(known | {"form": ODD}))
    more = ("--overwrite", "--run-record", str(tmp_path / "run.json"))
    again = run_cvt(*arguments(model, whole, *more), stdin=listed(images), expect=1)
    assert "fastest form" not in again.stderr
    assert form_of(tmp_path / "whole.jsonl.run.json") == form_of(tmp_path / "run.json") == ODD

    stop(run_cvt, arguments(model, output), images[:17], part_of(output))
    cache.unlink()
    resumed = run_cvt(
        *arguments(model, output, "--resume", "--tune", "now"), stdin=listed(images), expect=1
    )
    assert "form" not in resumed.stderr and not cache.exists()
    assert output.read_bytes() == whole.read_bytes()
    assert form_of(tmp_path / "labels.jsonl.run.json") == ODD
    run_cvt(*arguments(model, output, "--update"), stdin=listed(images), expect=1)
    assert form_of(tmp_path / "labels.jsonl.run.json") == ODD


def test_a_form_that_this_machine_can_not_compute_in(
    run_cvt: RunCvt, model: Path, images: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "labels.csv"
    stop(run_cvt, arguments(model, output, "--tune", "never"), images[:9], part_of(output))
    run_file = Path(f"{part_of(output)}.json")
    run = json.loads(run_file.read_text())
    assert run["form"]["threads"] is None
    run["form"]["threads"] = 4096
    run_file.write_text(json.dumps(run))
    resumed = run_cvt(*arguments(model, output, "--resume"), stdin=listed(images), expect=1)
    (line,) = (line for line in resumed.stderr.splitlines() if "in a form that" in line)
    assert "it is for 4096 threads" in line and "last digits" in line
