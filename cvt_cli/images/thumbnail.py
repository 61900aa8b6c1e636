"""Thumbnails, by which people recognise the pictures."""

import io

from PIL import Image

from cvt_cli.images.reduction import full_size, resized

# Pixels of the longer side: sharp in a grid, and a few hundred thumbnails fit into a mail.
THUMBNAIL_SIZE = 320
QUALITY = 82


def make_thumbnail(image: Image.Image) -> bytes:
    """Make a JPEG of at most `THUMBNAIL_SIZE` pixels a side, with the picture's aspect.

    Nothing of the file comes along but its pixels: no place, no camera, no comment.

    Args:
        image: upright, RGB.
    """
    width, height = full_size(image)
    scale = min(1, THUMBNAIL_SIZE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = resized(image, size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY, comment=b"", exif=b"", icc_profile=b"")
    return file.getvalue()
