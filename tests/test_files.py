import os
from pathlib import Path
from typing import BinaryIO

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.files import check_file, write_atomically


def test_two_processes_with_the_same_number_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(file: BinaryIO) -> None:
        file.write(b"first")
        write_atomically(path, lambda other: other.write(b"second, and longer"))

    write_atomically(path, write)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError

    with pytest.raises(OSError):
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
        "no/x": "can't be written: .*no is no folder",
        "folder": "is a folder",
        "x" * 300: "name too long",
    }.items():
        with pytest.raises(UsageError, match=words):
            check_file(tmp_path / name)
    with pytest.raises(UsageError, match="no name is given"):
        check_file(Path(""))
