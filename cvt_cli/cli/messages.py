"""What is said on stderr."""

import sys


def say(message: str) -> None:
    """One line on stderr, whatever is in the message."""
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(message.split())
    )
    print(f"cvt: {line}", file=sys.stderr)
