"""A small DNG, as a camera might write it."""

import io
import struct

import numpy as np
from PIL import Image

_LONG, _SHORT, _BYTE, _ASCII, _RATIONAL, _SRATIONAL = 4, 3, 1, 2, 5, 10
_SIZES = {_BYTE: 1, _ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _SRATIONAL: 8}
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
            (254, _LONG, 0),
            (256, _LONG, scene.width),
            (257, _LONG, scene.height),
            (258, _SHORT, 16),
            (259, _SHORT, 1),
            (262, _SHORT, 32803),
            (273, _LONG, sensor_at),
            (277, _SHORT, 1),
            (278, _LONG, scene.height),
            (279, _LONG, mosaic.nbytes),
            (33421, _SHORT, (2, 2)),
            (33422, _BYTE, (0, 1, 1, 2)),
            (50717, _LONG, 65535),
        ],
    )
    width, height = preview.size if preview is not None else (1, 1)
    first = [
        (254, _LONG, 1),
        (256, _LONG, width),
        (257, _LONG, height),
        (258, _SHORT, (8, 8, 8)),
        (259, _SHORT, 7),
        (262, _SHORT, 6),
        (271, _ASCII, b"Acme\0"),
        (272, _ASCII, b"Acme One\0"),
        (273, _LONG, jpeg_at),
        (274, _SHORT, orientation),
        (277, _SHORT, 3),
        (278, _LONG, height),
        (279, _LONG, len(jpeg)),
        (330, _LONG, sensor),
        (50706, _BYTE, (1, 4, 0, 0)),
        (50708, _ASCII, b"Acme One\0"),
        (50721, _SRATIONAL, tuple((10000 * (i in (0, 4, 8)), 10000) for i in range(9))),
        (50728, _RATIONAL, ((1, 1), (1, 1), (1, 1))),
        (50778, _SHORT, 21),
    ]
    if preview is None:
        first = [each for each in first if each[0] not in (256, 257, 258, 259, 262, 273, 278, 279)]
    made = {entry[0] for entry in extra}
    at = _directory(data, sorted([e for e in first if e[0] not in made] + list(extra)))
    struct.pack_into("<L", data, 4, at)
    return bytes(data)


def _directory(data: bytearray, entries: list[Entry]) -> int:
    """Append a directory and what does not fit into it; where it starts."""
    body = bytearray()
    for tag, kind, value in entries:
        values = value if isinstance(value, tuple | bytes) else (value,)
        if isinstance(values, bytes):
            packed = values
        elif kind in (_RATIONAL, _SRATIONAL):
            packed = b"".join(struct.pack("<ll", *each) for each in values)
        else:
            letter = {_BYTE: "B", _SHORT: "H", _LONG: "L"}[kind]
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
