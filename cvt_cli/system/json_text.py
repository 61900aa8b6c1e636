"""Parsing of JSON from others."""

import json
from typing import Any


def parse_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is none, or is nested deeper than Python's stack.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
