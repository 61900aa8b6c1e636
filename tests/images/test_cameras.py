"""HEIC, JPEG XL and raw files: with the extras that read them, and without."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvt_cli.errors import ImageError
from cvt_cli.images import decode as decode_module
from cvt_cli.images import formats
from cvt_cli.images.decode import decode
from cvt_cli.images.raw import is_raw
from cvt_cli.images.reduction import full_size
from cvt_cli.images.source import in_words
from tests.photos import EXIF_ORIENTATION, picture
from tests.raws import dng

# The `Transpose` that makes each orientation upright.
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(Image.Transpose(turn))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def heic(image: Image.Image, orientation: int = 1) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="only pillow-heif writes HEIC")
    pytest.importorskip("pi_heif", reason="cvt-cli[heif] is not installed")
    file = io.BytesIO()
    made = pillow_heif.from_pillow(image)
    made.info["exif"] = exif_of(orientation).tobytes()
    made.save(file, quality=90)
    return file.getvalue()


def jxl(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl", reason="cvt-cli[jxl] is not installed")
    file = io.BytesIO()
    image.save(file, "JXL", lossless=True, **options)
    return file.getvalue()


def decoded(data: bytes, **options: Any) -> Image.Image:
    return decode(io.BytesIO(data), **options)


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other.convert("RGB"))).mean())


def error_of(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(data, **options)
    return in_words(caught.value)


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if nothing but what cvt always needs were installed."""
    find_spec = formats.find_spec
    monkeypatch.setattr(
        formats,
        "find_spec",
        lambda name: None if name in ("pi_heif", "pillow_jxl", "rawpy") else find_spec(name),
    )
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    decode_module._formats.cache_clear()
    yield
    decode_module._formats.cache_clear()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic(orientation: int) -> None:
    scene = picture(160, 120)
    found = decoded(heic(scene, orientation))
    assert difference(found, turned(scene, orientation)) < 12  # it is lossy, the picture noise


def test_a_broken_heic_is_called_one() -> None:
    data = heic(picture())
    assert error_of(data[:200]) == "a broken HEIC, or of a kind that is not supported"
    assert error_of(data, max_pixels=1000).startswith("96x64 pixels, more than the limit")


@pytest.mark.parametrize("size", [(96, 64), (64, 64), (161, 8), (257, 300), (8, 4000)])
def test_jpeg_xl(size: tuple[int, int]) -> None:
    scene = picture(*size)
    data = jxl(scene)
    assert difference(decoded(data), scene) == 0
    from cvt_cli.images import jxl as module

    for each in (data, jxl(scene, use_container=True)):
        assert module.facts_of(io.BytesIO(each)) == (size, False)
    assert error_of(data, max_pixels=100).startswith(f"{size[0]}x{size[1]} pixels, more")


def test_a_broken_jpeg_xl_is_called_one() -> None:
    data = jxl(picture(), use_container=True)
    assert error_of(data[:60]) == "a broken JPEG XL, or of a kind that is not supported"
    assert error_of(b"\1" + data[1:]).startswith("a broken JPEG XL")


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_animated_jpeg_xl_is_refused(orientation: int) -> None:
    """The plug-in would give its last picture."""
    fields = (
        *((1, 1), (0, 5), (1, 3)),  # a square of 8 pixels
        *((0, 1), (1, 1), (orientation - 1, 3)),  # not all has its default
        *((0, 2), (1, 1)),  # no size to be shown at and no preview, but an animation
    )
    bits, count = 0, 0
    for value, width in fields:
        bits |= value << count
        count += width
    start = b"\xff\x0a" + bits.to_bytes(30, "little")
    pytest.importorskip("pillow_jxl", reason="cvt-cli[jxl] is not installed")
    assert error_of(start) == "a JPEG XL of a kind that is not supported: an animation"
    still = b"\xff\x0a" + (bits ^ (1 << count - 1)).to_bytes(30, "little")
    assert error_of(still) == "a broken JPEG XL, or of a kind that is not supported"


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_xl_is_turned_once(orientation: int, tmp_path: Path) -> None:
    """A JPEG that was packed without loss keeps its EXIF; else the decoder turns, as it says."""
    file, packed = tmp_path / "a.jpg", io.BytesIO()
    picture().save(file, "JPEG", quality=95, exif=exif_of(orientation))
    pytest.importorskip("pillow_jxl", reason="cvt-cli[jxl] is not installed")
    Image.open(file).save(packed, "JXL", lossless_jpeg=True)
    assert difference(decoded(packed.getvalue()), decoded(file.read_bytes())) == 0
    assert decoded(jxl(picture(), exif=exif_of(orientation).tobytes())).size == picture().size


@pytest.mark.usefixtures("no_extras")
@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", 'HEIC needs a package: pip install "pi-heif'),
        (b"\xff\x0a" + b"\1" * 40, 'JPEG XL needs a package: pip install "pillow-jxl-plugin'),
        (b"FUJIFILMCCD-RAW 0201", 'a raw file needs rawpy; pip install "rawpy'),
        (b"IIU\0" + b"\1" * 40, 'a raw file needs rawpy; pip install "rawpy'),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", 'a raw file needs rawpy; pip install "rawpy'),
    ],
)
def test_without_an_extra_its_name_is_said(start: bytes, words: str) -> None:
    assert error_of(start).startswith(words)
    assert not set(formats.RAW_SUFFIXES) & set(formats.suffixes())
    assert {".heic", ".jxl"} <= set(formats.suffixes())


def test_a_tiff_is_no_raw_file() -> None:
    file = io.BytesIO()
    picture().save(file, "TIFF")
    assert not is_raw(file)
    assert is_raw(io.BytesIO(dng(picture())))
    assert is_raw(io.BytesIO(b"II*\0\x08\n\0\0IIIICwaR" + bytes(100)))  # Phase One
    for cut in range(0, 60, 7):
        is_raw(io.BytesIO(dng(picture())[-cut:]))


class TestRaw:
    """Raw files."""

    @pytest.fixture(autouse=True)
    def needs_rawpy(self) -> None:
        pytest.importorskip("rawpy", reason="cvt-cli[raw] is not installed")

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_its_preview_turned_once(self, orientation: int) -> None:
        preview = picture(450, 300, seed=1)
        data = dng(picture(600, 400), preview, orientation)
        assert difference(decoded(data, enough=300), turned(preview, orientation)) < 12
        # What the preview's own EXIF says goes before.
        data = dng(picture(600, 400), preview, orientation, preview_exif=exif_of(6))
        assert difference(decoded(data, enough=300), turned(preview, 6)) < 12

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_developed_where_the_preview_is_small(self, orientation: int) -> None:
        scene = picture(602, 401).resize((602, 402))
        data = dng(scene, picture(60, 40), orientation)
        found = decoded(data, enough=100)
        upright = turned(scene, orientation)
        assert full_size(found) == upright.size
        assert found.size == (upright.width // 2, upright.height // 2)
        # As it lies, not as its colours are: LibRaw makes it brighter.
        greys = [
            np.asarray(each.convert("L").resize((16, 16), Image.Resampling.BOX)).ravel()
            for each in (found, upright)
        ]
        assert np.corrcoef(*greys)[0, 1] > 0.9

    def test_bounds_and_broken_files(self) -> None:
        data = dng(picture(300, 200))
        assert error_of(data, max_pixels=1000).startswith("300x200 pixels, more than the limit")
        assert error_of(b"FUJIFILMCCD-RAW 0201") == "a truncated raw file"
        unknown = data.replace(b"Acme", b"\0" * 4).replace(struct.pack("<H", 32803), b"\7\0")
        assert error_of(unknown).startswith("a raw file of a kind that is not supported, or")

    def test_the_rest_of_a_cut_file_is_not_taken_for_black(self) -> None:
        """LibRaw fills the rows that are missing with zeros."""
        scene = picture(300, 200)
        data = dng(scene)
        rows = 8 + 2 * 300 * 100
        missing = bytes(2 * 300 * 100)
        cut = data[:rows] + missing + data[rows + len(missing) :]
        assert error_of(cut) == "a truncated raw file"
        # Of other kinds LibRaw decodes whatever lies there, and the size tells.
        rest = data.index(struct.pack("<HHLL", 279, 4, 1, 2 * 300 * 200))
        short = bytearray(data)
        short[rest + 8 : rest + 12] = struct.pack("<L", len(data) + 1)
        assert error_of(bytes(short)) == "a truncated raw file"
        # One whose end was overwritten in a corner only, or which is black but for noise, is read.
        decoded(data[: rows + len(missing) - 40] + bytes(40) + data[rows + len(missing) :])
        # What is embedded whole is labelled.
        with_preview = dng(scene, picture(450, 300, seed=1))
        cut = with_preview[:rows] + missing + with_preview[rows + len(missing) :]
        assert decoded(cut, enough=300).size == (450, 300)


def test_one_of_each_kind(run_cvt: Any, tiny_cvt: Callable[..., Path], tmp_path: Path) -> None:
    """A HEIC's labels are those of the PNG of its pixels, a DNG's those of its preview."""
    pytest.importorskip("rawpy", reason="cvt-cli[raw] is not installed")
    folder = tmp_path / "card"
    folder.mkdir()
    scene, preview = picture(200, 160), picture(320, 240, seed=1)
    (folder / "a.HEIC").write_bytes(heic(scene))
    decoded((folder / "a.HEIC").read_bytes()).save(folder / "b.png")
    (folder / "c.JXL").write_bytes(jxl(scene))
    scene.save(folder / "d.png")
    (folder / "e.DNG").write_bytes(dng(scene, preview))
    preview.save(folder / "f.jpg", quality=95)
    (folder / "g.ARW").write_bytes(b"II*\0" + b"\0" * 100)
    preview.save(folder / "h.jpf", "JPEG2000")
    done = run_cvt("classify", "card", "-m", tiny_cvt(), "-f", "jsonl", expect=1)
    records = [(each["predictions"], each["error"]) for each in done.jsonl()]
    assert [error is None for _, error in records] == [True] * 6 + [False, True]
    for one, other in ((0, 1), (2, 3), (4, 5)):
        assert records[one] == records[other]
