"""Messages on stderr."""

import shutil
import sys
import textwrap

from cvt_cli.records import masked
from cvt_cli.system.text import visible


def say(message: str) -> None:
    """Print a message as one line on stderr, whatever characters it has."""
    print(f"cvt: {shown(message)}", file=sys.stderr)


def shown(message: str) -> str:
    """Return a message as one line that steers no terminal and tells nobody's password."""
    return visible(masked(" ".join(message.split())))


def report(message: str, hint: str = "") -> None:
    """Print an error on stderr: as one line in logs; on a terminal wrapped between words, with the
    hint on lines of its own."""
    if not sys.stderr.isatty():
        say(f"error: {message}; {hint}" if hint else f"error: {message}")
        return
    width = max(40, shutil.get_terminal_size().columns)
    for start, text in (("cvt: error: ", message), ("  hint: ", hint)):
        if text:
            lines = textwrap.wrap(
                shown(text),
                width,
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_long_words=False,
                break_on_hyphens=False,
            )
            print("\n".join(lines), file=sys.stderr)
