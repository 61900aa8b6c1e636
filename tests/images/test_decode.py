"""Decoding: what opens, what is refused, and that nothing but `ImageError` ever comes out."""

import base64
import contextlib
import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from cvt_cli.errors import ImageError
from cvt_cli.images import formats
from cvt_cli.images.decode import decode, to_rgb
from cvt_cli.images.formats import FORMATS
from tests.photos import EXIF_ORIENTATION, picture

# pytest has warning filters of its own; what a user sees is tested in a process of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims to have so many pixels, in one bit each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def error_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(io.BytesIO(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_as_transformers_loads_it(photo: Path) -> None:
    from transformers.image_utils import load_image

    with photo.open("rb") as file:
        found = decode(file, exact=True)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(str(photo))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int) -> None:
    """A camera's eight ways of holding it: the corner that is red stays at the top left."""
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste("red", (0, 0, 20, 20))
    # The `Transpose` that undoes what each orientation says.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    found = decode(io.BytesIO(encoded(stored, exif=exif)))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))


def test_an_unknown_orientation_is_none() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 77
    assert decode(io.BytesIO(encoded(picture(), exif=exif))).size == (96, 64)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty file"),
        (b"This is a text that somebody called cat.jpg.\n", "text"),
        ("Ein Text über Katzen 🐈".encode() * 100, "text"),
        (b"\0" * 100, "not an image"),
        (bytes(range(256)) * 8, "not an image"),
        (b"\xff\xd8\xff", "a broken JPEG"),
        ("ä".encode() * 511 + b"x\xc3\xa4" * 10, "text"),  # cut in two by what is looked at
        (b"GIF89a", "image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a broken WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (encoded(picture(), "JPEG")[:1000], "truncated"),
        (png(100, 100, b"no deflate"), "broken"),
        (png(0, 5), "a broken PNG"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"\0\0\0\x18ftypmif1" + bytes(99), "HEIC"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_broken_bytes(data: bytes, word: str) -> None:
    assert word in error_of(data)


def test_postscript_is_not_run() -> None:
    """Pillow would start Ghostscript on it."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(eps)) as image:
        assert image.format == "EPS"
    assert "text" in error_of(eps)


def iptc(payload: bytes) -> bytes:
    """A picture in an IPTC record, which Pillow opens again whatever it is."""

    def field(*tag: int, data: bytes) -> bytes:
        return bytes([0x1C, *tag]) + struct.pack(">H", len(data)) + data

    size = struct.pack(">H", 64)
    head = field(3, 60, data=b"\1\0") + field(3, 20, data=size) + field(3, 30, data=size)
    blocks = (payload[i : i + 32000] for i in range(0, len(payload), 32000))
    return head + field(3, 120, data=b"\5") + b"".join(field(8, 10, data=b) for b in blocks)


@pytest.mark.parametrize(
    "payload",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", encoded(picture())],
)
def test_what_opens_another_format_is_not_tried(
    payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    with Image.open(io.BytesIO(iptc(payload))) as image:
        assert image.format == "IPTC"
    assert "not supported" in error_of(iptc(payload))
    assert not started


def test_only_formats_of_the_list_are_tried() -> None:
    """Also once other code has had Pillow load all of its plug-ins."""
    Image.init()
    for format_, mode in {"SPIDER": "F", "XBM": "1", "MSP": "1"}.items():
        assert "not" in error_of(encoded(picture().convert(mode), format_))
    known = {each.name for each in FORMATS}
    assert not known & {"IPTC", "EPS", "WMF", "FPX", "MIC", "BUFR", "GRIB", "HDF5"}
    assert known - {"MPO"} <= set(Image.OPEN)


def icon(inner: bytes) -> bytes:
    """An ICO whose directory says 16x16."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


def apple_icon(inner: bytes) -> bytes:
    """An ICNS whose block is for 128x128."""
    block = b"ic07" + struct.pack(">I", len(inner) + 8) + inner
    return b"icns" + struct.pack(">I", len(block) + 8) + block


CONTAINED = {
    "ico-png": lambda side: icon(encoded(Image.new("L", (side, side)))),
    "ico-bmp": lambda side: icon(dib(side)),
    "icns-png": lambda side: apple_icon(encoded(Image.new("RGBA", (side, side)))),
    "icns-jp2": lambda side: apple_icon(encoded(Image.new("RGB", (side, side)), "JPEG2000")),
}


def dib(side: int) -> bytes:
    """Picture and mask, each of side x side."""
    header = struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 32, 0, 0, 0, 0, 0, 0)
    return header + bytes(side * side * 4)


@pytest.mark.parametrize("kind", CONTAINED)
def test_the_size_of_what_a_container_holds_is_checked_first(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "icns-jp2" and not features.check("jpg_2000"):
        pytest.skip("this Pillow reads no JPEG 2000")
    data = CONTAINED[kind](128)
    assert decode(io.BytesIO(data), max_pixels=128 * 128).size == (128, 128)
    # Not one pixel is decoded.
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("was decoded"))
    assert error_of(data, max_pixels=128 * 128 - 1).startswith("128x128 pixels, more than")


def peak(code: str, *arguments: object) -> int:
    """Bytes that a Python of its own has in memory at most."""
    code += "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def test_a_large_picture_is_in_memory_once(tmp_path: Path) -> None:
    code = "import sys; from cvt_cli.images.decode import decode; decode(open(sys.argv[1], 'rb'))"
    sides = 64, 4000
    for side in sides:
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    small, large = (peak(code, tmp_path / f"{side}.png") for side in sides)
    # Pillow has 4 bytes for a pixel of RGB.
    assert large - small < 1.3 * 4 * sides[1] ** 2


@pytest.mark.parametrize("side", [13_400, 20_000, 2**30])
def test_a_decompression_bomb_is_not_decoded(side: int) -> None:
    message = error_of(png(side, side, zlib.compress(bytes(100))))
    assert "limit of 178956970" in message and "bomb" in message


def test_the_limit_can_be_set() -> None:
    data = encoded(picture(100, 50))
    assert decode(io.BytesIO(data), max_pixels=5000).size == (100, 50)
    assert error_of(data, max_pixels=4999).startswith("100x50 pixels, more than the limit of 4999")
    # Of the picture, however far the decoder would scale it down.
    data = encoded(picture(1600, 1200), "JPEG")
    assert error_of(data, max_pixels=10**6, reduce_to=100).startswith("1600x1200 pixels, more")


def test_the_limit_can_be_raised_above_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(picture(100, 50))
    assert "limit of 2000 " in error_of(data, max_pixels=2000)
    assert decode(io.BytesIO(data), max_pixels=5000).size == (100, 50)


@pytest.mark.parametrize(
    "format_",
    ["PNG", "TIFF", "PPM", *(["JPEG2000"] if features.check("jpg_2000") else []), "big-endian"],
)
def test_greys_of_16_bits_are_scaled_to_8(format_: str) -> None:
    """Pillow would make white of all but the darkest."""
    greys = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    if format_ == "big-endian":
        image = Image.frombytes("I;16B", (256, 256), greys.astype(">u2").tobytes())
        found = to_rgb(image)
    else:
        found = decode(io.BytesIO(encoded(Image.fromarray(greys), format_)))
    expected = np.rint(greys / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(found), np.stack([expected] * 3, -1))


def tiff(greys: np.ndarray) -> bytes:
    """As other programs write greys of 32 bits, unsigned integers among them."""
    height, width = greys.shape
    data = greys.tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[greys.dtype.kind]
    tags = {256: width, 257: height, 258: 32, 259: 1, 262: 1, 277: 1, 278: height, 339: kind}
    tags |= {279: len(data), 273: 8 + 2 + 12 * (len(tags) + 2) + 4}
    entries = (struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return header + b"".join(entries) + bytes(4) + data


GREYS = np.arange(2**12, dtype=np.float64).reshape(64, 64) / (2**12 - 1)
SHADES = np.rint(GREYS * 255)


@pytest.mark.parametrize(
    ("greys", "expected"),
    [
        (GREYS.astype(np.float32), SHADES),
        ((GREYS * 255).astype(np.float32), SHADES),
        (np.rint(GREYS * 65535).astype(np.float32), SHADES),
        ((GREYS * 3e38 - 1e38).astype(np.float32), SHADES),
        ((GREYS * 6e38 - 3e38).astype(np.float32), SHADES),
        (SHADES.astype(np.int32), SHADES),
        (np.rint(GREYS * 65535).astype(np.int32), SHADES),
        (np.rint(GREYS * 100_000 - 70_000).astype(np.int32), SHADES),
        (np.rint(GREYS * (2**32 - 1)).astype(np.uint32), SHADES),
        (np.array([[0, 1]], np.int32), np.array([[0, 255]])),
        (np.array([[0, 0.5, np.nan, np.inf, -np.inf]], np.float32), [[0, 128, 0, 255, 0]]),
        (np.full((2, 2), np.nan, np.float32), np.zeros((2, 2))),
        (np.full((2, 2), 1e6, np.float32), np.zeros((2, 2))),
    ],
    ids=lambda value: f"{value.dtype}-{value.max():.3g}" if isinstance(value, np.ndarray) else "",
)
def test_greys_of_32_bits_are_scaled_to_8(greys: np.ndarray, expected: np.ndarray) -> None:
    """Pillow would make black or white of most."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = np.asarray(decode(io.BytesIO(tiff(greys))))
    np.testing.assert_allclose(found, np.stack([expected] * 3, -1), atol=1)


def test_greys_of_32_bits_of_which_pillow_is_asked() -> None:
    data = encoded(Image.fromarray(np.array([[0, 0.5, 1, 300]], np.float32)), "TIFF")
    found = np.asarray(decode(io.BytesIO(data), exact=True))
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 255])


def test_a_large_picture_is_no_reason_for_a_warning() -> None:
    """In a process of its own: pytest has warning filters too."""
    code = """if True:
        import io, sys
        from PIL import Image
        from cvt_cli.images.decode import decode
        Image.MAX_IMAGE_PIXELS = 4000  # Pillow warns above this
        file = io.BytesIO()
        Image.new("RGB", (100, 50)).save(file, "PNG")
        decode(file)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b""


def test_decoding_leaves_other_peoples_warnings_alone() -> None:
    """Threads that decode at once must not lose the filters of the program around them."""
    from concurrent.futures import ThreadPoolExecutor

    data = encoded(picture(400, 300), "JPEG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode(io.BytesIO(data)), range(200)))
    assert warnings.filters == before


def test_draft_mode_keeps_enough_pixels() -> None:
    data = encoded(picture(1024, 768), "JPEG")
    assert decode(io.BytesIO(data)).size == (1024, 768)
    assert decode(io.BytesIO(data), reduce_to=256).size == (512, 384)
    assert decode(io.BytesIO(data), reduce_to=90).size == (128, 96)
    assert decode(io.BytesIO(data), reduce_to=2000).size == (1024, 768)
    assert decode(io.BytesIO(encoded(picture())), reduce_to=8).size == (96, 64)  # no JPEG


FUZZED = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "bmp": ("BMP", {}),
    "ico": ("ICO", {}),
    "icns": ("ICNS", {}),
    "ppm": ("PPM", {}),
    "tga": ("TGA", {}),
    "dds": ("DDS", {}),
    "pcx": ("PCX", {}),
    "sgi": ("SGI", {}),
    **({"avif": ("AVIF", {})} if features.check("avif") else {}),
    **({"jp2": ("JPEG2000", {})} if features.check("jpg_2000") else {}),
}


def try_to_decode(data: bytes) -> bool:
    """Whether it is an image; any exception but `ImageError` fails the test."""
    try:
        image = decode(io.BytesIO(data), max_pixels=2**20)
    except ImageError as error:
        assert str(error) and "\n" not in str(error)
        return False
    assert image.mode == "RGB"
    return True


@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_files(kind: str) -> None:
    """Truncated everywhere, and with random bytes changed: an image or an `ImageError`."""
    format_, options = FUZZED[kind]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    data = encoded(picture(32, 32).convert("RGB"), format_, exif=exif.tobytes(), **options)
    assert try_to_decode(data)
    rng = random.Random(kind)
    cuts = {*range(min(64, len(data))), *(rng.randrange(len(data)) for _ in range(60))}
    assert sum(not try_to_decode(data[:cut]) for cut in cuts) >= 5
    for _ in range(200):
        broken = bytearray(data)
        # Headers are where it hurts.
        reach = rng.choice((32, 256, len(data)))
        for _ in range(rng.randrange(1, 8)):
            broken[rng.randrange(min(reach, len(data)))] = rng.randrange(256)
        try_to_decode(bytes(broken))


def packed_psd(mode: int, planes: list[np.ndarray]) -> bytes:
    """A PSD whose merged picture is packed, as Photoshop saves it: a channel a plane."""
    lines = [bytes([len(line) - 1]) + line.tobytes() for plane in planes for line in plane]
    height, width = planes[0].shape
    bits = 1 if mode == 0 else 8
    head = struct.pack(">H6xHLLHH", 1, len(planes), height, width * 8 // bits, bits, mode)
    sizes = struct.pack(f">{len(lines)}H", *map(len, lines))
    return b"8BPS" + head + bytes(12) + b"\0\1" + sizes + b"".join(lines)


@pytest.mark.parametrize("further", [0, 1, 2, 50])
@pytest.mark.parametrize(("mode", "channels"), [(1, 1), (3, 3), (4, 4)])
def test_further_channels_of_a_psd_shift_nothing(mode: int, channels: int, further: int) -> None:
    """Saved selections and spot colours come after the colours."""
    scene = np.asarray(picture(48, 40))
    inkless = np.full((40, 48), 255, "u1")
    planes = [scene[..., channel] for channel in range(min(channels, 3))] + [inkless] * (mode == 4)
    more = [np.full((40, 48), number, "u1") for number in range(further)]
    found = np.asarray(decode(io.BytesIO(packed_psd(mode, planes + more))))
    expected = np.stack([planes[0]] * 3, -1) if mode == 1 else scene
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_bitmap_of_a_psd_has_ones_for_black() -> None:
    lines = np.full((8, 2), 0b11110000, "u1")
    found = np.asarray(decode(io.BytesIO(packed_psd(0, [lines]))))
    assert found[0, :, 0].tolist() == [0, 0, 0, 0, 255, 255, 255, 255] * 2


# Of 4x4 pixels: red grows to the right and green downwards from 0 to white, and blue is white.
IN_16_BITS_WITHOUT_LOSS = base64.b85decode(
    b"|4;u>051Rl000040000400000000000000400004000000000000R#J0S^HI4*>!HQUDA90003200aa80smY81VD"
    b"iQkN^q*00000cK`wZlh6Dxj1lFmsm$T)iuh3Tv9ha1mqXGiIUhqdLchDO9GBbXsJ)G!-}sQ&6O2J!r6%V~t1{qSY"
    b"j#}aN>N+EDBa$Zyypqu_>lMpL6nTN2SJ^w$UqBS-q#>!7C5Ok>BGseJ{k>qc)tJH"
)
IN_12_BITS = base64.b85decode(
    b"|4;u>051Rl000040000400000000000000400004000000000000RpF0Sf^E3jqQDQUDDB0ssL400aa80Equw00l"
    b"x|0RNBx3IG5A002+`0soWFyigKU80YFR1DzXg9wpq5L4}#G>vqq)OcTw%cBJT<b<swlos(rmBGxqm&#*`aL6nM;f"
    b"tO;<Odl1PmS}36U;o("
)


@pytest.mark.parametrize("data", [IN_16_BITS_WITHOUT_LOSS, IN_12_BITS])
def test_white_of_a_jpeg_2000_with_more_than_8_bits(data: bytes) -> None:
    """Pillow's reader makes it black, and so does --decode exact."""
    found = np.asarray(decode(io.BytesIO(data))).astype(int)
    ramp = np.tile(np.linspace(0, 255, 4), (4, 1))
    assert np.abs(found - np.stack([ramp, ramp.T, np.full((4, 4), 255)], -1)).max() <= 2
    exact = np.asarray(decode(io.BytesIO(data), exact=True))
    assert (exact == np.asarray(Image.open(io.BytesIO(data)))).all()
    for cut in range(0, len(data), 7):
        with contextlib.suppress(ImageError):
            decode(io.BytesIO(data[:cut]))


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [b"\0\x09", b"\xff\xff"])
def test_broken_exif_breaks_no_picture(format_: str, orientation: bytes) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    data = encoded(picture(48, 40), format_, exif=exif)
    assert decode(io.BytesIO(data)).size == (40, 48)
    for wrong in (data.replace(b"MM\0*", b"nope"), data.replace(b"\0\6\0\0", orientation * 2)):
        assert wrong != data
        assert decode(io.BytesIO(wrong)).size == (48, 40)


def test_no_image_looks_for_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing takes as long to find as a small image to decode."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    decode(file)
    monkeypatch.setattr(formats, "find_spec", None)
    assert decode(file).size == (8, 8)
