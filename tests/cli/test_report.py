"""`cvt classify -o report.html`: beside other outputs, taken up again, whole or absent."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cvt_cli.output.thumbnails import make_thumbnails
from tests.conftest import RunCvt
from tests.endings import at_call


@pytest.fixture
def model(tiny_cvt: Callable[..., Path]) -> Path:
    return tiny_cvt()


def make_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (90, 60), (number % 256, 80, 160)).save(folder / f"{number:04d}.jpg")
    return folder


def rows(page: Path) -> list[list[object]]:
    """The records in a page: path, predictions, error, thumbnail, link, columns."""
    block = page.read_text("utf-8").split('id="records">')[1].split("</script>")[0]
    return list(json.loads(block))


def names(folder: Path) -> set[str]:
    return {
        path.name
        for path in folder.iterdir()
        if path.name[0] != "." and not path.name.endswith(".run.json")
    }


def test_beside_records(tmp_path: Path, model: Path, run_cvt: RunCvt) -> None:
    images = make_images(tmp_path / "photos", 5)
    (images / "bad.jpg").write_bytes(b"no image")
    both = run_cvt(
        *("classify", "photos", "-m", model, "-o", "a.csv", "-o", "report.html"), expect=1
    )
    assert "a.csv, report.html: 6 inputs" in both.stderr
    run_cvt("classify", "photos", "-m", model, "-o", "b.csv", expect=1)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert names(tmp_path) == {"photos", "a.csv", "b.csv", "report.html"}
    table = rows(tmp_path / "report.html")
    assert [row[0] for row in table] == [
        *(f"photos/{number:04d}.jpg" for number in range(5)),
        "photos/bad.jpg",
    ]
    assert table[0][4] == "./photos/0000.jpg"
    assert table[5][2] == "text, not an image"
    assert table[5][3] is None
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "cvt classify photos -m" in text


def test_alone_and_with_another_format(tmp_path: Path, model: Path, run_cvt: RunCvt) -> None:
    make_images(tmp_path / "photos", 2)
    run_cvt("classify", "photos", "-m", model, "-o", "report.html", expect=0)
    arguments = ("-o", "labels.txt", "-o", "again.html", "--format", "jsonl")
    run_cvt("classify", "photos", "-m", model, *arguments, expect=0)
    assert len((tmp_path / "labels.txt").read_text("utf-8").splitlines()) == 2
    assert len(rows(tmp_path / "again.html")) == 2
    named = run_cvt("classify", "photos", "-m", model, "-o", "a.csv", "-o", "a.csv", expect=2)
    assert "a.csv is named twice" in named.stderr
    piped = run_cvt("classify", "photos", "-m", model, "--format", "html", expect=2)
    assert "name a file with --output" in piped.stderr


@pytest.mark.slow
def test_taken_up_after_a_kill(tmp_path: Path, model: Path, run_cvt: RunCvt) -> None:
    # More than a page has room for: the thumbnails get a folder.
    images = make_images(tmp_path / "photos", 450)
    outputs = ("-o", "labels.csv", "-o", "report.html")
    command = ("classify", "photos", "-m", model, "-b", "10", *outputs)
    run_cvt(*command, cwd=tmp_path, expect=0)
    whole = {name: (tmp_path / name).read_bytes() for name in ("labels.csv", "report.html")}
    assert len(names(tmp_path / "report_files")) == 450
    thumbnail = (tmp_path / "report_files" / "000449.jpg").read_bytes()

    other = tmp_path / "other"
    other.mkdir()
    (other / "photos").symlink_to(images)
    # Half of the records of both files.
    killed = at_call("cvt_cli.output.journal:Journal.write", 45)
    with run_cvt.start(*command, cwd=other, first=killed) as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    part = other / "report.html.part"
    assert not (other / "report.html").exists()
    assert not (other / "report_files").exists()
    refused = run_cvt(*command, cwd=other, expect=2)
    assert "--resume continues it" in refused.stderr

    # Cut between the two journals, and in a line.
    (other / "labels.csv.part").write_bytes((other / "labels.csv.part").read_bytes()[:-300])
    part.write_bytes(part.read_bytes()[:-7])
    # As if an earlier --resume had been killed while it made the page.
    make_thumbnails(other / "report_files.part")
    (other / "report_files.part" / "000450.jpg").write_bytes(thumbnail)
    run_cvt(*command, "--resume", cwd=other, expect=0)
    assert (other / "labels.csv").read_bytes() == whole["labels.csv"]
    assert names(other) == {"photos", "labels.csv", "report.html", "report_files"}
    assert len(names(other / "report_files")) == 450
    assert rows_but_links(other) == rows_but_links(tmp_path)
    assert (other / "report_files" / "000449.jpg").read_bytes() == thumbnail


def rows_but_links(folder: Path) -> list[list[object]]:
    return [[*row[:4], row[5]] for row in rows(folder / "report.html")]


def test_a_report_that_was_finished_first(tmp_path: Path, model: Path, run_cvt: RunCvt) -> None:
    make_images(tmp_path / "photos", 3)
    command = ("classify", "photos", "-m", model, "-o", "labels.csv", "-o", "report.html")
    run_cvt(*command, expect=0)
    labels = (tmp_path / "labels.csv").read_bytes()
    run_cvt("classify", "photos", "-m", model, "-o", "labels.csv", "--overwrite", expect=0)
    # Cut between the two names.
    recorded = ("-o", "journal.csv", "--run-record", "run.json")  # the next one replaces it
    run_cvt("classify", "photos", "-m", model, *recorded, expect=0)
    (tmp_path / "labels.csv").rename(tmp_path / "labels.csv.part")
    description = json.dumps(description_of(run_cvt, model, tmp_path))
    (tmp_path / "labels.csv.part.json").write_text(description)
    again = run_cvt(*command, "--resume", expect=0)
    assert "report.html is finished and stays as it is" in again.stderr
    assert (tmp_path / "labels.csv").read_bytes() == labels


def description_of(run_cvt: RunCvt, model: Path, folder: Path) -> object:
    """What the journal of a CSV says that it was made with."""
    record = folder / "run.json"
    run_cvt("classify", "photos", "-m", model, "-f", "csv", "--run-record", record, expect=0)
    values = json.loads(record.read_text("utf-8"))
    others = ("command", "versions", "machine", "start", "end", "outcome", "seconds", "counts")
    run = {key: value for key, value in values.items() if key not in others}
    del run["images_per_second"]
    return run | {"version": values["versions"]["cvt"]}


def test_other_files_are_left_alone(tmp_path: Path, model: Path, run_cvt: RunCvt) -> None:
    make_images(tmp_path / "photos", 2)
    command = ("classify", ".", "-m", model, "-o", "report [1].html")
    folder = tmp_path / "report [1]_files"
    make_thumbnails(folder)
    (folder / "000000.jpg").write_bytes(b"of an earlier report")
    for more in ((), ("--resume",)):  # of which there is nothing
        assert "report [1]_files exists" in run_cvt(*command, *more, expect=2).stderr
    (folder / "letter.txt").write_text("mine")
    refused = run_cvt(*command, "--overwrite", expect=2)
    assert "holds other files" in refused.stderr
    assert (folder / "letter.txt").exists()
    (folder / "letter.txt").unlink()
    # Thumbnails are no input, and none are left that no page shows.
    run_cvt(*command, "--overwrite", expect=0)
    assert len(rows(tmp_path / "report [1].html")) == 2
    assert not folder.exists()
