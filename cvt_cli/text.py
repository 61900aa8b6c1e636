"""Text that others wrote, on its way to a person."""


def visible(text: str) -> str:
    """Control characters as escapes, so that a name can't steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def reason_of(error: Exception) -> str:
    """What the operating system says went wrong, or the error itself where that says nothing."""
    return (getattr(error, "strerror", None) or str(error)).lower()
