"""Images behind http(s) addresses, by `web`.

A server may send anything, late or never: size and time are bounded.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from cvt_cli.errors import ImageError
from cvt_cli.images.retries import network_reason, with_retries
from cvt_cli.images.source import too_large
from cvt_cli.images.spool import CHUNK, Spool
from cvt_cli.images.web import Answer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def open_http(url: str, timeout: float, max_bytes: int) -> BinaryIO:
    """Download a file.

    Args:
        url: http or https. Redirects are followed, to those two only.
        timeout: seconds that nothing may come; then, and after what may be over soon, it is tried
            again, three times in all.
        max_bytes: what is larger is refused.

    Raises:
        ImageError: says what came instead.
    """

    def download() -> BinaryIO:
        spool = Spool(max_bytes)
        with Answer(url, timeout) as answer:
            if answer.length is not None and answer.length > max_bytes:
                raise too_large(max_bytes)
            while chunk := answer.read(CHUNK):
                spool.write(chunk)
            # http.client takes a cut connection for the end.
            if answer.length is not None and spool.received < answer.length:
                raise ConnectionError(f"cut off after {spool.received} of {answer.length} bytes")
        return spool.take()

    return with_retries(download, timeout)


def stream_http(url: str, timeout: float) -> BinaryIO:
    """Open a download that is read once, as it arrives. Raises: as `open_http`, also during
    reading."""
    return io.BufferedReader(
        _AnswerStream(with_retries(lambda: Answer(url, timeout), timeout), timeout), CHUNK
    )


class _AnswerStream(io.RawIOBase):
    """An answer that fails when nothing arrives for too long."""

    def __init__(self, answer: Answer, timeout: float) -> None:
        self._answer = answer
        self._timeout = timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._answer.read(len(view))
        except Exception as error:
            raise ImageError(network_reason(error, self._timeout)) from None
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._answer.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Download:
    """A place: a file behind an http(s) address; see `open_http`."""

    url: str
    timeout: float
    max_bytes: int
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Download all of it. Raises: ImageError."""
        return open_http(self.url, self.timeout, self.max_bytes)


@dataclass(frozen=True, slots=True)
class HttpStream:
    """A place: a download that is read as it arrives; see `stream_http`."""

    url: str
    timeout: float
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Open a file that is read once. Raises: ImageError."""
        return stream_http(self.url, self.timeout)
