"""The progress bar of a run: done, total, images/s, time left, errors."""

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

from cvt_cli.system.text import counted

# For the ^C that a terminal writes behind the bar.
MARGIN_COLUMNS = 3
# A run that is over in no time needs no bar.
DELAY_SECONDS = 1.0

# Its own is for processes too: where those are not forked, as on macOS, it starts one more, which
# ends with a warning on stderr.
tqdm.set_lock(threading.RLock())


class Progress:
    """A bar on stderr.

    Args:
        shown: False for no bar at all.
        count: counts the inputs (None: nobody can tell); runs in a thread of its own, so that the
            first image does not wait for it.
        done: inputs that an earlier run has done.
    """

    def __init__(self, shown: bool, count: Callable[[], int | None], done: int = 0) -> None:
        self._bar = tqdm(
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
        self._bar.total = count()

    def add(self, failed: bool) -> None:
        """Count one more input."""
        if failed:
            self._errors += 1
            self._bar.set_postfix_str(counted(self._errors, "error"), refresh=False)
        self._bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Make room for what is printed meanwhile."""
        if self._is_drawn():
            with tqdm.external_write_mode(file=sys.stderr):
                yield
        else:
            yield

    def _warn(self, *warning: Any, **more: Any) -> None:
        with self.paused():
            self._show_warning(*warning, **more)

    def close(self) -> None:
        """Take the bar away."""
        warnings.showwarning = self._show_warning
        if self._is_drawn():
            self._bar.clear()  # tqdm leaves one that only `paused` has drawn
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[K")  # and what was typed behind it
        self._bar.close()

    def _is_drawn(self) -> bool:
        return not self._bar.disable and self._bar.format_dict["elapsed"] >= DELAY_SECONDS


def _screen(stream: TextIO) -> tuple[int | None, int | None]:
    """Return the columns that the bar may have, and rows."""
    with suppress(OSError, ValueError):
        size = os.get_terminal_size(stream.fileno())
        return size.columns - MARGIN_COLUMNS, size.lines
    return None, None
