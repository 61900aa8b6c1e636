"""`--groups`: labels that are one answer, as a user meets them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cvt_cli.inference.classifier import Classifier
from tests.conftest import RunCvt

TABLE = "goldfish\tfish\n#3\tshark\ngreat white shark\tshark\nhammerhead\tshark\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "groups.tsv"
    path.write_text(TABLE)
    return path


def scores(record: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    return {str(each["label"]): each["score"] for each in record["predictions"]}


def test_scores_add_up(
    run_cvt: RunCvt, tiny_cvt: Callable[..., Path], cat: Path, table: Path
) -> None:
    model = tiny_cvt()
    options = ("classify", cat.name, "-m", model, "-f", "jsonl", "--dtype", "float32")
    single = scores(run_cvt(*options, expect=0).jsonl()[0])
    record = run_cvt(*options, "--groups", table, "--columns", "index", expect=0).jsonl()[0]
    sharks = sum(score for label, score in single.items() if "shark" in label)
    assert scores(record) == pytest.approx(
        {"tench": single["tench"], "fish": single["goldfish"], "shark": sharks}, abs=2e-6
    )
    # Of a group, the lowest class index.
    assert {each["label"]: each["index"] for each in record["predictions"]} == {
        "tench": 0,
        "fish": 1,
        "shark": 2,
    }
    # As from Python.
    found = Classifier(str(model), dtype="float32", groups={"goldfish": "fish"})(str(cat), 9)
    assert {each.label for each in found.predictions} == {*single, "fish"} - {"goldfish"}
    assert Classifier(str(model), groups=table)(str(cat)).predictions[0].label in scores(record)
    only = run_cvt(*options, "--groups", table, "--labels", "tench,goldfish", expect=0).jsonl()[0]
    assert set(scores(only)) == {"tench", "fish"} and sum(scores(only).values()) == pytest.approx(1)


def test_several_labels_at_once_and_raw_scores(
    run_cvt: RunCvt, tiny_cvt: Callable[..., Path], cat: Path, table: Path
) -> None:
    several = tiny_cvt(problem_type="multi_label_classification")
    options = ("classify", cat.name, "-f", "jsonl", "--dtype", "float32")
    single = scores(run_cvt(*options, "-m", several, expect=0).jsonl()[0])
    found = scores(run_cvt(*options, "-m", several, "--groups", table, expect=0).jsonl()[0])
    assert found["shark"] == max(score for label, score in single.items() if "shark" in label)
    regression = tiny_cvt(labels=["age"], problem_type="regression")
    done = run_cvt(*options, "-m", regression, "--groups", table, expect=2)
    assert "raw" in done.stderr


def test_mistakes_are_said_before_the_model_is_loaded(run_cvt: RunCvt, cat: Path) -> None:
    done = run_cvt("classify", cat.name, "-m", "nobody/none", "--groups", "none.tsv", expect=2)
    assert "none.tsv can't be read" in done.stderr and "nobody" not in done.stderr


def test_other_groups_are_another_run(
    run_cvt: RunCvt, tiny_cvt: Callable[..., Path], cat: Path, table: Path
) -> None:
    model = tiny_cvt()
    options = ("classify", cat.name, "-m", model, "-o", "out.csv", "--update", "--groups", table)
    run_cvt(*options, expect=0)
    run_cvt(*options, expect=0)
    table.write_text(TABLE.replace("fish\n", "animal\n"))
    assert "another groups" in run_cvt(*options, expect=2).stderr


def test_evaluate_takes_groups_and_their_labels_as_truth(
    run_cvt: RunCvt, tiny_cvt: Callable[..., Path], tmp_path: Path, table: Path
) -> None:
    model = tiny_cvt()
    for number, name in enumerate(("fish", "goldfish", "tiger shark", "Shark", "tench")):
        (tmp_path / "data" / name).mkdir(parents=True)
        image = Image.effect_noise((40, 40), 30 + 20 * number).convert("RGB")
        image.save(tmp_path / "data" / name / "0.png")
    options = ("-m", model, "--groups", table, "-f", "json")
    result = run_cvt("evaluate", "data", *options, expect=0).json()
    counts = {each["label"]: each["count"] for each in result["labels"] if each["count"]}
    assert counts == {"fish": 2, "shark": 2, "tench": 1} and result["unknown"] == []
    records = json.loads(run_cvt("classify", "data", *options, "--dtype", "float32").stdout)
    truth = {"goldfish": "fish", "tiger shark": "shark", "Shark": "shark"}
    right = sum(
        each["predictions"][0]["label"] == truth.get(name := each["path"].split("/")[1], name)
        for each in records
    )
    assert result["top1"] == pytest.approx(right / 5)
