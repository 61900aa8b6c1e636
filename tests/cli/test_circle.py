"""Label, put right in a browser, sort, learn, label again: the lines of the page, one by one."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.browser import Browser, browser
from tests.conftest import RunCvt
from tests.labelled import save_shapes

__all__ = ["browser"]

PAGE = Path(__file__).parents[2] / "docs" / "own-labels.md"
CORRECTED = 6  # of each label


def correct(browser: Browser, folder: Path) -> None:
    """As a person would: search for a label's pictures, select some, type the label."""
    for label in ("circle", "square"):
        browser.open(folder / "report.html", f"#q={label}&sort=path")
        for number in range(CORRECTED):
            browser.run("document.querySelectorAll('.card')[arguments[0]].focus()", number)
            browser.keys("x")
        browser.keys("l", label, "\ue007")
    assert browser.run("return document.getElementById('corrections').textContent").startswith("12")
    browser.driver.find_element("css selector", "#save").click()
    downloaded = browser.downloads / "corrections.csv"
    for _ in range(200):
        if downloaded.exists():
            break
        browser.run("return 0")
    shutil.copy(downloaded, folder / "corrections.csv")


@pytest.mark.slow
def test_the_circle(run_cvt: RunCvt, tmp_path: Path, browser: Browser) -> None:
    save_shapes(tmp_path / "photos", count=10)
    script = re.search(r"<!-- the circle -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert script is not None
    printed = []
    for line in script[1].splitlines():
        if line.startswith("#"):
            correct(browser, tmp_path)
        else:
            printed.append(run_cvt(*shlex.split(line)[1:], expect=0).stdout)
    accuracies = [
        float(found[1]) for text in printed if (found := re.search(r"top-1 accuracy +(.*)%", text))
    ]
    # The model has no such labels before.
    assert accuracies[0] == 0 and accuracies[1] > 80
    assert len(list((tmp_path / "data" / "train").glob("*/*.png"))) == 2 * CORRECTED
