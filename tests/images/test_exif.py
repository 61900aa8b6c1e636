"""The facts that a camera wrote beside the picture, from every kind of file."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from cvt_cli.images.decode import MAX_PIXELS
from cvt_cli.images.exif import photo_facts
from tests.photos import picture
from tests.raws import ASCII, BYTE, RATIONAL, SHORT, dng, tiff

NAMES = ("taken", "latitude", "longitude", "altitude", "camera", "lens", "orientation")
FACTS = {
    "taken": "2024-05-06T07:08:09+02:00",
    "latitude": -33.8568611,
    "longitude": 151.2152778,
    "altitude": -4.5,
    "camera": "Acme One",
    "lens": "Acme 50mm F1.8",
    "orientation": 6,
}


def exif(**changes: Any) -> Image.Exif:
    """An EXIF of `FACTS`; `changes` by tag, as base_271."""
    made = Image.Exif()
    parts = {"base": made, "exif": made.get_ifd(0x8769), "gps": made.get_ifd(0x8825)}
    values = {
        "base_271": "Acme\0  ",
        "base_272": "Acme One",
        "base_274": 6,
        "exif_36867": "2024:05:06 07:08:09",
        "exif_36881": "+02:00",
        "exif_42036": "Acme 50mm\tF1.8",
        "gps_1": "S",
        "gps_2": (33.0, 51.0, IFDRational(247, 10)),
        "gps_3": "E",
        "gps_4": (151.0, 12.0, 55.0),
        "gps_5": b"\1",
        "gps_6": IFDRational(9, 2),
    }
    for name, value in {**values, **changes}.items():
        part, tag = name.split("_")
        if value is not None:
            parts[part][int(tag)] = value
    return made


def facts_of(data: bytes, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return photo_facts(io.BytesIO(data), names, MAX_PIXELS)


def encoded(format_: str, made: Image.Exif | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture().save(file, format_, exif=made or exif(), **options)
    return file.getvalue()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_from_every_format(format_: str) -> None:
    data = encoded(format_)
    found = facts_of(data)
    if format_ == "TIFF":  # in which Pillow writes the first directory only
        kept = ("camera", "orientation")
        assert found == {name: FACTS[name] if name in kept else None for name in NAMES}
        return
    assert found == FACTS
    assert list(found) == list(NAMES)
    if format_ == "JPEG":
        assert facts_of(data[:2000]) == FACTS  # from the head
    assert facts_of(data, ("lens", "width")) == {"lens": FACTS["lens"]}


def test_from_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="only pillow-heif writes HEIC")
    pytest.importorskip("pi_heif", reason="cvt-cli[heif] is not installed")
    file = io.BytesIO()
    made = pillow_heif.from_pillow(picture())
    made.info["exif"] = exif().tobytes()
    made.save(file)
    assert facts_of(file.getvalue()) == FACTS


def test_from_raw_files() -> None:
    """Without rawpy, too: a raw file's directory is a TIFF's, whatever it begins with."""
    data = dng(picture(), orientation=8)
    assert facts_of(data) == {**dict.fromkeys(NAMES), "camera": "Acme One", "orientation": 8}
    for magic in (b"IIU\0", b"IIRO"):
        assert facts_of(magic + data[4:])["orientation"] == 8
    jpeg = encoded("JPEG")
    raf = b"FUJIFILMCCD-RAW ".ljust(84, b"\0") + (92).to_bytes(4, "big")
    assert facts_of(raf + len(jpeg).to_bytes(4, "big") + jpeg) == FACTS
    parts = {
        "CMT1": tiff((271, ASCII, b"Acme\0"), (272, ASCII, b"Acme One\0"), (274, SHORT, 6)),
        "CMT2": tiff(
            (36867, ASCII, b"2024:05:06 07:08:09\0"),
            (36881, ASCII, b"+02:00\0"),
            (42036, ASCII, b"Acme 50mm F1.8\0"),
        ),
        "CMT4": tiff(
            (1, ASCII, b"S\0"),
            (2, RATIONAL, ((33, 1), (51, 1), (247, 10))),
            (3, ASCII, b"E\0"),
            (4, RATIONAL, ((151, 1), (12, 1), (55, 1))),
            (5, BYTE, 1),
            (6, RATIONAL, ((9, 2),)),
        ),
    }
    boxes = b""
    for name, body in parts.items():
        boxes += (8 + len(body)).to_bytes(4, "big") + name.encode() + body
    assert facts_of(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + boxes) == FACTS


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"exif_36867": "0000:00:00 00:00:00"}, "taken", None),
        ({"exif_36867": "    :  :     :  :  "}, "taken", None),
        ({"exif_36867": "2023:02:29 10:00:00"}, "taken", None),
        ({"exif_36867": None, "exif_36868": "2024:01:02 03:04:05"}, "taken", "2024-01-02T03:04:05"),
        ({"exif_36881": "summer"}, "taken", "2024-05-06T07:08:09"),
        ({"gps_1": "?"}, "latitude", None),
        ({"gps_1": None}, "latitude", None),
        ({"gps_2": (95.0, 0.0, 0.0)}, "latitude", None),
        ({"gps_2": (IFDRational(0, 0), 0.0, 0.0)}, "latitude", None),
        ({"gps_3": "W"}, "longitude", -151.2152778),
        ({"gps_4": (181.0, 0.0, 0.0)}, "longitude", None),
        ({"gps_6": IFDRational(1, 0)}, "altitude", None),
        ({"gps_5": b"\0"}, "altitude", 4.5),
        ({"gps_5": None}, "altitude", 4.5),
        ({"base_272": "One"}, "camera", "Acme One"),
        ({"base_271": None}, "camera", "Acme One"),
        ({"base_271": "ACME CORPORATION"}, "camera", "Acme One"),
        ({"base_271": " ", "base_272": "\0"}, "camera", None),
        ({"base_274": 9}, "orientation", None),
        ({"base_274": None}, "orientation", None),
    ],
)
def test_what_makes_no_sense_is_empty(change: dict[str, Any], name: str, value: object) -> None:
    assert facts_of(encoded("JPEG", exif(**change)), (name,)) == {name: value}


def test_bytes_that_are_no_image() -> None:
    nothing = dict.fromkeys(NAMES)
    data = encoded("TIFF")
    for each in (b"", b"no image", b"FUJIFILMCCD-RAW", b"IIU\0", b"\0\0\0\x18ftypcrx CMT1"):
        assert facts_of(each) == nothing
    for cut in range(0, len(data), len(data) // 20):
        facts_of(data[:cut])
    assert photo_facts(io.BytesIO(encoded("JPEG")), NAMES, 10) == nothing  # too many pixels


def test_in_every_output(run_cvt: Any, tiny_cvt: Callable[..., Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="cvt-cli[parquet] is not installed")
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    picture().save(tmp_path / "b.png")
    names = ",".join(NAMES)
    run_cvt(
        *("classify", "a.jpg", "b.png", "-m", tiny_cvt(), "--columns", names),
        *("-o", "o.csv", "-o", "o.jsonl", "-o", "o.parquet"),
        expect=0,
    )
    table = parquet.read_table(tmp_path / "o.parquet").select(NAMES)
    assert table.to_pylist() == [FACTS, dict.fromkeys(NAMES)]
    types = [str(each) for each in table.schema.types]
    assert [each in ("string", "large_string") for each in types] == [
        *(True, False, False, False, True, True, False)
    ]
    header, first, second = (tmp_path / "o.csv").read_text().splitlines()
    assert names in header
    assert ",".join(map(str, FACTS.values())) in first
    assert "," * (len(NAMES) + 1) in second
