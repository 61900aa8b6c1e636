"""The images in zip and tar archives."""

import bz2
import gc
import gzip
import io
import lzma
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvt_cli.errors import ImageError
from cvt_cli.images.find import count_sources, find
from cvt_cli.images.source import Search, Source, kind_of_archive
from cvt_cli.images.zip_images import _zip64_extra

MEMBERS = {"cat.jpg": b"cat" * 1000, "in/dog.PNG": b"dog" * 50_000, "in/deep/ü b.gif": b"x"}
OTHERS = dict.fromkeys(("readme.txt", ".hidden.jpg", "__MACOSX/._cat.jpg", "in/.x/y.jpg"), b"no")

KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which names can be typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_zip(path: str, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zst(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason='needs "cvt-cli[zst]"')
    compressed: bytes = zstandard.ZstdCompressor().compress(data)
    return compressed


PACK: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
}


def make(path: str, files: dict[str, bytes]) -> str:
    """An archive of the kind that its suffix says."""
    suffix = path.split(".", 1)[1]
    if suffix == "zip":
        make_zip(path, files)
        return path
    kind = suffix.removeprefix("tar.").replace("tgz", "gz").replace("tbz2", "bz2")
    kind = kind.replace("txz", "xz").replace("tzst", "zst")
    Path(path).write_bytes(PACK[kind](tar(files)))
    return path


def result(source: Source) -> bytes | str:
    """What is read, or why not."""
    try:
        with source.open() as file:
            return file.read()
    except ImageError as error:
        return str(error)


def results(path: str, **search: object) -> dict[str, bytes | str]:
    """By member; the archive's own error by ""."""
    # Listed first: what is read later must not depend on where the search is.
    sources = list(find([path], Search(**search)))  # type: ignore[arg-type]
    names = [source.path.removeprefix(path).removeprefix("::") for source in sources]
    assert len(set(names)) == len(names)
    return dict(zip(names, map(result, sources), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    path = make(f"a.{kind}", MEMBERS | OTHERS)
    assert results(path) == MEMBERS
    assert [source.path for source in find([path])] == [f"{path}::{name}" for name in MEMBERS]
    assert count_sources([path]) == (3 if kind in ("zip", "tar") else None)


def test_kinds_in_capitals() -> None:
    names = ("PHOTOS.ZIP", "a.Tar.GZ", "A.TGZ", "b.Tar", "c.jpg")
    assert list(map(kind_of_archive, names)) == ["zip", "gz", "gz", "tar", None]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_stream_of_several_is_one(kind: str) -> None:
    # What compressors that run in parallel write, and `cat a.gz b.gz`.
    data = tar(MEMBERS)
    pieces = (data[:700], b"", data[700:])
    Path(f"a.tar.{kind}").write_bytes(b"".join(map(PACK[kind], pieces)))
    assert results(f"a.tar.{kind}") == MEMBERS


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_are_picked(kind: str) -> None:
    path = make(f"a.{kind}", MEMBERS | OTHERS)
    assert list(results(path, include=("*.gif", "*.txt"))) == ["in/deep/ü b.gif", "readme.txt"]
    assert list(results(path, include=("in/*",), exclude=("deep",))) == ["in/dog.PNG"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.filterwarnings("ignore:.* holds archives")
def test_archives_in_folders_and_in_archives_stay_shut(kind: str) -> None:
    Path("p").mkdir()
    inner = Path(make(f"p/b.{kind}", MEMBERS))
    (source,) = find(["p"])
    assert result(source) == "a folder without images"
    path = make(f"a.{kind}", {"x.jpg": b"x", inner.name: inner.read_bytes()})
    assert results(path) == {"x.jpg": b"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_without_images(kind: str) -> None:
    assert results(make(f"a.{kind}", {})) == {"": "an archive without images"}
    assert results(make(f"b.{kind}", OTHERS)) == {"": "an archive without images"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, b"\0" * 5000])
def test_what_is_no_archive(kind: str, content: bytes) -> None:
    Path(f"a.{kind}").write_bytes(content)
    ((path, reason),) = results(f"a.{kind}").items()
    assert path == ""
    # Zeros are how an empty tar ends.
    assert ("without images" if kind == "tar" and content[:1] == b"\0" else "broken") in str(reason)


def test_an_archive_that_is_no_file() -> None:
    Path("a.zip").mkdir()
    assert results("a.zip") == {"": "a folder without images"}
    assert results("b.tar") == {"": "no such file"}


@pytest.mark.parametrize("method", [0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods(method: int) -> None:
    make_zip("a.zip", MEMBERS, method)
    assert results("a.zip") == MEMBERS


def test_zip_with_a_comment_and_a_start_of_its_own() -> None:
    make_zip("a.zip", MEMBERS)
    with zipfile.ZipFile("a.zip", "a") as archive:
        archive.comment = b"PK\5\6" * 15_000
    # A program that unpacks itself.
    Path("b.zip").write_bytes(b"#!/bin/sh\n" * 1000 + Path("a.zip").read_bytes())
    assert results("a.zip") == results("b.zip") == MEMBERS


def test_zip64(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if everything were too large for 32 bits.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    make_zip("a.zip", MEMBERS)
    assert b"PK\6\6" in Path("a.zip").read_bytes()
    Path("b.zip").write_bytes(b"before" + Path("a.zip").read_bytes())
    assert results("a.zip") == results("b.zip") == MEMBERS


def test_numbers_of_zip64_behind_another_field() -> None:
    time = struct.pack("<2H5x", 0x5455, 5)
    assert list(_zip64_extra(time + struct.pack("<2H2Q", 1, 16, 7, 8) + time)) == [7, 8]


def test_names_of_old_zips() -> None:
    make_zip("a.zip", {"cafX.jpg": b"x"})
    Path("a.zip").write_bytes(Path("a.zip").read_bytes().replace(b"cafX", b"caf\x82"))
    assert results("a.zip") == {"café.jpg": b"x"}


@pytest.mark.parametrize("system", [0, 3, 19])
def test_names_of_zips_that_mark_no_utf8(system: int) -> None:
    """As macOS and `zip` write them; MS-DOS had other characters."""
    make_zip("a.zip", {"caf-XX.jpg": b"x", "__MACOSX/._caf-XX.jpg": b"resources"})
    data = Path("a.zip").read_bytes().replace(b"caf-XX", "café-".encode())
    data = data.replace(b"PK\1\2\x14\x03", b"PK\1\2\x14" + bytes([system]))
    Path("a.zip").write_bytes(data)
    assert results("a.zip") == {"café-.jpg" if system else "caf├⌐-.jpg": b"x"}


def test_zip_members_are_read_by_many_threads() -> None:
    files = {f"{i}.jpg": bytes([i]) * 100_000 for i in range(64)}
    make_zip("a.zip", files)
    sources = list(find(["a.zip"]))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(result, sources)) == list(files.values())


def test_an_encrypted_zip() -> None:
    make_zip("a.zip", {"x.jpg": b"x", "y.jpg": b"y"})
    data = bytearray(Path("a.zip").read_bytes())
    at = data.find(b"PK\1\2")
    data[at + 8] |= 1
    Path("a.zip").write_bytes(data)
    assert results("a.zip") == {"x.jpg": "encrypted", "y.jpg": b"y"}


def test_a_damaged_member_is_its_own_error() -> None:
    make_zip("a.zip", {"x.jpg": b"xx", "y.jpg": b"yy", "z.jpg": b"zz"}, zipfile.ZIP_STORED)
    data = bytearray(Path("a.zip").read_bytes())
    data[data.find(b"yy")] = 0
    data[data.find(b"z.jpg")] = 0  # another name than the directory has
    Path("a.zip").write_bytes(data)
    found = results("a.zip")
    assert found["x.jpg"] == b"xx"
    assert "CRC" in str(found["y.jpg"])
    assert "broken in its archive" in str(found["z.jpg"])


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_zip_that_is_cut_off_or_damaged_anywhere(cut: int) -> None:
    make_zip("a.zip", {"x.jpg": b"x" * 9, "y.jpg": b"y"})
    data = bytearray(Path("a.zip").read_bytes())
    Path("b.zip").write_bytes(data[:-cut])
    ((path, reason),) = results("b.zip").items()
    assert path == ""
    assert str(reason).startswith("broken archive")
    data[-cut % len(data)] ^= 0xFF
    Path("c.zip").write_bytes(data)
    assert len(results("c.zip")) in (1, 2)


def test_unsafe_names_and_links() -> None:
    names = ("../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:/x.jpg", "a\\..\\..\\x.jpg")
    make_zip("a.zip", dict.fromkeys(names, b"x") | {"a..b/x...jpg": b"fine"})
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile("a.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with tarfile.open("a.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
        member = tarfile.TarInfo("a..b/x...jpg")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"fine"))
        for name, kind in {"link.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name, kind in {
            "fifo.jpg": tarfile.FIFOTYPE,
            "holes.jpg": tarfile.GNUTYPE_SPARSE,
        }.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    Path("b.tar.gz").write_bytes(gzip.compress(Path("a.tar").read_bytes()))
    wanted = dict.fromkeys(names, "an unsafe name in an archive") | {"a..b/x...jpg": b"fine"}
    special = "a link or a special file in an archive"
    assert results("a.zip") == wanted | {"link.jpg": special}
    in_tar = wanted | dict.fromkeys(("link.jpg", "hard.jpg", "fifo.jpg", "holes.jpg"), special)
    assert results("a.tar") == results("b.tar.gz") == in_tar


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_member_that_is_too_large(kind: str) -> None:
    path = make(f"a.{kind}", {"large.jpg": random(0), "x.jpg": b"x" * 1000})
    assert results(path, max_bytes=1000) == {
        "large.jpg": "more than the limit of 1000 bytes",
        "x.jpg": b"x" * 1000,
    }


def test_declared_sizes_are_not_believed() -> None:
    make_zip("a.zip", {"bomb.jpg": bytes(10**6)})
    data = bytearray(Path("a.zip").read_bytes())
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<L", data, data.find(signature) + offset, 500)
    Path("a.zip").write_bytes(data)
    assert "broken in its archive" in str(results("a.zip", max_bytes=1000)["bomb.jpg"])


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_bomb_beside_the_images(kind: str) -> None:
    path = make(f"a.{kind}", {"x.jpg": b"x", "zeros.bin": bytes(3 * 10**7), "y.jpg": b"y"})
    found = results(path, max_bytes=10**6)
    assert found["x.jpg"] == b"x"
    assert "decompression bomb" in str(found[""])
    assert len(found) == 2
    # What is merely large, in all, is read.
    noise = b"".join(struct.pack("<Q", i * 0x9E3779B97F4A7C15 % 2**64) for i in range(10**5))
    path = make(f"b.{kind}", {"x.jpg": b"x", "noise.bin": noise, "y.jpg": b"y"})
    assert results(path, max_bytes=1000) == {"x.jpg": b"x", "y.jpg": b"y"}


def test_a_tar_that_shrinks_after_the_search() -> None:
    (source,) = find([make("a.tar", {"x.jpg": b"x" * 1000})])
    with Path("a.tar").open("r+b") as file:
        file.truncate(1000)
    assert result(source) == "the archive has changed since the search"


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_a_tar_that_is_cut_off(kind: str) -> None:
    whole = Path(make(f"a.{kind}", {f"{i}.jpg": random(i) for i in range(4)})).read_bytes()
    Path(f"b.{kind}").write_bytes(whole[: len(whole) // 2])
    found = results(f"b.{kind}")
    errors = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    assert len(errors) == 1
    assert re.search("cut off|ended before|empty file", *errors.values())
    assert all(found[path] == random(int(path[0])) for path in found.keys() - errors.keys())


def random(seed: int) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).bytes(20_000)


@pytest.mark.parametrize("at", [0, 1024, 2048 + 148, 2048 + 400])
def test_a_damaged_header_is_not_the_end(at: int) -> None:
    data = bytearray(tar({f"{i}.jpg": b"x" for i in range(4)}))
    data[at] ^= 0x55
    for path in ("a.tar", "a.tar.gz"):
        Path(path).write_bytes(data if path == "a.tar" else gzip.compress(data))
        found = results(path)
        assert str(found.pop("")).startswith("broken archive")
        assert found == {f"{i}.jpg": b"x" for i in range(at // 1024)}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.zst"])
@pytest.mark.parametrize("members", [0, 2])
def test_a_tar_that_is_cut_off_before_a_header(kind: str, members: int) -> None:
    """What is there is whole, but nothing says that it is all."""
    files = {f"{i}.jpg": b"x" for i in range(4)}
    for more in (0, 100):
        cut = tar(files)[: 1024 * members + more]
        Path(f"a.{kind}").write_bytes(PACK[kind.removeprefix("tar.")](cut))
        found = results(f"a.{kind}")
        assert str(found.pop("")).startswith("broken archive")
        assert found == {f"{i}.jpg": b"x" for i in range(members)}


def tar_header(size: bytes, kind: bytes = b"0", name: bytes = b"x.jpg") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136], block[136:148] = size, b"00000000000\0"
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def large_header(kind: str, size: int) -> bytes:
    """The start of a tar archive whose first member has this much of a header."""
    if kind == "sparse":
        extent = b"%011o\0%011o\0" % (512, 512)
        first = bytearray(tar_header(b"%011o\0" % 512, b"S"))
        first[482] = 1
        first[148:156] = b" " * 8
        first[148:156] = b"%06o\0 " % sum(first)
        return bytes(first) + (extent * 21 + b"\1" + bytes(7)) * (size // 512)
    if kind == "many":
        each = b"%d comment=" % 2**16
        one = tar_header(b"%011o\0" % 2**16, b"x") + each.ljust(2**16 - 1, b"x") + b"\n"
        return one * (size // 2**16)
    letter = {"pax": b"x", "global": b"g", "long name": b"L", "long link": b"K"}[kind]
    data = b"n" * size
    if letter in b"xg":
        data = (b"%d comment=" % size).ljust(size - 1, b"x") + b"\n"
    return tar_header(b"%011o\0" % size, letter) + data


@pytest.mark.parametrize("kind", ["pax", "global", "long name", "long link", "many", "sparse"])
def test_a_large_tar_header_is_not_held_in_memory(kind: str) -> None:
    """Not where the archive is small because it is compressed, either."""
    data = large_header(kind, 2**24) + tar(MEMBERS)
    for path in ("a.tar", "a.tar.gz"):
        Path(path).write_bytes(data if path == "a.tar" else gzip.compress(data, 1))
        tracemalloc.start()
        try:
            found = results(path)
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()
        assert found == {"": "broken archive: a header of absurd size"}


@pytest.mark.parametrize("kind", [b"x", b"g", b"X"])
def test_digits_in_a_pax_header_cost_no_time(kind: bytes) -> None:
    """CVE-2024-6232: tarfile takes the square of their number."""
    for body in (b"1" * 2**16, b"65536 comment=".ljust(2**16 - 1, b"1") + b"\n"):
        Path("a.tar").write_bytes(tar_header(b"%011o\0" % 2**16, kind) + body + tar(MEMBERS))
        start = time.process_time()
        assert results("a.tar") == {"": "broken archive: a broken pax header"}
        assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "body",
    [b"12 a=b\n", b"9 a=b=c\n8 \n", b"7 abc\n", b"-8 a=b\n", b"8  a=b\n".replace(b" a", b"\0a")],
)
def test_pax_headers_that_are_none(body: bytes) -> None:
    data = tar_header(b"%011o\0" % len(body), b"x") + body.ljust(512, b"\0") + tar(MEMBERS)
    Path("a.tar").write_bytes(data)
    assert results("a.tar") == {"": "broken archive: a broken pax header"}


def test_pax_headers_as_people_write_them() -> None:
    """Of every kind, on a Python that is as patched as it likes."""
    with tarfile.open(
        "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as file:
        member = tarfile.TarInfo("é" * 200 + ".jpg")
        member.size, member.mtime = 3, 1700000000.123456789
        member.pax_headers = {"SCHILY.xattr.user.note": "a=b\nc", "sha256": "0" * 64}
        file.addfile(member, io.BytesIO(b"cat"))
    assert results("a.tar") == {member.name: b"cat"}


def test_members_of_a_zip_share_a_limit() -> None:
    """As those of a compressed tar archive do: each alone is below it."""
    make_zip("a.zip", {f"{i}.jpg": bytes(10**6) for i in range(5)})
    found = results("a.zip", max_bytes=2 * 10**6)
    assert [name for name, data in found.items() if isinstance(data, bytes)] == ["0.jpg", "1.jpg"]
    assert "decompression bomb" in str(found[""])
    assert len(results("a.zip", max_bytes=10**7)) == 5


def test_global_tar_headers_are_not_remembered() -> None:
    data = b""
    for i in range(100):
        record = (b"65536 comment%05d=" % i).ljust(2**16 - 1, b"x") + b"\n"
        data += tar_header(b"%011o\0" % 2**16, b"g") + record
        data += tar({f"{i}.jpg": b"x"})[:1024]
    Path("a.tar.gz").write_bytes(gzip.compress(data + bytes(1024)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in find(["a.tar.gz"])) == 100
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_tar_headers_that_lie() -> None:
    huge = b"\x80" + (2**40).to_bytes(11, "big")
    negative = b"\xff" * 10 + b"\xfe\0"
    cases = {
        "huge": tar_header(huge),
        "negative": tar_header(b"00000000001\0") + b"x" * 512 + tar_header(negative),
        "long name": tar_header(huge, b"L") + bytes(4096),
        "long names": tar_header(b"00000000001\0", b"L") * 5000,
        "pax": tar_header(b"00000000016\0", b"x")
        + b"14 size=-1024\n".ljust(512, b"\0")
        + tar_header(huge),
    }
    for name, data in cases.items():
        for path in ("a.tar", "a.tar.gz"):
            Path(path).write_bytes(data if path == "a.tar" else gzip.compress(data))
            found = results(path, max_bytes=10**6)
            errors = [reason for reason in found.values() if isinstance(reason, str)]
            assert len(errors) == 1, (name, found)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_memory_stays_flat(kind: str) -> None:
    path = make(f"a.{kind}", {f"folder/of/images/{i:06}.jpg": b"x" for i in range(5_000)})
    tracemalloc.start()
    try:
        assert sum(1 for _ in find([path])) == 5_000
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_the_search_does_not_run_ahead() -> None:
    whole = make("b.tar.gz", {f"{i}.jpg": random(i) for i in range(200)})
    stream = find([whole])
    first = next(stream)
    with Path(whole).open("r+b") as file:
        file.seek(2 * 10**6)
        file.write(b"damage" * 1000)
    assert result(first) == random(0)
    assert any(isinstance(result(source), str) for source in stream)


def test_large_members_of_a_stream_wait_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(temporary()) or files[-1])
    large = random(0) * 500
    sources = list(find([make("a.tar.gz", {"x.jpg": large, "y.jpg": large, "z.jpg": b"z"})]))
    assert len(files) == 2
    assert result(sources[0]) == large
    assert result(sources[0]) == "can be read only once"
    assert files[0].closed
    # What nobody reads is not left behind, and nobody is warned of it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del sources
        gc.collect()
    assert files[1].closed


def test_without_zstandard() -> None:
    make("a.tar.zst", MEMBERS)
    code = """if True:
        import sys
        sys.modules["zstandard"] = None
        from cvt_cli.images.find import find
        (source,) = find(["a.tar.zst"])
        source.open()"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert 'zstandard: pip install "zstandard>=0.22"' in done.stderr
