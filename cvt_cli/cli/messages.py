"""What is said on stderr."""

import sys

from cvt_cli.system.text import visible


def say(message: str) -> None:
    """One line on stderr, whatever is in the message."""
    print(f"cvt: {visible(' '.join(message.split()))}", file=sys.stderr)
