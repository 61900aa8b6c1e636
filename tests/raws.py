"""A small DNG, as a camera might write it."""

import io
import struct

import numpy as np
from PIL import Image

LONG, SHORT, BYTE, ASCII, RATIONAL, SRATIONAL = 4, 3, 1, 2, 5, 10
_SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, SRATIONAL: 8}
_NO_TURN = 1

Entry = tuple[int, int, object]


def dng(
    scene: Image.Image,
    preview: Image.Image | None = None,
    orientation: int = _NO_TURN,
    extra: tuple[Entry, ...] = (),
    preview_exif: Image.Exif | None = None,
) -> bytes:
    """What a sensor that lies as the scene does makes of it, a colour a pixel.

    Args:
        scene: RGB, as the sensor sees it, not turned.
        preview: is embedded as a JPEG.
        orientation: EXIF's, of the file.
        extra: more entries of the first directory: tag, type, value.
        preview_exif: of the preview itself.
    """
    pixels = (np.asarray(scene).astype(np.float64) / 255) ** 2.2 * 65535
    mosaic = np.empty(pixels.shape[:2], "<u2")
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = pixels[row::2, column::2, channel]
    data = bytearray(b"II*\0\0\0\0\0")
    sensor_at = len(data)
    data += mosaic.tobytes()
    jpeg_at, jpeg = len(data), b""
    if preview is not None:
        file = io.BytesIO()
        preview.save(file, "JPEG", quality=95, exif=preview_exif or Image.Exif())
        jpeg = file.getvalue()
        if preview_exif is not None:  # as cameras have it, which write no JFIF header
            jpeg = jpeg[:2] + jpeg[20:]
        data += jpeg
    data += bytes(len(data) % 2)
    sensor = _directory(
        data,
        [
            (254, LONG, 0),
            (256, LONG, scene.width),
            (257, LONG, scene.height),
            (258, SHORT, 16),
            (259, SHORT, 1),
            (262, SHORT, 32803),
            (273, LONG, sensor_at),
            (277, SHORT, 1),
            (278, LONG, scene.height),
            (279, LONG, mosaic.nbytes),
            (33421, SHORT, (2, 2)),
            (33422, BYTE, (0, 1, 1, 2)),
            (50717, LONG, 65535),
        ],
    )
    width, height = preview.size if preview is not None else (1, 1)
    first = [
        (254, LONG, 1),
        (256, LONG, width),
        (257, LONG, height),
        (258, SHORT, (8, 8, 8)),
        (259, SHORT, 7),
        (262, SHORT, 6),
        (271, ASCII, b"Acme\0"),
        (272, ASCII, b"Acme One\0"),
        (273, LONG, jpeg_at),
        (274, SHORT, orientation),
        (277, SHORT, 3),
        (278, LONG, height),
        (279, LONG, len(jpeg)),
        (330, LONG, sensor),
        (50706, BYTE, (1, 4, 0, 0)),
        (50708, ASCII, b"Acme One\0"),
        (50721, SRATIONAL, tuple((10000 * (i in (0, 4, 8)), 10000) for i in range(9))),
        (50728, RATIONAL, ((1, 1), (1, 1), (1, 1))),
        (50778, SHORT, 21),
    ]
    if preview is None:
        first = [each for each in first if each[0] not in (256, 257, 258, 259, 262, 273, 278, 279)]
    made = {entry[0] for entry in extra}
    at = _directory(data, sorted([e for e in first if e[0] not in made] + list(extra)))
    struct.pack_into("<L", data, 4, at)
    return bytes(data)


def tiff(*entries: Entry) -> bytes:
    """A TIFF of one directory: tag, type, value of each entry."""
    data = bytearray(b"II*\0\0\0\0\0")
    struct.pack_into("<L", data, 4, _directory(data, list(entries)))
    return bytes(data)


def _directory(data: bytearray, entries: list[Entry]) -> int:
    """Append a directory and what does not fit into it; where it starts."""
    body = bytearray()
    for tag, kind, value in entries:
        values = value if isinstance(value, tuple | bytes) else (value,)
        if isinstance(values, bytes):
            packed = values
        elif kind in (RATIONAL, SRATIONAL):
            packed = b"".join(struct.pack("<ll", *each) for each in values)
        else:
            letter = {BYTE: "B", SHORT: "H", LONG: "L"}[kind]
            packed = struct.pack(f"<{len(values)}{letter}", *values)
        count = len(packed) // _SIZES[kind]
        if len(packed) > 4:
            data += bytes(len(data) % 2)
            where = struct.pack("<L", len(data))
            data += packed
        else:
            where = packed.ljust(4, b"\0")
        body += struct.pack("<HHL", tag, kind, count) + where
    data += bytes(len(data) % 2)
    start = len(data)
    data += struct.pack("<H", len(entries)) + body + b"\0\0\0\0"
    return start
