"""Messages on stderr."""

import shutil
import sys
import textwrap

from cvt_cli.records import masked
from cvt_cli.system.text import visible


def say(message: str) -> None:
    """Print a message on stderr, whatever characters it has: as one line in logs, wrapped between
    words on a terminal."""
    if sys.stderr.isatty():
        _print_wrapped("cvt: ", message, indent="     ")
    else:
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
    for start, text in (("cvt: error: ", message), ("  hint: ", hint)):
        if text:
            _print_wrapped(start, text, indent=" " * len(start))


def _print_wrapped(start: str, text: str, *, indent: str) -> None:
    lines = textwrap.wrap(
        shown(text),
        max(40, shutil.get_terminal_size().columns),
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    print("\n".join(lines), file=sys.stderr)
