"""Sorting, function by function; tests/cli/test_sort.py runs the command."""

import errno
import filecmp
import hashlib
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import cvt_cli.sorting.folder_names
import cvt_cli.sorting.transfer
import cvt_cli.system.files
from cvt_cli.errors import CvtError
from cvt_cli.records import Prediction, Record
from cvt_cli.sorting.folder_names import folder_name, numbered
from cvt_cli.sorting.moved import undo
from cvt_cli.sorting.placing import Action, Outcome, Sorter, SortStatus

DONE, THERE, LEFT, FAILED = SortStatus.DONE, SortStatus.THERE, SortStatus.LEFT, SortStatus.FAILED


def record(path: str, label: str = "cat", score: float = 0.9) -> Record:
    return Record(path, (Prediction(label, score, 0), Prediction("other", score / 2, 1)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with `a/x.jpg`, `b/x.jpg`, `c/x.jpg` and `d/y.jpg`."""
    monkeypatch.chdir(tmp_path)
    for path, text in {"a/x.jpg": "A", "b/x.jpg": "B", "c/x.jpg": "C", "d/y.jpg": "D"}.items():
        write(path, text)
    return tmp_path


def write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def sort(
    records: Iterable[Record], action: Action = Action.COPY, **options: Any
) -> Sequence[Outcome]:
    return list(Sorter(Path("sorted"), action, **options).sort(records))


def statuses(outcomes: Iterable[Outcome]) -> list[SortStatus]:
    return [outcome.status for outcome in outcomes]


def tree(folder: str = "sorted") -> dict[str, str]:
    """The contents of each file in a folder by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(Path(folder).rglob("[!.]*"))  # without the log of moves
        if not path.is_dir()
    }


XS = [record("a/x.jpg"), record("b/x.jpg"), record("c/x.jpg"), record("d/y.jpg", "dog")]
SORTED = {"cat/x.jpg": "A", "cat/x-2.jpg": "B", "cat/x-3.jpg": "C", "dog/y.jpg": "D"}


@pytest.mark.parametrize("action", Action)
def test_names_that_clash_get_numbers_and_a_second_run_does_nothing(
    here: Path, action: Action
) -> None:
    assert statuses(sort(XS, action)) == [DONE] * 4
    assert tree() == SORTED
    assert statuses(sort(XS, action)) == [THERE] * 4
    assert tree() == SORTED
    assert Path("a/x.jpg").exists() == (action is not Action.MOVE)


@pytest.mark.parametrize("action", Action)
def test_no_file_stays_open(here: Path, action: Action) -> None:
    """A process may have a thousand."""

    def lowest_free() -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        os.close(handle)
        return handle

    before = lowest_free()
    assert statuses(sort(XS, action)) == [DONE] * 4
    assert lowest_free() <= before


def test_what_each_action_makes(here: Path) -> None:
    os.utime("a/x.jpg", ns=(10**18, 10**18))
    Path("a/x.jpg").chmod(0o640)
    for action in (Action.COPY, Action.LINK, Action.SYMLINK, Action.MOVE):
        list(Sorter(Path(action.value), action).sort(XS[:1]))
    copy, link, symlink, move = (
        Path(action) / "cat/x.jpg" for action in ("copy", "link", "symlink", "move")
    )
    assert not copy.samefile(move)
    assert (copy.stat().st_mtime_ns, copy.stat().st_mode & 0o777) == (10**18, 0o640)
    assert link.samefile(move)
    assert not symlink.exists()
    assert symlink.readlink() == here / "a/x.jpg"


@pytest.mark.parametrize("action", [Action.COPY, Action.LINK, Action.SYMLINK])
def test_any_order_finds_what_was_done(here: Path, action: Action) -> None:
    sort(XS, action)
    assert statuses(sort(XS[::-1], action)) == [THERE] * 4
    assert tree() == SORTED


@pytest.mark.parametrize("other", [Action.COPY, Action.LINK])
def test_a_symbolic_link_is_no_copy_and_no_hard_link(here: Path, other: Action) -> None:
    sort(XS[:1], Action.SYMLINK)
    assert statuses(sort(XS[:1], other)) == [DONE]
    assert not Path("sorted/cat/x-2.jpg").is_symlink()
    assert Path("sorted/cat/x-2.jpg").read_text() == "A"


def test_a_hard_link_of_a_link_is_one_of_the_file(here: Path) -> None:
    Path("a/link.jpg").symlink_to("x.jpg")
    assert statuses(sort([record("a/link.jpg")], Action.LINK)) == [DONE]
    assert not Path("sorted/cat/link.jpg").is_symlink()
    assert Path("sorted/cat/link.jpg").samefile("a/x.jpg")


@pytest.mark.parametrize("action", [Action.COPY, Action.MOVE])
def test_only_equal_bytes_are_the_same_file(here: Path, action: Action) -> None:
    write("sorted/cat/x.jpg", "Z")
    for path in ("a/x.jpg", "sorted/cat/x.jpg"):
        os.utime(path, ns=(10**18, 10**18))
    filecmp.clear_cache()
    assert statuses(sort(XS[:1], action)) == [DONE]
    assert tree() == {"cat/x.jpg": "Z", "cat/x-2.jpg": "A"}


@pytest.mark.parametrize("action", Action)
def test_what_was_there_before_is_never_touched(here: Path, action: Action) -> None:
    write("sorted/cat/x.jpg", "somebody's")
    Path("sorted/cat/x-2.jpg").symlink_to("dangling")
    Path("sorted/cat/x-3.jpg").mkdir()
    assert statuses(sort(XS[:1], action)) == [DONE]
    assert Path("sorted/cat/x.jpg").read_text() == "somebody's"
    assert Path("sorted/cat/x-2.jpg").readlink() == Path("dangling")
    assert Path("sorted/cat/x-4.jpg").read_text() == "A"
    assert statuses(sort(XS[:1], action)) == [THERE]


def test_equal_files_of_different_folders_are_all_kept(here: Path) -> None:
    write("b/x.jpg", "A")
    for action in (Action.COPY, Action.MOVE):
        write("a/x.jpg", "A")
        list(Sorter(Path(action.value), action).sort(XS))
        assert tree(action.value)["cat/x.jpg"] == tree(action.value)["cat/x-2.jpg"] == "A"


def test_a_record_that_comes_twice_is_one_file(here: Path) -> None:
    assert statuses(sort([*XS[:2], *XS[:2]])) == [DONE, DONE, THERE, THERE]
    assert tree() == {"cat/x.jpg": "A", "cat/x-2.jpg": "B"}


def test_numbers_that_are_names_already(here: Path) -> None:
    write("a/x-2.jpg", "two")
    records = [record("a/x.jpg"), record("b/x.jpg"), record("a/x-2.jpg")]
    sort(records)
    assert tree() == {"cat/x.jpg": "A", "cat/x-2.jpg": "B", "cat/x-2-2.jpg": "two"}
    assert statuses(sort(records)) == [THERE] * 3


def test_thousands_of_one_name_are_no_matter(here: Path) -> None:
    records = [record(f"many/{i}/cover.jpg") for i in range(1500)]
    for i, each in enumerate(records):
        write(each.path, str(i))
    assert statuses(sort(records, Action.LINK)) == [DONE] * 1500
    assert tree()["cat/cover-1500.jpg"] == "1499"


def test_scores_errors_and_no_label(here: Path) -> None:
    records = [
        record("a/x.jpg", score=0.3),
        record("b/x.jpg", score=0.29),
        Record("c/x.jpg"),
        Record("d/y.jpg", error="broken"),
        Record("nowhere.jpg", error="no such file"),
        record("d/y.jpg", ""),
    ]
    assert statuses(sort(records, min_score=0.3)) == [DONE, DONE, DONE, LEFT, LEFT, DONE]
    assert tree() == {
        "cat/x.jpg": "A",
        "_uncertain/x.jpg": "B",
        "_uncertain/x-2.jpg": "C",
        "_uncertain/y.jpg": "D",
    }


@pytest.mark.parametrize("action", Action)
def test_a_file_that_is_gone_is_reported_and_the_rest_goes_on(here: Path, action: Action) -> None:
    os.mkfifo("fifo.jpg")
    records = [record("gone.jpg"), *XS, record("a"), record("fifo.jpg"), record("-")]
    outcomes = sort(records, action)
    assert statuses(outcomes) == [FAILED, DONE, DONE, DONE, DONE, FAILED, FAILED, FAILED]
    assert [outcome.error for outcome in outcomes if outcome.error] == [
        "no such file",
        "not a regular file",
        "not a regular file",
        "standard input",
    ]
    assert tree() == SORTED


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("action", [Action.COPY, Action.LINK, Action.SYMLINK])
def test_a_file_that_is_gone_is_not_taken_for_another_of_its_name(
    here: Path, action: Action, dry_run: bool
) -> None:
    write("sorted/cat/gone.jpg", "somebody's")
    outcomes = sort([record("gone.jpg")], action, dry_run=dry_run)
    assert statuses(outcomes) == [FAILED]
    assert outcomes[0].error == "no such file"
    sort(XS, action)
    Path("b/x.jpg").unlink()
    assert statuses(sort(XS, action)) == [THERE, FAILED, THERE, THERE]


@pytest.mark.parametrize("action", Action)
def test_a_dry_run_says_the_same_and_changes_nothing(here: Path, action: Action) -> None:
    write("sorted/cat/x-2.jpg", "somebody's")
    records = [*XS, record("gone.jpg")]
    before = tree(".")
    planned = sort(records, action, dry_run=True)
    assert tree(".") == before
    assert planned == sort(records, action)
    assert statuses(planned) == [DONE] * 4 + [FAILED]


def test_a_dry_run_of_what_was_copied_deletes_nothing(here: Path) -> None:
    sort(XS)
    before = tree(".")
    # What would go is told.
    assert statuses(sort(XS, Action.MOVE, dry_run=True)) == [DONE] * 4
    assert tree(".") == before


def test_the_bytes_behind_an_escape(here: Path) -> None:
    raw = os.fsdecode(b"a/caf\xe9.jpg")
    try:
        write(raw, "latin")
    except OSError:
        pytest.skip("names are UTF-8 here")
    literal = "a/caf\\udce9.jpg"
    sort([record(literal)])
    assert tree() == {os.fsdecode(b"cat/caf\xe9.jpg"): "latin"}
    write(literal, "literal")
    literal_and_raw = [record(literal), record(raw)]
    both, one = Sorter(Path("again")).sort(literal_and_raw)
    assert (both.status, one.status) == (FAILED, DONE)
    assert "two files may be meant" in both.error
    assert tree("again") == {os.fsdecode(b"cat/caf\xe9.jpg"): "latin"}


# Labels


@pytest.mark.parametrize(
    ("label", "start"),
    [
        ("tench, Tinca tinca", None),
        ("Brötchen 中文", None),
        ("a/b", "a_b-"),
        ("a\\b", "a_b-"),
        ("/etc/passwd", "_etc_passwd-"),
        ("..", "_-"),
        ("../../up", "_._.._up-"),
        (".", "_-"),
        (".hidden", "_hidden-"),
        ("dot.", "dot-"),
        ("space ", "space-"),
        (" ", "_-"),
        ("nul\0byte", "nul_byte-"),
        ("line\nbreak\x1b", "line_break_-"),
        ("half \ud800 pair", "half _ pair-"),
        ('<>:"|?*', "_______-"),
        ("CON", "_CON-"),
        ("nul.txt", "_nul.txt-"),
        ("com1", "_com1-"),
        ("console", None),
        ("_uncertain", "_uncertain-"),
        ("x" * 300, "x" * 200 + "-"),
        ("é" * 150, "é" * 100 + "-"),
        ("\U0001f408" * 99, "\U0001f408" * 50 + "-"),
    ],
)
def test_folders_of_labels(label: str, start: str | None) -> None:
    name = folder_name(label)
    if start is None:
        assert name == label
    else:
        assert name.startswith(start)
        assert len(name) == len(start) + 8
    assert len(os.fsencode(name)) <= 255


def test_labels_stay_apart(here: Path) -> None:
    labels = [
        "a/b",
        "a\\b",
        "a_b",
        "A_b",
        "..",
        ".",
        " ",
        "Stra\u00dfe",
        "strasse",
        "_uncertain",
        "",
    ]
    labels += ["x" * 300, "x" * 301, "caf\u00e9", "cafe\u0301"]
    records = [record("a/x.jpg", label) for label in labels]
    first = sort(records)
    assert len({outcome.folder for outcome in first}) == len(labels)
    one_form = {unicodedata.normalize("NFC", outcome.folder).casefold() for outcome in first}
    assert len(one_form) == len(labels)
    assert len(list(Path("sorted").iterdir())) == len(labels)
    assert all(path.parent.parent == Path("sorted") for path in Path("sorted").rglob("x.jpg"))
    assert statuses(sort(records)) == [THERE] * len(labels)


def test_a_label_whose_folder_is_a_file(here: Path) -> None:
    write("sorted/cat", "not a folder")
    outcomes = sort(XS)
    assert statuses(outcomes) == [FAILED, FAILED, FAILED, DONE]
    assert outcomes[0].error.endswith("cat is not a folder")


def test_long_names_are_cut_not_refused(here: Path) -> None:
    name = "é" * 125 + ".jpg"
    for folder in "ab":
        write(f"{folder}/{name}", folder)
    assert statuses(sort([record(f"a/{name}"), record(f"b/{name}")])) == [DONE, DONE]
    assert sorted(tree().values()) == ["a", "b"]
    assert len(os.fsencode(numbered(name, 12))) <= 255


# Moving


def test_moving_a_file_onto_itself_keeps_it(here: Path) -> None:
    sort(XS, Action.MOVE)
    log = Path("sorted/.cvt-moved.jsonl").read_bytes()
    Path("alias").symlink_to("sorted", target_is_directory=True)
    Path("sorted/dog/other.jpg").hardlink_to("sorted/dog/y.jpg")
    for folder in ("sorted", "./sorted", "alias", str(here / "sorted")):
        again = [record(f"{folder}/cat/x.jpg"), record(f"{folder}/dog/y.jpg", "dog")]
        assert statuses(sort(again, Action.MOVE)) == [THERE, THERE]
        assert tree() == {**SORTED, "dog/other.jpg": "D"}
    assert Path("sorted/.cvt-moved.jsonl").read_bytes() == log


def test_moving_what_was_linked(here: Path) -> None:
    sort(XS, Action.LINK)
    assert statuses(sort(XS, Action.MOVE)) == [DONE] * 4
    assert tree() == SORTED
    assert not list(here.glob("?/*"))


def test_moving_what_was_symlinked_keeps_the_file(here: Path) -> None:
    sort(XS[:1], Action.SYMLINK)
    assert statuses(sort(XS[:1], Action.MOVE)) == [DONE]
    assert Path("sorted/cat/x-2.jpg").read_text() == "A"


def test_moving_a_link(here: Path) -> None:
    Path("a/link.jpg").symlink_to("x.jpg")
    records = [record("a/link.jpg")]
    assert statuses(sort(records, Action.MOVE)) == [DONE]
    assert tree() == {"cat/link.jpg": "A"}
    assert Path("a/x.jpg").read_text() == "A"
    assert not os.path.lexists("a/link.jpg")
    assert statuses(sort(records, Action.MOVE)) == [THERE]


def test_moving_a_link_whose_name_another_link_has(here: Path) -> None:
    Path("a/link.jpg").symlink_to("x.jpg")
    Path("sorted/cat").mkdir(parents=True)
    Path("sorted/cat/link.jpg").symlink_to(here / "b/x.jpg")
    assert statuses(sort([record("a/link.jpg")], Action.MOVE)) == [DONE]
    assert tree() == {"cat/link.jpg": "B", "cat/link-2.jpg": "A"}


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not below `sorted` is on another file system."""
    real_link, real_rename = os.link, os.rename

    def guard(call: Callable[..., None]) -> Callable[..., None]:
        def guarded(source: Any, target: Any, **options: Any) -> None:
            if ("sorted" in Path(source).parts) != ("sorted" in Path(target).parts):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            call(source, target, **options)

        return guarded

    monkeypatch.setattr(os, "link", guard(real_link))
    monkeypatch.setattr(os, "rename", guard(real_rename))


def test_moving_to_another_disk(here: Path, other_disk: None) -> None:
    os.utime("a/x.jpg", ns=(10**18, 10**18))
    assert statuses(sort(XS, Action.MOVE)) == [DONE] * 4
    assert tree() == SORTED
    assert Path("sorted/cat/x.jpg").stat().st_mtime_ns == 10**18
    assert not list(here.glob("?/*"))


def test_a_file_on_another_disk_is_deleted_once_its_copy_is_safe(
    here: Path, other_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def sync_folder(folder: Path) -> None:
        seen.append((folder, (folder / "x.jpg").exists(), Path("a/x.jpg").exists()))

    monkeypatch.setattr(cvt_cli.sorting.transfer, "sync_folder", sync_folder)
    assert statuses(sort(XS[:1], Action.MOVE)) == [DONE]
    assert seen == [(Path("sorted/cat"), True, True)]


def test_a_hard_link_reaches_no_other_disk(here: Path, other_disk: None) -> None:
    outcomes = sort(XS, Action.LINK)
    assert statuses(outcomes) == [FAILED] * 4
    assert "another file system" in outcomes[0].error
    assert tree() == {}


def test_a_copy_that_is_not_what_it_should_be(
    here: Path, other_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashlib.new(name, b"wrong"))
    outcomes = sort(XS, Action.MOVE)
    assert "differs" in outcomes[0].error
    assert tree() == {}
    assert Path("a/x.jpg").read_text() == "A"


@pytest.mark.parametrize(("text", "time"), [("more than before", 10**18), ("Z", 10**18 + 1)])
def test_a_file_that_changes_while_it_is_moved(
    here: Path, text: str, time: int, other_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime("a/x.jpg", ns=(10**18, 10**18))
    real_fsync = os.fsync

    def fsync(number: int) -> None:
        write("a/x.jpg", text)
        os.utime("a/x.jpg", ns=(time, time))
        real_fsync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    assert "has changed" in sort(XS[:1], Action.MOVE)[0].error
    assert tree() == {}
    assert Path("a/x.jpg").read_text() == text


def test_a_file_that_may_not_be_deleted_is_not_moved(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_unlink = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if "sorted" not in Path(path).parts:
            raise PermissionError(errno.EACCES, "Permission denied")
        real_unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    outcomes = sort(XS, Action.MOVE)
    assert [outcome.error for outcome in outcomes] == ["permission denied"] * 4
    assert tree() == {}
    assert Path("a/x.jpg").read_text() == "A"


def without_hard_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def link(source: Any, target: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize(
    "number",
    [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK],
)
def test_a_file_system_without_hard_links(
    here: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hard_links(monkeypatch, number)
    write("sorted/cat/x.jpg", "somebody's")
    assert statuses(sort(XS, Action.MOVE)) == [DONE] * 4
    assert tree()["cat/x.jpg"] == "somebody's"
    assert sorted(tree().values()) == ["A", "B", "C", "D", "somebody's"]


@pytest.mark.parametrize("action", [Action.COPY, Action.MOVE])
def test_a_locked_file(
    here: Path, action: Action, other_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS has those that a camera protected: its flag is copied with the times."""
    locked = set()
    calls = {name: getattr(os, name) for name in ("link", "rename", "unlink")}

    def refusing(name: str) -> Callable[..., None]:
        def call(path: Any, *arguments: Any, **options: Any) -> None:
            if os.stat(path).st_ino in locked:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            calls[name](path, *arguments, **options)

        return call

    def copystat(source: Any, target: Any) -> None:
        locked.add(os.stat(target).st_ino)

    for name in calls:
        monkeypatch.setattr(os, name, refusing(name))
    monkeypatch.setattr(cvt_cli.sorting.transfer.shutil, "copystat", copystat)
    assert statuses(sort(XS, action)) == [DONE] * 4
    assert tree() == SORTED
    assert len(locked) == 4


# Interruptions


class Interrupter:
    """Lets so many changes of the file system happen, then raises what Ctrl-C raises; in the
    middle of what is written, too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.after = False
        for name in ("link", "unlink", "rename", "symlink", "mkdir"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(cvt_cli.sorting.transfer.shutil, "copyfileobj", self._copy)

    def _counted(self, call: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any, **options: Any) -> None:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise KeyboardInterrupt
            try:
                call(*args, **options)
            finally:
                if self.left == 0:
                    raise KeyboardInterrupt

        return counted

    def _copy(self, source: Any, out: Any, length: int = 0) -> None:
        data = source.read()
        self.left -= 1
        if self.left == 0:
            out.write(data[: len(data) // 2])
            raise KeyboardInterrupt
        out.write(data)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("action", "disk"), [*((action, "same") for action in Action), (Action.MOVE, "other")]
)
def test_interrupted_anywhere(
    here: Path,
    action: Action,
    disk: str,
    after: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if disk == "other":
        request.getfixturevalue("other_disk")
    texts = {"a/x.jpg": "A" * 9, "b/x.jpg": "B" * 9}
    records = [record(path) for path in texts]
    interrupter = Interrupter(monkeypatch)
    interrupter.after = after
    interrupted = 0
    for moment in range(1, 50):
        for path, text in texts.items():
            write(path, text)
        interrupter.left = moment
        try:
            sort(records, action)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            interrupter.left = -1
        # Every file is there, whole, and nothing else is.
        kept = {**tree("a"), **{f"b{name}": text for name, text in tree("b").items()}, **tree()}
        assert set(kept.values()) == set(texts.values()), moment
        assert set(statuses(sort(records, action))) <= {DONE, THERE}
        assert tree() == {"cat/x.jpg": "A" * 9, "cat/x-2.jpg": "B" * 9}, moment
        if action is Action.MOVE:
            assert not any(each.error for each in undo(Path("sorted")))
            assert {**tree("a"), **{f"b{name}": text for name, text in tree("b").items()}} == {
                "x.jpg": "A" * 9,
                "bx.jpg": "B" * 9,
            }
            assert not Path("sorted").exists()
        for folder in ("sorted", "a", "b"):
            shutil.rmtree(folder, ignore_errors=True)
    assert interrupted >= 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_the_run(here: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Any, out: Any, length: int = 0) -> None:
        out.write(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cvt_cli.sorting.transfer.shutil, "copyfileobj", copy)
    with pytest.raises(CvtError, match=os.strerror(number).lower()) as raised:
        sort(XS)
    assert "run the same command again" in raised.value.hint
    assert tree() == {}


# Two jobs at once


@pytest.fixture(params=[Action.COPY, Action.MOVE])
def copying(request: pytest.FixtureRequest) -> Action:
    """What writes a copy: to copy, and to move to another disk."""
    if request.param is Action.MOVE:
        request.getfixturevalue("other_disk")
    action: Action = request.param
    return action


@pytest.mark.parametrize(
    ("action", "disk"),
    [(Action.COPY, "same"), (Action.MOVE, "other"), (Action.COPY, "without links")],
)
def test_two_jobs_with_the_same_process_number(
    here: Path,
    action: Action,
    disk: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if disk == "other":
        request.getfixturevalue("other_disk")
    if disk == "without links":
        without_hard_links(monkeypatch)
    rename = cvt_cli.sorting.transfer.rename_new
    others: list[Outcome] = []

    def meanwhile(file: Path, target: Path) -> None:
        if file.name.startswith("."):  # the copy
            monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", rename)
            others.extend(sort([record("b/x.jpg")], action))
        rename(file, target)

    monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", meanwhile)
    assert statuses(sort([record("a/x.jpg")], action)) == [DONE]
    assert statuses(others) == [DONE]
    assert tree() == {"cat/x.jpg": "B", "cat/x-2.jpg": "A"}


RACED = [record("a/x.jpg"), record("b/x.jpg"), record("c/x.jpg"), record("d/y.jpg", "dog")]


@pytest.mark.parametrize("action", [Action.COPY, Action.MOVE, Action.LINK, Action.SYMLINK])
@pytest.mark.parametrize("moment", ["before", "within"])
def test_two_jobs_of_one_list(
    here: Path, action: Action, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a/x.jpg.xmp", "keywords")
    if action in (Action.COPY, Action.MOVE):
        module, name = cvt_cli.sorting.transfer, "rename_new"
    else:
        module, name = os, "link" if action is Action.LINK else "symlink"
    done = getattr(module, name)
    others: list[Outcome] = []

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(module, name, done)
        if moment == "within" and action is Action.MOVE:  # between its link and its unlinking
            os.link(*arguments)
        others.extend(sort(RACED, action))
        done(*arguments)

    monkeypatch.setattr(module, name, meanwhile)
    outcomes = sort(RACED, action)
    assert {DONE, THERE} >= set(statuses([*outcomes, *others]))
    places = {"cat/x.jpg": "A", "cat/x-2.jpg": "B", "cat/x-3.jpg": "C", "dog/y.jpg": "D"}
    assert [str(each.target) for each in outcomes] == [f"sorted/{place}" for place in places]
    assert tree() == {**places, "cat/x.jpg.xmp": "keywords"}
    if action is Action.MOVE:
        assert not list(here.glob("[a-d]/*"))


def test_undo_after_a_place_that_another_took(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = cvt_cli.sorting.transfer.rename_new

    def meanwhile(file: Path, target: Path) -> None:
        monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", rename)
        sort(XS[1:2], Action.MOVE)
        rename(file, target)

    monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", meanwhile)
    sort(XS[:1], Action.MOVE)
    assert tree()["cat/x.jpg"] == "B" and tree()["cat/x-2.jpg"] == "A"
    assert [each.error for each in undo(Path("sorted"))] == ["", ""]
    assert tree(".") == {"a/x.jpg": "A", "b/x.jpg": "B", "c/x.jpg": "C", "d/y.jpg": "D"}


def test_a_file_that_is_deleted_meanwhile(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = cvt_cli.sorting.transfer.rename_new

    def meanwhile(file: Path, target: Path) -> None:
        file.unlink()
        rename(file, target)

    monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", meanwhile)
    assert [each.error for each in sort(XS[:1], Action.MOVE)] == ["no such file"]
    assert not Path("sorted/cat").exists()


@pytest.mark.parametrize("moment", ["before", "within"])
def test_two_that_put_back(here: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sort(RACED, Action.MOVE)
    rename = cvt_cli.sorting.transfer.rename_new

    def meanwhile(file: Path, target: Path) -> None:
        monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", rename)
        if moment == "within":
            os.link(file, target)
        assert [each.error for each in undo(Path("sorted"))] == [""] * len(RACED)
        rename(file, target)

    monkeypatch.setattr(cvt_cli.sorting.transfer, "rename_new", meanwhile)
    assert [each.error for each in undo(Path("sorted")) if each.error] == []
    assert tree(".") == {"a/x.jpg": "A", "b/x.jpg": "B", "c/x.jpg": "C", "d/y.jpg": "D"}
    assert not Path("sorted").exists()


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        ("linked", "x.jpg", "sorted/linked is a link"),
        ("linked", "keys", "not named like a picture"),
        ("cat", "keys", "not named like a picture"),
        ("cat", "x.jpg", ""),
    ],
)
def test_undo_of_two_paths_of_one_file(here: Path, place: str, name: str, error: str) -> None:
    """A log from somebody else must not have it delete what is outside the folder."""
    write(f"victim/{name}", "precious")
    Path("sorted/cat").mkdir(parents=True)
    Path("sorted/linked").symlink_to(here / "victim")
    origin = here / "d" / name
    os.link(f"victim/{name}", origin)
    if place == "cat":
        os.link(origin, f"sorted/cat/{name}")
    line = json.dumps({"from": str(origin), "to": f"{place}/{name}"})
    Path("sorted/.cvt-moved.jsonl").write_text(f"{line}\n")
    for dry_run in (True, False):
        (outcome,) = undo(Path("sorted"), dry_run=dry_run)
        assert error in outcome.error and bool(outcome.error) == bool(error)
        assert os.path.lexists(f"sorted/{place}/{name}") == (dry_run or bool(error))
    assert Path(f"victim/{name}").read_text() == origin.read_text() == "precious"


def test_a_planted_temporary_name_is_not_written_through(
    here: Path, copying: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvt_cli.system.files.secrets, "token_hex", lambda size: "0" * 2 * size)
    write("victim", "precious")
    Path("sorted/cat").mkdir(parents=True)
    cvt_cli.system.files.temporary_name(Path("sorted/cat/x.jpg")).symlink_to(here / "victim")
    assert statuses(sort(XS[:1], copying)) == [DONE]
    assert Path("victim").read_text() == "precious"
    assert list(tree().values()) == ["A"]


def test_a_copy_that_a_killed_run_left_is_deleted(
    here: Path, copying: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvt_cli.system.files, "_MOMENT", -1.0)
    folder = here / "sorted/cat"
    folder.mkdir(parents=True)
    cvt_cli.system.files.temporary_name(folder / "x.jpg").write_text("hal")
    done = cvt_cli.sorting.transfer.keep_from_sweeps

    def locked(file: BinaryIO) -> None:
        done(file)
        cvt_cli.system.files.sweep(folder)  # by another process, meanwhile
        assert [each.name for each in folder.iterdir()] == [Path(file.name).name]

    monkeypatch.setattr(cvt_cli.sorting.transfer, "keep_from_sweeps", locked)
    assert statuses(sort(XS[:1], copying)) == [DONE]
    assert [each.name for each in folder.iterdir()] == ["x.jpg"]


# Archives


def test_members_of_archives_are_copied(here: Path) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for i in range(5):
            archive.writestr(f"{i}/x.jpg", f"zip{i}")
        archive.writestr("odd.dat", "odd")
    with tarfile.open("b.tar.gz", "w:gz") as tar:
        for path in ("a/x.jpg", "b/x.jpg"):
            tar.add(path)
    records = [
        *(record(f"a.zip::{i}/x.jpg") for i in range(5)),
        record("a.zip::odd.dat", "dog"),
        record("b.tar.gz::b/x.jpg"),
        record("b.tar.gz::a/x.jpg"),
    ]
    planned = sort(records, dry_run=True)
    assert statuses(planned) == [DONE] * 8
    assert not Path("sorted").exists()
    assert sort(records) == planned
    cats = ["zip0", "zip1", "zip2", "zip3", "zip4", "B", "A"]
    names = ["x.jpg", *(f"x-{number}.jpg" for number in range(2, 8))]
    assert tree() == {
        **{f"cat/{name}": text for name, text in zip(names, cats, strict=True)},
        "dog/odd.dat": "odd",
    }
    assert statuses(sort(records)) == [THERE] * 8


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("https://h.example/p/a%20b.jpg?size=2", "a b.jpg"),
        ("s3://bucket/caf%C3%A9.jpg", "café.jpg"),
        ("a.zip::dir\\x.jpg", "x.jpg"),
        ("a.zip::b.tar::c/x%20y.jpg", "x%20y.jpg"),
        ("https://h.example/a.zip::b/x.jpg", "x.jpg"),
    ],
)
def test_what_is_on_no_disk_is_called_as_there(path: str, name: str) -> None:
    assert cvt_cli.sorting.folder_names.base_name(path, None) == name


def test_members_that_are_not_there(here: Path) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("x.jpg", "X")
    outcomes = sort([record("a.zip::y.jpg"), record("no.zip::x.jpg"), record("a.zip::x.jpg")])
    assert statuses(outcomes) == [FAILED, FAILED, DONE]
    assert outcomes[0].error == outcomes[1].error == "no such file"


@pytest.mark.parametrize("action", [Action.MOVE, Action.LINK, Action.SYMLINK])
def test_members_are_only_copied(here: Path, action: Action) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("x.jpg", "X")
    outcomes = sort([record("a.zip::x.jpg")], action)
    assert outcomes[0].error == "not a file of its own: it can only be copied"


def test_a_file_that_is_called_as_a_member_would_be(here: Path) -> None:
    write("a.zip::x.jpg", "a file")
    assert statuses(sort([record("a.zip::x.jpg")], Action.MOVE)) == [DONE]
    assert tree() == {"cat/a.zip::x.jpg": "a file"}


def test_a_list_of_synonyms_is_sorted_by_its_first(here: Path) -> None:
    panda = "lesser panda, red panda, panda, bear cat"
    other = "lesser panda, and a label that begins alike"
    records = [record("a/x.jpg", panda), record("d/y.jpg", other)]
    first = [outcome.folder for outcome in sort(records)]
    assert first[0] == "lesser panda" and first[1].startswith("lesser panda-")
    assert statuses(sort(records)) == [THERE] * 2


def test_a_folder_of_the_whole_label_stays_in_use(here: Path) -> None:
    panda = "lesser panda, red panda, panda, bear cat"
    Path("sorted", panda).mkdir(parents=True)
    (outcome,) = sort([record("a/x.jpg", panda)])
    assert outcome.folder == panda and not Path("sorted/lesser panda").exists()


def test_a_file_that_another_process_took_meanwhile_is_not_lost(tmp_path: Path) -> None:
    # The other one has set the old path aside, to delete it once it sees the new one.
    (tmp_path / "new.jpg").write_text("x")
    cvt_cli.system.files.unlink_renamed(tmp_path / "old.jpg", tmp_path / "new.jpg")
    assert (tmp_path / "new.jpg").read_text() == "x"
