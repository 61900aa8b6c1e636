"""Labels that are one answer, and what becomes of their scores."""

from pathlib import Path

import pytest
import torch

from cvt_cli.checkpoint.group_table import GroupedLabel, read_groups
from cvt_cli.checkpoint.imagenet import SYNSETS, class_names
from cvt_cli.errors import UsageError
from cvt_cli.inference.label_groups import LabelGroups, from_mapping
from cvt_cli.records import ScoreKind

LABELS = ("tabby, tabby cat", "acorn", "Persian cat", "tench", "pet")
PETS = {"tabby": "cat", "Persian cat": "cat"}


def groups(mapping: dict[str, str], kind: ScoreKind = ScoreKind.SOFTMAX) -> LabelGroups:
    return LabelGroups(LABELS, from_mapping(mapping), kind)


def test_a_label_in_no_group_stands_for_itself() -> None:
    pets = groups(PETS)
    assert pets.names == ("cat", "acorn", "cat", "tench", "pet")
    assert pets.answers(range(5)) == [0, 1, 3, 4]
    assert pets.find("CAT ") == 0 and pets.find("dog") is None and pets.find("acorn") is None


def test_a_label_of_a_groups_name_is_in_it() -> None:
    pets = groups({"tabby": "pet", "tench": "pet"})
    assert pets.answers(range(5)) == [0, 1, 2]
    assert pets.first == (0, 1, 2, 0, 0)


def test_a_sum_where_one_label_is_right_the_highest_where_several_may_be() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.3, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    assert groups(PETS).combine(scores, range(5)).tolist() == [
        pytest.approx([0.8, 0.1, 0.1, 0]),
        [1, 0, 0, 0],
    ]
    highest = groups(PETS, ScoreKind.SIGMOID).combine(scores, range(5))
    assert highest.tolist() == [pytest.approx([0.5, 0.1, 0.1, 0]), [1, 0, 0, 0]]
    with pytest.raises(UsageError, match="raw"):
        groups(PETS, ScoreKind.RAW)


def test_only_the_chosen_labels_count() -> None:
    pets = groups(PETS)
    assert pets.answers([2, 3]) == [0, 3]
    assert pets.combine(torch.tensor([[0.75, 0.25]]), [2, 3]).tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize("kind", [ScoreKind.SOFTMAX, ScoreKind.SIGMOID])
def test_a_score_is_never_above_1_and_nan_stays(kind: ScoreKind) -> None:
    many = LabelGroups(
        [f"l{i}" for i in range(1000)], from_mapping({f"l{i}": "all" for i in range(999)}), kind
    )
    scores = torch.randn(50, 1000).softmax(1)
    scores[:, 999] = 0
    assert many.combine(scores, range(1000)).max() <= 1
    scores[0, 3] = torch.nan
    assert many.combine(scores, range(1000))[:2].isnan().tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"taby": "cat"}, "taby: not one of the model's labels"),
        ({"tabby": "cat", "#0": "pet"}, "in two groups: cat and pet"),
        ({"n02123045": "dog", "n02123394": "cat", "n15075141": "x", "#9": "y"}, "classes #0 to #4"),
        ({"n15075141": "x"}, "none of the model's labels"),
    ],
)
def test_mistakes(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        groups(mapping)


def test_wordnet_ids_of_a_model_with_some_of_imagenets_classes() -> None:
    found = groups(
        {"n02123045": "cat", "n02123394": "cat", "n02085620": "dog"} | {"n01440764": "f"}
    )
    assert found.names == ("cat", "acorn", "cat", "tench", "pet")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a\tb\n", [("a", "b")]),
        ("\ufeffa, b \t b c\r\n\r\n# note\n#1\tx\n", [("a, b", "b c"), ("#1", "x")]),
    ],
)
def test_a_file(tmp_path: Path, text: str, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "groups.tsv"
    path.write_text(text, "utf-8", newline="")
    assert [(each.label, each.group) for each in read_groups(str(path))] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat pet\n", "line 1: cat pet"),
        (b"cat\tpet\nx\t\n", "line 2: x"),
        (b"a\tb\tc\n", "line 1"),
        (b"# only\n", "has no group"),
        (b"\xff\tb\n", "not UTF-8"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "groups.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_groups(str(path))


def test_the_table_of_imagenet() -> None:
    rows = read_groups("imagenet")
    found = LabelGroups(class_names(), rows, ScoreKind.SOFTMAX)
    assert [row.label for row in rows] == sorted({row.label for row in rows} & set(SYNSETS))
    assert 100 <= len({row.group for row in rows}) <= 150
    members: dict[str, list[str]] = {}
    for name, label in zip(found.names, class_names(), strict=True):
        members.setdefault(name, []).append(label.split(",")[0])
    assert members["cat"] == ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"]
    assert len(members["dog"]) == 118 and "golden retriever" in members["dog"]
    assert "crane" in members["bird"] and members["crane"] == ["crane"]  # the machine
    assert members["acorn"] == ["acorn"]


def test_a_row_says_where_it_is() -> None:
    with pytest.raises(UsageError, match=r"pets\.tsv, line 7: dgo"):
        LabelGroups(LABELS, [GroupedLabel("dgo", "dog", "pets.tsv, line 7")], ScoreKind.SOFTMAX)
