"""What a progress bar leaves on the screen: nothing."""

import sys
import time
import warnings

import pytest

from cvt_cli.cli import progress
from cvt_cli.cli.progress import Progress


def last_line(written: str) -> str:
    """What can be seen of it on a terminal."""
    line = ""
    for text in written.rpartition("\n")[2].split("\r"):
        line = text + line[len(text) :]
    return line.strip()


def some_records(updates: bool) -> None:
    bar = Progress(True, lambda: 3)
    for name in "abc":
        with bar.paused():
            print(name, file=sys.stderr)
        if updates:
            bar.add(failed=False)
    bar.close()


@pytest.mark.parametrize("updates", [True, False])
def test_the_bar_goes_when_it_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, updates: bool
) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    some_records(updates)
    written = capsys.readouterr().err
    assert "images/s" in written
    assert [last_line(line) for line in written.split("\n")] == ["a", "b", "c", ""]


def test_a_bar_that_only_a_pause_has_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.2)
    bar = Progress(True, lambda: 3)
    time.sleep(0.3)
    with bar.paused():
        print("a", file=sys.stderr)
    bar.close()
    written = capsys.readouterr().err
    assert "images/s" in written
    assert last_line(written) == ""


def test_a_warning_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(
        warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr)
    )
    bar = Progress(True, lambda: 3)
    bar.add(failed=False)
    warnings.warn("a", stacklevel=1)
    bar.close()
    warnings.warn("b", stacklevel=1)
    written = capsys.readouterr().err
    assert written.count("images/s") > 1
    assert [last_line(line) for line in written.split("\n")] == ["a", "b", ""]


def test_a_short_run_has_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress.DELAY_SECONDS > 0
    monkeypatch.setattr(progress, "DELAY_SECONDS", 1e6)
    some_records(updates=True)
    assert capsys.readouterr().err == "a\nb\nc\n"
