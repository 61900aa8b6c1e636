"""Images behind addresses: http on the loopback interface, and what fsspec knows."""

import base64
import contextlib
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvt_cli.errors import ImageError
from cvt_cli.images import http_images, retries, store_images, web
from cvt_cli.images.find import count_sources, find
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Search, Source
from cvt_cli.images.spool import Spool
from tests.images.test_archives import MEMBERS, make, random

BODY = random(7)
TIMEOUT = 0.5


class Handler(BaseHTTPRequestHandler):
    """A server's every mood, by the first part of the path."""

    server: "Server"

    def do_GET(self) -> None:
        mood, _, rest = self.path[1:].partition("/")
        self.server.seen[self.path] += 1
        self.server.headers.append(dict(self.headers))
        with contextlib.suppress(OSError):
            getattr(self, f"_{mood}", self._missing)(rest)

    def _missing(self, rest: str) -> None:
        self.send_error(404)

    def _ok(self, rest: str, body: bytes = BODY, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _status(self, rest: str) -> None:
        self.send_error(int(rest.split("/", maxsplit=1)[0]))

    def _busy(self, rest: str) -> None:
        self.send_response(503)
        self.send_header("Retry-After", rest)
        self.end_headers()

    def _flaky(self, rest: str) -> None:
        """Fails twice."""
        if self.server.seen[self.path] < 3:
            self.send_error(503)
        else:
            self._ok(rest)

    def _redirect(self, rest: str) -> None:
        self.send_response(302)
        self.send_header("Location", "/" + rest if ":" not in rest else rest)
        self.end_headers()

    def _loop(self, rest: str) -> None:
        self._redirect("loop/" + rest)

    def _mute(self, rest: str) -> None:
        self.server.closing.wait(20)

    def _stall(self, rest: str) -> None:
        self._ok(rest, BODY[:100], len(BODY))
        self.server.closing.wait(20)

    def _drip(self, rest: str) -> None:
        """A byte now and then: no read of it ever waits for long."""
        self._ok(rest, b"", len(BODY))
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x")

    def _drip_long(self, rest: str) -> None:
        self._ok(rest, b"", len(BODY))
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x" * 10)

    def _drip_after(self, rest: str) -> None:
        """Half of a file, and the other a byte now and then."""
        self._half(rest)
        data = Path(self.server.folder, rest).read_bytes()
        for byte in data[len(data) // 2 :]:
            if self.server.closing.wait(0.05):
                return
            self.wfile.write(bytes([byte]))

    def _drip_chunks(self, rest: str) -> None:
        """The size of a chunk that is never told."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"0")

    def _drip_headers(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x")

    def _continue(self, rest: str) -> None:
        while not self.server.closing.wait(0.01):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _headers(self, rest: str) -> None:
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 2**12)

    def _trailer(self, rest: str) -> None:
        """Chunked content, and behind its end headers for ever."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        while True:
            self.wfile.write(b"X: y\r\n" * 2**14)

    def _moved(self, rest: str) -> None:
        """A redirection whose body never ends."""
        self._redirect(rest)
        with contextlib.suppress(OSError):
            while not self.server.closing.is_set():
                self.wfile.write(bytes(2**16))
                self.server.sent += 2**16

    def _wait(self, rest: str) -> None:
        """A redirection to itself, after a while: none of them takes long."""
        self.server.closing.wait(0.3)
        self._redirect(f"wait/{len(self.server.seen)}")

    def _private(self, rest: str) -> None:
        word = base64.b64encode(b"me:p@ss:w").decode()
        if self.headers["Authorization"] == f"Basic {word}":
            self._ok(rest)
        else:
            self.send_error(401)

    def _slow(self, rest: str) -> None:
        """Longer than the timeout in all, but never still."""
        self.send_response(200)
        self.end_headers()
        for at in range(0, len(BODY), 2000):
            self.wfile.write(BODY[at : at + 2000])
            self.server.closing.wait(0.08)

    def _reset(self, rest: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def _cut(self, rest: str) -> None:
        self._ok(rest, BODY[:5000], len(BODY))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _cut_once(self, rest: str) -> None:
        (self._cut if self.server.seen[self.path] < 2 else self._ok)(rest)

    def _endless(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")

    def _garbage(self, rest: str) -> None:
        self.wfile.write(b"\0\1\2 what?\r\n\r\n")

    def _steer(self, rest: str) -> None:
        """To a terminal, a title and a clear screen."""
        self.wfile.write(b"HTTP/1.1 404 \x1b]0;pwned\x07\x1b[2JGone\r\n\r\n")

    def _file(self, rest: str) -> None:
        self._ok(rest, Path(self.server.folder, rest.split("?", maxsplit=1)[0]).read_bytes())

    def _half(self, rest: str) -> None:
        data = Path(self.server.folder, rest).read_bytes()
        self._ok(rest, data[: len(data) // 2], len(data))

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self.sent = 0

    def handle_error(self, *args: object) -> None:
        """A client that goes away is what is tested."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(retries, "_BACK_OFF", (0.01, 0.02))
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


def result(source: Source) -> bytes | str:
    """What is read, or why not."""
    try:
        with source.open() as file:
            return file.read()
    except ImageError as error:
        return str(error)


def fetch(url: str, **search: Any) -> bytes | str:
    (source,) = find([url], Search(**{"timeout": TIMEOUT, **search}))
    assert source.path == url
    return result(source)


def test_a_download(server: Server) -> None:
    assert fetch(f"{server.url}/ok") == BODY
    assert fetch(server.url.replace("http", "HTTP") + "/ok/0.jpg") == BODY
    assert fetch(f"{server.url}/ok/?size=[1]*{{a}}") == BODY
    assert server.seen["/ok/?size=[1]*%7Ba%7D"] == 1
    assert fetch(f"{server.url}/ok/füß b%20c.jpg#part") == BODY
    assert server.seen["/ok/f%C3%BC%C3%9F%20b%20c.jpg"] == 1
    assert server.headers[0]["User-Agent"].startswith("cvt-cli/")


def test_nothing_is_downloaded_before_it_is_opened(server: Server) -> None:
    urls = [f"{server.url}/ok/{i}.jpg" for i in range(3)]
    assert [source.path for source in find(urls)] == urls
    assert count_sources(urls) == 3
    assert not server.seen


def test_ranges_of_addresses(server: Server) -> None:
    sources = list(find([f"{server.url}/ok/{{08..11}}.jpg"]))
    assert [source.path[-6:] for source in sources] == ["08.jpg", "09.jpg", "10.jpg", "11.jpg"]
    assert result(sources[3]) == BODY


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("missing.jpg", "the server says 404 Not Found", 1),
        ("status/401", "the server says 401 Unauthorized", 1),
        ("status/403", "the server says 403 Forbidden", 1),
        ("steer", r"the server says 404 \x1b]0;pwned\x07\x1b[2JGone", 1),
        ("status/410", "the server says 410 Gone", 1),
        ("status/429", "the server says 429 Too Many Requests", 3),
        ("status/500", "the server says 500 Internal Server Error", 3),
        ("redirect/missing", "the server says 404 Not Found", 1),
        ("mute", "timed out: nothing came for 0.5 s", 3),
        ("stall", "timed out: nothing came for 0.5 s", 3),
        ("drip", "timed out: nothing came for 0.5 s", 3),
        ("drip_headers", "timed out: nothing came for 0.5 s", 3),
        ("continue", "timed out: nothing came for 0.5 s", 3),
        ("headers", "the server sends headers without end", 3),
        ("trailer", "the server sends headers without end", 3),
        ("reset", "connection reset by peer", 3),
        ("cut", f"cut off after 5000 of {len(BODY)} bytes", 3),
        ("endless", "more than the limit of 1000000 bytes", 1),
    ],
)
def test_what_goes_wrong(path: str, reason: str, requests: int, server: Server) -> None:
    # What does not time out must not, on a busy machine either.
    timeout = TIMEOUT if reason.startswith("timed out") else 60
    start = time.monotonic()
    assert fetch(f"{server.url}/{path}", max_bytes=10**6, timeout=timeout) == reason
    assert server.seen[f"/{path}"] == requests
    assert time.monotonic() - start < 3 * 2 * TIMEOUT + 20


def test_the_body_of_a_redirection_is_not_read(server: Server) -> None:
    assert fetch(f"{server.url}/moved/ok") == BODY
    assert server.sent < 2**25


def test_all_redirections_share_one_timeout(server: Server) -> None:
    assert fetch(f"{server.url}/wait") == "timed out: nothing came for 0.5 s"
    assert server.seen.total() == 6  # two in each of three tries


def test_a_download_without_end_in_sight(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KiB in each timeout is not enough for ever."""
    monkeypatch.setattr(web, "PATIENCE", 2)
    monkeypatch.setattr(web, "LEAST_BYTES", 10)
    reason = fetch(f"{server.url}/drip_long")
    assert reason == "timed out: less than 64 KiB a second for 5 s"
    assert server.seen.total() == 1


def test_a_stream_counts_no_time_in_which_nobody_reads(server: Server) -> None:
    Path(server.folder, "x").write_bytes(bytes(2**22))
    with http_images.stream_http(f"{server.url}/file/x", TIMEOUT) as stream:
        count = len(stream.read(2**20))
        time.sleep(2 * TIMEOUT)
        assert count + len(stream.read()) == 2**22


@pytest.mark.parametrize("mood", ["drip_headers", "continue", "mute"])
def test_a_stream_that_never_begins(mood: str, server: Server) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match="timed out"):
        http_images.stream_http(f"{server.url}/{mood}", TIMEOUT)
    assert time.monotonic() - start < 3 * TIMEOUT + 20


def test_user_and_password_in_an_address(server: Server) -> None:
    url = server.url.replace("//", "//me:p%40ss%3Aw@")
    assert fetch(f"{url}/private") == BODY
    assert fetch(f"{server.url}/private") == "the server says 401 Unauthorized"
    # On the same server they are sent on, to another one they are not.
    assert fetch(f"{url}/redirect/private") == BODY
    other = f"{server.url.replace('127.0.0.1', 'localhost')}/private"
    assert fetch(f"{url}/redirect/{other}") == "the server says 401 Unauthorized"


@pytest.mark.parametrize("path", ["flaky", "cut_once", "slow", "redirect/redirect/ok"])
def test_what_goes_well_in_the_end(path: str, server: Server) -> None:
    assert fetch(f"{server.url}/{path}") == BODY


@pytest.mark.parametrize(
    ("after", "pauses"),
    [("1", [1.0, 1.0]), ("0", [0.01, 0.02]), ("soon", [0.01, 0.02]), ("9999", [2.0, 2.0])],
)
def test_a_busy_server_says_when_to_come_again(
    after: str, pauses: list[float], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=slept.append))
    assert "503" in str(fetch(f"{server.url}/busy/{after}", timeout=2))
    assert slept == pauses


def test_what_is_not_tried_again() -> None:
    lasting = type("NoCredentialsError", (Exception,), {})(), type("AuthError", (Exception,), {})()
    assert not any(map(retries._may_pass, (*lasting, PermissionError(), ValueError())))
    assert all(map(retries._may_pass, (TimeoutError(), ConnectionResetError(), OSError())))


def test_addresses_as_people_type_them() -> None:
    typed, sent = (
        "http://müller.example/ü b?c=ß#d",
        "http://xn--mller-kva.example/%C3%BC%20b?c=%C3%9F",
    )
    assert web._quoted(typed) == sent
    assert web._quoted(sent) == sent


def test_answers_that_are_none(server: Server) -> None:
    assert isinstance(fetch(f"{server.url}/garbage"), str)
    assert "redirect" in str(fetch(f"{server.url}/loop"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_lead_to_the_web_only(target: str, server: Server) -> None:
    reason = fetch(f"{server.url}/redirect/{target}")
    assert isinstance(reason, str)
    assert server.seen.total() == 1


def test_a_large_download(server: Server) -> None:
    size = 9 * 2**20  # kept on the disk
    Path(server.folder, "x.jpg").write_bytes(BODY * (size // len(BODY)))
    assert len(fetch(f"{server.url}/file/x.jpg", timeout=10)) == size // len(BODY) * len(BODY)
    assert fetch(f"{server.url}/file/x.jpg", max_bytes=size - 10**6) == (
        f"more than the limit of {size - 10**6} bytes"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/x.jpg", "connection refused"),
        ("http://127.0.0.1:port/x.jpg", "nonnumeric port"),
        ("http:///x.jpg", "no host given"),
        ("http://[::1/x.jpg", "Invalid IPv6 URL"),
        ("http://" + "x" * 70 + ".invalid/x.jpg", ""),
        ("http://ü" + "x" * 70 + ".invalid/x.jpg", "label"),
        ("nothing://x/y.jpg", "nothing"),
        ("ftp://127.0.0.1:1/x.jpg", "connection refused"),
        ("reference://x.jpg", "reference:// needs more than an address"),
    ],
)
def test_addresses_that_lead_nowhere(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_BACK_OFF", (0.0, 0.0))
    error = fetch(url, timeout=5)
    assert isinstance(error, str)
    assert reason in error
    assert "\n" not in error


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_over_http(
    kind: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"{server.url}/file/{make(f'a.{kind}', MEMBERS)}?version=1"
    sources = list(find([url]))
    assert [source.path for source in sources] == [f"{url}::{name}" for name in MEMBERS]
    assert list(map(result, sources)) == list(MEMBERS.values())
    assert server.seen.total() == 1
    assert count_sources([url]) is None
    assert server.seen.total() == 1
    files = {f"{i}.jpg": random(i) for i in range(20)}
    url = f"{server.url}/half/{make(f'b.{kind}', files)}"
    sources = list(find([url], Search(timeout=TIMEOUT)))
    errors = [source for source in sources if isinstance(result(source), str)]
    assert len(errors) == 1
    assert (len(sources) > 1) == (kind != "zip")
    (source,) = find([f"{server.url}/missing.{kind}"])
    assert result(source) == "the server says 404 Not Found"


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("mood", ["mute", "drip_chunks", "drip_after"])
def test_an_archive_that_stalls(
    mood: str, kind: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(f"a.{kind}", {f"{i}.jpg": random(i) for i in range(10)})
    start = time.monotonic()
    *whole, last = find([f"{server.url}/{mood}/{path}"], Search(timeout=TIMEOUT))
    assert time.monotonic() - start < (3 if mood == "mute" else 1) * 2 * TIMEOUT + 20
    assert "timed out: nothing came for 0.5 s" in str(result(last))
    assert (len(whole) > 0) == (mood == "drip_after")
    assert all(result(source) == random(i) for i, source in enumerate(whole))


@pytest.fixture
def memory() -> str:
    """Address of a folder of its own in memory, as fsspec has it."""
    import fsspec

    fs = fsspec.filesystem("memory")
    top = f"/{uuid.uuid4().hex}"
    for name, data in MEMBERS.items():
        fs.pipe_file(f"{top}/{name}", data)
    for name in ("notes.txt", ".hidden.jpg", ".git/x.jpg"):
        fs.pipe_file(f"{top}/{name}", b"")
    return f"memory:/{top}"


def paths(*inputs: str, **search: Any) -> list[str]:
    return [source.path for source in find(inputs, Search(**search))]


def test_a_store(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    everything = {f"{memory}/{name}": data for name, data in MEMBERS.items()}
    for url in (memory, f"{memory}/"):
        assert {source.path: result(source) for source in find([url])} == everything
    assert paths(memory, recursive=False) == [f"{memory}/cat.jpg"]
    assert paths(memory, exclude=("deep",), include=("in/*",)) == [f"{memory}/in/dog.PNG"]
    assert paths(f"{memory}/*.jpg") == [f"{memory}/cat.jpg"]
    assert fetch(f"{memory}/in/dog.PNG") == MEMBERS["in/dog.PNG"]
    assert fetch(f"{memory}/notes.txt") == b""
    assert fetch(f"{memory}/none.jpg") == "no such file"
    assert fetch(f"{memory}/none") == "no such file"
    assert fetch(f"{memory}/*.webp") == "nothing matches this pattern"
    assert fetch(f"{memory}/in/dog.PNG", max_bytes=10) == "more than the limit of 10 bytes"
    monkeypatch.chdir(tmp_path)
    fs = fsspec.filesystem("memory")
    for kind in ("zip", "tar", "tar.gz"):
        fs.pipe_file(f"{memory}/{kind}/a.{kind}", Path(make(f"a.{kind}", MEMBERS)).read_bytes())
        sources = list(find([f"{memory}/{kind}/a.{kind}"]))
        assert list(map(result, sources)) == list(MEMBERS.values())
        assert sources[0].path == f"{memory}/{kind}/a.{kind}::cat.jpg"
    large = random(1) * 500  # more than comes with the first request
    fs.pipe_file(f"{memory}/large.jpg", large)
    assert fetch(f"{memory}/large.jpg") == large


def test_a_store_is_walked_in_order(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    fs = fsspec.filesystem("memory")
    names = ["x/a/1.jpg", "x/b/2.jpg", "x/c.jpg/3.jpg", "y/0.jpg"]
    for name in reversed(names):
        fs.pipe_file(f"{memory}/{name}", b"")
    ls, asked, forgotten = MemoryFileSystem.ls, [], []

    def with_marker(self: Any, path: str, **options: Any) -> Any:
        asked.append(path)
        assert len(asked) < 20
        return [{"name": f"{path}/", "size": 0, "type": "directory"}, *ls(self, path, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", with_marker)
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda *_: forgotten.append(1))
    found = paths(memory, include=("?.jpg",))
    assert found == [f"{memory}/{name}" for name in names]
    assert len(forgotten) == len(asked)


@pytest.mark.parametrize("places", ["store", "disk"])
@pytest.mark.parametrize(
    ("pattern", "found", "left_out"),
    [
        ("*", ["a.jpg", "d/c.jpg", "notes.txt", "z.zip::in.jpg"], "@eaDir 3, Thumbs.db 2"),
        ("**", ["a.jpg", "d/c.jpg", "notes.txt", "z.zip::in.jpg"], "@eaDir 3, Thumbs.db 2"),
        ("**/*.jpg", ["a.jpg", "d/c.jpg"], "@eaDir 3"),
        ("d/*", ["d/c.jpg"], "@eaDir 1, Thumbs.db 1"),
        ("@eaDir/*", ["@eaDir/a.jpg", "@eaDir/x/b.jpg"], ""),
        (".*/*.jpg", [".t/x.jpg"], ""),
    ],
)
def test_patterns_find_the_same_in_a_store_as_on_a_disk(
    places: str,
    pattern: str,
    found: list[str],
    left_out: str,
    memory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fsspec

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in.jpg", b"x")
    names = ["a.jpg", "notes.txt", ".h.jpg", ".t/x.jpg", "Thumbs.db", "d/c.jpg", "d/Thumbs.db"]
    names += ["@eaDir/a.jpg", "@eaDir/x/b.jpg", "d/@eaDir/c.jpg", "z.zip"]
    fs, top = fsspec.filesystem("memory"), f"{memory}/patterns"
    for name in names:
        data = archive.getvalue() if name == "z.zip" else b""
        fs.pipe_file(f"{top}/{name}", data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    prefix = f"{top}/" if places == "store" else ""
    skipped = Skipped()
    paths = [each.path for each in find([prefix + pattern], skipped=skipped)]
    assert sorted(paths) == [prefix + name for name in found]
    said = [f"left out {left_out} (--no-default-excludes takes them)"] if left_out else []
    assert list(skipped.in_words()) == said


def test_a_store_that_stalls(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(retries, "_BACK_OFF", (0.0, 0.0))
    tries = []
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda *args, **kwargs: tries.append(time.sleep(3))
    )
    assert fetch(f"{memory}/cat.jpg", timeout=0.1) == "timed out: nothing came for 0.1 s"


def test_what_stalled_fills_nothing_any_more() -> None:
    late: list[str] = []
    gate, ended = threading.Event(), threading.Event()

    def work(spool: Spool) -> None:
        gate.wait(5)
        try:
            spool.write(b"x")
        except ValueError as error:
            late.append(str(error))
        ended.set()

    with pytest.raises(TimeoutError):
        store_images._download(work, 0.05, 100)
    gate.set()
    assert ended.wait(5)
    assert late == ["nobody waits for this any more"]


def test_no_photograph_is_asked_whether_it_is_a_folder(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    asked: list[str] = []
    monkeypatch.setattr(MemoryFileSystem, "isdir", lambda _, path: asked.append(path))
    urls = [f"{memory}/cat.jpg", f"{memory}/in/dog.PNG"]
    assert paths(*urls) == urls
    assert asked == []


def test_a_folder_of_a_store_that_can_not_be_listed(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    ls = MemoryFileSystem.ls

    def refuse(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("/in"):
            raise PermissionError("not for you")
        return ls(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    sources = {source.path: result(source) for source in find([memory])}
    assert sources == {
        f"{memory}/cat.jpg": MEMBERS["cat.jpg"],
        f"{memory}/in": "permission denied (not for you)",
    }


@pytest.mark.parametrize(
    ("package", "url", "words"),
    [
        ("s3fs", "s3://bucket/x.jpg", 'pip install "s3fs>=2023.9"'),
        ("gcsfs", "gs://bucket/x.jpg", 'pip install "gcsfs>=2023.9"'),
        ("adlfs", "az://bucket/x.jpg", 'pip install "adlfs>=2023.4"'),
        ("paramiko", "sftp://host/x.jpg", "paramiko"),
    ],
)
def test_a_package_that_is_missing(package: str, url: str, words: str) -> None:
    code = f"""if True:
        import sys
        sys.modules["{package}"] = None
        from cvt_cli.images.find import find
        (source,) = find(["{url}"])
        source.open()"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert words in done.stderr.splitlines()[-1]


def test_the_search_imports_nothing_heavy() -> None:
    code = """if True:
        import sys
        from cvt_cli.images.find import find
        list(find(["x.jpg", "-"]))
        heavy = {"torch", "numpy", "huggingface_hub", "fsspec", "PIL", "urllib.request"}
        sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket at moto's S3 server, in the environment for the clients."""
    pytest.importorskip("s3fs", reason='needs "cvt-cli[s3]"')
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
        connection = http.client.HTTPConnection(host, port)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x.jpg", b"in a zip")
        objects = {f"photos/{name}": data for name, data in MEMBERS.items() if name.isascii()}
        objects |= {"photos/": b"", "photos/empty.jpg": b"", "photos/n.txt": b"", "a.zip": b""}
        objects["a.zip"] = archive.getvalue()
        objects["large.jpg"] = random(1) * 500
        objects |= {"left/" + name: b"x" for name in ("a.CR9", "b.CR9", "c.mp4", ".hidden.txt")}
        objects |= {"left/in/" + name: b"x" for name in ("x.jpg", "y.zip", "Thumbs.db")}
        objects |= {"left/@eaDir/" + name: b"x" for name in ("1.jpg", "deep/2.jpg")}
        for name, data in [("", b""), *objects.items()]:
            connection.request("PUT", f"/bucket/{name}", data)
            assert connection.getresponse().read() is not None
        yield "s3://bucket"
    server.stop()


def test_s3(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_BACK_OFF", (0.0, 0.0))
    folder = {f"{s3}/photos/{n}": data for n, data in MEMBERS.items() if n.isascii()}
    empty = {f"{s3}/photos/empty.jpg": b""}
    for url in (f"{s3}/photos/", f"{s3}/photos"):
        found = {source.path: result(source) for source in find([url])}
        assert found == folder | empty
    assert count_sources([f"{s3}/photos/"]) == 3
    assert {source.path: result(source) for source in find([f"{s3}/photos/c*.jpg"])} == {
        f"{s3}/photos/cat.jpg": MEMBERS["cat.jpg"]
    }
    assert fetch(f"{s3}/large.jpg", timeout=20) == random(1) * 500
    assert fetch(f"{s3}/large.jpg", timeout=20, max_bytes=10**6).startswith("more than")
    assert fetch(f"{s3}/none.jpg", timeout=20) == "no such file"
    assert fetch("s3://nobucket/none.jpg", timeout=20) == "no such file"
    assert fetch("s3://nobucket/none/", timeout=20) == "no such file"
    (source,) = find([f"{s3}/a.zip"])
    assert (source.path, result(source)) == (f"{s3}/a.zip::x.jpg", b"in a zip")


def test_what_a_folder_of_s3_leaves_out_is_said(s3: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [source.path for source in find([f"{s3}/left/"])]
        skipped = Skipped()
        assert list(find([f"{s3}/left"], skipped=skipped))
    assert found == [f"{s3}/left/in/x.jpg"]
    folder, files, again = (str(each.message) for each in said)
    assert folder == (
        f"{s3}/left/ contains archives, which are skipped: to read them, name them, like "
        f"{s3}/left/in/y.zip"
    )
    assert files == (
        "skipped 3 files that are not images: .CR9 2, .mp4 1; left out @eaDir 2, Thumbs.db 1 "
        "(--no-default-excludes takes them)"
    )
    assert "contains archives" in again  # and the counts are the caller's
    assert list(Skipped.from_json(skipped.to_json()).in_words()) == [files]


def test_parquet_in_s3_is_checked_before_it_is_unpacked(s3: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs cvt-cli[parquet]")
    from tests.images.test_parquet_images import one_value, write

    store = http.client.HTTPConnection(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"))

    def put(name: str, path: str) -> None:
        store.request("PUT", f"/bucket/{name}", Path(path).read_bytes())
        assert store.getresponse().read() is not None

    rows = [random(seed) for seed in range(40)]
    options = {"row_group_size": 15, "data_page_size": 2**12, "write_batch_size": 2}
    put("good.parquet", write(tmp_path / "a.parquet", {"image": rows}, **options))
    put("bomb.parquet", one_value(tmp_path / "b.parquet", 50 * 2**20, 16, compression="zstd"))
    assert [result(source) for source in find([f"{s3}/good.parquet"])] == rows
    (source,) = find([f"{s3}/bomb.parquet"])
    assert "decompression bomb" in str(result(source))


def test_small_pages_of_a_parquet_in_a_store_take_few_requests(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs cvt-cli[parquet]")
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    from tests.images.test_parquet_images import write

    rows = [random(seed) for seed in range(1000)]
    options = {"data_page_size": 2**13, "write_batch_size": 1, "use_dictionary": False}
    data = Path(write(tmp_path / "a.parquet", {"image": rows}, **options)).read_bytes()
    assert len(data) > 4 * 2**20
    fsspec.filesystem("memory").pipe_file(f"{memory}/a.parquet", data)
    cat_file, requests = MemoryFileSystem.cat_file, []

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        requests.append(args)
        return cat_file(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert len(list(find([f"{memory}/a.parquet"]))) == len(rows)
    assert len(requests) <= len(data) / 2**20 + 2


def test_s3_that_stalls(s3: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{server.url}/mute")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    start = time.monotonic()
    assert fetch("s3://bucket/x.jpg") == "timed out: nothing came for 0.5 s"
    assert "timed out" in fetch("s3://bucket/folder/")
    assert time.monotonic() - start < 60
    s3fs.S3FileSystem.clear_instance_cache()
