"""Requests over http(s), by the standard library. Whatever the server answers, and however slowly,
every byte and every second of it is bounded.

The bounds are kept where bytes come in, in the socket: http.client reads headers, `100 Continue`
and trailers for as long as there are any, and a socket's own timeout starts anew with each byte.
"""

import base64
import http.client
import io
import socket
import ssl
import threading
import time
import urllib.request
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from cvt_cli import __version__

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Bytes of content that must arrive within a timeout; with fewer the transfer has stalled.
LEAST_BYTES = 2**10
# After this many timeouts, a download must have brought this many bytes per second.
PATIENCE = 10
LEAST_RATE = 2**16
# Bytes other than content, such as status lines and headers: before the content, with all
# redirections; and between two pieces of content.
_MAX_HEAD = 2**19
_MAX_BETWEEN = 2**24
_MAX_REDIRECTIONS = 10
_LENGTH_DIGITS = 20  # a longer Content-Length is not credible


class TooSlow(TimeoutError):
    """Bytes keep arriving, but too slowly to wait for."""


class Bounds:
    """Limits on the time of a server's answer, and on its bytes other than content.

    Args:
        timeout: seconds, for everything before the content and for each `LEAST_BYTES` of it.

    Raises:
        TimeoutError: from its methods, once that is over.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._start = time.monotonic()
        self._end = self._start + timeout
        self._room = _MAX_HEAD
        self._content = 0
        self._since = 0
        self._latest = self._start + PATIENCE * timeout
        self._paused: float | None = None

    def left(self) -> float:
        """Return the seconds that are left."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TooSlow if self._end >= self._latest - 1e-6 else TimeoutError
        return seconds

    def take(self, count: int) -> None:
        """Count bytes that the socket has brought. Raises: ConnectionError if they are too many."""
        self._room -= count
        if self._room < 0:
            raise ConnectionError("the server sends headers without end")

    def content(self, count: int) -> None:
        """Count bytes of content, which extend the time."""
        self._content += count
        self._since += count
        if self._since >= LEAST_BYTES:
            self._since = 0
            self._room = _MAX_BETWEEN
            allowed = PATIENCE * self._timeout + self._content / LEAST_RATE
            self._latest = self._start + allowed
            self._end = min(time.monotonic() + self._timeout, self._latest)

    def pause(self) -> None:
        """Stop the clock, while nobody waits for the server."""
        self._paused = time.monotonic()

    def go_on(self) -> None:
        """Start the clock again."""
        if self._paused is not None:
            idle = time.monotonic() - self._paused
            self._start += idle
            self._latest += idle
            self._end += idle
            self._paused = None


class _Bounded:
    """A reader of a socket, within bounds. A stream made from it reads only through it."""

    bounds: Bounds

    def recv_into(self, buffer: "WriteableBuffer", *arguments: Any) -> int:
        it = cast(Any, self)
        it.settimeout(self.bounds.left())
        try:
            count: int = cast(Any, super()).recv_into(buffer, *arguments)
        except TimeoutError:
            self.bounds.left()  # raises the error of the limit that was hit
            raise
        self.bounds.take(count)
        return count


class _Socket(_Bounded, socket.socket):
    pass


class _SecureSocket(_Bounded, ssl.SSLSocket):
    pass


def _connected(
    address: tuple[str, int], timeout: float, source: object, *, bounds: Bounds
) -> _Socket:
    """Connect to the first of a host's addresses that answers, as `socket.create_connection` does,
    but with one timeout for all."""
    error: OSError | None = None
    for family, kind, protocol, _, place in _addresses(address, bounds):
        it = _Socket(family, kind, protocol)
        it.bounds = bounds
        try:
            it.settimeout(bounds.left())
            it.connect(place)
            it.settimeout(bounds.left())  # applies to the handshake that may follow, too
            return it
        except OSError as problem:
            it.close()
            error = problem
    raise error or OSError("no address")


def _addresses(address: tuple[str, int], bounds: Bounds) -> list[Any]:
    """Look up a host, in a thread: the system's resolver has its own timeouts."""
    found: list[Any] = []
    errors: list[OSError | UnicodeError] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            errors.append(error)

    thread = threading.Thread(target=look_up, name="resolver", daemon=True)
    thread.start()
    thread.join(bounds.left())
    bounds.left()
    if errors:
        raise errors[0]
    return found


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, bounds: Bounds, **others: Any) -> None:
        super().__init__(host, **others)
        self._create_connection = partial(_connected, bounds=bounds)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, bounds: Bounds, **others: Any) -> None:
        super().__init__(host, **others)
        self._bounds = bounds
        self._create_connection = partial(_connected, bounds=bounds)
        cast(Any, self)._context.sslsocket_class = _SecureSocket

    def connect(self) -> None:
        super().connect()
        cast(_SecureSocket, self.sock).bounds = self._bounds


class _Request(urllib.request.Request):
    """A request, and the bounds of its answer."""

    bounds: Bounds

    @classmethod
    def to(cls, url: str, headers: dict[str, str], bounds: Bounds) -> Self:
        """Make the request for an address, with its user and password in a header."""
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        request = cls(urlunsplit(parts._replace(netloc=host)), headers=headers)
        request.bounds = bounds
        if at:
            name, _, password = user.partition(":")
            pair = f"{unquote(name)}:{unquote(password)}".encode()
            word = f"Basic {base64.b64encode(pair).decode()}"
            # Must not be sent to the target of a redirection.
            request.add_unredirected_header("Authorization", word)
        return request

    def origin(self) -> tuple[str, str]:
        return self.type, self.host.lower()


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_Connection, bounds=cast(_Request, req).bounds)
        return self.do_open(cast(Any, connection), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_SecureConnection, bounds=cast(_Request, req).bounds)
        return self.do_open(cast(Any, connection), req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTIONS

    def http_error_302(self, req: Any, fp: IO[bytes], *others: Any) -> Any:
        fp.close()  # urllib would read it to its end, which may never come
        return super().http_error_302(req, io.BytesIO(), *others)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = cast(Any, http_error_302)

    def redirect_request(self, req: Any, *others: Any) -> urllib.request.Request | None:
        found = super().redirect_request(req, *others)
        if found is None:
            return None
        request = _Request.to(found.full_url, dict(found.headers), req.bounds)
        word = req.unredirected_hdrs.get("Authorization")
        if word and not request.has_header("Authorization") and request.origin() == req.origin():
            request.add_unredirected_header("Authorization", word)
        return request


# build_opener would add ftp:, file: and data:, where a redirect must not lead.
_opener = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.UnknownHandler(),
    _Http(),
    _Https(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
):
    _opener.add_handler(_handler)


class Answer:
    """A server's answer, read within bounds; to be closed.

    Args:
        url: http or https, maybe with user and password. Redirects are followed, to those two only.
        timeout: seconds; see `Bounds`.

    Attributes:
        length: bytes of content as the server says; None if it doesn't.

    Raises:
        Exception: what urllib and http.client make of what came.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._bounds = Bounds(timeout)
        headers = {"User-Agent": f"cvt-cli/{__version__}", "Accept": "image/*, */*;q=0.5"}
        request = _Request.to(_quoted(url), headers, self._bounds)
        self._response: http.client.HTTPResponse = _opener.open(request, timeout=timeout)
        length = self._response.headers.get("Content-Length", "")
        self.length = int(length) if length.isdecimal() and len(length) < _LENGTH_DIGITS else None
        self._bounds.pause()

    def read(self, size: int) -> bytes:
        """Return some bytes of the content; none at its end."""
        self._bounds.go_on()
        data = self._response.read1(size)
        self._bounds.content(len(data))
        self._bounds.pause()
        return data

    def close(self) -> None:
        """Close the connection, without reading the rest."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quoted(url: str) -> str:
    """Escape the spaces and umlauts that people type, which can't be sent."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    host = host.encode("idna").decode() if not host.isascii() else host
    path, query = (
        quote(part, safe="/%:@!$&'()*+,;=?~[]", errors="surrogateescape")
        for part in (parts.path, parts.query)
    )
    return urlunsplit((parts.scheme, f"{user}{at}{host}", path, query, ""))
