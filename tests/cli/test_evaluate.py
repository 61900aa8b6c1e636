"""`cvt evaluate` as a user runs it."""

import csv
import io
import json
import shutil

import pytest
from PIL import Image

from tests.tiny import LABELS


@pytest.fixture
def model(tiny_cvt):
    return tiny_cvt()


@pytest.fixture
def data(tmp_path, photos):
    """Two photos of each of three labels, one a synonym, one in capitals; the truth is made up."""
    folder = tmp_path / "data"
    for number, name in enumerate(("goldfish", "Tiger_Shark", "hammerhead")):
        (folder / name).mkdir(parents=True)
        for copy in range(2):
            image = Image.effect_noise((40, 40), 30 + 40 * number + 10 * copy).convert("RGB")
            image.save(folder / name / f"{copy}.png")
    return folder


def predictions(run_cvt, model, folder):
    records = run_cvt(
        "classify", folder, "-m", model, "-f", "json", "--dtype", "float32", expect=0
    ).json()
    return {each["path"]: each["predictions"] for each in records}


def test_the_figures_are_those_of_classify(run_cvt, model, data):
    result = run_cvt("evaluate", data, "-m", model, "-f", "json", expect=0).json()
    truth = {"goldfish": "goldfish", "Tiger_Shark": "tiger shark", "hammerhead": LABELS[4]}
    found = predictions(run_cvt, model, data)
    right = sum(best[0]["label"] == truth[path.split("/")[-2]] for path, best in found.items())
    assert result["count"] == len(found) == 6
    assert result["top1"] == pytest.approx(right / 6) and result["top5"] == 1.0
    counts = {each["label"]: each["count"] for each in result["labels"] if each["count"]}
    assert counts == dict.fromkeys(truth.values(), 2)
    assert sum(each["count"] for each in result["confusions"]) == 6 - right
    assert 0 <= result["ece"] <= 1 and result["unknown"] == [] and result["errors"] == []
    assert result["run"]["dtype"] == "float32"


def test_csv_has_a_row_a_label(run_cvt, model, data, tmp_path):
    (data / "unicorn").mkdir()
    (data / "unicorn/0.png").hardlink_to(data / "goldfish/0.png")
    done = run_cvt("--quiet", "evaluate", data, "-m", model, "-o", "out.csv", expect=0)
    assert done.stderr == ""
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    document = run_cvt("evaluate", data, "-m", model, "-f", "json", expect=0).json()
    assert [row["label"] for row in rows] == [each["label"] for each in document["labels"]]
    assert [int(row["correct"]) for row in rows] == [each["correct"] for each in document["labels"]]
    done = run_cvt("evaluate", data, "-m", model, "-o", "out.csv", expect=2)
    assert "--overwrite replaces it" in done.stderr
    done = run_cvt("evaluate", data, "-m", model, "-o", "out.csv", "--overwrite", expect=0)
    said = f"cvt: out.csv: 6 images, top-1 {document['top1']:.2%}"
    assert done.stderr.splitlines()[-1] == said


def test_the_table_shows_accuracy_labels_and_confusions(run_cvt, model, data):
    done = run_cvt("evaluate", data, "-m", model, columns=100, tty=True, expect=0)
    for words in ("top-1 accuracy", "tiger shark", "precision", "taken for"):
        assert words in done.stdout


def test_a_table_of_labels_in_place_of_folders(run_cvt, model, data, tmp_path):
    table = tmp_path / "truth.csv"
    table.write_text(
        "label,path\ngoldfish,goldfish/0.png\ntench,Tiger_Shark/1.png\n"
        + "".join(f"unicorn {number},goldfish/1.png\n" for number in range(7))
    )
    options = ("--activation", "quick_gelu", "-b", 3, "-f", "json")
    done = run_cvt("evaluate", data, "--labels", table, "-m", model, *options, expect=0)
    result = done.json()
    assert result["count"] == 2
    assert result["unknown"] == [
        {"label": f"unicorn {number}", "count": 1, "reason": "not one of the model's labels"}
        for number in range(7)
    ]
    named = [f"cvt: not counted: unicorn {number}, 1 image: not one of" for number in range(5)]
    lines = done.stderr.splitlines()
    assert [line.partition(" the model")[0] for line in lines[:5]] == named
    assert lines[5:] == ["cvt: not counted: 2 more labels"]
    assert (result["run"]["activation"], result["run"]["batch_size"]) == ("quick_gelu", 3)


def test_an_image_that_can_not_be_read_is_named_and_not_counted(run_cvt, model, data):
    bad = data / "goldfish" / "2.png"
    bad.write_bytes(b"")
    shutil.copy(data / "goldfish" / "0.png", data / "loose.png")
    done = run_cvt("evaluate", data, "-m", model, "-f", "json", expect=1)
    result = json.loads(done.stdout)
    assert result["count"] == 6
    assert [each["path"] for each in result["errors"]] == [str(bad)]
    assert "1 of 7 images could not be read" in done.stderr
    assert f"warning: 1 image lies in no sub-folder of {data}: not counted" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("width,label\n3,tench\n", "does not name the columns path,label"),
        ("path,label\ngoldfish/0.png,\n", "line 2: without a label"),
        ("path,label\n,tench\n", "line 2: without a path"),
        ("path,label\n", "names no image"),
        ("path,label\ngoldfish/0.png,unicorn\n", "none of the 1 labels is the model's"),
        (None, "not readable as CSV"),
    ],
)
def test_tables_that_say_nothing_are_refused(run_cvt, model, data, tmp_path, content, message):
    if content is not None:
        (tmp_path / "truth.csv").write_text(content)
    done = run_cvt("evaluate", data, "--labels", "truth.csv", "-m", model, expect=2)
    assert message in done.stderr and len(done.stderr.splitlines()) in (1, 2)


def test_a_folder_without_labels_is_refused(run_cvt, model, tmp_path):
    (tmp_path / "flat").mkdir()
    done = run_cvt("evaluate", "flat", "-m", model, expect=2)
    assert "no images in sub-folders" in done.stderr


def test_several_labels_at_once(run_cvt, tiny_cvt, data, tmp_path):
    model = tiny_cvt(problem_type="multi_label_classification")
    done = run_cvt("evaluate", data, "-m", model, expect=2)
    assert "--labels names a CSV file" in done.stderr
    (tmp_path / "truth.csv").write_text(
        "path,label\ngoldfish/0.png,tench\ngoldfish/0.png,goldfish\ngoldfish/1.png,\n"
        "hammerhead/0.png,goldfish\nhammerhead/0.png,unicorn\n"
    )
    options = ("evaluate", data, "--labels", "truth.csv", "-m", model)
    done = run_cvt(*options, "-f", "json", expect=0)
    result = done.json()
    assert result["count"] == 3 and result["run"]["scores"] == "sigmoid"
    assert [each["label"] for each in result["unknown"]] == ["unicorn"]
    found = predictions(run_cvt, model, data)
    truth = {
        "goldfish/0.png": "tench goldfish",
        "goldfish/1.png": "",
        "hammerhead/0.png": "goldfish",
    }
    expected = []
    for label in ("tench", "goldfish"):
        ranked = sorted(
            truth,
            key=lambda path: [
                -each["score"] for each in found[str(data / path)] if each["label"] == label
            ],
        )
        hits = [rank for rank, path in enumerate(ranked, 1) if label in truth[path].split()]
        expected.append(sum(n / rank for n, rank in enumerate(hits, 1)) / len(hits))
    precisions = [each["average_precision"] for each in result["labels"]]
    assert precisions == [*map(pytest.approx, expected), None, None, None]
    assert result["mean_average_precision"] == pytest.approx(sum(expected) / 2)
    table = run_cvt(*options, "-o", "out.csv", expect=0)
    assert "mean average precision" in table.stderr.splitlines()[-1]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert float(rows[0]["average_precision"]) == precisions[0]


def test_one_label_by_folders(run_cvt, tiny_cvt, data):
    model = tiny_cvt(labels=["goldfish"])
    result = run_cvt("evaluate", data, "-m", model, "-f", "json", expect=0).json()
    assert (result["count"], result["labels"][0]["count"]) == (6, 2)


def test_a_regression_is_not_measured(run_cvt, tiny_cvt, data):
    model = tiny_cvt(problem_type="regression")
    done = run_cvt("evaluate", data, "-m", model, expect=2)
    assert "is a regression" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_page_and_a_row_per_image(run_cvt, model, data, tmp_path):
    (data / "goldfish/broken.png").write_bytes(b"\x89PNG")
    options = ("evaluate", data, "-m", model, "--predictions", "images.csv")
    done = run_cvt(*options, "-o", "page.html", expect=1)
    assert "page.html: 6 images, top-1" in done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "images.csv").read_text())))
    assert len(rows) == 7 and sum(row["error"] != "" for row in rows) == 1
    found = predictions(run_cvt, model, data / "hammerhead")
    for row in rows:
        if row["path"] in found:
            assert row["predicted"] == found[row["path"]][0]["label"]
            assert row["truth"] == LABELS[4]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data/goldfish") >= 3 and "image/jpeg" in page and "/9j/" in page
    # The rows are the same without a page.
    quiet = run_cvt("-q", *options[:-1], "rows.csv", expect=1)
    assert quiet.stderr.splitlines()[-1] == "cvt: 1 of 7 images could not be read"
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "images.csv").read_bytes()
    # Nothing is replaced unasked, nothing half done.
    assert "exists" in run_cvt(*options, "-o", "other.html", expect=2).stderr
    assert not (tmp_path / "other.html").exists()
    for wrong in (
        ("-f", "html"),
        ("--predictions", "x.json"),
        ("--predictions", "x.csv", "-o", "./x.csv"),
    ):
        assert run_cvt("evaluate", data, "-m", model, *wrong, expect=2).stderr.count("\n") == 1


def test_no_page_of_several_labels_at_once(run_cvt, tiny_cvt, data, tmp_path):
    several = tiny_cvt(problem_type="multi_label_classification")
    (tmp_path / "truth.csv").write_text("path,label\ngoldfish/0.png,goldfish\n")
    options = ("evaluate", data, "-m", several, "--labels", "truth.csv")
    done = run_cvt(*options, "-o", "page.html", expect=2)
    assert "one label per image" in done.stderr and not (tmp_path / "page.html").exists()


def test_labels_by_corrections_without_a_model(run_cvt, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label,score,error\na,cat,0.9,\nb,dog,0.6,\n")
    (tmp_path / "corrections.csv").write_text("path,label,score\na,cat,1\nb,fox,1\n")
    arguments = ("evaluate", "labels.csv", "--truth", "corrections.csv")
    found = run_cvt(*arguments, "--format", "json", expect=0).json()
    assert (found["count"], found["top1"]) == (2, 0.5)
    assert found["run"] == {"labels": "labels.csv", "truth": "corrections.csv"}
    failed = run_cvt(*arguments, "--model", "x", "--device", "cpu", expect=2)
    assert "--truth can't be combined with --model, --device" in failed.stderr
    # As a person types it, and as --labels has it.
    (tmp_path / "typed.csv").write_text("path,label\na,cat\nb,fox\nc,\n")
    (tmp_path / "added.csv").write_text("path,label,score\na,cat,1\nb,fox,\n")
    for typed in ("typed.csv", "added.csv"):
        again = run_cvt("evaluate", "labels.csv", "--truth", typed, "--format", "json", expect=0)
        assert (again.json()["count"], again.json()["top1"]) == (2, 0.5)
    failed = run_cvt(*arguments, "-o", "page.html", expect=2)
    assert "--truth makes no page" in failed.stderr
    failed = run_cvt(*arguments, "-o", "corrections.csv", "--overwrite", expect=2)
    assert "corrections.csv is one of the inputs" in failed.stderr
    failed = run_cvt("evaluate", "labels.csv", "--truth", "gone.csv", expect=2)
    assert "gone.csv can't be read" in failed.stderr
