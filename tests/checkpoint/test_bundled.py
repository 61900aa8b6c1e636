"""The checkpoints that ship: small, whole, and read alike by `transformers`."""

import warnings

import pytest
import torch

from cvt_cli.checkpoint.catalog import (
    BUNDLED_FOLDER,
    BUNDLED_MODEL,
    CIFAR10_MODEL,
    bundled_names,
)
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.inference.labels import LabelMatcher

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


# Of each: labels, pixels, parameters, bytes, and words that its card has.
FIGURES = {
    BUNDLED_MODEL: (100, 64, 2_700_000, 6e6, ("Tiny ImageNet", "research", "--calibrate")),
    CIFAR10_MODEL: (10, 32, 2_500_000, 5e6, ("CIFAR-10", "32x32")),
}


@pytest.fixture(scope="module", params=FIGURES)
def checkpoint(request):
    return load(resolve(request.param, offline=True))


def test_it_is_found_by_its_name_and_small(checkpoint):
    labels, pixels, parameters, size, _ = FIGURES[checkpoint.name]
    assert checkpoint.name in bundled_names()
    assert len(checkpoint.labels) == labels
    assert checkpoint.preprocessing.image_size == (pixels, pixels)
    assert sum(weights.numel() for weights in checkpoint.model().parameters()) <= parameters
    files = (BUNDLED_FOLDER / checkpoint.name).iterdir()
    assert sum(path.stat().st_size for path in files) <= size


def test_labels_are_found_by_their_synonyms():
    assert load(resolve(CIFAR10_MODEL, offline=True)).labels == CIFAR10
    labels = load(resolve(BUNDLED_MODEL, offline=True)).labels
    matcher = LabelMatcher(labels)
    for name, whole in (
        ("golden_retriever", "golden retriever"),
        ("tabby cat", "tabby, tabby cat"),
    ):
        index = matcher.find(name)
        assert isinstance(index, int) and labels[index] == whole


def test_transformers_computes_the_same_logits(checkpoint):
    from transformers import CvtForImageClassification

    theirs = CvtForImageClassification.from_pretrained(BUNDLED_FOLDER / checkpoint.name).eval()
    size = checkpoint.preprocessing.image_size
    x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x).logits
        torch.testing.assert_close(checkpoint.model().float()(x), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


def test_its_card_tells_how_it_was_made_and_how_good_it_is(checkpoint):
    card = (BUNDLED_FOLDER / checkpoint.name / "README.md").read_text()
    words = ("license:", "cvt train", "cvt evaluate", "seed", "accuracy", "one of them")
    for word in (*words, *FIGURES[checkpoint.name][-1]):
        assert word in card, word


@pytest.mark.parametrize("checkpoint", [CIFAR10_MODEL], indirect=True)
def test_an_input_that_costs_a_hundred_times_as_much_is_warned_of(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.with_image_size((256, 256))  # 15 GMACs are soon done
    words = r"^1024 × 512 pixels: 7\d\d GMACs per image, 1\d,\d{3} times as many as at 32 × 32$"
    with pytest.warns(UserWarning, match=words):
        checkpoint.with_image_size((1024, 512))
