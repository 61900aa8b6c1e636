"""Images in the columns of Parquet files."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from cvt_cli.errors import ImageError
from cvt_cli.images.find import count_sources, find
from cvt_cli.images.parquet_images import parquet_members
from cvt_cli.images.parquet_pages import check_pages, pages
from cvt_cli.images.source import Search
from tests.photos import Opened

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
    try:
        path = write(tmp_path / "a.parquet", {"image": pa.array(rows, getattr(pa, kind)())})
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow {pa.__version__}: {error}")
    first, none, last = find([path])
    assert [each.path for each in (first, none, last)] == [f"{path}::{row}" for row in range(3)]
    assert (first.open().read(), last.open().read()) == (rows[0], rows[2])
    assert "no image in this row" in none.error


def test_a_table_without_rows_is_empty_not_broken(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())})
    assert pq.ParquetFile(path).num_row_groups == 1
    (source,) = find([path])
    assert source.error == "an archive without images"


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


def test_pyarrow_waits_for_the_file(monkeypatch):
    """It takes memory and time, which what can't be had should not cost."""

    def open_nothing():
        raise ImageError("the server has no such file")

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImageError, match="no such file"):
        next(parquet_members("a.parquet", Opened(open_nothing), 100))


def test_nobody_reads_all_images_to_count_them(tmp_path):
    assert count_sources([write(tmp_path / "a.parquet", {"image": [encoded()]})]) is None


def test_classified_like_files(run_cvt, tmp_path):
    write(tmp_path / "a.parquet", {"image": [encoded(0), b"junk", encoded(1)]})
    done = run_cvt("classify", "a.parquet", "--model", "cvt-tiny-cifar10", "--format", "jsonl")
    records = done.jsonl()
    assert [record["path"] for record in records] == [f"a.parquet::{row}" for row in range(3)]
    assert [record["error"] is None for record in records] == [True, False, True]
    assert done.returncode == 1


def one_value(path, size, rows, **options):
    """Rows that all have the same value, in a dictionary."""
    values = pa.array([bytes(size)], pa.large_binary())
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), values)
    options = {"dictionary_pagesize_limit": 2**30, "store_schema": False} | options
    pq.write_table(pa.table({"image": column}), path, write_statistics=False, **options)
    return str(path)


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    path = one_value(tmp_path / "a.parquet", 50 * 2**20, 16, compression="zstd")
    pool = pa.system_memory_pool()
    before = pool.max_memory(), pa.default_memory_pool().max_memory()
    (source,) = find([path])
    assert (source.path, "decompression bomb" in source.error) == (path, True)
    peak = pool.max_memory() + pa.default_memory_pool().max_memory() - sum(before)
    assert peak < 2**22


def test_what_the_metadata_says_of_a_chunk_is_not_believed(tmp_path):
    """The sizes in the pages' own headers count: those are what pyarrow believes."""
    path = one_value(tmp_path / "a.parquet", 50 * 2**20, 16, compression="zstd")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    names = ("path_in_schema", "has_dictionary_page", "dictionary_page_offset", "data_page_offset")
    facts = {name: getattr(chunk, name) for name in (*names, "total_compressed_size")}
    lying = SimpleNamespace(**facts, total_uncompressed_size=1)
    group = SimpleNamespace(num_columns=1, column=lambda index: lying)
    with open(path, "rb") as file, pytest.raises(ImageError, match="decompression bomb"):
        check_pages(file, group, "image".__eq__)


def test_one_image_in_endless_rows(tmp_path):
    """A dictionary makes any number of images of one."""
    noise = encoded() + bytes(range(256)) * 4000
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * 300, pa.int32()), pa.array([noise], pa.large_binary())
    )
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": column}), path, compression="none", store_schema=False)
    *images, last = find([path], Search(max_bytes=2**20))
    assert "decompression bomb" in last.error
    assert all(image.error is None for image in images)
    assert 190 < len(images) < 300


def test_rows_without_end_take_no_time(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": pa.nulls(2 * 2**20, pa.binary())}), path)
    (source,) = find([path])
    assert "decompression bomb" in source.error


def test_a_page_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("cvt_cli.images.parquet_pages.MAX_PAGE", 2**20)
    rows = [os.urandom(2**21)]
    path = write(tmp_path / "a.parquet", {"image": rows}, use_dictionary=False, compression="none")
    (source,) = find([path])
    assert f"more than the limit of {2**20}" in source.error


def test_pages_of_every_kind_are_found(tmp_path):
    """Their sizes add up to what pyarrow says of the chunk, headers aside."""
    rows = [encoded(i % 7) + bytes(i) for i in range(2000)]
    for version in ("1.0", "2.0"):
        for dictionary in (True, False):
            path = write(
                tmp_path / "a.parquet",
                {"image": rows},
                use_dictionary=dictionary,
                data_page_version=version,
                data_page_size=2**14,
                write_page_checksum=True,
            )
            chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            with open(path, "rb") as file:
                found = list(pages(file, start, chunk.total_compressed_size))
            headers = chunk.total_compressed_size - sum(page.packed for page in found)
            assert len(found) > 1
            assert sum(page.unpacked for page in found) == chunk.total_uncompressed_size - headers
