"""Image sizes as typed, and preprocessing rules at another input size."""

import numpy as np
import pytest
from PIL import Image

from cvt_cli.errors import UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.images.size import parse_image_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("320", (320, 320)), ("512x384", (512, 384)), ("1X2", (1, 2)), (" 65535 × 32 ", (65535, 32))],
)
def test_sizes_as_typed(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


WRONG = "|0|0x224|224x0|-1|2x|x2|2x2x2|1.5|1e3|+5|٣٢٠|abc|65536|10000000x10000000|" + "9" * 5000


@pytest.mark.parametrize("text", WRONG.split("|"), ids=lambda text: text[:20])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="image size") as caught:
        parse_image_size(text)
    assert len(str(caught.value)) < 120


def test_the_crop_rule_scales() -> None:
    rule = Preprocessing.convnext(224)
    assert rule.scaled_to((224, 224)) == rule
    for size in (96, 160, 320, 512):
        scaled = rule.scaled_to((size, size))
        assert scaled == Preprocessing(shortest_edge=int(size / 0.875), crop=(size, size))
    # A rectangle keeps the same share of each side.
    rectangle = rule.scaled_to((512, 384))
    assert (rectangle.resize_to, rectangle.crop) == ((585, 438), (512, 384))


def test_the_direct_rule_goes_to_the_new_size() -> None:
    scaled = Preprocessing.convnext(384).scaled_to((320, 512))
    assert scaled == Preprocessing(resize_to=(320, 512), shortest_edge=None, crop=None)


@pytest.mark.parametrize(
    "rule",
    [
        Preprocessing.convnext(224),
        Preprocessing.convnext(384),
        Preprocessing(shortest_edge=256, crop=None),
        Preprocessing(shortest_edge=None, crop=(224, 200)),
        Preprocessing(shortest_edge=None, crop=None),
        Preprocessing(resize_to=(256, 200), shortest_edge=None, crop=(224, 160)),
        Preprocessing(shortest_edge=3, crop=(224, 224)),
    ],
    ids=lambda rule: rule.in_words(),
)
@pytest.mark.parametrize("size", [(1, 1), (96, 96), (320, 512)])
def test_every_rule_gives_the_size_that_was_asked_for(
    rule: Preprocessing, size: tuple[int, int]
) -> None:
    scaled = rule.scaled_to(size)
    assert scaled.image_size == size
    for shape in ((480, 640), (17, 31)):
        pixels = scaled.pixels(Image.fromarray(np.zeros((*shape, 3), np.uint8)))
        assert pixels.shape == (*size, 3)


def test_rules_in_words() -> None:
    convnext = Preprocessing.convnext
    assert convnext(224).in_words() == "shorter side to 256, centre crop 224 × 224, bicubic"
    assert convnext(384).in_words() == "squeezed to 384 × 384, bicubic"
    assert Preprocessing(shortest_edge=None, crop=None).in_words() == "as it is"
