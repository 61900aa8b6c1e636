"""Names that mean a class."""

import pytest

from cvt_cli.checkpoint.imagenet import SYNSETS
from cvt_cli.inference.labels import LabelMatcher

LABELS = ["tench, Tinca tinca", "great white shark, white shark", "crane", "crane", "crane fly"]
LABELS += ["gr\u00fcn"]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench, Tinca tinca", 0),
        ("tinca_TINCA", 0),
        ("White  Shark", 1),
        ("great_white_shark", 1),
        ("crane fly", 4),
        ("GRU\u0308N", 5),
    ],
)
def test_whole_labels_and_synonyms(name, index):
    assert LabelMatcher(LABELS).find(name) == index


def test_a_whole_label_is_meant_before_a_synonym():
    labels = ["heron, crane", "crane"]
    assert LabelMatcher(labels).find("crane") == 1
    assert LabelMatcher(labels).find("heron") == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crane", "several of that name: classes 2, 3"),
        ("shark", "not one of the model's labels"),
        ("", "not one of the model's labels"),
        ("n01440764", "labels are not those of ImageNet-1k"),
    ],
)
def test_what_is_not_certain_is_not_guessed(name, reason):
    found = LabelMatcher(LABELS).find(name)
    assert isinstance(found, str) and reason in found


def test_wordnet_ids_count_where_the_labels_are_those_of_imagenet():
    labels = ["tench, Tinca tinca", *map(str, range(1, 999)), "toilet tissue, bathroom tissue"]
    matcher = LabelMatcher(labels)
    assert [matcher.find(name) for name in ("n01440764", "n01443537", "n15075141")] == [0, 1, 999]
    fewer = LabelMatcher([labels[0], *labels[2:]])
    assert "not those of ImageNet-1k" in str(fewer.find("n01440764"))
    assert "none of ImageNet-1k's" in str(matcher.find("n00000001"))
    assert len(set(SYNSETS)) == 1000 and list(SYNSETS) == sorted(SYNSETS)


def test_labels_that_are_wordnet_ids_match_as_names():
    assert LabelMatcher(["n01443537", "n01440764"]).find("n01440764") == 1
