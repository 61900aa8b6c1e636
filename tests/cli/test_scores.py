"""Models whose scores are no softmax: several labels at once, a single one, a regression."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunCvt

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
    done = run_cvt("classify", cat.name, "-m", several, "--threshold", threshold, expect=2)
    assert "--threshold" in done.stderr and done.stdout == ""


def test_an_unknown_problem_is_one_line(run_cvt: RunCvt, several: Path, cat: Path) -> None:
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"problem_type": "detection"}))
    done = run_cvt("classify", cat.name, "-m", several, expect=3)
    assert "problem_type is 'detection'" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
