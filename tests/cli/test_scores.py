"""Models whose scores are no softmax: several labels at once, a single one, a regression."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunCvt
from tests.labelled import save_split

TinyCvt = Callable[..., Path]
LABELS = ("cat", "dog", "bird", "fish", "frog", "newt", "toad")


@pytest.fixture
def several(tiny_cvt: TinyCvt) -> Path:
    return tiny_cvt(labels=LABELS, problem_type="multi_label_classification")


@pytest.fixture
def regression(tiny_cvt: TinyCvt) -> Path:
    return tiny_cvt(labels=["age"], problem_type="regression")


def test_all_that_reach_a_threshold_are_kept(run_cvt: RunCvt, several: Path, cat: Path) -> None:
    options = ("classify", cat.name, "-m", several, "--dtype", "float32")
    every = run_cvt(*options, "-f", "jsonl", "-k", 7, expect=0).jsonl()[0]
    assert every["scores"] == "sigmoid"
    sixth = every["predictions"][5]["score"]  # more than --top-k has by itself
    least = sixth - 2e-6  # rounded
    written = run_cvt(*options, "--threshold", least, "-f", "csv", expect=0).stdout
    header, row = csv.reader(io.StringIO(written))
    cells = dict(zip(header, row, strict=True))
    assert [cells[f"label_{rank}"] != "" for rank in (6, 7)] == [True, False]
    assert cells["scores"] == "sigmoid" and float(cells["score_6"]) == sixth
    few = run_cvt(*options, "--threshold", least, "-k", 2, "-f", "jsonl", expect=0).jsonl()[0]
    assert few["predictions"] == every["predictions"][:2]


def test_files_and_the_run_record_say_what_the_score_is(
    run_cvt: RunCvt, several: Path, cat: Path
) -> None:
    import pyarrow.parquet as pq

    outputs = ("-o", "labels.csv", "-o", "labels.parquet", "--run-record", "run.json")
    run_cvt("classify", cat.name, "-m", several, *outputs, expect=0)
    assert json.loads((cat.parent / "run.json").read_text())["scores"] == "sigmoid"
    table = pq.read_table(cat.parent / "labels.parquet")
    assert json.loads(table.schema.metadata[b"cvt"])["scores"] == "sigmoid"
    assert table.column("scores").to_pylist() == ["sigmoid"]
    assert (cat.parent / "labels.csv").read_text().splitlines()[1].endswith(",sigmoid,")
    # The name of the scores goes along into another format.
    run_cvt("merge", "labels.csv", "-o", "merged.tsv", expect=0)
    assert (cat.parent / "merged.tsv").read_text().splitlines()[1].endswith("\tsigmoid\t")


def test_a_regression_has_no_bounds_no_percent_and_no_bar(
    run_cvt: RunCvt, regression: Path, cat: Path
) -> None:
    options = ("classify", cat.name, "-m", regression, "--dtype", "float32")
    record = run_cvt(*options, "-f", "jsonl", expect=0).jsonl()[0]
    value = record["predictions"][0]["score"]
    assert record["scores"] == "raw"
    table = run_cvt(*options, tty=True, columns=100, no_color=True, expect=0).stdout
    assert f"{value:.5g}" in table and "%" not in table and "━" not in table
    assert float(run_cvt(*options, "-f", "plain", expect=0).stdout.split("\t")[2]) == value
    for threshold, kept in ((value - 20, 1), (value + 20, 0)):
        found = run_cvt(*options, "-f", "jsonl", "--threshold", threshold, expect=0).jsonl()[0]
        assert len(found["predictions"]) == kept


@pytest.mark.parametrize("threshold", ["50", "-0.5", "nan"])
def test_a_threshold_that_no_score_can_be_at(
    threshold: str, run_cvt: RunCvt, several: Path, cat: Path
) -> None:
    """Said before the weights are looked for: here there are none any more."""
    (several / "model.safetensors").unlink()
    done = run_cvt("classify", cat.name, "-m", several, "--threshold", threshold, expect=2)
    assert "--threshold" in done.stderr and done.stdout == ""


def test_scores_of_two_kinds_are_not_merged_unasked(run_cvt: RunCvt, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("path,label,score,error\na.jpg,cat,0.5,\nb.jpg,,,broken\n")
    (tmp_path / "all.csv").write_text("path,label,score,scores,error\nc.jpg,dog,0.4,sigmoid,\n")
    (tmp_path / "none.csv").write_text("path,label,score,scores,error\nd.jpg,,,,gone\n")
    run_cvt("merge", "one.csv", "none.csv", "-o", "x.csv", expect=0)
    both = ("merge", "none.csv", "one.csv", "all.csv", "-o", "both.csv")
    done = run_cvt(*both, expect=2)
    assert "all.csv are sigmoid, those in one.csv softmax" in done.stderr
    assert "--partial" in done.stderr and not (tmp_path / "both.csv").exists()
    run_cvt(*both, "--partial", expect=0)
    assert (tmp_path / "both.csv").read_text().splitlines() == [
        "path,label,score,scores,error",
        "d.jpg,,,,gone",
        "a.jpg,cat,0.500000,softmax,",
        "b.jpg,,,,broken",
        "c.jpg,dog,0.400000,sigmoid,",
    ]


def test_an_unknown_problem_is_one_line(run_cvt: RunCvt, several: Path, cat: Path) -> None:
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"problem_type": "detection"}))
    done = run_cvt("classify", cat.name, "-m", several, expect=3)
    assert "problem_type is 'detection'" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_explaining_a_label_of_several(run_cvt: RunCvt, several: Path, cat: Path) -> None:
    options = ("-m", several, "--method", "attention", "--label", "dog", "-f", "json")
    found = run_cvt("explain", cat.name, *options, expect=0).json()
    arguments = ("-m", several, "-k", 7, "-f", "json", "--dtype", "float32")
    (record,) = run_cvt("classify", cat.name, *arguments, expect=0).json()
    (score,) = [each["score"] for each in record["predictions"] if each["label"] == "dog"]
    assert found["score"] == pytest.approx(score, abs=1e-5)
    assert found["scores"] == "sigmoid"


def test_a_picture_that_explains_a_regression(run_cvt: RunCvt, regression: Path, cat: Path) -> None:
    """Its number needs no room that a bar would have, and is drawn at whatever size it is."""
    arguments = ("-m", regression, "--method", "attention", "-o", "why.png")
    run_cvt("explain", cat.name, *arguments, expect=0)
    assert (cat.parent / "why.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("problem_type", "words"),
    [("multi_label_classification", "sigmoid: each label"), ("regression", "raw: the network's")],
)
def test_inspect_names_the_scores(
    problem_type: str, words: str, run_cvt: RunCvt, tiny_cvt: TinyCvt
) -> None:
    model = tiny_cvt(problem_type=problem_type)
    assert words in run_cvt("inspect", model, expect=0).stdout
    found = run_cvt("inspect", model, tiny_cvt(), "--diff", "-f", "json", expect=0).json()
    assert found["configuration"] == {"scores": [words.partition(":")[0], "softmax"]}


def test_sorting_by_scores_without_bounds(run_cvt: RunCvt, tmp_path: Path) -> None:
    for name in ("low", "high"):
        (tmp_path / name).write_text(name)
    text = "path,label,score,scores,error\nlow,age,-3.5,raw,\nhigh,age,41.5,raw,\n"
    (tmp_path / "ages.csv").write_text(text)
    run_cvt("sort", "ages.csv", "all", expect=0)
    assert {path.name for path in (tmp_path / "all/age").iterdir()} == {"low", "high"}
    run_cvt("sort", "ages.csv", "old", "--min-score", 40, expect=0)
    assert [path.name for path in (tmp_path / "old/age").iterdir()] == ["high"]
    (tmp_path / "shares.csv").write_text(text.replace("raw", "sigmoid"))
    done = run_cvt("sort", "shares.csv", "none", "--min-score", 40, expect=2)
    assert "--min-score 40" in done.stderr and not (tmp_path / "none").exists()


def test_training_on_from_several_labels_makes_a_single_label_model(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, tmp_path: Path
) -> None:
    data = save_split(tmp_path / "data", train=4, val=2)
    model = tiny_cvt(labels=("circle", "square"), problem_type="multi_label_classification")
    options = ("-m", model, "-o", "mine", "--epochs", 1, "--image-size", 32, "--dtype", "float32")
    done = run_cvt("train", data, *options, expect=0)
    assert "sigmoid scores; what is trained here has one label" in done.stderr
    written = json.loads((tmp_path / "mine/config.json").read_text())
    assert written["problem_type"] == "single_label_classification"
    (record, *_) = run_cvt("classify", data / "val", "-m", "mine", "-f", "json", expect=0).json()
    assert sum(each["score"] for each in record["predictions"]) == pytest.approx(1, abs=1e-3)
