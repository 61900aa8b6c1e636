"""The variables that say how long `huggingface_hub` waits.

It reads them as it is imported, for its cache as well, and a wrong one keeps it from that. So they
are set aside until the Hub is asked for something.
"""

import os

from cvt_cli.errors import UsageError

_NAMES = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_wrong: dict[str, str] = {}


def set_wrong_ones_aside() -> None:
    """Take what is no number of seconds out of the environment; what is empty counts as not set.
    Call it before `huggingface_hub` is imported."""
    _wrong.clear()
    for name in _NAMES:
        value = os.environ.get(name, "0").strip()
        if value.isdecimal():
            continue
        del os.environ[name]
        if value:
            _wrong[name] = value


def check_hub_timeouts() -> None:
    """Raise `UsageError` if one was wrong. Call it before the Hub is asked for something."""
    for name, value in _wrong.items():
        raise UsageError(
            f"{name} is {value!r}, not a number of seconds", hint="correct it, or unset it"
        )
