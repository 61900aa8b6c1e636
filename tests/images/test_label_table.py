"""Tables of labels as people have them."""

import time
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
        ("x.csv", 'path , label\na.jpg, cat\nb c.jpg, "sea lion"\n'),
        ("x.csv", "path,label\na.jpg,cat,,\nb c.jpg,sea lion\n"),
        (
            "x.jsonl",
            '{"width": 3, "path": "a.jpg", "label": "cat "}\n{"path": "b c.jpg", "label": '
            '["sea lion"], "more": {"a": 1}}\n',
        ),
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
        ("x.jsonl", '\n{"label": {"a": 1}, "path": "a.jpg"}\n', "line 2: 'label' is an object"),
        ("x.jsonl", '{"label": [["a"]], "path": "a.jpg"}\n', "line 1: 'label' is a list"),
        ("x.jsonl", '{"label": "a", "path": ["a.jpg"]}\n', "line 1: 'path' is a list"),
        ("x.jsonl", '{"path": "a.jpg", "label": "a", "label": "b"}\n', "line 1: two columns"),
        ("x.csv", "file_name,label\na.jpg,crane, bird\n", "line 2: has 3 cells, and .* line 2$"),
        ("x.csv", 'file_name,label\nb.jpg,a\na.jpg,"cat\nc.jpg,b\n', "line 3: a quote is not cl"),
        ("x.csv", "path,label,label\na.jpg,cat,dog\n", "two columns have the name 'label'"),
        ("x.csv", "path,label,Label\na.jpg,cat,dog\n", "which of its columns 'label' and 'Label'"),
        ("x.csv", "path,label\n", "names no image"),
        ("x.csv", "", "names no image"),
    ],
)
def test_what_is_no_table_of_labels(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, name, content)


def test_a_line_without_a_header_ends_after_its_second_cell_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="taking its first two columns"):
        assert read(tmp_path, "x.csv", "a.jpg,crane, bird\n") == [("a.jpg", "crane")]


def test_lines_end_where_their_format_says(tmp_path: Path) -> None:
    label = "a\u2028b\u0085c"
    assert read(tmp_path, "x.jsonl", f'{{"path": "a.jpg", "label": "{label}"}}\r\n') == [
        ("a.jpg", label)
    ]
    assert read(tmp_path, "x.txt", "a\u2028.jpg b\r\n") == [("a\u2028.jpg", "b")]


def test_the_last_suffix_ends_the_path_however_long_the_line_is(tmp_path: Path) -> None:
    assert read(tmp_path, "x.txt", "a.jpg copy.JPG  cat\n") == [("a.jpg copy.JPG", "cat")]
    label = "x " * 500_000
    start = time.process_time()
    assert read(tmp_path, "x.txt", f"a.jpg {label}\n") == [("a.jpg", label.strip())]
    with pytest.raises(UsageError, match="does not name the columns"):
        read(tmp_path, "x.txt", f"a.doc {label}\n")
    assert time.process_time() - start < 5


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
