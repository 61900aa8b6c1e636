"""Facts from EXIF: when, where and with which camera a picture was taken.

They are read from the start of the file; no pixel is decoded. A fact is None if it is missing or
makes no sense.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from cvt_cli.images.decode import open_checked
from cvt_cli.images.raw import is_raw

# Bytes at the start of a raw file that are read; after them comes the sensor's data.
_HEAD = 2**20
_TIFF = (b"II*\0", b"MM\0*")
_FUJIFILM = b"FUJIFILMCCD-RAW"
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"[+-](?:0\d|1[0-4]):[0-5]\d")
_MAX_TEXT = 200
_ORIENTATIONS = range(1, 9)
# A box of a CR3 begins with its size in so many bytes, and its name.
_BOX_SIZE_BYTES = 4

Fact = int | float | str | None


@dataclass(frozen=True, slots=True)
class _Exif:
    """The three directories of EXIF: picture, exposure and place."""

    base: Mapping[int, Any]
    exposure: Mapping[int, Any]
    gps: Mapping[int, Any]
    orientation: int | None = None  # set if the decoder has turned the picture itself


def photo_facts(
    source: BinaryIO | Image.Image, columns: Sequence[str], max_pixels: int
) -> dict[str, Fact]:
    """Return those of `columns` that EXIF has, each with its value or None.

    Args:
        source: an image's file, or an open image.
        max_pixels: above which a file is not looked into.
    """
    wanted = [name for name in columns if name in _FACTS]
    if not wanted:
        return {}
    found = None
    # Hostile bytes make Pillow raise nearly anything. If the picture can't be read either, decoding
    # it will report why.
    try:
        found = _of(source) if isinstance(source, Image.Image) else _read(source, max_pixels)
    except Exception:
        found = None
    finally:
        if not isinstance(source, Image.Image):
            source.seek(0)
    return {name: _value(_FACTS[name], found) if found else None for name in wanted}


def _value(fact: "Callable[[_Exif], Fact]", exif: _Exif) -> Fact:
    try:
        return fact(exif)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError):
        return None


def _of(image: Image.Image) -> _Exif:
    return _parts(image.getexif(), image.info.get("original_orientation"))


def _parts(exif: Image.Exif, orientation: int | None = None) -> _Exif:
    return _Exif(
        dict(exif), exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo), orientation=orientation
    )


def _read(file: BinaryIO, max_pixels: int) -> _Exif:
    if not is_raw(file):
        with open_checked(file, max_pixels) as image:
            return _of(image)
    head = file.read(_HEAD)
    if head[4:11] == b"ftypcrx":
        return _canon(head)
    if head.startswith(_FUJIFILM):
        start, size = (int.from_bytes(head[at : at + 4], "big") for at in (84, 88))
        file.seek(start)
        with Image.open(io.BytesIO(file.read(min(size, _HEAD))), formats=["JPEG"]) as image:
            return _of(image)
    exif = Image.Exif()
    if head.startswith(_TIFF):
        file.seek(0)
        exif.load_from_fp(file)
    else:  # TIFF except for its first bytes
        magic = _TIFF[0] if head.startswith(b"II") else _TIFF[1]
        exif.load_from_fp(io.BytesIO(magic + head[4:]))
    return _parts(exif)


def _canon(head: bytes) -> _Exif:
    """Read a CR3, which has each directory in a box of its own."""
    directories = []
    for name in (b"CMT1", b"CMT2", b"CMT4"):
        at = head.find(name)
        exif = Image.Exif()
        start = at - _BOX_SIZE_BYTES
        if start >= 0:
            size = int.from_bytes(head[start:at], "big")
            exif.load(head[at + len(name) : start + size])
        directories.append(dict(exif))
    return _Exif(directories[0], directories[1], directories[2])


def _taken(exif: _Exif) -> str | None:
    for tag, offset_tag in (
        (Base.DateTimeOriginal, Base.OffsetTimeOriginal),
        (Base.DateTimeDigitized, Base.OffsetTimeDigitized),
    ):
        found = _DATE.fullmatch(_text(exif.exposure.get(tag)) or "")
        if found:
            year, month, day, hour, minute, second = map(int, found.groups())
            taken = datetime(year, month, day, hour, minute, second).isoformat()
            offset = _OFFSET.fullmatch(_text(exif.exposure.get(offset_tag)) or "")
            return taken + (offset[0] if offset else "")
    return None


def _degrees(
    exif: _Exif, tag: int, reference: int, *, signs: Mapping[str, int], most: int
) -> float | None:
    sign = signs[(_text(exif.gps.get(reference)) or "").upper()]
    degrees, minutes, seconds = (*map(float, exif.gps[tag]), 0.0, 0.0)[:3]
    value = sign * (degrees + minutes / 60 + seconds / 3600)
    return round(value, 7) if min(degrees, minutes, seconds) >= 0 and abs(value) <= most else None


def _latitude(exif: _Exif) -> float | None:
    return _degrees(exif, GPS.GPSLatitude, GPS.GPSLatitudeRef, signs={"N": 1, "S": -1}, most=90)


def _longitude(exif: _Exif) -> float | None:
    return _degrees(exif, GPS.GPSLongitude, GPS.GPSLongitudeRef, signs={"E": 1, "W": -1}, most=180)


def _altitude(exif: _Exif) -> float | None:
    metres = float(exif.gps[GPS.GPSAltitude])
    below = exif.gps.get(GPS.GPSAltitudeRef) in (1, b"\1")
    if not math.isfinite(metres):
        return None
    return round(-metres if below else metres, 3)


def _camera(exif: _Exif) -> str | None:
    make, model = (_text(exif.base.get(tag)) for tag in (Base.Make, Base.Model))
    if make and model and not model.lower().startswith(make.split()[0].lower()):
        return f"{make} {model}"
    return model or make


def _lens(exif: _Exif) -> str | None:
    return _text(exif.exposure.get(Base.LensModel))


def _orientation(exif: _Exif) -> int | None:
    value = exif.orientation or exif.base.get(Base.Orientation)
    return value if isinstance(value, int) and value in _ORIENTATIONS else None


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    text = value.split("\0")[0][:_MAX_TEXT]
    printable = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(printable.split()) or None


_FACTS: Mapping[str, Callable[[_Exif], Fact]] = {
    "taken": _taken,
    "latitude": _latitude,
    "longitude": _longitude,
    "altitude": _altitude,
    "camera": _camera,
    "lens": _lens,
    "orientation": _orientation,
}
