"""The page of an evaluation, in a real browser, and the table of one row per image."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from cvt_cli.evaluation.evaluation_page import MOST_THUMBNAILS, keeps_thumbnail, write_page
from cvt_cli.evaluation.judgements import Judgement, judgements_report, worst_first
from cvt_cli.evaluation.metrics import UnknownLabel, compute_metrics
from cvt_cli.images.thumbnail import make_thumbnail
from cvt_cli.output.report_tables import as_text
from cvt_cli.records import Prediction, Record
from tests.browser import Browser, browser

__all__ = ["browser"]

NAMES = ("cat", "<b>dog</b>", "</script><script>document.title='x'</script>", "bee")
RUN = {"model": "m", "weights_sha256": "ab" * 32}
# Truth, prediction and its score.
IMAGES = [
    (0, 0, 0.9),
    (0, 1, 0.6),
    (1, 1, 0.4),
    (1, 0, 0.8),
    (1, 0, 0.3),
    (2, 2, 0.7),
    (2, None, 0),
]


def judged() -> list[Judgement]:
    thumbnail = make_thumbnail(Image.new("RGB", (40, 30), "red"))
    found = []
    for number, (truth, index, score) in enumerate(IMAGES):
        best = () if index is None else (Prediction(NAMES[index], score, index),)
        second = () if index is None else (Prediction(NAMES[truth], 0.1, truth),)
        more = second if index != truth else ()
        error = "is empty" if index is None else None
        found.append(Judgement(f"p/<i>{number}.jpg", truth, best + more, error, thumbnail))
    return found


def make_page(path: Path, judgements: list[Judgement]) -> None:
    records = [Record(each.path, each.predictions, each.error) for each in judgements]
    unknown = (UnknownLabel("<i>yeti", 3, "not one of the model's labels"),)
    figures = compute_metrics(records, [each.truth for each in judgements], NAMES, unknown=unknown)
    write_page(path, figures, judgements, names=NAMES, run=RUN)


def texts(browser: Browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    found: list[str] = browser.run(script, selector)
    return found


def test_wrong_ones_first_and_a_matrix_to_click(tmp_path: Path, browser: Browser) -> None:
    make_page(tmp_path / "evaluation.html", judged())
    browser.open(tmp_path / "evaluation.html")
    assert texts(browser, "#status") == ["3 of 7 images"]
    shown = texts(browser, "#images .caption")
    assert [text.split("p/")[1] for text in shown] == ["<i>3.jpg", "<i>1.jpg", "<i>4.jpg"]
    assert "taken for cat, 80.0%" in shown[0] and "<b>dog</b> is number 2, 10.0%" in shown[0]
    assert "50.00%" in texts(browser, "header")[0] and "<i>yeti (3)" in texts(browser, "header")[0]
    assert texts(browser, "#matrix tbody th") == list(NAMES[:3])
    assert texts(browser, "#matrix td.wrong button") == ["1", "2"]
    click = "document.querySelector('[aria-label=\"2 of <b>dog</b> taken for cat\"]').click()"
    browser.run(click)
    assert texts(browser, "#status") == ["2 of 7 images"]
    assert texts(browser, "[aria-pressed=true]") == ["2"]
    browser.run(click)
    assert texts(browser, "#status") == ["3 of 7 images"]
    choose = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
    browser.run(choose + "e.dispatchEvent(new Event('change'))", "verdict", "errors")
    assert "is empty" in texts(browser, "#images li")[0]
    browser.run(choose + "e.dispatchEvent(new Event('change'))", "verdict", "")
    browser.run(choose + "e.dispatchEvent(new Event('change'))", "truth", "0")
    assert texts(browser, "#status") == ["2 of 7 images"]
    browser.run("document.getElementById('reset').click()")
    assert texts(browser, "#status") == ["3 of 7 images"]
    # What names hold is text, and nothing was asked for.
    assert browser.driver.title.startswith("evaluation") and not browser.messages()
    assert [each.rpartition("/")[2] for each in browser.requests()] == ["evaluation.html"]


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_is_wider_than_the_window(tmp_path: Path, browser: Browser, width: int) -> None:
    make_page(tmp_path / "evaluation.html", judged())
    browser.open(tmp_path / "evaluation.html", width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_all_right_shows_all(tmp_path: Path, browser: Browser) -> None:
    make_page(tmp_path / "evaluation.html", [each for each in judged() if each.is_correct])
    browser.open(tmp_path / "evaluation.html")
    assert texts(browser, "#status") == ["3 of 3 images"]


def test_the_order() -> None:
    numbers = [int(each.path[5]) for each in worst_first(judged())]
    assert numbers == [3, 1, 4, 6, 2, 5, 0]


def test_thumbnails_of_mistakes_are_kept_and_of_the_first_right_ones() -> None:
    right, wrong, *_ = judged()
    assert keeps_thumbnail(right, 0) and not keeps_thumbnail(right, MOST_THUMBNAILS)
    assert keeps_thumbnail(wrong, MOST_THUMBNAILS)


def test_a_row_per_image() -> None:
    text = as_text(judgements_report(judged(), NAMES), "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["correct"] for row in rows] == ["1", "0", "1", "0", "0", "1", ""]
    assert rows[3] == {
        **{"path": "p/<i>3.jpg", "truth": "<b>dog</b>", "predicted": "cat", "score": "0.800000"},
        **{"truth_score": "0.100000", "correct": "0", "in_top_5": "1", "error": ""},
    }
    assert rows[6]["error"] == "is empty" and rows[6]["truth"] == NAMES[2]
