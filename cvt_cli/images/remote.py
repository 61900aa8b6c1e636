"""Images on the network: http(s) by the standard library, all other addresses by fsspec.

A server may send anything, late or never: size and time are bounded.
"""

import http.client
import io
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from cvt_cli import __version__
from cvt_cli.errors import ImageError, NoTemporaryFiles
from cvt_cli.images.source import Filter, Source, failing, one_line
from cvt_cli.images.spool import CHUNK, Spool
from cvt_cli.system.extras import install_hint
from cvt_cli.system.text import reason_of, visible

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

# Seconds before the second and the third try.
_BACK_OFF = (0.5, 1.0)
# Bytes that must arrive within a timeout; with fewer the transfer has stalled.
_LEAST_BYTES = 2**10
# Bytes of a store's object per request. Nearly every photograph is smaller.
_FIRST_REQUEST = 2**22

# Extras that install the clients of stores.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


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

    def download(spool: Spool) -> None:
        with _request(url, timeout) as response:
            while chunk := response.read1(CHUNK):
                spool.write(chunk)
            # http.client takes a lost connection for the end.
            length = response.headers.get("Content-Length", "")
            if length.isdecimal() and spool.received < int(length):
                raise ConnectionError(f"cut off after {spool.received} of {length} bytes")

    return _tries(lambda: _download(download, timeout, max_bytes), timeout)


def stream_http(url: str, timeout: float) -> BinaryIO:
    """Open a download that is read once, as it arrives. Raises: as `open_http`, also during
    reading."""
    response = _tries(lambda: _request(url, timeout), timeout)
    return io.BufferedReader(_Stream(response, timeout), CHUNK)


class _Stream(io.RawIOBase):
    """A response that fails when nothing arrives for too long."""

    def __init__(self, response: http.client.HTTPResponse, timeout: float) -> None:
        self._response = response
        self._timeout = timeout
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        data = bytearray()

        def read() -> None:
            while chunk := self._response.read1(len(view) - len(data)):
                data.extend(chunk)

        if self._error is None:
            try:
                _in_time(read, lambda: len(data), self._timeout)
            except Exception as error:
                self._error = error
        # What arrived before it is not lost.
        if self._error is not None and not data:
            raise ImageError(_reason(self._error, self._timeout))
        received = bytes(data)  # a copy, as the thread may go on
        view[: len(received)] = received
        return len(received)

    def close(self) -> None:
        # Closing would wait for a thread that still reads.
        if self._error is None:
            self._response.close()
        super().close()


class Store:
    """A file system on the network, opened for one address.

    Args:
        url: as fsspec takes it, `s3://bucket/photos/` say.
        timeout, max_bytes: as for `open_http`.

    Raises:
        ImageError: if the package for such addresses is missing (named), or they make no sense.
    """

    def __init__(self, url: str, timeout: float, max_bytes: int) -> None:
        import fsspec

        self._timeout = timeout
        self._max_bytes = max_bytes
        self._url = url
        self._scheme = url.split("://", 1)[0]
        try:
            kind = fsspec.get_filesystem_class(self._scheme)
            # Host, user and port, if such addresses have them.
            place = kind._get_kwargs_from_urls(url)
            self._fs = fsspec.filesystem(self._scheme, **place, **self._options())
            self.path: str = kind._strip_protocol(url)
        except ImportError as error:
            extra = _EXTRAS.get(self._scheme)
            install = f": {install_hint(extra)}" if extra else f" ({one_line(error)})"
            raise ImageError(f"{self._scheme}:// needs a package more{install}") from None
        except OSError as error:
            raise ImageError(reason_of(error)) from None
        except TypeError:
            raise ImageError(f"{self._scheme}:// needs more than an address") from None
        except Exception as error:
            raise ImageError(one_line(error)) from None
        if self._is_s3():
            self._fs.retries = 1  # as in _options

    def __reduce__(self) -> tuple[type["Store"], tuple[str, float, int]]:
        """Another process connects anew."""
        return Store, (self._url, self._timeout, self._max_bytes)

    def _is_s3(self) -> bool:
        return self._scheme in ("s3", "s3a")

    def _options(self) -> dict[str, Any]:
        if self._scheme == "ftp":
            return {"timeout": self._timeout}
        if not self._is_s3():
            return {}
        from fsspec.config import conf

        # Attempts are counted here.
        ours = {
            "connect_timeout": self._timeout,
            "read_timeout": self._timeout,
            "retries": {"total_max_attempts": 1},
        }
        return {"config_kwargs": ours | conf.get(self._scheme, {}).get("config_kwargs", {})}

    def url(self, path: str) -> str:
        """Return the address of a path in this store."""
        return f"{self._scheme}://{path.lstrip('/')}"

    def is_folder(self) -> bool:
        """Tell whether the address is a folder. Raises: ImageError."""
        return bool(self._try(lambda: self._fs.isdir(self.path)))

    def is_file(self) -> bool:
        """Tell whether such a file exists. Raises: ImageError."""
        return bool(self._try(lambda: self._fs.isfile(self.path)))

    def glob(self) -> list[str]:
        """Return the paths that match the address, sorted, without hidden files. Raises:
        ImageError."""
        found: list[str] = self._try(lambda: self._fs.glob(self.path))
        return sorted(path for path in found if not path.rsplit("/", 1)[-1].startswith("."))

    def walk(self, wanted: Filter, recursive: bool) -> Iterator[Source]:
        """Yield the images below this address, sorted within each folder. A folder that can't be
        listed is a `Source` that fails."""
        top = self.path.rstrip("/")
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                entries = self._list(folder)
            except ImageError as error:
                yield failing(self._url if folder == top else self.url(folder), error)
                continue
            inner = []
            for path, is_folder in entries:
                name = path.rsplit("/", 1)[-1]
                relative = path.removeprefix(top).lstrip("/")
                if not is_folder:
                    if wanted.wants_file(name, relative):
                        yield self.source(path)
                elif recursive and wanted.wants_folder(name, relative):
                    inner.append(path)
            folders += reversed(inner)

    def source(self, path: str) -> Source:
        """Return one file of this store as a source."""
        return Source(self.url(path), StoreFile(self, path))

    def open(self, path: str) -> BinaryIO:
        """Download a file. Raises: ImageError."""

        def download(spool: Spool) -> None:
            start = self._start(path)
            spool.write(start)
            if len(start) == _FIRST_REQUEST:
                with self._fs.open(path, "rb") as file:
                    file.seek(len(start))
                    spool.copy(file)

        return _tries(lambda: _download(download, self._timeout, self._max_bytes), self._timeout)

    def _start(self, path: str) -> bytes:
        try:
            start: bytes = self._fs.cat_file(path, start=0, end=_FIRST_REQUEST)
        except OSError as error:
            # Some servers refuse a range of bytes in an empty file.
            lasting = (FileNotFoundError, PermissionError, TimeoutError, ConnectionError)
            if isinstance(error, lasting) or self._fs.info(path).get("size") != 0:
                raise
            return b""
        return start

    def stream(self) -> BinaryIO:
        """Open the file at this address, seekable, to be read piece by piece. Raises: ImageError;
        during reading, whatever its client raises."""
        file: BinaryIO = self._try(lambda: self._fs.open(self.path, "rb"))
        return file

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        def names() -> list[tuple[str, bool]]:
            found = self._fs.ls(folder, detail=True)
            # The client would keep each folder's listing in memory.
            self._fs.invalidate_cache()
            return sorted(
                (path, entry["type"] == "directory")
                for entry in found
                # Stores list a folder's own marker among its contents.
                if (path := entry["name"].rstrip("/")) != folder
            )

        return self._try(names)

    def _try(self, work: Callable[[], T]) -> T:
        return _tries(work, self._timeout)


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


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A place: a file of a store."""

    store: Store
    path: str
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Download all of it. Raises: ImageError."""
        return self.store.open(self.path)


@dataclass(frozen=True, slots=True)
class StoreStream:
    """A place: a file of a store, read piece by piece."""

    store: Store
    is_local: bool = False

    def open(self) -> BinaryIO:
        """Open the file; see `Store.stream`. Raises: ImageError."""
        return self.store.stream()


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 10


# build_opener would add ftp:, file: and data:, where a redirect must not lead.
_opener = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.UnknownHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
):
    _opener.add_handler(_handler)


def _request(url: str, timeout: float) -> http.client.HTTPResponse:
    request = urllib.request.Request(
        _quoted(url),
        headers={"User-Agent": f"cvt-cli/{__version__}", "Accept": "image/*, */*;q=0.5"},
    )
    response: http.client.HTTPResponse = _opener.open(request, timeout=timeout)
    return response


def _quoted(url: str) -> str:
    """Escape the spaces and umlauts that people type, which can't be sent."""
    parts = urlsplit(url)
    host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    path, query = (
        quote(part, safe="/%:@!$&'()*+,;=?~[]", errors="surrogateescape")
        for part in (parts.path, parts.query)
    )
    return urlunsplit((parts.scheme, host, path, query, ""))


def _download(work: Callable[[Spool], None], timeout: float, max_bytes: int) -> BinaryIO:
    """Let `work` fill a spool, as long as bytes arrive."""
    spool = Spool(max_bytes)
    try:
        _in_time(lambda: work(spool), lambda: spool.received, timeout)
    except BaseException:
        # The thread ends when the next byte arrives, if ever.
        spool.close()
        raise
    return spool.take()


def _in_time(work: Callable[[], None], received: Callable[[], int], timeout: float) -> None:
    """Run `work`, as long as bytes arrive.

    It runs in a thread of its own: not every client has timeouts, and most timeouts start anew
    with each byte.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="download", daemon=True).start()
    before = 0
    while not ended.wait(timeout):
        if received() - before < _LEAST_BYTES:
            raise TimeoutError
        before = received()
    if errors:
        raise errors[0]


def _tries(work: Callable[[], T], timeout: float) -> T:
    for pause in (*_BACK_OFF, None):
        try:
            return work()
        except (ImageError, NoTemporaryFiles):
            raise
        # Which errors a store's client raises is not documented.
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise ImageError(_reason(error, timeout)) from None
            time.sleep(max(pause, min(_retry_after(error), timeout)))
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 425, 429)
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


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return visible(f"the server says {error.code} {error.reason}".rstrip())
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"timed out: nothing came for {timeout:g} s"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return f"permission denied ({one_line(error)})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(error)
