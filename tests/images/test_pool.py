"""The pool of reading processes: the same pixels in the same order, and one record for whatever
hangs, crashes or takes too much memory."""

import io
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image

from cvt_cli.errors import ImageError
from cvt_cli.images import reader_processes, supervisor
from cvt_cli.images.find import find
from cvt_cli.images.formats import FORMATS
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Bytes, Filter, Search, Source
from cvt_cli.model.config import CvtConfig
from tests.conftest import RunCvt
from tests.photos import Opened, picture
from tests.places import Deadly, Hanging, Hungry, Pausing, Telling
from tests.raws import dng

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

MOST_HIT = 3  # of 50 kills, one every 15 ms

SMALL = Preprocessing(resize_to=(32, 32), shortest_edge=None, crop=None)


def reader(max_pixels: int = 10**6, preprocessing: Preprocessing = SMALL) -> ImageReader:
    return ImageReader(CvtConfig(), preprocessing, max_pixels)


@pytest.fixture(scope="module")
def pool() -> Iterator[ReaderPool]:
    with ReaderPool(2) as shared:
        yield shared


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("files")
    for index in range(40):
        picture(40 + index, 50, seed=index).save(folder / f"{index:02}.jpg")
    (folder / "07.jpg").write_bytes(b"")
    return list(find([str(folder)]))


def read(
    pool: ReaderPool, sources: list[Any], batch_size: int = 8, **options: Any
) -> list[DecodedImage]:
    how = options.pop("reader", None) or reader()
    batches = list(pool.batches(how, sources, batch_size, **options))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    return [image for batch in batches for image in batch]


def assert_same(found: list[DecodedImage], expected: list[DecodedImage]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.path, a.error, a.columns, a.thumbnail) == (
            b.path,
            b.error,
            b.columns,
            b.thumbnail,
        )
        assert (a.pixels is None) == (b.pixels is None)
        if a.pixels is not None:
            np.testing.assert_array_equal(a.pixels, b.pixels)


@pytest.mark.real_start
@pytest.mark.parametrize("way", ["shared memory", "pipes", "spawn"])
def test_processes_read_as_threads_do(
    way: str, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "pipes":
        monkeypatch.setattr(supervisor, "shared_memory", lambda _: None)
    if way == "spawn":
        monkeypatch.setattr(supervisor, "process_starter", reader_processes.Spawner)
    sources: list[Any] = list(find(map(str, photos.values())))
    sources.insert(3, Source("here", Bytes(b"no image")))
    sources.insert(5, picture(50, 60))
    options = {"columns": ("width", "bytes", "sha256"), "thumbnails": True}
    with ReaderPool(2) as pool:
        # Of one size, and each as it is: more than there is shared memory for.
        for how in reader(), reader(10**7, Preprocessing(shortest_edge=None, crop=None)):
            expected = [i for batch in how.batches(sources, 7, **options) for i in batch]
            assert_same(read(pool, sources, 7, reader=how, **options), expected)


def test_all_sources_come_in_order_in_batches(pool: ReaderPool, files: list[Source]) -> None:
    sources = [Source(str(i), files[i % len(files)].place) for i in range(500)]
    for batch_size in 1, 64, 1000:
        found = read(pool, sources, batch_size)
        assert [image.path for image in found] == [str(i) for i in range(500)]
        assert [image.error for image in found[:8]] == [None] * 7 + ["empty file"]


def test_sources_are_taken_as_they_are_needed(pool: ReaderPool, files: list[Source]) -> None:
    taken = []

    def stream() -> Iterator[Source]:
        for index in range(1000):
            taken.append(index)
            yield files[index % len(files)]

    batches = pool.batches(reader(), stream(), 10, ahead=2)
    next(batches)
    assert len(taken) <= 30
    for _ in range(9):
        next(batches)
    assert len(taken) <= 12 * 10  # an endless list of names gets its records
    batches.close()  # type: ignore[attr-defined]
    assert len(read(pool, files)) == len(files)


def test_readers_import_little(pool: ReaderPool) -> None:
    (found,) = read(pool, [Source("x", Telling())])
    assert found.error == "imported []"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_reader_that_dies_costs_one_image(
    pool: ReaderPool, files: list[Source], number: int
) -> None:
    sources = list(files)
    places = (0, 3, 4, 20, len(files))
    for place in places:
        sources.insert(place, Source("deadly", Deadly(number)))
    found = read(pool, sources)
    assert [image.path for image in found] == [source.path for source in sources]
    deadly = [image.error or "" for image in found if image.path == "deadly"]
    word = "killed" if number == signal.SIGKILL else "crashed (SIGSEGV)"
    assert len(deadly) == len(places) and all(word in error for error in deadly)
    assert_same([i for i in found if i.path != "deadly"], read(pool, list(files)))


def test_many_that_kill_take_so_many_readers(
    pool: ReaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    watched = pool._supervisor
    start = watched._start_reader
    monkeypatch.setattr(watched, "_start_reader", lambda: started.append(None) or start())
    found = read(pool, [Source(str(i), Deadly()) for i in range(30)], 64)
    assert [image.path for image in found] == [str(i) for i in range(30)]
    assert all("crashed" in (image.error or "") for image in found)
    # Each is tried twice, and each death costs a reader.
    assert len(started) <= 2 * 30


def test_an_image_has_so_much_time(files: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    """From when it is begun: a reader that is under way does not get the time to start again."""
    monkeypatch.setattr(supervisor, "GRACE", 600)
    sources = [*files[:5], Source("slow", Hanging()), *files[5:8], Source("slow", Hanging())]
    with ReaderPool(2, timeout=2) as pool:
        start = time.monotonic()
        found = read(pool, sources, 4)
        assert time.monotonic() - start < 300
    slow = [image.error for image in found if image.path == "slow"]
    assert slow == ["takes longer than the limit of 2 s; raise --image-timeout if you trust it"] * 2
    assert [image.error for image in found if image.path != "slow"] == [None] * 7 + ["empty file"]


@pytest.mark.parametrize("budget", [100, supervisor.BUDGET])
def test_time_before_memory_was_asked_for_counts(budget: int) -> None:
    file = io.BytesIO()
    Image.effect_noise((500, 500), 80).save(file, "PNG")
    content = file.getvalue()
    sources = [Source("slow", Pausing(content, 1.2)), Source("quick", Bytes(content))]
    with ReaderPool(1, timeout=2, budget=budget) as pool:
        slow, quick = read(pool, sources)
    assert "--image-timeout" in (slow.error or "")
    assert quick.error is None


@pytest.mark.skipif(sys.platform != "linux", reason="where the system limits memory")
def test_an_image_has_so_much_memory(pool: ReaderPool) -> None:
    greedy, modest = Source("a", Hungry(400 * 2**20)), Source("b", Hungry(2**20))
    for _ in range(2):
        found = read(pool, [greedy, modest], reader=reader(10**5))
        assert "more memory than the" in (found[0].error or "")
        assert "--max-pixels" in (found[0].error or "")
        assert "not an image" in (found[1].error or "")
    assert "not an image" in (read(pool, [greedy], reader=reader(10**8))[0].error or "")


def test_large_pictures_share_a_budget(files: list[Source]) -> None:
    """Each is larger than that: they go alone, in turn, and none waits for ever."""
    with ReaderPool(3, budget=100) as pool:
        found = read(pool, files * 2, 16)
    assert sum(image.error is None for image in found) == 2 * (len(files) - 1)


def peak_of(sources: list[Source], budget: int) -> int:
    """Pictures that had leave to be decoded at once, at most."""
    with ReaderPool(3, budget=budget) as pool:
        watched = pool._supervisor
        grant, most = watched._grant, [0]

        def watch() -> None:
            grant()
            most.append(sum(each.granted > 0 for each in watched._readers))

        watched._grant = watch  # type: ignore[method-assign]
        read(pool, sources, 16)
    return max(most)


def test_what_fits_the_budget_goes_at_once(tmp_path: Path) -> None:
    for index in range(9):
        picture(900, 900).save(tmp_path / f"{index}.png", compress_level=1)
    sources = list(find([str(tmp_path)]))
    each = 900 * 900 * 10
    assert peak_of(sources, each) == 1
    assert peak_of(sources, 4 * each) == 2


@pytest.mark.parametrize("attempt", range(2))
def test_readers_that_are_killed_at_random(files: list[Source], attempt: int) -> None:
    rng = random.Random(attempt)
    sources = [Source(str(i), files[i % len(files)].place) for i in range(1500)]
    kills = 0
    stop = threading.Event()
    with ReaderPool(2) as pool:

        def kill() -> None:
            nonlocal kills
            while not stop.wait(rng.uniform(0, 0.03)) and kills < 50:
                for each in list(pool._supervisor._readers)[:1]:
                    with suppress(ProcessLookupError):
                        os.kill(each.process, signal.SIGKILL)
                        kills += 1

        thread = threading.Thread(target=kill)
        thread.start()
        found = read(pool, sources, 64)
        stop.set()
        thread.join()
    assert kills > 5
    assert [image.path for image in found] == [str(i) for i in range(1500)]
    # One that is hit each of five times has that for its error: rarely, on a busy machine.
    errors = [image.error for image in found if image.error not in (None, "empty file")]
    assert len(errors) <= MOST_HIT
    assert all("killed" in (error or "") for error in errors)


def test_a_server_that_is_killed_is_started_anew(files: list[Source]) -> None:
    with ReaderPool(2) as pool:
        read(pool, files)
        pool._supervisor.starter._server.kill()  # type: ignore[union-attr]
        found = read(pool, files * 5)
    assert sum(image.error is None for image in found) == 5 * (len(files) - 1)


ARCHIVES = ("a.zip", "a.tar", "a.tar.gz", "a.parquet")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("archives")
    contents = []
    for index in range(5):
        file = io.BytesIO()
        # One is larger than what is sent as bytes.
        size = 1200 if index == 3 else 60
        Image.effect_noise((size, size), 80).save(file, "PNG")
        contents.append(file.getvalue())
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for index, data in enumerate(contents):
            archive.writestr(f"{index}.png", data)
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            for index, data in enumerate(contents):
                info = tarfile.TarInfo(f"{index}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table({"image": contents}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_by_processes(pool: ReaderPool, archives: Path, name: str) -> None:
    path = str(archives / name)
    how = reader(10**7)
    expected = [image for batch in how.batches(find([path]), 4) for image in batch]
    assert [image.error for image in expected] == [None] * 5
    assert_same(read(pool, list(find([path], list_members=pool.members)), reader=how), expected)


@pytest.mark.parametrize("damage", ["cut", "none"])
def test_what_is_no_archive_has_one_record(pool: ReaderPool, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\3\4" * 100 if damage == "none" else b"")
    (found,) = find([str(path)], list_members=pool.members)
    (expected,) = find([str(path)])
    assert found == expected and "broken archive" in (found.error or "")


@pytest.mark.parametrize("place", [Deadly(), Hanging()])
def test_an_archive_that_kills_or_hangs(place: Any) -> None:
    with ReaderPool(1, timeout=1) as pool:
        (found,) = pool.members(
            "a.tar", "tar", place, seekable=True, wanted=Filter(Search()), max_bytes=10**6
        )
    word = "crashed" if isinstance(place, Deadly) else "--image-timeout"
    error = found.place
    assert word in f"{error.message} {error.hint}"  # type: ignore[attr-defined]


def test_what_only_this_process_can_open(pool: ReaderPool) -> None:
    def content(size: int) -> Callable[[], BinaryIO]:
        file = io.BytesIO()
        Image.effect_noise((size, size), 80).save(file, "PNG")
        return lambda: io.BytesIO(file.getvalue())

    def fail() -> BinaryIO:
        raise ImageError("nothing came", hint="try again")

    def fail_otherwise() -> BinaryIO:
        raise RuntimeError("a client's own error")

    sources = [
        Source("small", Opened(content(40))),
        Source("large", Opened(content(1200))),
        Source("fails", Opened(fail)),
        Source("fails otherwise", Opened(fail_otherwise)),
        Source("bytes", Bytes(content(1200)().read())),
    ]
    found = read(pool, sources, reader=reader(10**7), columns=("width", "seconds"))
    errors = [None, None, "nothing came; try again", "a client's own error", None]
    assert [image.error for image in found] == errors
    assert [image.columns.get("width") for image in found] == [40, 1200, None, None, 1200]


def test_relative_paths_are_those_of_now(
    pool: ReaderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("cat.png")
    assert read(pool, list(find(["cat.png"])))[0].error is None


def processes_of(session: int) -> list[int]:
    """Those alive in a session."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            if os.getsid(int(name)) == session:
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                found += [int(name)] if state != "Z" else []
    return found


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG of empty scans: few bytes, much time."""

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    size = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    out = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, size)
    out += segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    out += segment(0xC4, b"\x10" + bytes([1, 1] + [0] * 14) + b"\xe0\0")
    left = blocks = ((side + 7) // 8) ** 2
    out += segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * ((blocks + 7) // 8)
    runs = ""
    while left >= 16384:
        run = min(left, 32767)
        runs += "0" + format(run - 16384, "014b")
        left -= run
    runs += "10" * left
    runs += "1" * (-len(runs) % 8)
    scan = bytes(int(runs[i : i + 8], 2) for i in range(0, len(runs), 8))
    scan = segment(0xDA, b"\1\1\0" + bytes([1, 63, 0])) + scan.replace(b"\xff", b"\xff\0")
    return out + scan * count + b"\xff\xd9"


SLOW = scans(4000, 20_000)


@pytest.mark.real_start
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_ends(run_cvt: RunCvt, cat: Path, number: int) -> None:
    (run_cvt.cwd / "slow.jpg").write_bytes(SLOW)
    command = ("classify", cat.name, "slow.jpg", "-m", "cvt-tiny-cifar10", "--batch-size", "1")
    process = run_cvt.start(*command, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("cat.jpg")  # the other is being read
    assert len(processes_of(process.pid)) >= 3
    process.send_signal(number)
    process.communicate(timeout=300)
    end = time.monotonic() + 300
    while processes_of(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes_of(process.pid)


def test_codecs_do_not_write_to_stderr(run_cvt: RunCvt) -> None:
    """libtiff does, past Python."""
    file = io.BytesIO()
    stripes = Image.fromarray(np.indices((400, 400)).sum(0) % 37 < 18)
    stripes.save(file, "TIFF", compression="group4")
    fax = bytearray(file.getvalue())
    for index in range(300, len(fax) - 400, 23):
        fax[index] ^= 0x5A
    (run_cvt.cwd / "fax.tif").write_bytes(fax)
    command = ("classify", "fax.tif", "-m", "cvt-tiny-cifar10")
    assert run_cvt(*command, expect=0).stderr == ""
    assert "Fax" in run_cvt("--debug", *command, expect=0).stderr


def test_the_command_names_the_bound(run_cvt: RunCvt, cat: Path) -> None:
    (run_cvt.cwd / "slow.jpg").write_bytes(SLOW)
    done = run_cvt(
        *("classify", "slow.jpg", cat.name, "-m", "cvt-tiny-cifar10", "-f", "jsonl"),
        *("--image-timeout", "1", "--readers", "2"),
        expect=1,
    )
    slow, good = done.jsonl()
    assert slow["error"].startswith("takes longer than the limit of 1 s; raise --image-timeout")
    assert good["error"] is None


def test_a_script_without_a_guard_starts_once(tmp_path: Path) -> None:
    picture().save(tmp_path / "cat.jpg")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from cvt_cli import Classifier

        print("once")
        classify = Classifier("cvt-tiny-cifar10", device="cpu", readers=1)
        print(classify("cat.jpg").error)
        """)
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert done.stdout == "once\nNone\n"


# What each format is written with; those that Pillow can't write are made by hand elsewhere.
WRITTEN = {
    "JPEG": [{}, {"progressive": True}],
    "PNG": [{}, {"optimize": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "group4"}],
    "WEBP": [{}, {"lossless": True}],
}
SECONDS = 10


def psd() -> bytes:
    """A grey one, not compressed."""
    head = b"8BPS" + struct.pack(">H6xHLLHH", 1, 1, 40, 48, 8, 1)
    return head + bytes(12) + bytes(2) + picture(48, 40).convert("L").tobytes()


def fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 48", "NAXIS2  = 40", "END")
    head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    return head + picture(48, 40).convert("L").tobytes()


def by_others() -> Iterator[tuple[str, bytes]]:
    """Files of the formats that Pillow alone does not write."""
    yield "PSD", psd()
    yield "FITS", fits()
    yield "DNG", dng(picture(48, 40), picture(48, 40))
    yield "DNG", dng(picture(48, 40))
    file = io.BytesIO()
    if find_spec("pillow_heif") and find_spec("pi_heif"):
        import pillow_heif

        pillow_heif.from_pillow(picture(48, 40)).save(file, quality=80)
        yield "HEIF", file.getvalue()
    if find_spec("pillow_jxl"):
        from cvt_cli.images import jxl  # noqa: F401 (registers it)

        file = io.BytesIO()
        picture(48, 40).save(file, "JXL")
        yield "JXL", file.getvalue()


def mutated(rng: random.Random) -> Iterator[bytes]:
    """Files of every format that is read, damaged."""
    others = list(by_others())
    whole, known = [data for _, data in others], {name for name, _ in others}
    for each in FORMATS:
        for options in WRITTEN.get(each.name, [{}]):
            file = io.BytesIO()
            more: dict[str, Any] = (
                {"append_images": [picture(48, 40, seed=1)]} if each.name == "MPO" else {}
            )
            mode = "1" if options.get("compression") == "group4" else "RGB"
            with suppress(KeyError, OSError, ValueError):
                picture(48, 40).convert(mode).save(
                    file, each.name, save_all=bool(more), **more, **options
                )
                whole.append(file.getvalue())
                known.add(each.name)
    assert {each.name for each in FORMATS if each.is_installed} <= known | {"HEIF"}
    while True:
        data = bytearray(rng.choice(whole))
        # Headers are where it hurts.
        reach = min(len(data), rng.choice((32, 256, len(data))))
        for _ in range(rng.randrange(1, 10)):
            data[rng.randrange(reach)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        if rng.random() < 0.1:
            start = rng.randrange(len(data) or 1)
            data[start:start] = data[start : start + rng.randrange(64)]
        yield bytes(data)


# A crash, a hang, and what Python says of an index, a struct or a type.
WORSE = (
    "the process", "takes longer", "index out", "unpack", "argument", "object is", "object has",
    "invalid literal", "Error", "b'", "None", "codec can't", "subscript",
)  # fmt: skip


def test_damaged_files_bring_no_crash(pool: ReaderPool) -> None:
    damaged = mutated(random.Random(20))
    first = next(damaged)  # the files are made before that
    end = time.monotonic() + SECONDS

    def sources() -> Iterator[Source]:
        for index, data in enumerate(chain([first], damaged)):
            if time.monotonic() > end:
                return
            yield Source(str(index), Bytes(data))

    started: list[object] = []
    watched = pool._supervisor
    start = watched._start_reader
    watched._start_reader = lambda: (started.append(None), start())[1]  # type: ignore
    try:
        found = [i for batch in pool.batches(reader(2**20), sources(), 64) for i in batch]
    finally:
        del watched._start_reader
    assert len(found) > 100
    assert len(started) <= 2  # none had to be replaced
    for image in found:
        assert image.pixels is not None or (image.error and "\n" not in image.error)
        assert not any(word in (image.error or "") for word in WORSE)
