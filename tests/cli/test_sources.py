"""Inputs of every kind, through the installed command."""

import io
import os
import re
import socket
import stat
import subprocess
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvt_cli.records import as_written
from tests.cli.test_failures import AS_ANYBODY
from tests.conftest import RunCvt
from tests.images.test_decode import png
from tests.images.test_network import Server, s3, server  # noqa: F401 (fixtures)
from tests.photos import picture

TinyCvt = Callable[..., Path]


@pytest.fixture
def folder(run_cvt: RunCvt, tmp_path: Path) -> Path:
    """The folder that the command runs in."""
    assert run_cvt.cwd == tmp_path
    return tmp_path


@pytest.fixture(scope="module")
def model(tiny_cvt: TinyCvt) -> Path:
    return tiny_cvt()


def jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture(seed=seed).save(file, "JPEG")
    return file.getvalue()


def add_to_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def bad(folder: Path) -> Iterator[set[str]]:
    """`bad/`, a folder of everything that can't be read; the paths that deserve a record."""
    bad = folder / "bad"
    (bad / "deep").mkdir(parents=True)
    os.mkfifo(bad / "fifo.jpg")
    try:
        os.mknod(bad / "device.jpg", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        (bad / "device.jpg").symlink_to("/dev/zero")
    (bad / "itself.jpg").symlink_to(bad / "itself.jpg")
    (bad / "dangling.jpg").symlink_to(bad / "nowhere.jpg")
    (bad / "empty.jpg").touch()
    (bad / "text.jpg").write_text("This is no image.\n" * 100)
    (bad / "cut.jpg").write_bytes(jpeg()[:1000])
    (bad / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (bad / "web.jxl").write_bytes(b"\xff\x0a" + bytes(100))
    (bad / "bomb.png").write_bytes(png(50_000, 50_000))
    (bad / "two\nlines.jpg").touch()
    Path(os.fsdecode(os.fsencode(bad) + b"/caf\xe9.jpg")).write_bytes(b"\0")
    if os.geteuid() != 0:
        (bad / "mine.jpg").write_bytes(jpeg())
        (bad / "mine.jpg").chmod(0)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(bad)  # a socket's path is short
        listener.bind("socket.jpg")
        os.chdir(here)
        wanted = {f"bad/{name}" for name in os.listdir(bad) if "." in name}
        # No record: a link back, what is hidden, what no image is called.
        (bad / "deep/up.jpg").symlink_to(bad, target_is_directory=True)
        (bad / ".hidden.jpg").touch()
        (bad / "notes.txt").touch()
        yield wanted


def test_everything_bad_is_one_record(
    bad: set[str], folder: Path, run_cvt: RunCvt, model: Path
) -> None:
    with zipfile.ZipFile(folder / "empty.zip", "w"):
        pass
    add_to_tar(folder / "empty.tar", {})
    add_to_tar(folder / "cut.tar", {"x.jpg": jpeg()})
    with (folder / "cut.tar").open("r+b") as file:
        file.truncate(1500)
    (folder / "nothing.tar.gz").touch()
    with zipfile.ZipFile(folder / "secret.zip", "w") as archive:
        archive.writestr("x.jpg", jpeg())
    secret = bytearray((folder / "secret.zip").read_bytes())
    secret[secret.find(b"PK\1\2") + 8] |= 1
    (folder / "secret.zip").write_bytes(secret)
    (folder / "none").mkdir()
    os.mkfifo(folder / "fifo.tar")
    typed = {
        *("empty.zip", "empty.tar", "cut.tar", "nothing.tar.gz", "secret.zip", "fifo.tar"),
        *("none", "*.webp", "missing.jpg", "none/{1..2}.jpg"),
        *("http://127.0.0.1:1/x.jpg", "nothing://x", "-"),
    }
    names = ["x" * 100_000, "y/" * 50_000, "missing.jpg", "bad/cut.jpg"]
    (folder / "list").write_text("\n".join(names))
    start = time.monotonic()
    done = run_cvt(
        *("classify", "bad", *sorted(typed), "--files-from", "list"),
        *("-m", model, "-f", "jsonl", "--timeout", "5"),
        expect=1,
    )
    assert time.monotonic() - start < 300
    records = done.jsonl()
    assert all(record["error"] and not record["predictions"] for record in records)
    renamed = {
        "cut.tar": "cut.tar::x.jpg",
        "secret.zip": "secret.zip::x.jpg",
        "none/{1..2}.jpg": "none/1.jpg",
    }
    wanted = bad | {renamed.get(path, path) for path in typed} | {"none/2.jpg", *names}
    assert Counter(record["path"] for record in records) == Counter(map(as_written, wanted))
    said = {record["path"]: record["error"] for record in records}
    for name, format_ in (("bad/phone.HEIC", "HEIC"), ("bad/web.jxl", "JPEG XL")):
        # With what reads it, and without.
        broken = f"a broken {format_}, or of a kind that is not supported"
        assert said[name] == broken or said[name].startswith(f"{format_} needs a package: ")
    assert "Traceback" not in done.stderr
    assert f"{len(wanted)} of {len(wanted)} inputs" in done.stderr


def test_the_same_image_from_everywhere(
    folder: Path,
    run_cvt: RunCvt,
    model: Path,
    server: Server,  # noqa: F811
    s3: str,  # noqa: F811
) -> None:
    import fsspec

    image = jpeg()
    (folder / "p/q").mkdir(parents=True)
    for path in ("p/cat.jpg", "p/q/cat.jpg", "p/q/cat.dat", "p/q/dog.jpg"):
        (folder / path).write_bytes(image)
    add_to_tar(folder / "a.tar", {"q/cat.jpg": image, "q/dog.jpg": image})
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("q/cat.jpg", image)
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("bucket/sources/cat.jpg", image)
    run_cvt.env |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    done = run_cvt(
        *("classify", "a.tar", "a.zip", "p/**/cat.*", "-", f"{server.url}/file/a.zip"),
        *(f"{server.url}/file/p/cat.jpg", f"{s3}/sources/", f"{s3}/sources/cat.jpg", "p/q"),
        *("--exclude", "dog.*", "-m", model, "-f", "jsonl"),
        stdin=image,
        expect=0,
    )
    records = done.jsonl()
    assert [record["path"] for record in records] == [
        *("a.tar::q/cat.jpg", "a.zip::q/cat.jpg", "p/cat.jpg", "p/q/cat.dat", "p/q/cat.jpg", "-"),
        *(f"{server.url}/file/a.zip::q/cat.jpg", f"{server.url}/file/p/cat.jpg"),
        f"{s3}/sources/cat.jpg",
    ]
    assert len({str(record["predictions"]) for record in records}) == 1


def test_names_from_find(folder: Path, run_cvt: RunCvt, model: Path) -> None:
    for name in ("a.jpg", "b\nc.jpg", "-k.jpg", "{1..2}*.jpg"):
        (folder / name).write_bytes(jpeg())
    names = subprocess.run(
        ["find", ".", "-name", "*.jpg", "-print0"], cwd=folder, stdout=subprocess.PIPE, check=True
    ).stdout
    done = run_cvt(
        *("classify", "--files-from", "-", "--null", "-m", model, "-f", "jsonl"),
        stdin=names,
        expect=0,
    )
    assert [record["path"] for record in done.jsonl()] == names.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "image"),
        (["--files-from", "none"], "no such file"),
        (["--files-from", "a.png"], "--files-from a.png: has NUL bytes"),
        (["cat.jpg", "--null"], "--null is for --files-from"),
        (["-", "--files-from", "-"], "standard input"),
        (["cat.jpg", "--timeout", "0"], "timeout"),
        (["cat.jpg", "--max-bytes", "0"], "max-bytes"),
    ],
)
def test_wrong_usage(arguments: list[str], word: str, run_cvt: RunCvt) -> None:
    (run_cvt.cwd / "a.png").write_bytes(png(5, 5))
    done = run_cvt("classify", *arguments, expect=2)
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("pattern", ["p/*/*.jpg", "p/**/a.jpg", "p/*/a.jpg", "**/q/a.jpg"])
def test_a_folder_that_a_pattern_can_not_search(
    pattern: str, folder: Path, run_cvt: RunCvt
) -> None:
    for name in ("o", "q"):
        (folder / "p" / name).mkdir(parents=True)
        (folder / "p" / name / "a.jpg").write_bytes(jpeg())
    (folder / "p/q").chmod(0)
    process = run_cvt.start("classify", pattern, "-m", "cvt-tiny-cifar10", first=AS_ANYBODY)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    lines = out.splitlines()
    assert "p/q\t\t\tpermission denied" in lines
    assert [line.split("\t")[0] for line in lines if "denied" not in line] == (
        [] if "q" in pattern else ["p/o/a.jpg"]
    )


def test_a_list_of_another_kind(folder: Path, run_cvt: RunCvt, model: Path) -> None:
    (folder / "list").write_bytes(b"a.jpg\0b.jpg\0")
    arguments = ("classify", "--files-from", "-", "-m", model)
    # From a file it is seen before anything is started, from a pipe when it is read.
    done = run_cvt(*arguments, stdin=folder / "list", expect=2)
    assert "--files-from -: has NUL bytes" in done.stderr and "--null" in done.stderr
    done = run_cvt(*arguments, stdin=b"a.jpg\0b.jpg\0", expect=1)
    assert done.stdout.startswith("-\t\t\tthe list of names: has NUL bytes")
    assert len(done.stdout.splitlines()) == 1


def test_what_is_said_of_a_list(folder: Path, run_cvt: RunCvt, model: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg())
    arguments = ("classify", "--files-from", "-", "-m", model)
    done = run_cvt(*arguments, stdin="a.jpg\n" * 3 + "./a.jpg", expect=0)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == (
        "cvt: warning: 3 inputs are the same as an earlier one: each is read once\n"
    )
    done = run_cvt(*arguments, stdin="", expect=0)
    assert (done.stdout, done.stderr) == (
        *("", "cvt: warning: --files-from -: the list names no file\n"),
    )


def test_standard_input_that_is_closed(run_cvt: RunCvt) -> None:
    process = run_cvt.start(
        *("classify", "--files-from", "-", "-m", "cvt-tiny-cifar10"),
        first="import os; os.close(0)",
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert (out, err) == ("", "cvt: error: --files-from -: standard input is closed\n")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no such file here")
@pytest.mark.parametrize("column", ["bytes", "sha256"])
def test_a_file_that_can_not_be_read(
    column: str, folder: Path, run_cvt: RunCvt, model: Path
) -> None:
    (folder / "cat.jpg").write_bytes(jpeg())
    done = run_cvt(
        *("classify", "/proc/self/mem", "cat.jpg", "-m", model, "-f", "jsonl"),
        *("--columns", column),
        expect=1,
    )
    assert [bool(record["error"]) for record in done.jsonl()] == [True, False]
    assert "1 of 2 inputs" in done.stderr


def test_a_server_does_not_steer_the_terminal(
    folder: Path,
    run_cvt: RunCvt,
    model: Path,
    server: Server,  # noqa: F811
) -> None:
    name = "\x1b]0;name\x07\x9b2Jodd\u3000space.png"
    (folder / name).touch()
    for format_, tty in (("table", True), ("table", False), ("plain", True), ("plain", False)):
        done = run_cvt(
            *("classify", f"{server.url}/steer", name, "-m", model, "-f", format_),
            columns=200,
            tty=tty,
            no_color=True,
            expect=1,
        )
        assert "404 \\x1b]0;pwned\\x07\\x1b[2JGone" in done.stdout
        assert "\\x1b]0;name\\x07\\x9b2J" in done.stdout
        assert not re.search("\x1b\\]|\x1b\\[2J|[\x07\x9b]", done.stdout)
        # Programs find the file by it.
        assert ("odd\u3000space" in done.stdout) == (format_ == "plain")


def test_limits(folder: Path, run_cvt: RunCvt, model: Path) -> None:
    (folder / "p/q").mkdir(parents=True)
    (folder / "p/cat.jpg").write_bytes(jpeg())
    (folder / "p/q/cat.jpg").write_bytes(jpeg())
    limit = len(jpeg())
    (folder / "p/dog.jpg").write_bytes(jpeg() + b"\0")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("cat.jpg", jpeg() + b"\0")
    done = run_cvt(
        *("classify", "p", "a.zip", "-m", model, "-f", "jsonl", "--no-recursive"),
        *("--max-pixels", "6143", "--max-bytes", limit),
        expect=1,
    )
    errors: dict[str, Any] = {record["path"]: record["error"] for record in done.jsonl()}
    assert errors.keys() == {"p/cat.jpg", "p/dog.jpg", "a.zip::cat.jpg"}
    assert "96x64 pixels, more than the limit of 6143" in errors["p/cat.jpg"]
    assert "raise --max-pixels" in errors["p/cat.jpg"]
    too_many = f"more than the limit of {limit} bytes; raise --max-bytes if you trust it"
    assert errors["p/dog.jpg"] == errors["a.zip::cat.jpg"] == too_many
