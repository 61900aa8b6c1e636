"""`cvt classify --shard K/N`: jobs that share the inputs without asking each other."""

import os
import re
import signal
import time
from itertools import chain
from pathlib import Path

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.images.find import find
from cvt_cli.images.shard import Shard
from cvt_cli.output import writer_class
from tests.cli.test_failures import check_line
from tests.conftest import RunCvt
from tests.photos import picture

JOBS = 3
COMMAND = ("classify", "-m", "cvt-tiny-cifar10", "-b", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(10):
        picture(16, 16, seed).save(folder / f"{seed}.png")
    (folder / "4.png").write_text("no image")
    return folder


def paths(file: Path) -> list[str]:
    with file.open("rb") as stream:
        return [record.path for record in writer_class("csv").documents(stream)]


def test_shards_share_the_inputs_and_their_merge_has_all(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    everything = [source.path for source in find([str(photos)])]
    labels = tmp_path / "labels"
    labels.mkdir()
    codes = []
    for job in range(1, JOBS + 1):
        part = labels / f"part-{job}.csv"
        codes.append(run_cvt(*COMMAND, photos, "--shard", f"{job}/{JOBS}", "-o", part).returncode)
        assert paths(part) == everything[job - 1 :: JOBS]
    assert codes == [0, 1, 0]  # the broken one is the second job's
    run_cvt(*COMMAND, photos, "-o", "whole.csv", expect=1)
    run_cvt("merge", labels, "-o", "merged.csv", expect=0)
    merged, whole = ((tmp_path / f"{name}.csv").read_bytes() for name in ("merged", "whole"))
    assert sorted(merged.splitlines()) == sorted(whole.splitlines())


def test_a_shard_without_inputs_is_an_empty_part(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    run_cvt(*COMMAND, photos / "1.png", "--shard", "2/2", "-o", "part-2.csv", expect=0)
    assert paths(tmp_path / "part-2.csv") == []


def test_the_count_is_what_is_taken() -> None:
    for of in (1, 2, 3, 7):
        shards = [Shard(number, of) for number in range(1, of + 1)]
        for total in (0, 1, 5, 21):
            taken = [list(shard.take(iter(range(total)))) for shard in shards]  # type: ignore[arg-type]
            assert sorted(chain(*taken)) == list(range(total))
            assert [shard.count(total) for shard in shards] == list(map(len, taken))
    assert Shard(1, 2).count(None) is None


@pytest.mark.parametrize("value", ["0/3", "4/3", "1/0", "3", "1/", "-1/3", "1.5/3", "\u0661/3"])
def test_bad_values(value: str) -> None:
    with pytest.raises(UsageError, match=f"--shard {re.escape(value)}: K/N.*3/64"):
        Shard.parse(value)


def test_a_bad_value_is_one_line(run_cvt: RunCvt, photos: Path, tmp_path: Path) -> None:
    done = run_cvt("classify", photos, "--shard", "4/3", "-o", "x.csv")
    check_line(done, 2, "--shard 4/3", "K/N", "3/64")
    assert not list(tmp_path.glob("x.csv*"))


def test_an_interrupted_shard_goes_on_as_that_shard_only(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    part = tmp_path / "x.csv.part"
    names = [source.path for source in find([str(photos)])]
    command = (*COMMAND, "--files-from", "-", "--null", "-o", "x.csv", "--shard")
    listed = b"".join(os.fsencode(name) + b"\0" for name in names)
    with run_cvt.start(*command, "2/3", encoding=None, errors=None) as process:
        assert process.stdin is not None
        # Not the end of the names: it can't finish.
        process.stdin.write(listed[: len(listed) * 3 // 4])
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not part.exists() or len(part.read_bytes().splitlines()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = part.read_bytes()
    refused = run_cvt(*command, "1/3", "--resume", stdin=listed)
    check_line(refused, 2, "another shard: '2/3' then, '1/3' now")
    assert part.read_bytes() == before
    run_cvt(*command, "2/3", "--resume", stdin=listed, expect=1)
    assert paths(tmp_path / "x.csv") == names[1::3]
