"""What a folder of labelled images means, and the batches that come of it."""

from pathlib import Path

import pytest
import torch

from cvt_cli.errors import UsageError
from cvt_cli.evaluation.metrics import from_table
from cvt_cli.images.decode import decode
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.training import data
from cvt_cli.training.data import Images
from cvt_cli.training.dataset import find_dataset, read_classes
from tests.labelled import save_shapes, save_split

RULE = Preprocessing(resize_to=(16, 16), shortest_edge=None, crop=None)


def targets(samples):
    return [sample.target for sample in samples]


def test_train_and_val(tmp_path):
    save_split(tmp_path)
    save_shapes(tmp_path / "train", ["bar"])
    (tmp_path / "train" / "bar").rename(tmp_path / "train" / ".ipynb_checkpoints")
    dataset = find_dataset(tmp_path, None, seed=0)
    assert dataset.labels == ("circle", "square")
    assert targets(dataset.train) == [0] * 12 + [1] * 12
    assert targets(dataset.val) == [0] * 6 + [1] * 6


def test_a_label_is_one_however_its_accent_is_written(tmp_path):
    save_split(tmp_path)
    for folder, name in {"train": "Ru\u0308be", "val": "R\u00fcbe"}.items():
        (tmp_path / folder / "circle").rename(tmp_path / folder / name)
    dataset = find_dataset(tmp_path, None, seed=0)
    assert dataset.labels == ("R\u00fcbe", "square")
    assert targets(dataset.val) == [0] * 6 + [1] * 6


def test_test_folder_validates_where_there_is_no_val(tmp_path):
    save_split(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(find_dataset(tmp_path, None, seed=0).val) == 12


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "valid"),
        ("train", "dev"),
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
    ],
)
def test_folders_of_other_names_that_tools_split_into(tmp_path, train, val):
    save_split(tmp_path)
    (tmp_path / "train").rename(tmp_path / train)
    (tmp_path / "val").rename(tmp_path / val)
    with pytest.warns(UserWarning, match=f"training on .*{train}, validating on .*{val}"):
        dataset = find_dataset(tmp_path, None, seed=0)
    assert dataset.labels == ("circle", "square")
    assert (len(dataset.train), len(dataset.val)) == (24, 12)


def test_train_may_be_a_label_and_what_systems_leave_is_none(tmp_path):
    save_shapes(tmp_path, ["circle", "square"])
    (tmp_path / "circle").rename(tmp_path / "train")
    (tmp_path / "__MACOSX").mkdir()
    assert find_dataset(tmp_path, 0.5, seed=0).labels == ("square", "train")
    # Both of split folders without labels in them: no two labels.
    (tmp_path / "square").rename(tmp_path / "test")
    with pytest.raises(UsageError, match="train: no classes, at least two"):
        find_dataset(tmp_path, 0.5, seed=0)


@pytest.mark.parametrize("inner", ["train", "a/circle"])
def test_a_folder_around_the_data_is_told(tmp_path, inner):
    save_split(tmp_path / "data") if inner == "train" else save_shapes(tmp_path / "data")
    with pytest.raises(UsageError, match="1 class, at least two") as caught:
        find_dataset(tmp_path, 0.5, seed=0)
    assert caught.value.hint == f"did you mean {tmp_path / 'data'}?"


def test_tables_of_others(tmp_path, monkeypatch):
    save_shapes(tmp_path / "shapes", count=2)
    (tmp_path / "train").mkdir()
    ids = []
    for path in sorted((tmp_path / "shapes").rglob("*.png")):
        ids.append((f"{path.parent.name}-{path.stem}", path.parent.name))
        path.rename(tmp_path / "train" / f"{ids[-1][0]}.png")
    kaggle, metadata = tmp_path / "train.csv", tmp_path / "train/metadata.jsonl"
    kaggle.write_text("id,kind\n" + "".join(f"{name},{label}\n" for name, label in ids))
    metadata.write_text(
        "".join(f'{{"file_name": "{name}.png", "label": "{label}"}}\n' for name, label in ids)
    )
    with pytest.warns(UserWarning, match="relative to .*train|'id' and 'kind'"):
        found = [find_dataset(table, 0.5, seed=0) for table in (kaggle, metadata)]
    assert found[0] == found[1] and found[0].labels == ("circle", "square")
    assert len(found[0].train) == len(found[0].val) == 2
    with pytest.raises(UsageError, match="train: no classes") as caught:
        find_dataset(tmp_path / "train", 0.5, seed=0)
    assert caught.value.hint == f"did you mean {metadata}?"
    monkeypatch.chdir(tmp_path / "train")  # relative to the current folder: nothing to tell
    assert len(find_dataset(Path("metadata.jsonl"), 0.5, seed=0).train) == 2
    with kaggle.open("a") as file:
        file.write(f"{ids[0][0]},oval\n")
    with pytest.raises(UsageError, match="has two labels: 'circle' and 'oval'"):
        find_dataset(kaggle, 0.5, seed=0)
    with pytest.raises(UsageError, match="an archive, and labels are read from folders"):
        (tmp_path / "x.tar").touch()
        find_dataset(tmp_path / "x.tar", 0.5, seed=0)


def test_fraction_splits_every_class_alike_and_by_the_seed(tmp_path):
    save_shapes(tmp_path, count=10)
    dataset = find_dataset(tmp_path, 0.3, seed=0)
    assert targets(dataset.val) == [0] * 3 + [1] * 3
    paths = {sample.source.path for sample in (*dataset.train, *dataset.val)}
    assert len(paths) == 20
    assert find_dataset(tmp_path, 0.3, seed=0).val != ()
    same, other = (find_dataset(tmp_path, 0.3, seed=seed) for seed in (0, 1))
    chosen = [sample.source.path for sample in dataset.val]
    assert [sample.source.path for sample in same.val] == chosen
    assert [sample.source.path for sample in other.val] != chosen


def test_a_fraction_of_few_images_leaves_some_to_train_on(tmp_path):
    save_shapes(tmp_path, count=2)
    dataset = find_dataset(tmp_path, 0.9, seed=0)
    assert (len(dataset.train), len(dataset.val)) == (2, 2)
    assert find_dataset(tmp_path, 0.0, seed=0).val == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train" / "empty").mkdir(), "train/empty: a class without images"),
        (lambda d: save_shapes(d / "val", ["bar"]), "training has no class named bar"),
        (lambda d: (d / "train" / "square").rename(d / "gone"), "1 class, at least two"),
        (lambda d: (d / "val").rename(d / "other"), "no val/ or test/ beside train/"),
        (lambda d: (d / "train").rename(d / "other"), "has no train/ and val/"),
    ],
)
def test_what_can_not_be_trained_on(tmp_path, damage, message):
    save_split(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        find_dataset(tmp_path, None, seed=0)


def test_a_file_of_one_label_is_not_told_of_folders(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,cat\n")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UsageError, match="1 class, at least two") as caught:
        find_dataset(tmp_path / "labels.csv", 0.1, seed=0)
    assert caught.value.hint == "each label in the file is a class"


RUN = '{"path": "%s", "predictions": [{"label": "%s", "score": 1.0}]}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "path,label\na.jpg,cat\na.jpg,dog\n", "line 3: .*two labels: 'cat' and 'dog'"),
        ("x.csv", "path,label,score\na.jpg,cat,1\n./a.jpg,dog,1\n", "two labels: 'cat' and 'dog'"),
        ("x.jsonl", RUN % ("a.jpg", "cat") + RUN % ("a.jpg", "dog"), "two labels: 'cat' and 'dog'"),
        ("x.csv", "path,label,label\na.jpg,cat,dog\n", "two columns have the name 'label'"),
        ("x.csv", "path,label,score,label\na.jpg,cat,1,dog\n", "two columns have the name 'label'"),
        ("x.csv", 'path,label,score,error\na.jpg,cat,1,"\nb.jpg,dog,1,\n', "end of data"),
    ],
)
def test_tables_that_contradict_themselves(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    for each in ("a.jpg", "b.jpg"):
        Path(each).touch()
    Path(name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_classes(Path(name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "path, label\na.jpg, cat\nb.jpg, dog\na.jpg,cat\n"),
        ("x.csv", "path,label\na.jpg, cat\nb.jpg,dog\n./a.jpg,cat\n"),
        ("x.csv", "path,label,score\na.jpg, cat,1\nb.jpg,dog,1\n./a.jpg,cat,1\na.jpg,,\n"),
        ("x.jsonl", '\n{"path": "a.jpg", "label": "cat"}\n{"path": "b.jpg", "label": "dog"}\n' * 2),
        ("x.jsonl", RUN % ("a.jpg", "cat") + RUN % ("b.jpg", "dog") + RUN % ("a.jpg", "cat")),
    ],
)
def test_a_repeated_row_is_one_image(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    for each in ("a.jpg", "b.jpg"):
        Path(each).touch()
    Path(name).write_text(content)
    with pytest.warns(UserWarning, match="rows? as an earlier one: left out") as told:
        found = read_classes(Path(name))
    assert len(told) == 1
    assert {label: [each.path for each in images] for label, images in found.items()} == {
        "cat": ["a.jpg"],
        "dog": ["b.jpg"],
    }


@pytest.mark.parametrize("header", ["path,label", "path,label,score"])
def test_names_in_tables_are_literal(tmp_path, monkeypatch, header):
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "folder"))
    for each in ("a.jpg", "1.jpg", "img1.jpg", "folder/b.jpg"):
        (tmp_path / each).touch()
    monkeypatch.chdir(tmp_path)
    why = {
        "img[1].jpg": "no such file",
        "*.jpg": "no such file",
        "{0..3}.jpg": "no such file",
        "~": "no such file",
        "-": "standard input, not an image",
        "..": "a folder, not an image",
        "folder": "a folder, not an image",
    }
    rest = ",1" if "score" in header else ""
    rows = "".join(f"{name},dog{rest}\n" for name in why)
    Path("x.csv").write_text(f"{header}\na.jpg,cat{rest}\n{rows}")
    found = read_classes(Path("x.csv"))
    assert {each.path: each.error for each in found["dog"]} == why
    if not rest:
        judged = {each.source.path: each.source.error for each in from_table(Path(), Path("x.csv"))}
        assert judged == {"a.jpg": None, **why}


def test_folders_beside_those_of_a_split_are_told(tmp_path):
    save_split(tmp_path)
    for name in ("bus/0.png", "car/far/0.png", "docs/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    save_shapes(tmp_path / "test", count=1)
    with pytest.warns(UserWarning) as told:
        find_dataset(tmp_path, None, seed=0)
    message = f"{tmp_path}: left out: bus, car: labels are read from train/"
    assert [str(each.message) for each in told] == [message]


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_batches_leave_out_and_name_what_can_not_be_read(tmp_path, monkeypatch, cache_bytes):
    monkeypatch.setattr(data, "CACHE_BYTES", cache_bytes)
    save_shapes(tmp_path, count=3)
    bad = tmp_path / "square" / "01.png"
    bad.write_bytes(b"not an image")
    samples = find_dataset(tmp_path, 0.0, seed=0).train
    errors = {}
    images = Images(samples, RULE, errors)
    order = [torch.tensor([5, 0]), torch.tensor([4]), torch.tensor([4, 2, 1])]
    for _ in range(2):  # the second time from the cache, if there is one
        batches = list(images.batches(order))
        assert [batch[1].tolist() for batch in batches] == [[1, 0], [], [0, 0]]
        assert [tuple(batch[0].shape) for batch in batches] == [
            (2, 16, 16, 3),
            (0, 16, 16, 3),
            (2, 16, 16, 3),
        ]
        with samples[2].source.open() as file:
            expected = RULE.pixels(decode(file))
        assert (batches[2][0][0].numpy() == expected).all()
    assert list(errors) == [str(bad)]


def test_what_fits_is_decoded_once(tmp_path, monkeypatch):
    save_shapes(tmp_path, count=3)
    images = Images(find_dataset(tmp_path, 0.0, seed=0).train, RULE, {})
    first = [batch[0] for batch in images.batches([torch.arange(6)])]
    monkeypatch.setattr(images, "_reader", None)
    again = [batch[0] for batch in images.batches([torch.arange(6)])]
    assert (first[0] == again[0]).all()
