"""Second and third tries of what the network refuses, and what to say of the last."""

import http.client
import re
import ssl
import time
import urllib.error
from collections.abc import Callable
from typing import TypeVar

from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.source import one_line
from cvt_cli.images.web import LEAST_RATE, PATIENCE, TooSlow
from cvt_cli.system.text import visible

T = TypeVar("T")
# Seconds before the second and the third try.
_BACK_OFF = (0.5, 1.0)


def with_retries(work: Callable[[], T], timeout: float) -> T:
    """Return what `work` returns, at the third try at the latest.

    Args:
        timeout: seconds, at most, that a server may ask to wait.

    Raises:
        ImageError: after the third try, or where another would bring nothing else.
    """
    for pause in (*_BACK_OFF, None):
        try:
            return work()
        except (ImageError, NoTemporaryFiles):
            raise
        # Which errors a store's client raises is not documented.
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise ImageError(network_reason(error, timeout)) from None
            if not isinstance(error, TimeoutError):  # which was a pause
                time.sleep(max(pause, min(_retry_after(error), timeout)))
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    if isinstance(error, TooSlow):
        return False
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR or error.code in (408, 425, 429)
    if isinstance(error, urllib.error.URLError):
        return not isinstance(error.reason, ssl.SSLCertVerificationError | str)
    lasting = (
        FileNotFoundError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
        ValueError,
        TypeError,
        NotImplementedError,
        ImportError,
        http.client.InvalidURL,
    )
    return not isinstance(error, lasting) and not re.search("Credential|Auth", type(error).__name__)


def _retry_after(error: Exception) -> float:
    if isinstance(error, urllib.error.HTTPError):
        seconds = error.headers.get("Retry-After", "")
        if seconds.isdecimal():
            return float(seconds)
    return 0.0


def network_reason(error: Exception, timeout: float) -> str:
    """Say in one line why the network brought nothing."""
    if isinstance(error, urllib.error.HTTPError):
        return visible(f"the server says {error.code} {error.reason}".rstrip())
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TooSlow):
        return f"timed out: less than {LEAST_RATE >> 10} KiB a second for {PATIENCE * timeout:g} s"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"timed out: nothing came for {timeout:g} s"
    if isinstance(error, PermissionError):
        return f"permission denied ({one_line(error)})"
    return _os_words(error) or one_line(error)


def _os_words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else ""
