"""`cvt train --head-only` as a user runs it."""

import json
import shutil

import pytest

from cvt_cli.checkpoint.catalog import CIFAR10_MODEL
from cvt_cli.system.locks import locked_folder
from tests.labelled import save_shapes, save_split
from tests.tiny import save_tiny

HEAD_ONLY = ("--model", CIFAR10_MODEL, "--head-only")


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_five_images_a_label_are_enough_and_training_goes_on_from_there(run_cvt, tmp_path):
    from PIL import Image
    from transformers import pipeline

    from cvt_cli.checkpoint.resolve import resolve

    data = save_shapes(tmp_path / "data", ("circle", "square", "bar"), count=5)
    done = run_cvt("train", data, "-o", "mine", *HEAD_ONLY, expect=0)
    assert done.stdout == "mine\n"
    assert "15 images to train on, validated by cross-validation" in done.stderr
    assert "the last layer alone" in done.stderr
    mine = tmp_path / "mine"
    (metrics,) = map(json.loads, (mine / "metrics.jsonl").read_text().splitlines())
    assert metrics["head_only"] and metrics["cross_val_accuracy"] > 0.8
    assert f"cross-validation {metrics['cross_val_accuracy']:.2%}" in done.stderr
    assert "by cross-validation in 5 parts" in (mine / "README.md").read_text()

    others = save_shapes(tmp_path / "others", ("circle", "square", "bar"), count=10, seed=3)
    evaluation = run_cvt("evaluate", others, "--model", "mine", "-f", "json", expect=0).json()
    assert evaluation["top1"] > 0.8

    # Nothing but the last layer is another.
    before, after = weights(resolve(CIFAR10_MODEL).config.parent), weights(mine)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"classifier.weight", "classifier.bias"} and before.keys() == after.keys()

    theirs = pipeline("image-classification", str(mine), device="cpu")
    path = next(iter(sorted(others.glob("circle/*.png"))))
    with Image.open(path) as image:
        expected = {each["label"]: each["score"] for each in theirs(image.convert("RGB"))}
    (record,) = run_cvt(
        "classify", path, "--model", "mine", "-f", "jsonl", "--dtype", "float32", expect=0
    ).jsonl()
    found = {each["label"]: each["score"] for each in record["predictions"]}
    assert found == pytest.approx(expected, abs=1e-5) and len(found) == 3

    more = run_cvt(
        *("train", data, "-o", "more", "--model", "mine", "--val-fraction", 0.2),
        *("--epochs", 1, "--batch-size", 4),
        expect=0,
    )
    assert "its last layer kept" in more.stderr
    # All of it learns; some rounding leaves a number as it was.
    after_that = weights(tmp_path / "more")
    changed = {name for name in after if not after[name].equal(after_that[name])}
    assert len(changed) > len(after) / 2


@pytest.mark.parametrize("layout", ["microsoft", "headless"])
def test_checkpoints_that_transformers_computes_otherwise(run_cvt, tmp_path, layout):
    from transformers import pipeline

    data = save_shapes(tmp_path / "data", count=4)
    if layout == "microsoft":
        model = save_tiny(tmp_path / "base", layout)
    else:
        model = save_tiny(tmp_path / "base", size=32)
        from safetensors.torch import save_file

        kept = {n: v for n, v in weights(model).items() if not n.startswith("classifier")}
        save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    done = run_cvt("train", data, "-o", "mine", "--model", model, "--head-only", expect=0)
    assert ("trained on with GELU" in done.stderr) == (layout == "microsoft")
    path = data / "circle" / "00.png"
    theirs = pipeline("image-classification", str(tmp_path / "mine"), device="cpu")(str(path))
    (record,) = run_cvt("classify", path, "--model", "mine", "-f", "jsonl", expect=0).jsonl()
    found = {each["label"]: each["score"] for each in record["predictions"]}
    assert found == pytest.approx({each["label"]: each["score"] for each in theirs}, abs=1e-4)


def test_validation_images_choose_and_what_can_not_be_read_is_named(run_cvt, tmp_path):
    data = save_split(tmp_path / "data", train=8, val=6)
    (data / "train" / "circle" / "broken.png").write_bytes(b"\x89PNG broken")
    for number in range(4):
        (data / "train" / "square" / f"0{number}.png").unlink()
    done = run_cvt("train", data, "-o", "mine", *HEAD_ONLY, "--calibrate", expect=0)
    assert "13 images to train on, 12 to validate on" in done.stderr
    assert "circle/broken.png" in done.stderr and "1 image could not be read" in done.stderr
    assert "labels have 4 to 9 images but count equally" in done.stderr
    metrics = json.loads((tmp_path / "mine" / "metrics.jsonl").read_text())
    assert metrics["val_accuracy"] > 0.8 and metrics["unreadable"] == 1
    assert metrics["penalty"] in [each["penalty"] for each in metrics["tried"]]
    assert f"temperature {metrics['calibration_temperature']:.4f}" in done.stderr
    evaluation = run_cvt("evaluate", data / "val", "--model", "mine", "-f", "json", expect=0).json()
    assert evaluation["top1"] == pytest.approx(metrics["val_accuracy"], abs=0.01)

    shutil.rmtree(data / "train" / "square")
    (data / "train" / "square").mkdir()
    (data / "train" / "square" / "broken.png").write_bytes(b"\x89PNG broken")
    failed = run_cvt("train", data, "-o", "none", *HEAD_ONLY, expect=1)
    assert "square: no training image of this class could be read" in failed.stderr
    assert not (tmp_path / "none").exists()


def test_another_run_in_its_folder(run_cvt, tmp_path):
    data = save_shapes(tmp_path / "data", count=2)
    (tmp_path / "mine").mkdir()
    with locked_folder(tmp_path / "mine"):
        done = run_cvt("train", data, "-o", "mine", *HEAD_ONLY, expect=2)
    assert done.stderr.splitlines()[-1].startswith("cvt: error: mine is being written by another")
    assert not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*HEAD_ONLY, "--epochs", 3), "--head-only can't be combined with --epochs"),
        ((*HEAD_ONLY, "--cutmix", 0.5, "--no-flip"), "combined with --flip, --cutmix"),
        ((*HEAD_ONLY, "--resume"), "--head-only has nothing to resume"),
        ((*HEAD_ONLY, "--compile", "--lr", 0.1), "combined with --lr, --compile"),
        ((*HEAD_ONLY, "--class-weights", "some"), "some: no such choice; one of balanced, none"),
        (("--head-only", "--arch", "cvt-tiny"), "needs a trained network, not --arch"),
        (("--head-only",), "name what to start from"),
        (("--model", CIFAR10_MODEL, "--class-weights", "none"), "needs --head-only"),
        ((*HEAD_ONLY, "--calibrate"), "--calibrate needs validation images"),
    ],
)
def test_what_says_nothing_to_it_is_refused(run_cvt, tmp_path, options, message):
    save_shapes(tmp_path / "data", count=2)
    failed = run_cvt("train", "data", "-o", "mine", *options, expect=2)
    assert message in failed.stderr and failed.stderr.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_corrections_of_a_report_are_taken_as_they_are(run_cvt, tmp_path):
    save_shapes(tmp_path / "photos", count=4)
    rows = [
        f"photos/{label}/0{n}.png,{label},1.000000,frog"
        for label in ("circle", "square")
        for n in range(3)
    ]
    rows.append("photos/circle/03.png,,,frog")
    table = "\r\n".join(["path,label,score,predicted", *rows, ""])
    (tmp_path / "corrections.csv").write_text(table, newline="")
    done = run_cvt("train", "corrections.csv", "-o", "mine", *HEAD_ONLY, expect=0)
    assert "1 image without a label: left out" in done.stderr
    assert "6 images to train on" in done.stderr and "2 labels" in done.stderr
    run_cvt("sort", "corrections.csv", "data/train", "--link", expect=0)
    sorted_ = run_cvt("train", "data", "-o", "same", *HEAD_ONLY, expect=0)
    assert "_uncertain: files without a label: left out" in sorted_.stderr
    for name, value in weights(tmp_path / "mine").items():
        assert value.equal(weights(tmp_path / "same")[name])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    failed = run_cvt("train", "bad.csv", "-o", "none", *HEAD_ONLY, expect=2)
    assert "bad.csv: its first line does not name the columns path,label" in failed.stderr
