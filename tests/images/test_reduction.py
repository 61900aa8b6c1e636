"""What the JPEG decoder scaled down is resized as if it had not been."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from cvt_cli.images.decode import decode
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.reduction import full_size
from cvt_cli.images.thumbnail import make_thumbnail
from tests.photos import EXIF_ORIENTATION, picture

CROPPED = Preprocessing(shortest_edge=24, crop=(21, 21))
SQUEEZED = Preprocessing(resize_to=(24, 24), shortest_edge=None, crop=None)

# The `Transpose` that makes each orientation upright.
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def mean_error(rule: Preprocessing, fast: Image.Image, exact: Image.Image) -> float:
    return float(np.abs(rule.pixels(fast).astype(int) - rule.pixels(exact)).mean())


def test_fast_decoding_moves_nothing() -> None:
    """Fifty sizes, the eight ways of holding a camera, both rules: hardly a grey level of 255."""
    numbers = random.Random(0)
    errors: dict[tuple[int, str], list[float]] = {}
    sizes = {(numbers.randint(100, 420), numbers.randint(100, 420)) for _ in range(52)}
    assert len(sizes) >= 50
    for width, height in sizes:
        stored = picture(width, height)
        data = [jpeg(stored, orientation) for orientation in range(1, 9)]
        whole = decode(io.BytesIO(data[0]), exact=True)
        for orientation in range(1, 9):
            fast = decode(io.BytesIO(data[orientation - 1]), reduce_to=48)
            turn = TURNS.get(orientation)
            exact = whole if turn is None else whole.transpose(Image.Transpose(turn))
            assert full_size(fast) == exact.size != fast.size
            for name, rule in (("cropped", CROPPED), ("squeezed", SQUEEZED)):
                errors.setdefault((orientation, name), []).append(mean_error(rule, fast, exact))
    assert len(errors) == 16
    assert {key: np.mean(each) for key, each in errors.items() if np.mean(each) >= 0.5} == {}
    assert max(max(each) for each in errors.values()) < 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_where_only_the_centre_is_resized(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(picture(409, 203), orientation)
    fast, exact = decode(io.BytesIO(data), reduce_to=48), decode(io.BytesIO(data))
    whole = CROPPED.pixels(exact)
    monkeypatch.setattr("cvt_cli.images.preprocess.MAX_RESIZED_PIXELS", 1)
    assert fast.size != exact.size
    assert np.abs(CROPPED.pixels(fast).astype(int) - whole).mean() < 0.8


def test_thumbnails_have_the_whole_pictures_shape() -> None:
    """833 pixels reduced by 4 are 209: no longer a third of the width."""
    image = decode(io.BytesIO(jpeg(picture(2497, 833))), reduce_to=208)
    assert image.size == (625, 209)
    thumbnail = Image.open(io.BytesIO(make_thumbnail(image)))
    whole = picture(2497, 833).resize(thumbnail.size, Image.Resampling.BICUBIC)
    assert thumbnail.size == (320, 107)
    assert np.abs(np.asarray(thumbnail).astype(int) - np.asarray(whole)).mean() < 3
