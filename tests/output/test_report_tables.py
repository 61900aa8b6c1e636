"""Numbers for people, and reports into files."""

from pathlib import Path
from typing import BinaryIO

import pytest

from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output.report_tables import (
    Column,
    Report,
    Section,
    Share,
    as_text,
    check_new,
    si,
    si_unit,
    write_report,
    write_whole,
)

REPORT = Report(
    {"a": 1},
    [{"name": 'x, "y"', "count": 1}, {"name": "é", "count": None}],
    lambda width: [
        Section(
            "Title",
            (Column("name"), Column("n", right=True), Column()),
            [["a heading longer than any cell"], ["猫", "1", Share(0.5)], ["b\t", "1000", "z"]],
            "a note\nof two lines",
        )
    ],
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (0.5, "0.50"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (19_997_480, "20.0 M"),
        (194_217_763_840, "194 G"),
        (10**40, "1e+22 E"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert si(value) == text
    assert si_unit(value, "B").replace(" ", "") == text.replace(" ", "") + "B"


def test_plain_text_is_aligned() -> None:
    assert as_text(REPORT, "table") == (
        "Title\n"
        "name     n\n"
        "a heading longer than any cell\n"
        "猫       1  50.0%\n"
        "b\\t   1000  z\n"
        "a note\n"
        "of two lines\n"
    )


def test_csv_is_rfc_4180_and_json_raw() -> None:
    assert as_text(REPORT, "csv") == 'name,count\r\n"x, ""y""",1\r\né,\r\n'
    assert as_text(REPORT, "tsv") == 'name\tcount\n"x, ""y"""\t1\né\t\n'
    assert as_text(REPORT, "json") == '{\n  "a": 1\n}\n'


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.csv"
    with pytest.raises(CvtError, match=r"a\.csv can't be written: no space left"):
        write_whole(path, fail)
    assert not list(tmp_path.iterdir())
    write_report(REPORT, "csv", path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
    assert path.read_bytes().startswith(b"name,count\r\n")


def test_bytes_that_are_no_utf8_are_written_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_report(Report({}, [{"path": "caf\udce9.jpg"}], lambda width: []), "csv", path)
    assert path.read_bytes() == b"path\r\ncaf\\udce9.jpg\r\n"


def test_a_dangling_link_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    check_new(path, overwrite=False)
    path.symlink_to("nowhere.csv")
    with pytest.raises(UsageError, match="exists"):
        check_new(path, overwrite=False)
    check_new(path, overwrite=True)
