"""Figures, against ones that were worked out by hand."""

import pytest

from cvt_cli.errors import InputsError, UsageError
from cvt_cli.evaluation.evaluation_tables import evaluation_report
from cvt_cli.evaluation.metrics import compute_metrics, from_folders, from_table, match
from cvt_cli.output.report_tables import as_text
from cvt_cli.records import Prediction, Record

LABELS = ("a", "b", "c", "d", "e", "f")


def record(best, score, *others):
    rest = [Prediction(LABELS[index], 0.01, index) for index in others]
    return Record("x.jpg", (Prediction(LABELS[best], score, best), *rest))


def test_figures_by_hand():
    records = [
        record(0, 0.95, 1),
        record(0, 0.95, 1),
        record(1, 0.55, 0),
        record(1, 0.85, 2),
        Record("bad.jpg", error="empty file"),
        record(2, 0.85, 3, 4, 5, 1),
    ]
    result = compute_metrics(records, [0, 1, 0, 1, 2, 0], LABELS)
    assert result.count == 5 and [each.path for each in result.errors] == ["bad.jpg"]
    assert result.top1 == pytest.approx(2 / 5)
    assert result.top5 == pytest.approx(4 / 5)
    a, b, c = result.labels
    assert (a.label, a.count, a.predicted, a.correct) == ("a", 3, 2, 1)
    assert (a.precision, a.recall) == (0.5, pytest.approx(1 / 3))
    assert (b.precision, b.recall) == (0.5, 0.5)
    assert (c.count, c.precision, c.recall) == (0, 0.0, None)
    pairs = [(each.label, each.predicted, each.count) for each in result.confusions]
    assert pairs == [("a", "b", 1), ("a", "c", 1), ("b", "a", 1)]
    # Bins of a fifteenth: 0.95 twice, one right; 0.55 wrong; 0.85 twice, one right.
    assert result.ece == pytest.approx((abs(1.9 - 1) + 0.55 + abs(1.7 - 1)) / 5)


def test_what_is_right_more_often_than_it_is_sure_is_calibrated_no_better():
    assert compute_metrics([record(0, 0.35)] * 2, [0, 0], LABELS).ece == pytest.approx(0.65)


def test_what_is_confused_most_comes_first():
    records = [record(0, 0.5), record(1, 0.5), record(2, 0.5), record(2, 0.5)]
    result = compute_metrics(records, [1, 0, 0, 0], LABELS)
    pairs = [(each.label, each.predicted, each.count) for each in result.confusions]
    assert pairs == [("a", "c", 2), ("a", "b", 1), ("b", "a", 1)]


def test_of_many_labels_the_least_known_are_shown():
    labels = [f"label {index}" for index in range(70)]

    def best(index):
        return Record("x.jpg", (Prediction(labels[index], 0.9, index),))

    # 60 labels have images; the last two are taken for those of no image, as are ten of the rest.
    targets = [*range(60), *range(10)]
    found = [*range(58), 60, 61, *range(60, 70)]
    result = compute_metrics(map(best, found), targets, labels)
    text = as_text(evaluation_report(result, {}), "table")
    lines = [line.split("  ")[0] for line in text.splitlines()]
    start = lines.index("Labels of the lowest recall, of 70") + 2
    assert lines[start : start + 3] == ["label 58", "label 59", "label 0"]
    assert "label 60" not in lines[start : start + 50]
    assert "2 more pairs, all of them in JSON" in lines


def test_perfect_and_certain_is_calibrated():
    result = compute_metrics([record(1, 1.0)] * 3, [1] * 3, LABELS)
    assert (result.top1, result.top5, result.ece) == (1.0, 1.0, 0.0)
    assert result.confusions == ()


def test_only_the_first_five_count():
    assert compute_metrics([record(1, 0.9, 2, 3, 4, 5, 0)], [0], LABELS).top5 == 0.0


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "^bad.jpg: empty file$"),
        (2, "^none of 2 images could be read, for example bad.jpg: empty file$"),
    ],
)
def test_nothing_readable(count, said):
    with pytest.raises(InputsError, match=said):
        compute_metrics([Record("bad.jpg", error="empty file")] * count, [0] * count, LABELS)


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_sub_folder_is_a_class_if_it_has_images(tmp_path):
    make(tmp_path, "b/x.jpg", "a/2.jpg", "a/1.jpg", "a/in/3.jpg", ".c/x.jpg", "d/notes.txt")
    found = [(each.label, each.source.path) for each in from_folders(tmp_path)]
    wanted = [("a", "a/1.jpg"), ("a", "a/2.jpg"), ("a", "a/in/3.jpg"), ("b", "b/x.jpg")]
    assert found == [(label, f"{tmp_path}/{path}") for label, path in wanted]


def test_a_table_of_a_spreadsheet(tmp_path):
    make(tmp_path, "x.jpg", "y.jpg")
    table = tmp_path / "truth.csv"
    table.write_text("\ufeffpath,label\r\ny.jpg,a\r\nx.jpg,b\r\n", "utf-8")
    found = [(each.label, each.source.path) for each in from_table(tmp_path, table)]
    assert found == [("a", f"{tmp_path}/y.jpg"), ("b", f"{tmp_path}/x.jpg")]


def test_images_of_unknown_labels_are_counted(tmp_path):
    make(tmp_path, "a/x.jpg", *(f"unicorn/{number}.jpg" for number in range(3)))
    known, (unknown,) = match(from_folders(tmp_path), LABELS, "model")
    assert [index for _, index in known] == [0]
    assert (unknown.label, unknown.count) == ("unicorn", 3)


@pytest.mark.parametrize("numbers", [("0", "2", "2"), ("2", "05", "9")])
def test_numbers_are_class_indexes(tmp_path, numbers):
    for name in (*"xyz",):
        (tmp_path / f"{name}.png").touch()
    table = tmp_path / "labels.txt"
    table.write_text("".join(f"{n}.png {i}\n" for n, i in zip("xyz", numbers, strict=True)))
    with pytest.warns(UserWarning, match="taking labels that are numbers for class indexes, as"):
        known, unknown = match(from_table(tmp_path, table), LABELS, "model")
    expected = [int(each) for each in numbers if int(each) < len(LABELS)]
    assert [index for _, index in known] == expected
    assert [each.label for each in unknown] == [n for n in numbers if int(n) >= len(LABELS)]


def test_more_digits_than_an_index_has_are_an_unknown_label(tmp_path):
    (tmp_path / "x.png").touch()
    table = tmp_path / "labels.csv"
    label = "1" * 5000
    table.write_text(f"path,label\nx.png,{label}\nx.png,2\n")
    with pytest.warns(UserWarning, match="for class indexes, as 2 for 'c'"):
        ((_, index),), (unknown,) = match(from_table(tmp_path, table), LABELS, "model")
    assert (index, unknown.label) == (2, label)
    table.write_text(f"path,label\nx.png,{label}\n")
    with pytest.raises(UsageError, match="none of the 1 labels is the model's"):
        match(from_table(tmp_path, table), LABELS, "model")


def test_an_image_counts_once(tmp_path):
    make(tmp_path, "x.png", "y.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nx.png,a\ny.png,#1\n./x.png,a\nx.png,#0\n")
    with pytest.warns(UserWarning, match="1 row as an earlier one: left out"):
        labelled = from_table(tmp_path, table)
    assert [each.label for each in labelled] == ["a", "#1", "#0"]
    known, _ = match(labelled, LABELS, "model")
    assert [index for _, index in known] == [0, 1]


def test_numbers_that_are_labels_are_those(tmp_path):
    (tmp_path / "x.png").touch()
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nx.png,1\n")
    ((_, index),), _ = match(from_table(tmp_path, table), ("5", "3", "1"), "model")
    assert index == 2


def test_what_can_not_be_judged_by_is_refused(tmp_path):
    for name in ("train/a/0.png", "valid/a/0.png", "valid/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="are no labels, but train and valid") as caught:
        from_folders(tmp_path)
    assert caught.value.hint == f"did you mean {tmp_path / 'valid'}?"
    table = tmp_path / "valid/metadata.csv"
    table.write_text("file_name,label\na/0.png,1\n1.png,6\n")
    with pytest.raises(UsageError, match="numbers from 1 to 6, and class indexes begin with 0"):
        match(from_table(tmp_path / "valid", table), LABELS, "model")
    table.write_text("file_name,label\n1.png,a\n1.png,b\n")
    with pytest.raises(UsageError, match=r"1\.png has two labels: 'a' and 'b'"):
        match(from_table(tmp_path / "valid", table), LABELS, "model")
    (tmp_path / "valid/a/0.png").unlink()
    with pytest.raises(UsageError, match="no images in sub-folders") as caught:
        from_folders(tmp_path / "valid")
    assert caught.value.hint == f"did you mean --labels {table}?"
    with pytest.raises(UsageError, match="a file, not a folder") as caught:
        from_folders(table)
    assert f"--labels {table}" in caught.value.hint
    (tmp_path / "x.tar").touch()
    with pytest.raises(UsageError, match="an archive") as caught:
        from_folders(tmp_path / "x.tar")
    assert caught.value.hint == "unpack it first"
