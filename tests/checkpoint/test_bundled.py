"""The checkpoint that ships: small, whole, and read alike by `transformers`."""

import warnings

import pytest
import torch

from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, BUNDLED_MODEL, bundled_names
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@pytest.fixture(scope="module")
def checkpoint():
    return load(resolve(BUNDLED_MODEL, offline=True))


def test_it_is_found_by_its_name_and_small(checkpoint):
    assert BUNDLED_MODEL in bundled_names()
    assert checkpoint.labels == CIFAR10
    assert checkpoint.preprocessing.image_size == (32, 32)
    assert sum(parameter.numel() for parameter in checkpoint.model().parameters()) <= 2_500_000
    assert sum(path.stat().st_size for path in (BUNDLED_FOLDER / BUNDLED_MODEL).iterdir()) <= 5e6


def test_transformers_computes_the_same_logits(checkpoint):
    from transformers import CvtForImageClassification

    theirs = CvtForImageClassification.from_pretrained(BUNDLED_FOLDER / BUNDLED_MODEL).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x).logits
        torch.testing.assert_close(checkpoint.model().float()(x), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


def test_its_card_tells_how_it_was_made_and_how_good_it_is():
    card = (BUNDLED_FOLDER / BUNDLED_MODEL / "README.md").read_text()
    for word in ("license:", "cvt train", "cvt evaluate", "seed", "accuracy", "CIFAR-10", "32x32"):
        assert word in card, word


def test_an_input_that_costs_a_hundred_times_as_much_is_warned_of(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.with_image_size((256, 256))  # 15 GMACs are soon done
    words = r"^1024 × 512 pixels: 7\d\d GMACs an image, 1\d,\d{3} times those of 32 × 32$"
    with pytest.warns(UserWarning, match=words):
        checkpoint.with_image_size((1024, 512))
