"""Labels put right in the report, in a real browser."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvt_cli.output.report_page import ReportPageWriter
from cvt_cli.records import Prediction, Record, RecordShape
from tests.browser import Browser, browser
from tests.output.test_report_page import RUN, SUMMARY, click, opened, thumbnails, wait

__all__ = ["browser", "opened"]


def records() -> Iterator[Record]:
    pictures = thumbnails(8)
    for number in range(8):
        path = f"photos/{'comma, ' * (number == 1)}img{number}.jpg"
        if number == 7:
            yield Record(path, error="broken image")
            continue
        names = ("cat", "dog", "fox") if number % 2 else ("dog", "cat", "fox")
        best = (0.9, 0.5, 0.6, 0.4, 0.8, 0.7, 0.95)[number]
        parts = (best, (1 - best) * 0.8, (1 - best) * 0.2)
        yield Record(
            path,
            tuple(Prediction(name, part, 0) for name, part in zip(names, parts, strict=True)),
            thumbnail=pictures[number],
        )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    ReportPageWriter.convert(records(), path, RecordShape(top_k=3), run=RUN, summary=SUMMARY)
    return path


def best_shown(browser: Browser) -> list[str]:
    return list(
        browser.run("return [...document.querySelectorAll('.best .text')].map(e => e.textContent)")
    )


def told(browser: Browser) -> str:
    return str(browser.run("return document.getElementById('corrections').textContent"))


def saved(browser: Browser) -> list[list[str]]:
    for old in browser.downloads.iterdir():
        old.unlink()
    click(browser, "#save")
    file = browser.downloads / "corrections.csv"
    wait(file.exists)
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def focus(browser: Browser, number: int) -> None:
    browser.run("document.querySelectorAll('.card')[arguments[0]].focus()", number)


def test_keys_undo_reload_and_file(page: Path, opened: Callable[..., Browser]) -> None:
    browser = opened(page)
    assert told(browser) == "0 corrected"
    assert browser.run("return document.getElementById('save').disabled")
    focus(browser, 0)
    browser.keys("2")
    assert best_shown(browser)[0] == "cat" and told(browser) == "1 corrected"
    browser.keys("\ue014", "0")  # Right
    assert best_shown(browser)[1] == "(none of these)"
    browser.keys("\ue014", "3", "u")
    assert best_shown(browser)[2] == "dog" and told(browser) == "2 corrected"
    # Typed, a label that no prediction has.
    browser.keys("\ue014", "l", 'red "panda", old', "\ue007")
    assert best_shown(browser)[3] == 'red "panda", old'
    # A broken image has none; of more predictions than there are nothing becomes.
    browser.keys("5")
    focus(browser, 7)
    browser.keys("1", "0")
    assert told(browser) == "3 corrected" and best_shown(browser)[7] == "(error)"
    browser.driver.refresh()
    assert told(browser) == "3 corrected"
    assert best_shown(browser)[:4] == ["cat", "(none of these)", "dog", 'red "panda", old']
    assert saved(browser) == [
        ["path", "label", "score", "predicted"],
        ["photos/img0.jpg", "cat", "1.000000", "dog"],
        ["photos/comma, img1.jpg", "", "", "cat"],
        ["photos/img3.jpg", 'red "panda", old', "1.000000", "cat"],
    ]
    click(browser, "input[value=corrected] + span")
    assert len(best_shown(browser)) == 3
    focus(browser, 0)
    browser.keys("\ue017")  # Delete
    assert told(browser) == "2 corrected"
    # Another page has none of them.
    other = page.with_name("other.html")
    other.write_bytes(page.read_bytes().replace(b"cvt-corrections-", b"cvt-corrections-0"))
    assert told(opened(other)) == "0 corrected"


def test_several_at_once(page: Path, opened: Callable[..., Browser]) -> None:
    browser = opened(page)
    focus(browser, 0)
    browser.keys("x", "\ue014", "x")
    assert told(browser) == "0 corrected, 2 selected"
    browser.run(
        "document.querySelectorAll('.card')[4].dispatchEvent("
        "new MouseEvent('click', {bubbles: true, shiftKey: true}))"
    )
    assert told(browser) == "0 corrected, 3 selected"
    assert browser.run("return document.querySelectorAll('.card.selected').length") == 3
    browser.keys("l", "otter", "\ue007")
    assert told(browser) == "3 corrected"
    assert [n for n, label in enumerate(best_shown(browser)) if label == "otter"] == [0, 1, 4]
    browser.keys("u")
    assert told(browser) == "0 corrected" and "otter" not in best_shown(browser)


def test_the_larger_view(page: Path, opened: Callable[..., Browser]) -> None:
    browser = opened(page, "#open=3")
    browser.keys("2")
    assert (
        browser.run("return document.querySelector('#predictions .right').innerText")
        == "cat\n32.0%"
    )
    browser.keys("\ue014", "l", "lynx", "\ue007", "\ue014", "0", "\ue00c")
    assert told(browser) == "3 corrected"
    assert best_shown(browser)[2:5] == ["cat", "lynx", "(none of these)"]
    # The form is beside the grid again.
    wait(lambda: browser.run("return document.querySelector('dialog #correct')") is None)


def test_the_least_certain_first(page: Path, opened: Callable[..., Browser]) -> None:
    browser = opened(page, "#sort=uncertain")
    files = browser.run(
        "return [...document.querySelectorAll('.card .file')].map(e => e.textContent)"
    )
    assert [file[-5] for file in files] == ["3", "1", "2", "5", "4", "0", "6", "7"]


def test_a_regression_has_nothing_to_put_right(
    tmp_path: Path, opened: Callable[..., Browser]
) -> None:
    path = tmp_path / "values.html"
    ReportPageWriter.convert(
        records(), path, RecordShape(top_k=3), run={**RUN, "scores": "raw"}, summary=SUMMARY
    )
    browser = opened(path)
    assert browser.run("return document.getElementById('correct')") is None
    focus(browser, 0)
    browser.keys("2", "x", "u")
    assert best_shown(browser)[0] == "dog"
