"""A real browser, without a screen, that reaches nothing but files."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    # Whatever is asked for by name, there is no such host.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Browser:
    """Chromium, by Selenium.

    Attributes:
        driver: the WebDriver.
        downloads: the folder that it downloads to.
    """

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        chromium = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("no chromium and chromedriver here")
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs",
            {
                "download.default_directory": str(self.downloads),
                "download.prompt_for_download": False,
            },
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(60)

    def open(self, path: Path, hash_: str = "", width: int = 1200, dark: bool = False) -> None:
        """Open a file in a window of that width in CSS pixels."""
        self.driver.get("about:blank")
        self.messages()
        self.requests()
        self.resize(width, 900)
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        self.driver.get(path.resolve().as_uri() + hash_)

    def resize(self, width: int, height: int) -> None:
        """The size of the page in CSS pixels."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def run(self, script: str, *arguments: object) -> Any:
        """The value of JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def messages(self) -> list[str]:
        """What the console has said since: errors, warnings, violated policies."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since, but those that stand for their own contents."""
        events = (json.loads(entry["message"]) for entry in self.driver.get_log("performance"))
        addresses = [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]
        return [each for each in addresses if not each.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path) -> None:
        """A picture of the window."""
        self.driver.save_screenshot(str(path))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the tests of a module; they skip where there is none."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.driver.quit()


if __name__ == "__main__":
    # python -m tests.browser report.html docs/report.png: the picture in the README.
    page, png = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        window = Browser(Path(folder))
        window.open(page)
        time.sleep(1)
        window.screenshot(png)
        window.driver.quit()
