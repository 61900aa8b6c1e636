"""`cvt classify --shard K/N`: jobs that share the inputs without asking each other."""

import json
import os
import re
import signal
import tarfile
import time
from itertools import chain
from pathlib import Path

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.images.find import count_sources, find
from cvt_cli.images.shard import Shard
from cvt_cli.images.source import Search
from cvt_cli.output import writer_class
from tests.cli.test_failures import check_line
from tests.conftest import RunCvt
from tests.photos import picture

JOBS = 3
SEARCH = Search()
HASHES = [[7], [4], [5], [6], [3]]
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


def dealt(inputs: list[str], of: int = JOBS, search: Search = SEARCH) -> list[list[str]]:
    shards = [Shard(number, of) for number in range(1, of + 1)]
    return [[source.path for source in find(inputs, search, shard=shard)] for shard in shards]


def test_shards_share_the_inputs_and_their_merge_has_all(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    expected = dealt([str(photos)])
    assert all(expected)
    labels = tmp_path / "labels"
    labels.mkdir()
    for job, names in enumerate(expected, 1):
        part = labels / f"part-{job}.csv"
        code = int(str(photos / "4.png") in names)
        run_cvt(*COMMAND, photos, "--shard", f"{job}/{JOBS}", "-o", part, expect=code)
        assert paths(part) == names
    run_cvt(*COMMAND, photos, "-o", "whole.csv", expect=1)
    run_cvt("merge", labels, "-o", "merged.csv", expect=0)
    merged, whole = ((tmp_path / f"{name}.csv").read_bytes() for name in ("merged", "whole"))
    assert sorted(merged.splitlines()) == sorted(whole.splitlines())


def test_what_comes_and_goes_shifts_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    names = [f"{number}.png" for number in range(1, 40)] + ["inner/1.png", "inner/caf\udce9.png"]
    for name in names:
        (folder / name).touch()
    before = dealt([str(folder)])
    assert sorted(chain(*before)) == sorted(str(folder / name) for name in names)
    assert min(map(len, before)) > 5
    (folder / "0.png").touch()
    (folder / "20.png").unlink()
    for old, new in zip(before, dealt([str(folder)]), strict=True):
        assert set(old) ^ set(new) <= {str(folder / "0.png"), str(folder / "20.png")}


def test_a_share_is_the_same_wherever_the_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        for folder in ("a", "b/c"):
            path = tmp_path / folder / "in" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def below(inputs: list[str]) -> list[list[str]]:
        return [[path[path.index("in/") :] for path in part] for part in dealt(inputs)]

    expected = below(["a"])
    assert all(expected)
    for inputs in (["a/"], ["./a"], ["b/c"], [str(tmp_path / "a")], [f"file://{tmp_path}/b/c"]):
        assert below(inputs) == expected
    assert below(["a/**/*.png"]) == below([f"{tmp_path}/b/c/**/*.png"]) == expected
    # What a shell made of a pattern.
    one, other = ([str(each) for each in sorted(Path(x).glob("in/*"))] for x in ("a", "b/c"))
    assert below(one) == below(other)
    # In a list the names may differ by their folders only.
    (tmp_path / "list").write_text("".join(f"{n}/in/1.png\n" for n in range(20)))
    listed = [
        [source.path for source in find([], Search(files_from="list"), shard=Shard(number, 2))]
        for number in (1, 2)
    ]
    assert all(listed)


def test_the_hash_is_the_same_on_every_machine() -> None:
    names = ("a.jpg", "b/c.jpg", "caf\u00e9.jpg", "caf\udce9.jpg", "\ud800.jpg")
    assert [[n for n in (1, 2, 3, 4, 5, 6, 7) if Shard(n, 7).has(name)] for name in names] == HASHES
    assert [n for n in range(1, 8) if Shard(n, 7).has("cafe\u0301.jpg")] == HASHES[2]


def test_an_archive_that_is_read_as_a_stream_is_dealt_whole(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.tar.gz", "c.tar.gz", "d.tar"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for number in range(12):
                archive.addfile(tarfile.TarInfo(f"{number}.png"))
    whole = [str(tmp_path / name) for name in ("a.tar.gz", "b.tar.gz", "c.tar.gz")]
    shares = dealt(whole, 2)
    assert sorted(map(len, shares)) in ([12, 24], [0, 36])
    both = dealt([str(tmp_path / "d.tar")], 2)
    assert all(both)
    assert sum(map(len, both)) == 12
    # One that is another's is not even opened.
    (other,) = [n for n in (1, 2) if not shares[n - 1] or whole[0] not in str(shares[n - 1])]
    (tmp_path / "a.tar.gz").write_bytes(b"broken")
    assert list(find(whole[:1], shard=Shard(other, 2))) == []
    assert count_sources(whole[:1], shard=Shard(other, 2)) == 0
    assert count_sources(whole[:1], shard=Shard(3 - other, 2)) is None


def test_a_shard_without_inputs_is_an_empty_part(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    (job,) = [n for n in (1, 2) if not Shard(n, 2).has("1.png")]
    run_cvt(*COMMAND, photos / "1.png", "--shard", f"{job}/2", "-o", "part.csv", expect=0)
    assert paths(tmp_path / "part.csv") == []
    # Which it is not where there is nothing for the others, either.
    gone = run_cvt(*COMMAND, "gone", "--shard", f"{job}/2", "-o", "gone.csv")
    assert gone.returncode == 1
    assert not list(tmp_path.glob("gone*"))


def test_the_count_is_what_is_taken(photos: Path) -> None:
    for of in (1, 2, 3, 7):
        taken = dealt([str(photos)], of)
        assert [count_sources([str(photos)], shard=Shard(n, of)) for n in range(1, of + 1)] == list(
            map(len, taken)
        )


def test_a_journal_that_was_dealt_by_position_is_refused(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    run_cvt(*COMMAND, photos, "--shard", "1/3", "-o", "x.csv", "--run-record", "run.json")
    run = json.loads((tmp_path / "run.json").read_text())
    made_with = run | {"shard": "1/3", "version": run["versions"]["cvt"]}
    for name in ("command", "versions", "machine", "start", "end", "outcome", "seconds", "counts"):
        del made_with[name]
    del made_with["images_per_second"]
    (tmp_path / "x.csv").rename(tmp_path / "x.csv.part")
    (tmp_path / "x.csv.part.json").write_text(json.dumps(made_with))
    refused = run_cvt(*COMMAND, photos, "--shard", "1/3", "-o", "x.csv", "--resume")
    check_line(refused, 2, "another shard: '1/3' then, '1/3 by path' now")


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
    names = sorted(path.name for path in photos.iterdir())
    run_cvt.cwd = photos
    command = (*COMMAND, "--files-from", "-", "--null", "-o", tmp_path / "x.csv", "--shard")
    listed = b"".join(os.fsencode(name) + b"\0" for name in names)
    with run_cvt.start(*command, "2/3", encoding=None, errors=None) as process:
        assert process.stdin is not None
        # Not the end of the names: it can't finish.
        process.stdin.write(listed[: len(listed) * 3 // 4])
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while not part.exists() or len(part.read_bytes().splitlines()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = part.read_bytes()
    refused = run_cvt(*command, "1/3", "--resume", stdin=listed)
    check_line(refused, 2, "another shard: '2/3 by path' then, '1/3 by path' now")
    assert part.read_bytes() == before
    mine = [name for name in names if Shard(2, 3).has(name)]
    run_cvt(*command, "2/3", "--resume", stdin=listed, expect=int("4.png" in mine))
    assert paths(tmp_path / "x.csv") == mine


def test_a_job_that_never_ran_is_missed(run_cvt: RunCvt, photos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for job in (1, 3):
        outputs = ("-o", labels / f"{job}.csv", "-o", tmp_path / f"{job}.parquet")
        run_cvt(*COMMAND, photos, "--shard", f"{job}/3", *outputs)
    said = check_line(run_cvt("merge", labels, "-o", "all.csv"), 2, "1 of 3 shards is missing: 2")
    assert "--partial merges what is there" in said
    # Parquet tells by itself.
    for file in tmp_path.glob("*.parquet.run.json"):
        file.unlink()
    check_line(run_cvt("merge", "1.parquet", "3.parquet", "-o", "all.csv"), 2, "is missing: 2")
    done = run_cvt("merge", labels, "-o", "all.csv", "--partial", expect=0)
    assert len(paths(tmp_path / "all.csv")) == len(
        paths(labels / "1.csv") + paths(labels / "3.csv")
    )
    assert "of 2 files" in done.stderr

    run_cvt(*COMMAND, photos, "--shard", "2/3", "-k", 2, "-o", labels / "2.csv")
    check_line(run_cvt("merge", labels, "-o", "x.csv"), 2, "2.csv is from a run with another top-k")
    run_cvt(*COMMAND, photos, "--shard", "2/4", "-o", labels / "2.csv", "--overwrite")
    check_line(run_cvt("merge", labels, "-o", "x.csv"), 2, "2.csv", "another number of shards")
    run_cvt(*COMMAND, photos, "-o", labels / "2.csv", "--overwrite", expect=1)
    check_line(run_cvt("merge", labels, "-o", "x.csv"), 2, "2.csv is not")
    for suffix in ("", ".run.json"):
        (labels / f"2.csv{suffix}").write_bytes((labels / f"1.csv{suffix}").read_bytes())
    check_line(run_cvt("merge", labels, "-o", "x.csv"), 2, "are the same shard, 1 of 3")
    assert not (tmp_path / "x.csv").exists()


def test_records_of_runs_are_passed_over_and_repaired_ones_kept(
    run_cvt: RunCvt, photos: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    recorded = ("--run-record", labels / "record.json", "--errors", tmp_path / "failed.txt")
    run_cvt(*COMMAND, photos, "-o", labels / "a.csv", *recorded, expect=1)
    mended = tmp_path / "mended.png"
    picture(16, 16, 4).save(mended)
    row = run_cvt(*COMMAND, mended, "-f", "csv", expect=0).stdout
    (labels / "b.csv").write_text(row.replace(str(mended), str(photos / "4.png")))
    done = run_cvt("merge", labels, "-o", "all.csv", expect=0)
    assert done.stderr == (
        "cvt: 1 failed record left out: another has the labels\n"
        "cvt: all.csv: 10 records of 2 files, 0 errors\n"
    )
    found = paths(tmp_path / "all.csv")
    assert sorted(found) == sorted(str(path) for path in photos.iterdir())
    # As a shell has it.
    run_cvt("merge", *sorted(labels.iterdir()), "-o", "again.csv", expect=0)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "all.csv").read_bytes()
