"""Images in the columns of Parquet files."""

import io

import pytest
from PIL import Image

from cvt_cli.images.find import Search, count_sources, find

pa = pytest.importorskip("pyarrow", reason="needs cvt-cli[parquet]")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(seed=0):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (seed, 80, 160)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


EVERYTHING = Search()


def contents(path, search=EVERYTHING):
    return {source.path: source.open().read() for source in find([path], search)}


def test_a_column_of_bytes(tmp_path):
    images = [encoded(0), encoded(1), encoded(2)]
    path = write(tmp_path / "a.parquet", {"label": [1, 2, 3], "image": images}, row_group_size=2)
    assert contents(path) == {f"{path}::{row}": image for row, image in enumerate(images)}


@pytest.mark.parametrize("kind", ["large_binary", "binary_view"])
def test_columns_of_large_bytes_and_rows_without_an_image(tmp_path, kind):
    rows = [encoded(0), None, encoded(1)]
    path = write(tmp_path / "a.parquet", {"image": pa.array(rows, getattr(pa, kind)())})
    first, none, last = find([path])
    assert [each.path for each in (first, none, last)] == [f"{path}::{row}" for row in range(3)]
    assert (first.open().read(), last.open().read()) == (rows[0], rows[2])
    assert "no image in this row" in none.error


def test_structs_of_bytes_as_hugging_face_has_them(tmp_path):
    images = [{"bytes": encoded(0), "path": "a.png"}, {"bytes": encoded(1), "path": None}]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0, 1]})
    assert list(contents(path).values()) == [encoded(0), encoded(1)]


def test_the_column_called_image_is_taken_before_another_of_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", {"digest": [b"abc"], "image": [encoded()]})
    assert list(contents(path).values()) == [encoded()]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": [1]}, "no column of images"),
        ({"image": pa.array([None], pa.binary())}, "no image in this row"),
        ({"image": [b"x" * 100]}, "more than"),
    ],
)
def test_what_holds_no_image_says_why(tmp_path, columns, reason):
    path = write(tmp_path / "a.parquet", columns)
    (source,) = find([path], Search(max_bytes=50))
    assert reason in source.error


def test_a_broken_file_is_one_error(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no parquet PAR1")
    (source,) = find([str(path)])
    assert "broken archive" in source.error


def test_nobody_reads_all_images_to_count_them(tmp_path):
    assert count_sources([write(tmp_path / "a.parquet", {"image": [encoded()]})]) is None


def test_classified_like_files(run_cvt, tmp_path):
    write(tmp_path / "a.parquet", {"image": [encoded(0), b"junk", encoded(1)]})
    done = run_cvt("classify", "a.parquet", "--model", "cvt-tiny-cifar10", "--format", "jsonl")
    records = done.jsonl()
    assert [record["path"] for record in records] == [f"a.parquet::{row}" for row in range(3)]
    assert [record["error"] is None for record in records] == [True, False, True]
    assert done.returncode == 1
