"""Python's search for garbage in cycles."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects made since the last search that start the next one. Python's own 700 or 2,000 are made by
# a few images.
_MANY = 20_000


@contextmanager
def loading() -> Iterator[None]:
    """Don't search while a million objects come that stay, as with torch's import, and never look
    at them again. That takes a ninth off the import."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
        gc.set_threshold(_MANY, *gc.get_threshold()[1:])
    finally:
        gc.enable()
