"""Names that mean a class."""

import shlex
import warnings
from collections.abc import Sequence
from typing import Any

import pytest

from cvt_cli.checkpoint.imagenet import SYNSETS, class_names
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.checkpoint.resolve import ResolvedFiles
from cvt_cli.errors import UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.inference.labels import LabelMatcher, pick_index, pick_indexes
from cvt_cli.model.config import CvtConfig

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


IMAGENET = ["tench, Tinca tinca", *(f"label {index}" for index in range(1, 999))]
IMAGENET += ["toilet tissue, bathroom tissue"]
IMAGENET[134], IMAGENET[517] = "crane", "crane"
IMAGENET[281], IMAGENET[282] = "tabby, tabby cat", "tiger cat"
IMAGENET[638], IMAGENET[639] = "maillot", "maillot, tank suit"
IMAGENET[700], IMAGENET[701] = "Label A", "638"


def checkpoint(labels: Sequence[str], **options: Any) -> Checkpoint:
    files = ResolvedFiles("org/my model", None, None, ())
    config = CvtConfig(num_labels=len(labels))
    return Checkpoint(files, config, tuple(labels), Preprocessing.convnext(224), **options)


@pytest.mark.parametrize(
    ("names", "indexes"),
    [
        (["tabby, tabby cat"], [281]),  # a whole label, then the parts of what is none
        (["tabby,tiger cat"], [281, 282]),
        (["Tench,  tinca TINCA,tiger_cat"], [0, 282]),
        (["maillot, tank suit"], [639]),
        (["tiger cat, maillot, tank suit, tench"], [0, 282, 639]),  # and so in the middle
        (["tank suit"], [639]),
        (["tank suit", "tabby cat", "tabby"], [281, 639]),
        (["n02012849", "tench"], [0, 134]),
        (["#517,#134"], [134, 517]),
        (["638", "tench"], [0, 701]),  # a label of digits, no index
        (["label a", 5], [5, 700]),
        ([r"maillot\, tank suit, tench"], [0, 639]),
        (["tench,,  ,label 7,"], [0, 7]),
    ],
)
def test_what_is_chosen(names: Any, indexes: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "one label to choose from")
        assert pick_indexes(names, checkpoint(IMAGENET)) == indexes


def test_a_label_is_meant_before_a_synonym_and_the_other_is_named() -> None:
    with pytest.warns(UserWarning, match=r"taken for #638 maillot .*of #639 maillot, tank suit"):
        assert pick_indexes(["maillot", "tench"], checkpoint(IMAGENET)) == [0, 638]
    # Its very capitals are the nearest of all.
    with pytest.warns(UserWarning, match="taken for #1 Cat, .*name of #0 cat"):
        assert pick_indexes(["Cat,dog"], checkpoint(["cat", "Cat", "dog"])) == [1, 2]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "crane",
            "crane: org/my model has 2 classes of that name: "
            "#134 crane (n02012849); #517 crane (n03126707)",
            "--labels '#134' is the first of them",
        ),
        ("tigercat", "has no such label", "did you mean --labels 'tiger cat'? "),
        ("bathrom tissue", "has no such label", "did you mean --labels 'bathroom tissue'? "),
        ("cat", "has no such label", "did you mean --labels 'tabby cat,tiger cat'? "),
        ("700", "has no such label", "did you mean --labels '#700'? "),
        ("#1000", "#1000: the model has classes #0 to #999", ""),
        ("n00000001", "a WordNet id that is none of ImageNet-1k's", ""),
        ("zzzz", "has no such label", ""),
        (" , ", "--labels names no label", ""),
    ],
)
def test_what_names_no_class(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick_indexes(["tench", name], checkpoint(IMAGENET))
    assert message in str(caught.value)
    listing = "`cvt inspect 'org/my model' --labels` lists them"
    assert str(caught.value.hint) == (hint if name == "crane" else hint + listing)


def test_what_is_suggested_is_taken() -> None:
    """Pasted, whatever is in it."""
    labels = ["tabby, tabby cat", "it's", "two words, parted", "#9"]
    for nearly in ("taby, tabby cat", "it`s", "two  word, parted", "3"):
        with pytest.raises(UsageError) as caught:
            pick_indexes([nearly], checkpoint(labels))
        words = shlex.split(str(caught.value.hint).partition("?")[0])
        assert words[:4] == ["did", "you", "mean", "--labels"]
        assert pick_indexes([words[4]], checkpoint(labels), "--label")


def test_one_label_of_a_softmax_is_certain_whatever_it_is() -> None:
    with pytest.warns(UserWarning, match="its score is 1"):
        pick_indexes(["tench"], checkpoint(IMAGENET))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        several = checkpoint(IMAGENET, problem_type="multi_label_classification")
        pick_indexes(["tench"], several)
        assert pick_index("tabby, tabby cat", checkpoint(IMAGENET), "--label") == 281
        assert pick_index("tabby,tabby cat", checkpoint(IMAGENET), "--label") == 281
        with pytest.raises(
            UsageError, match=r"more than one label: #0 tench, Tinca tinca .*; #282"
        ):
            pick_index("tench,tiger cat", checkpoint(IMAGENET), "--label")


def test_every_class_of_imagenet_has_a_name() -> None:
    labels = class_names()
    matcher = LabelMatcher(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [matcher.find(label) for label in labels]
        assert [matcher.find(each) for each in SYNSETS] == list(range(1000))
        assert [matcher.find(f"#{index}") for index in range(1000)] == list(range(1000))
    cranes = [index for index, label in enumerate(labels) if label == "crane"]
    assert len(cranes) == 2
    assert [index for index in range(1000) if found[index] != index] == cranes
    # What people type first is no label; what is suggested is one of each.
    suggested = matcher.nearest("cat", 3)
    assert len({matcher.find(each) for each in suggested}) == 3
    assert all("cat" in each.split() for each in suggested)
