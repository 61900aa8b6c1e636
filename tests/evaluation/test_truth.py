"""Labels that were written before, beside the right ones."""

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.evaluation.truth import NO_LABEL, compare_rows
from cvt_cli.records import Prediction, Record


def row(path, *labels, error=None):
    return Record(path, tuple(Prediction(label, 0.5, -1) for label in labels), error=error)


LONG = "bullfrog, Rana catesbeiana"


def test_paths_are_matched_and_the_rest_is_said():
    labels = [
        row("a", "cat", "dog"),
        row("b", "cat", "dog"),
        row("c", "fox"),
        row("d"),
        row("e", error="broken"),
        row("not judged", "cat"),
    ]
    truth = [row("b", "dog"), row("a", "cat"), row("c"), row("d", "owl"), row("e", "cat")]
    truth.append(row("gone", "cat"))
    with pytest.warns(UserWarning) as warned:
        found = compare_rows(labels, truth)
    said = [str(each.message) for each in warned]
    assert said[0].startswith("no right label for 1 image")
    assert said[1].startswith("1 image with a right label but no other")
    assert (found.count, found.top1, found.top5) == (4, 0.25, 0.5)
    assert [each.path for each in found.errors] == ["e"]
    pairs = {(each.label, each.predicted) for each in found.confusions}
    assert pairs == {("dog", "cat"), (NO_LABEL, "fox"), ("owl", NO_LABEL)}


def test_nothing_in_common_and_two_right_labels():
    with pytest.raises(UsageError, match="no image is in both files"):
        compare_rows([row("a", "cat")], [row("./a", "cat")])
    with pytest.raises(UsageError, match="a has two right labels: 'cat' and 'dog'"):
        compare_rows([row("a", "cat")], [row("a", "cat"), row("a", "dog")])


@pytest.mark.parametrize(
    ("labels", "truth"), [("bullfrog", LONG), (LONG, "bullfrog")], ids=["short", "long"]
)
def test_a_label_and_its_first_synonym_are_the_same(labels: str, truth: str) -> None:
    """Folders that `cvt sort` makes have the first synonym for a name, and so have models that are
    trained from them."""
    with pytest.warns(UserWarning, match=f"taking 1 right label .* as '{truth}' for '{labels}'"):
        found = compare_rows(
            [row("a", labels), row("b", labels), row("c", "cat")],
            [row("a", truth), row("b", "cat"), row("c", "cat")],
        )
    assert found.top1 == pytest.approx(2 / 3)


def test_labels_that_begin_alike_stay_apart() -> None:
    longer = ["crane, of the kind that lifts", "crane, of the kind that flies"]
    for labels in ([*longer, "crane"], longer):
        rows = [row(name, label) for name, label in zip("abc", labels, strict=False)]
        found = compare_rows(rows, [*rows[:-1], row(rows[-1].path, "crane")])
        assert found.top1 == (1.0 if "crane" in labels else 0.5)
