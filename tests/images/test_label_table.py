"""Tables of labels as people have them."""

import warnings
from pathlib import Path

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.images.label_table import LabelledPath, locate, read_label_table

ROWS = [("a.jpg", "cat"), ("b c.jpg", "sea lion")]


def read(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, str]]:
    table = tmp_path / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(row.path, row.label) for row in read_label_table(table)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,label\na.jpg,cat\nb c.jpg,sea lion\n"),
        ("x.csv", ",path,label\n0,a.jpg,cat\n1,b c.jpg,sea lion\n"),
        ("x.csv", "path;label\r\na.jpg;cat\r\n\r\nb c.jpg;sea lion\r\n"),
        ("x.tsv", "label\tpath\ncat\ta.jpg\nsea lion\tb c.jpg\n"),
        ("x.csv", "a.jpg,cat\nb c.jpg,sea lion\n"),
        ("val.txt", "a.jpg cat\nb c.jpg sea lion\n"),
        ("x.csv", "path,label\na.jpg,cat\nb c.jpg,sea lion\n".encode("utf-16")),
        ("x.csv", b"\xef\xbb\xbfpath,label\na.jpg,cat\nb c.jpg,sea lion\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "label": "cat"}\n\n{"file_name": "b c.jpg", '
            '"label": ["sea lion"]}\n',
        ),
    ],
)
def test_what_says_itself_is_read_without_a_word(
    name: str, content: str | bytes, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, name, content) == ROWS


@pytest.mark.parametrize(
    ("content", "word", "expected"),
    [
        ("id,breed\na,pug\n", "'id' and 'breed'", [("a", "pug")]),
        ("Image,Category,w\na.jpg,cat,4\n", "'Image' and 'Category'", [("a.jpg", "cat")]),
        # Kaggle's ImageNet: boxes with their WordNet ids.
        (
            "ImageId,PredictionString\nv_1,n02105855 3 7 9 9 n02105855 1 1 2 2\n",
            "'ImageId' and 'PredictionString'",
            [("v_1", "n02105855")],
        ),
        (
            "id,cat,dog\na,1,1\nb,0,0\nc,0.0,1.0\n",
            "taking 2 columns for a label each",
            [("a", "cat"), ("a", "dog"), ("b", ""), ("c", "dog")],
        ),
    ],
)
def test_columns_of_other_names_are_taken_and_told(
    content: str, word: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=word):
        assert read(tmp_path, "x.csv", content) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "id,cat,dog\na,1,2\n", "does not name the columns path,label"),
        ("x.csv", "width,label\n3,cat\n", "does not name the columns path,label"),
        # The development kit's ground truth: numbers alone, in the order of the file names.
        ("x.txt", "490\n361\n", "does not name the columns path,label"),
        ("x.jsonl", '["a.jpg", "cat"]\n', "line 1 is no JSON object"),
        ("x.jsonl", "{\n", "not readable as JSON Lines"),
        ("x.jsonl", '{"label": "cat", "path": null}\n', "line 1: without a path"),
        ("x.csv", "path,label\n", "names no image"),
        ("x.csv", "", "names no image"),
    ],
)
def test_what_is_no_table_of_labels(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, name, content)


def test_images_are_found_without_their_suffix_and_with_other_slashes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("1.JPG", "in/2.png", "3.txt", "3.webp", "4.v2.png"):
        (tmp_path / name).touch()
    rows = [LabelledPath(path, "x", "line") for path in ("1", "in\\2.png", "3", "4.v2", "gone")]
    found = [path.relative_to(tmp_path).as_posix() for path in locate(tmp_path, rows, tmp_path)]
    assert found == ["1.JPG", "in/2.png", "3.webp", "4.v2.png", "gone"]
    (tmp_path / "1.png").touch()
    with pytest.raises(UsageError, match=r"line: 1 may be 1\.JPG or 1\.png"):
        locate(tmp_path, rows, tmp_path)
    with pytest.raises(
        UsageError, match=r"none of its 1 image is there, for example .*gone"
    ) as got:
        locate(tmp_path, rows[-1:], tmp_path)
    assert got.value.hint == f"its paths are relative to {tmp_path}"
