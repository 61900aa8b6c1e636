"""Greys beyond 8 bits, and what is said of files that plainly are of a format."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cvt_cli.errors import ImageError
from cvt_cli.images.decode import decode
from tests.photos import picture

RAMP = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (64, 1))
RAMP[16:48, 16:48] = 4095 - RAMP[16:48, 16:48]
IN_8_BITS = np.rint(RAMP * (255 / 4095)).astype(int)


def tiff(
    data: bytes, bits: int, photometric: int = 1, sample_format: int = 1, **tags: int
) -> bytes:
    entries = [
        *((256, 64), (257, 64), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)),
        *((278, 64), (279, len(data)), (339, sample_format)),
        *((int(tag[1:]), value) for tag, value in tags.items()),
    ]
    body = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in sorted(entries))
    start = struct.pack("<L", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(entries)) + body + bytes(4)


def packed_12() -> bytes:
    one, two = RAMP.reshape(-1, 2).astype(np.uint32).T
    return np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], 1).astype(np.uint8).tobytes()


def test_the_right_greys() -> None:
    wide = RAMP.astype(np.uint32) * 65535 // 4095
    signed = (RAMP.astype(np.int32) * 32767 // 4095).astype("<i2").tobytes()
    files = {
        "12 bits": tiff(packed_12(), 12),
        "16 bits": tiff(wide.astype("<u2").tobytes(), 16),
        "12 of 16": tiff(RAMP.astype("<u2").tobytes(), 16, t281=4095),
        "white is 0": tiff((65535 - wide).astype("<u2").tobytes(), 16, 0),
        "signed": tiff(signed, 16, 1, 2),
    }
    for name, data in files.items():
        found = np.asarray(decode(io.BytesIO(data)))[..., 0].astype(int)
        assert np.abs(found - IN_8_BITS).max() <= 1, name


def encoded(format_: str) -> bytes:
    file = io.BytesIO()
    picture().save(file, format_)
    return file.getvalue()


def with_bad_checksum() -> bytes:
    data = bytearray(encoded("PNG"))
    data[30] ^= 1
    return bytes(data)


def compressed(type_: int, value: int) -> bytes:
    entry = struct.pack("<HHLL", 259, 4, 1, 1)
    return tiff(bytes(4096), 8).replace(entry, struct.pack("<HHLL", 259, type_, 1, value))


BMP_HEADER = "a BMP of a kind that is not supported: Unsupported BMP header type (7)"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_bad_checksum(), "a broken PNG: bad header checksum in IHDR"),
        (b"\xff\xd8\xff\xe0", "a broken JPEG"),
        (encoded("GIF")[:8], "a broken GIF"),
        (encoded("TIFF")[:100], "a broken TIFF"),
        (
            tiff(bytes(64 * 64 * 8), 64, 2, 3),
            "a TIFF of a kind that is not supported: 64-bit float RGB",
        ),
        (
            compressed(4, 50001),
            "a TIFF of a kind that is not supported: 8-bit grey, compressed as WebP",
        ),
        (compressed(7, 1), "a broken TIFF"),  # bytes where a number belongs
        (
            encoded("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x0c"),
            "a JPEG of a kind that is not supported: 12-bit lossless",
        ),
        (encoded("PNG")[:-300], "a broken PNG: image file is truncated"),
        (encoded("BMP")[:-300], "a broken BMP: image file is truncated (276 bytes not processed)"),
        (encoded("BMP")[:14] + b"\x07" + encoded("BMP")[15:], BMP_HEADER),
        (
            encoded("JPEG2000")[:200],
            "a broken JPEG 2000: broken data stream when reading image file",
        ),
        (encoded("WEBP")[:60], "a broken WebP"),
        (
            encoded("PPM").replace(b"255", b"0", 1),
            "a broken PPM: maxval must be greater than 0 and less than 65536",
        ),
        (b"8BPS" + bytes(40), "a broken PSD"),
        (
            b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, 4, 4, 16, 3) + bytes(40),
            "a PSD of a kind that is not supported: 16-bit RGB",
        ),
        (
            b"PF\n4 4\n-1.0\n" + bytes(192),
            "a PPM of a kind that is not supported: 32-bit float RGB",
        ),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported: convert it to PNG"),
    ],
)
def test_what_it_plainly_is_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(io.BytesIO(data))
    assert str(caught.value) == words


def test_a_compressed_fits_is_refused() -> None:
    cards = [
        *("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "EXTEND  = T", "END"),
    ]
    second = [
        *("XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1"),
        *("ZIMAGE  = T", "ZCMPTYPE= 'GZIP_1  '", "ZBITPIX = 8", "ZNAXIS  = 2", "ZNAXIS1 = 8"),
        *("ZNAXIS2 = 8", "END"),
    ]
    data = b"".join(
        "".join(card.ljust(80) for card in each).ljust(2880).encode() for each in (cards, second)
    )
    with pytest.raises(ImageError):
        decode(io.BytesIO(data + bytes(2880)))
    plain = io.BytesIO()
    header = "".join(
        card.ljust(80)
        for card in (
            *("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 64", "NAXIS2  = 64", "END"),
        )
    )
    plain.write(header.ljust(2880).encode() + IN_8_BITS.astype(np.uint8).tobytes())
    found = decode(plain)
    assert found.size == Image.fromarray(RAMP).size
