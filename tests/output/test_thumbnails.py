"""The folder of thumbnails beside a report."""

from pathlib import Path

import pytest

from cvt_cli.errors import UsageError
from cvt_cli.output import report_page
from cvt_cli.output.report_page import ReportPageWriter
from cvt_cli.output.thumbnails import MARK, check_thumbnails, make_thumbnails, remove_thumbnails
from cvt_cli.records import Record, RecordShape

RUN = {"model": "tiny", "commit": None, "device": "cpu", "dtype": "float32", "weights_sha256": None}
SUMMARY = {"command": "cvt classify", "end": None, "images_per_second": None}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_that_came_meanwhile_are_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "report_files"
    remove_thumbnails(folder)
    folder.mkdir()
    remove_thumbnails(folder)
    make_thumbnails(folder)
    (folder / "000000.jpg").touch()
    (folder / "letter.txt").touch()
    with pytest.raises(OSError, match="report_files holds other files"):
        remove_thumbnails(folder)
    assert names(folder) == [MARK, "000000.jpg", "letter.txt"]
    (folder / "letter.txt").unlink()
    remove_thumbnails(folder)
    assert not folder.exists()


def test_a_folder_without_our_mark_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "report_files"
    folder.mkdir()
    (folder / "000000000131.jpg").touch()
    with pytest.raises(OSError, match="report_files holds other files"):
        remove_thumbnails(folder)
    with pytest.raises(UsageError, match="holds other files"):
        check_thumbnails(tmp_path / "report.html", overwrite=True)
    assert names(folder) == ["000000000131.jpg"]


@pytest.mark.parametrize("name", ["report_files", "report_files/000000.jpg", "."])
def test_thumbnails_that_are_read_are_not_removed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_thumbnails(tmp_path / "report_files")
    (tmp_path / "report_files/000000.jpg").touch()
    if name == ".":  # in which it is no input
        check_thumbnails(Path("report.html"), True, [name])
    else:
        with pytest.raises(UsageError, match="is one of the inputs"):
            check_thumbnails(Path("report.html"), True, [name])


@pytest.mark.parametrize("name", ["report_files", "report_files.part"])
def test_a_link_to_a_folder_is_not_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is not a folder"):
        check_thumbnails(tmp_path / "report.html", overwrite=True)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_only_more_than_a_page_holds_are_in_a_folder(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "MOST_INLINE", 3)
    # Of a conversion that was killed.
    make_thumbnails(tmp_path / "report_files.part")
    (tmp_path / "report_files.part/000009.jpg").touch()
    records = [Record(f"{number}.jpg", thumbnail=b"a picture") for number in range(count)]
    ReportPageWriter.convert(
        records, tmp_path / "report.html", RecordShape(1), run=RUN, summary=SUMMARY
    )
    if count > 3:
        assert names(tmp_path) == ["report.html", "report_files"]
        assert names(tmp_path / "report_files") == [
            MARK,
            *(f"{number:06d}.jpg" for number in range(count)),
        ]
    else:
        assert names(tmp_path) == ["report.html"]
