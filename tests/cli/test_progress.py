"""What a progress bar leaves on the screen: nothing."""

import re
import sys
import time
import warnings

import pytest

from cvt_cli.cli import progress, train_progress
from cvt_cli.cli.progress import Pace, Progress, Shown, in_time


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


def test_a_log_has_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.4)
    counting: list[float] = []
    begun = time.monotonic()
    bar = Progress(Shown.LINES, lambda: counting.append(time.monotonic()) or 60_000, done=12_000)  # type: ignore[func-returns-value]
    for number in range(400):
        bar.add(failed=number < 3)
    lines: list[str] = []
    while len(lines) < 2:
        time.sleep(0.02)
        lines += capsys.readouterr().err.splitlines()
    bar.close()
    lines += capsys.readouterr().err.splitlines()
    assert len(lines) <= (time.monotonic() - begun) / 0.4
    time.sleep(0.6)
    assert capsys.readouterr().err == ""
    # On a busy machine the first line comes before the last image is counted.
    assert re.fullmatch(
        r"cvt: 12,400 of 60,000, [0-9,.]+ images/s, [0-9]+ (s|min|h) left, 3 errors", lines[-1]
    )
    # Once, as it reads all folders, and not for what is over in no time.
    assert len(counting) == 1 and counting[0] - begun >= 0.2


def test_a_log_where_nobody_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Progress(Shown.LINES, lambda: None)
    bar.add(failed=True)
    assert re.fullmatch(r"1, [0-9,.]+ images/s, 1 error", bar.in_words())
    bar.close()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (1140, "19 min"), (18_000, "5 h"), (3e5, "3 days")],
)
def test_times(seconds: float, expected: str) -> None:
    assert in_time(seconds) == expected


def test_training_tells_a_log_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for quiet in (True, False):
        log = train_progress._Log("epoch 3/10", 60_000, quiet)
        log.tell(100, "loss 1.234, accuracy 45.1%")
        assert capsys.readouterr().err == ""
        log._start = log._last = time.monotonic() - 100
        log.tell(12_400, "loss 1.234, accuracy 45.1%")
        log.tell(12_500, "loss 1.234, accuracy 45.1%")
        said = capsys.readouterr().err
        if quiet:
            assert said == ""
        else:
            assert said == (
                "cvt: epoch 3/10: 12,400 of 60,000, 124 images/s, 6 min left, loss 1.234, "
                "accuracy 45.1%\n"
            )


def test_the_first_estimate_is_of_whole_batches() -> None:
    pace = Pace()
    assert pace.rate is None
    # Two minutes of loading, then a batch of 32 each second.
    for batch in range(40):
        for image in range(32):
            pace.add(120 + batch + image / 10_000)
            assert pace.rate == (None if batch == 0 else pytest.approx(32))
    # The rate is that of the last half minute.
    for second in range(60):
        pace.add(200 + second)
    assert pace.rate == pytest.approx(1, rel=0.05)


def test_the_rate_of_images_that_never_pause() -> None:
    pace = Pace()
    for number in range(5000):
        pace.add(number / 1000)
    assert pace.rate == pytest.approx(1000, rel=0.01)


def test_a_bar_says_nothing_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = Progress(True, lambda: 6400)
    try:
        for batch in range(2):
            now += 5
            bar.add(False)
            bar._bar.total = 6400
            text = bar._bar.format_meter(**bar._bar.format_dict)
            assert ("<?" in text) is (batch == 0), text
        assert "0.20 images/s" in text
    finally:
        bar.close()
