"""Progress of a run: done, total, images/s, time left, errors. A bar on a terminal, a line a minute
in a log."""

import math
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any, TextIO

from tqdm import tqdm

from cvt_cli.cli.messages import say
from cvt_cli.errors import CvtError
from cvt_cli.system.text import counted

# Columns left for the ^C that a terminal echoes after the bar.
MARGIN_COLUMNS = 3
# Seconds before a bar appears: a short run needs none.
DELAY_SECONDS = 1.0

# Seconds between lines in a log, and before the first: a short run needs none, and cron mails each.
LOG_SECONDS = 60.0
# The least images/s written as a whole number.
WHOLE_RATE = 9.95

# Images that come closer together are of one batch. A mark is made at least so often, and those of
# so long make the rate.
PAUSE_SECONDS = 0.05
MARK_SECONDS = 1.0
WINDOW_SECONDS = 30.0
LEAST_MARKS = 2

# Its own is for processes too: where those are not forked, as on macOS, it starts one more, which
# ends with a warning on stderr.
tqdm.set_lock(threading.RLock())


class Shown(StrEnum):
    """Ways to show progress."""

    BAR = "bar"
    LINES = "lines"
    NOTHING = "nothing"


def how_shown(quiet: bool, wanted: bool | None) -> Shown:
    """Decide how to show progress.

    Args:
        quiet: whether nothing but errors is said.
        wanted: whether there is to be a bar; None for the default.
    """
    if quiet or wanted is False:
        return Shown.NOTHING
    return Shown.BAR if wanted or sys.stderr.isatty() else Shown.LINES


class Pace:
    """Measures images/s of the last half minute. Images come in batches, so the time is taken when
    one begins, and what came before the first batch, such as loading, does not count: a bar drawn
    in the middle of the first batch would promise hours."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._last = -math.inf
        self._count = 0

    def add(self, now: float) -> None:
        """Count one more image, which came at that time in seconds."""
        if now - self._last >= PAUSE_SECONDS or now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, self._count))
            while len(self._marks) > LEAST_MARKS and now - self._marks[1][0] > WINDOW_SECONDS:
                self._marks.popleft()
        self._count += 1
        self._last = now

    @property
    def rate(self) -> float | None:
        """Return images/s; None until a second batch has begun."""
        if not self._marks:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else None


class _Bar(tqdm):  # type: ignore[misc]
    """A bar with the rate of a `Pace`."""

    def __init__(self, pace: Pace, **options: Any) -> None:
        self._pace = pace
        super().__init__(**options)

    @property
    def format_dict(self) -> dict[str, Any]:
        # Nothing but 0 makes tqdm say that it does not know.
        return {**super().format_dict, "rate": self._pace.rate or 0}


class Progress:
    """Shows progress on stderr: a bar, or a line every minute.

    Args:
        how: how it is shown; True for a bar, False for nothing.
        count: counts the inputs (None: nobody can tell); runs in a thread of its own, so that the
            first image does not wait for it.
        done: inputs that an earlier run has done.
    """

    def __init__(self, how: Shown | bool, count: Callable[[], int | None], done: int = 0) -> None:
        shown = how in (True, Shown.BAR)
        self._before = self._done = done
        self._start = time.monotonic()
        self._total: int | None = None
        self._ended = threading.Event()
        if how is Shown.LINES:
            threading.Thread(target=self._log, args=[count], daemon=True).start()
        self._pace = Pace()
        self._bar = _Bar(
            pace=self._pace,
            disable=not shown,
            unit=" images",
            leave=False,
            initial=done,
            file=sys.stderr,
            delay=DELAY_SECONDS,
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, "
            "{rate_noinv_fmt}{postfix}]",
        )
        self._errors = 0
        self._show_warning = warnings.showwarning
        if shown:
            warnings.showwarning = self._warn
            self._bar.dynamic_ncols = _screen
            threading.Thread(target=self._set_total, args=[count], daemon=True).start()

    def _set_total(self, count: Callable[[], int | None]) -> None:
        with suppress(CvtError):  # the run itself reports it
            self._bar.total = count()

    def _log(self, count: Callable[[], int | None]) -> None:
        # Counting reads all folders once more, which a short run can do without.
        if self._ended.wait(LOG_SECONDS / 2):
            return
        threading.Thread(target=self._count, args=[count], daemon=True).start()
        while not self._ended.wait(LOG_SECONDS - (time.monotonic() - self._start) % LOG_SECONDS):
            say(self.in_words())

    def _count(self, count: Callable[[], int | None]) -> None:
        with suppress(CvtError):
            self._total = count()

    def in_words(self) -> str:
        """Format the progress as `12,400 of 60,000, 41 images/s, 19 min left, 3 errors`."""
        rate = self._pace.rate
        if rate is None:
            rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
        of = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self._done:,}{of}", f"{in_rate(rate)} images/s"]
        if self._total is not None and rate:
            parts.append(f"{in_time(max(0, self._total - self._done) / rate)} left")
        if self._errors:
            parts.append(f"{self._errors:,} error{'s' if self._errors > 1 else ''}")
        return ", ".join(parts)

    def add(self, failed: bool) -> None:
        """Count one more input."""
        self._done += 1
        self._pace.add(time.monotonic())
        self._errors += failed
        if self._bar.disable:
            return
        if failed:
            self._bar.set_postfix_str(counted(self._errors, "error"), refresh=False)
        self._bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bar while something else is printed."""
        if self._is_drawn():
            with tqdm.external_write_mode(file=sys.stderr):
                yield
        else:
            yield

    def _warn(self, *warning: Any, **more: Any) -> None:
        with self.paused():
            self._show_warning(*warning, **more)

    def close(self) -> None:
        """Remove the bar, and say no more."""
        self._ended.set()
        warnings.showwarning = self._show_warning
        if self._is_drawn():
            self._bar.clear()  # tqdm does not clear a bar that only `paused` has drawn
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[K")  # and whatever was typed after it
        self._bar.close()

    def _is_drawn(self) -> bool:
        return not self._bar.disable and self._bar.format_dict["elapsed"] >= DELAY_SECONDS


def in_rate(rate: float) -> str:
    """Format images/s as `1,240`, `41` or `3.2`."""
    return f"{rate:,.0f}" if rate >= WHOLE_RATE else f"{rate:.1f}"


def in_time(seconds: float) -> str:
    """Format seconds as `45 s`, `19 min`, `5 h` or `3 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _screen(stream: TextIO) -> tuple[int | None, int | None]:
    """Return the columns and rows that the bar may take."""
    with suppress(OSError, ValueError):
        size = os.get_terminal_size(stream.fileno())
        return size.columns - MARGIN_COLUMNS, size.lines
    return None, None
