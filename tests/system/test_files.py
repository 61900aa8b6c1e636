import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

import cvt_cli.system.files
import cvt_cli.system.locks
from cvt_cli.errors import UsageError
from cvt_cli.system.files import (
    check_file,
    rename_new,
    sweep,
    temporary_folder,
    write_atomically,
)
from cvt_cli.system.locks import is_locked, lock


def test_two_processes_with_the_same_number_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(file: BinaryIO) -> None:
        file.write(b"first")
        write_atomically(path, lambda other: other.write(b"second, and longer"))

    write_atomically(path, write)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync = os.fsync

    def synced(number: int) -> None:
        status = os.fstat(number)
        is_folder = stat.S_ISDIR(status.st_mode)
        events.append("folder" if is_folder else f"{status.st_size} bytes")
        fsync(number)

    def renamed(file: Path, path: Path) -> None:
        events.append("name")
        file.replace(path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(cvt_cli.system.files, "replace", renamed)
    write_atomically(tmp_path / "file", lambda file: file.write(b"12345"))
    assert events == ["5 bytes", "name", "folder"]


@pytest.mark.parametrize(
    ("refused", "expected"),
    [(False, ["file", "folder"]), (True, ["file", "by the system", "folder", "by the system"])],
)
def test_flushed_past_the_memory_of_the_disk(
    refused: bool, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS does when it is asked, where the file system can."""
    flushed = []

    def full_fsync(number: int, command: int) -> None:
        assert command == 51
        flushed.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        if refused:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_fsync)
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append("by the system"))
    write_atomically(tmp_path / "file", lambda file: file.write(b"content"))
    assert flushed == expected


def test_nothing_is_written_through_a_name_that_was_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvt_cli.system.files.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f".cvt-{cvt_cli.system.files._machine()}-0000000000000000.tmp").symlink_to("victim")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", lambda file: file.write(b"content"))
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_any_name_that_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, lambda file: file.write(b"content"))
    assert path.read_bytes() == b"content"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="Not a regular file"):
        write_atomically(path, lambda file: file.write(b"content"))
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_to_see_whether_a_file_can_be_written_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_file(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")
    check_file(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    for name, words in {
        "file/x": "can't be written: not a directory",
        "no/x": "can't be written: .*no is not a folder",
        "folder": "is a folder",
        "x" * 300: "name too long",
    }.items():
        with pytest.raises(UsageError, match=words):
            check_file(tmp_path / name)
    with pytest.raises(UsageError, match="no name is given"):
        check_file(Path(""))


def test_a_file_that_another_has_put_in_its_place_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    flock = fcntl.flock

    def after_the_others(*arguments: Any) -> None:
        path.rename(tmp_path / "finished")
        path.write_bytes(b"of a third")
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", after_the_others)
    with pytest.raises(BlockingIOError):
        lock(path)
    monkeypatch.setattr(fcntl, "flock", flock)
    lock(path).close()


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, which renames no file that is open, even to its own name."""
    path = tmp_path / "file"
    for module in cvt_cli.system.files, cvt_cli.system.locks:
        monkeypatch.setattr(module, "fcntl", None)
    lock(path).close()
    assert not is_locked(path)
    assert path.exists()

    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Used by another process")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(BlockingIOError):
        lock(path)
    assert is_locked(path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock(tmp_path / "file").close()


def test_where_to_rename_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, of whose file systems some have no links, and which deletes no read-only file."""
    rename = os.rename

    def windows_rename(source: Any, target: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target))
        rename(source, target)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EINVAL, "Incorrect function")

    monkeypatch.setattr(os, "rename", windows_rename)
    monkeypatch.setattr(os, "unlink", refuse)
    windows = SimpleNamespace(**{**vars(os), "name": "nt", "link": refuse})
    monkeypatch.setattr(cvt_cli.system.files, "os", windows)
    (tmp_path / "file").write_bytes(b"content")
    rename_new(tmp_path / "file", tmp_path / "other")
    (tmp_path / "file").write_bytes(b"more")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "file", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"content"
    assert (tmp_path / "file").read_bytes() == b"more"


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    others = [tmp_path / name for name in (".cvt-1.tmp", ".cvt-00000000000000ff.tmp", "x.tmp")]
    for other in others:
        other.write_text("somebody's")
        os.utime(other, (0, 0))
    process = os.fork()
    if not process:
        write_atomically(path, lambda file: (file.flush(), os.kill(os.getpid(), 9)))
    os.waitpid(process, 0)
    (left,) = set(tmp_path.iterdir()) - set(others)
    elsewhere = tmp_path / ".cvt-00000000-0000000000000000.tmp"
    elsewhere.touch()
    time.sleep(1.1)

    def write(file: BinaryIO) -> None:
        (ours,) = set(tmp_path.iterdir()) - {left, elsewhere, *others}
        time.sleep(1.1)
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {ours, elsewhere, *others}
        os.utime(elsewhere, (0, 0))
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {ours, *others}

    write_atomically(path, write)
    assert set(tmp_path.iterdir()) == {path, *others}


def test_a_folder_that_a_killed_process_left_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cvt_cli.system.files, "_MOMENT", -1.0)
    process = os.fork()
    if not process:
        with temporary_folder(tmp_path / "labels.xlsx") as folder:
            (folder / "rows").write_bytes(b"row")
            os.kill(os.getpid(), 9)
    os.waitpid(process, 0)
    (left,) = tmp_path.iterdir()
    assert (left / "rows").exists()
    with temporary_folder(tmp_path / "labels.xlsx") as folder:
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "rows").write_bytes(b"row")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shift", [-3 * 86400, 3 * 86400])
def test_the_clock_may_be_set_meanwhile(
    shift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By days, in either direction: locks tell what is in use."""
    left = cvt_cli.system.files.temporary_name(tmp_path / "file")
    left.touch()
    link = cvt_cli.system.files.temporary_name(tmp_path / "file")
    link.symlink_to(tmp_path)

    def write(file: BinaryIO) -> None:
        (ours,) = set(tmp_path.iterdir()) - {left, link}
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + shift)
        sweep(tmp_path)
        assert set(tmp_path.iterdir()) == {ours, link}

    write_atomically(tmp_path / "file", write)
