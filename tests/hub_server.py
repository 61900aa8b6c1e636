"""A Hugging Face Hub on the loopback interface, for the real `huggingface_hub` client.

It answers as the Hub does: small files through a redirect on the same host, LFS files through a
redirect to a second host (the CDN, here a second port), with commit hashes, ETags, ranges and the
error codes that the client turns into exceptions. It offers no Xet storage: files come over plain
HTTP, with or without `hf_xet` installed.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlencode

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".h5", ".msgpack", ".onnx", ".ckpt")
LFS_FROM = 10 * 2**20
DATE = "2022-04-04T11:32:05.000Z"
CHUNK = 2**16

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_RESOLVE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_SMALL = re.compile(rf"/api/resolve-cache/models/{_REPO}/(?P<revision>[0-9a-f]{{40}})/(?P<file>.+)")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<file>.+))?")
_INFO = re.compile(rf"/api/models/{_REPO}(?:/revision/(?P<revision>[^/]+))?")
_LFS = re.compile(rf"/repos/{_REPO}/(?P<sha256>[0-9a-f]{{64}})")


@dataclass(frozen=True)
class Request:
    """One request as it came in. Header names are in lower case; `path` is unquoted."""

    host: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    repo: str = ""
    file: str = ""


@dataclass(frozen=True)
class _File:
    name: str
    data: bytes

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(LFS_SUFFIXES) or len(self.data) >= LFS_FROM

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """What git calls this file, or the pointer that stands for it."""
        content = self.data
        if self.is_lfs:
            content = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {len(self.data)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def lfs(self) -> dict[str, Any]:
        """The API's description of an LFS file."""
        return {"size": len(self.data), "pointerSize": 134}

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.is_lfs else self.blob_id}"'


_Tree = dict[str, _File]


@dataclass
class _Repo:
    name: str
    private: bool = False
    gated: bool = False
    pipeline_tag: str = ""
    tags: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, _Tree] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class _Trouble:
    """What goes wrong, for which requests, and how many times more (None: always)."""

    pattern: str
    times: int | None
    method: str = ""
    status: int = 0
    after: int | None = None
    rate: int | None = None

    def happens(self, request: Request) -> bool:
        if self.times == 0 or (self.method and self.method != request.method):
            return False
        if not (fnmatch(request.file, self.pattern) or fnmatch(request.path, self.pattern)):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class _Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


class HubServer:
    """The server; a context manager.

    Attributes:
        requests: every request so far, oldest first.
        token: opens private and gated repositories.
        stranger: a valid token of somebody who may see neither.
        page_size: how many models a page of search results holds.
    """

    token = "hf_memberMEMBERmemberMEMBERmember"
    stranger = "hf_strangerSTRANGERstrangerSTRAN"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.page_size = 1000
        self._repos: dict[str, _Repo] = {}
        self._troubles: list[_Trouble] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._hub = _Server(self, "hub")
        self._cdn = _Server(self, "cdn")

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return self._hub.url

    @property
    def cdn_url(self) -> str:
        """Where LFS files lie."""
        return self._cdn.url

    def __enter__(self) -> Self:
        self._hub.start()
        self._cdn.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._hub.stop()
        self._cdn.stop()

    def add(
        self,
        repo: str,
        files: Path | str | Mapping[str, bytes | str],
        revision: str = "main",
        *,
        private: bool = False,
        gated: bool = False,
        pipeline_tag: str = "image-classification",
        tags: Iterable[str] = (),
        downloads: int = 0,
        likes: int = 0,
    ) -> str:
        """Commit files (a folder, or names and contents) to a branch; the commit's hash.

        The contents are taken now. A second commit to the same branch leaves the first one
        reachable by its hash.
        """
        if isinstance(files, Mapping):
            contents = {
                name: data.encode() if isinstance(data, str) else data
                for name, data in files.items()
            }
        else:
            folder = Path(files)
            contents = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        tree = {name: _File(name, data) for name, data in contents.items()}
        listing = "".join(f"{file.blob_id} {name}\n" for name, file in sorted(tree.items()))
        commit = hashlib.sha1(f"{repo}\n{listing}".encode()).hexdigest()
        entry = self._repos.setdefault(repo, _Repo(repo))
        entry.private, entry.gated = private, gated
        entry.pipeline_tag, entry.tags = pipeline_tag, tuple(tags)
        entry.downloads, entry.likes = downloads, likes
        entry.commits[commit] = tree
        entry.refs[revision] = commit
        return commit

    def cut(self, pattern: str, after: int, times: int | None = 1) -> None:
        """Close the connection before any byte of the file at or past `after` is sent, `times`
        times (None: always). A resumed download that starts there gets nothing."""
        self._troubles.append(_Trouble(pattern, times, method="GET", after=after))

    def slow(self, pattern: str, bytes_per_second: int, times: int | None = None) -> None:
        """Send matching files at this rate."""
        self._troubles.append(_Trouble(pattern, times, method="GET", rate=bytes_per_second))

    def fail(
        self, status: int, pattern: str = "*", times: int | None = None, method: str = ""
    ) -> None:
        """Answer requests for matching files or paths (`/api/*`) with a bare error status."""
        self._troubles.append(_Trouble(pattern, times, method=method, status=status))

    def fetched(self, repo: str = "") -> list[str]:
        """The files whose contents were asked for, an entry a GET, oldest first.

        The GET that only meets the redirect to a file's place does not count.
        """
        return [
            request.file
            for request in self.requests
            if request.method == "GET"
            and request.file
            and request.path.startswith(("/repos/", "/api/resolve-cache/"))
            and repo in ("", request.repo)
        ]

    def clear(self) -> None:
        """Forget the requests and all troubles."""
        self.requests.clear()
        self._troubles.clear()

    def _trouble(self, request: Request, *, in_body: bool) -> _Trouble | None:
        with self._lock:
            troubles = [t for t in self._troubles if bool(t.status) != in_body]
            return next((t for t in troubles if t.happens(request)), None)

    def _visible(self, name: str, headers: Mapping[str, str]) -> _Repo:
        """The repository, if whoever asks may know that it exists."""
        token = self._token(headers)
        repo = self._repos.get(name)
        if repo is None or (repo.private and token != self.token):
            if token:
                raise _Refusal(404, "Repository not found", "RepoNotFound")
            raise _Refusal(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _readable(self, name: str, headers: Mapping[str, str]) -> _Repo:
        """The repository, if whoever asks may read its files."""
        repo = self._visible(name, headers)
        token = self._token(headers)
        if repo.gated and not token:
            message = f"Access to model {name} is restricted. You must have access to it and be "
            raise _Refusal(401, f"{message}authenticated to access it. Please log in.", "GatedRepo")
        if repo.gated and token != self.token:
            message = f"Access to model {name} is restricted and you are not in the authorized "
            raise _Refusal(
                403, f"{message}list. Visit {self.url}/{name} to ask for access.", "GatedRepo"
            )
        return repo

    def _token(self, headers: Mapping[str, str]) -> str:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if token not in ("", self.token, self.stranger):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return token

    def _info(self, repo: _Repo, commit: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """A repository as the API describes it."""
        tree = repo.commits[commit]
        try:
            config = json.loads(tree["config.json"].data)
            config = {key: config[key] for key in ("architectures", "model_type") if key in config}
        except (KeyError, ValueError, TypeError):
            config = {}
        model_type = config.get("model_type", "")
        kinds = {"safetensors": "*.safetensors", "pytorch": "*.bin", "tf": "*.h5"}
        tags = [
            *(["transformers"] if model_type else []),
            *(tag for tag, kind in kinds.items() if any(fnmatch(name, kind) for name in tree)),
            *(tag for tag in (model_type, repo.pipeline_tag) if tag),
            *repo.tags,
        ]
        siblings = [
            {"rfilename": name}
            if "blobs" not in query
            else {
                "rfilename": name,
                "blobId": file.blob_id,
                "size": len(file.data),
                **({"lfs": {"sha256": file.sha256, **file.lfs}} if file.is_lfs else {}),
            }
            for name, file in sorted(tree.items())
        ]
        info: dict[str, Any] = {
            "_id": hashlib.sha1(repo.name.encode()).hexdigest()[:24],
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.rpartition("/")[0],
            "sha": commit,
            "createdAt": DATE,
            "lastModified": DATE,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "downloads": repo.downloads,
            "likes": repo.likes,
            "library_name": "transformers" if model_type else None,
            "pipeline_tag": repo.pipeline_tag or None,
            "tags": tags,
            "config": config,
            "siblings": siblings,
        }
        if "expand" in query:
            wanted = {"_id", "id", "modelId", *query["expand"]}
            return {key: value for key, value in info.items() if key in wanted}
        return info

    def _search(self, request: Request) -> list[dict[str, Any]]:
        """Every model that a search finds, in order."""
        token = self._token(request.headers)
        query = request.query

        def first(key: str) -> str:
            return query.get(key, [""])[0]

        found = [
            self._info(repo, repo.refs["main"], {})
            for repo in self._repos.values()
            if "main" in repo.refs and (not repo.private or token == self.token)
        ]
        found = [
            info
            for info in found
            if set(query.get("filter", ())) <= set(info["tags"])
            and first("search").lower() in info["id"].lower()
            and first("author") in ("", info["author"])
            and first("pipeline_tag") in ("", info["pipeline_tag"])
            and first("gated") in ("", str(bool(info["gated"])).lower())
        ]
        key = first("sort") or "downloads"
        found.sort(key=lambda info: info.get(key, 0), reverse=True)
        if "expand" in query:
            wanted = {"_id", "id", "modelId", *query["expand"]}
        else:
            wanted = set(found[0]) if found else set()
            if "full" not in query:
                wanted -= {"siblings", "sha", "lastModified", "author", "gated", "disabled"}
            if "config" not in query:
                wanted -= {"config"}
        return [{key: info[key] for key in info if key in wanted} for info in found]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.role = role
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and hang up on clients that keep their connection for later."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may hang up whenever it likes
            super().handle()

    def do_GET(self) -> None:
        hub = self.server.hub
        raw, _, query = self.path.partition("?")
        request, match = self._read(raw, query)
        hub.requests.append(request)
        try:
            if trouble := hub._trouble(request, in_body=False):
                raise _Refusal(trouble.status, "The server was told to fail")
            if self.command not in ("GET", "HEAD"):
                self.close_connection = True  # the body that follows is left unread
                raise _Refusal(405, "Method not allowed")
            self._route(request, match)
        except _Refusal as refusal:
            body = {"error": str(refusal)}
            self._send_json(body, refusal.status, refusal.headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _read(self, raw: str, query: str) -> tuple[Request, re.Match[str] | None]:
        patterns = [_LFS] if self.server.role == "cdn" else [_SMALL, _RESOLVE, _TREE, _INFO]
        match = next((match for p in patterns if (match := p.fullmatch(raw))), None)
        groups = match.groupdict() if match else {}
        repo, file = unquote(groups.get("repo") or ""), ""
        if match and match.re is _LFS:
            found = self._find(repo, groups["sha256"])
            file = found.name if found else ""
        elif match and match.re in (_SMALL, _RESOLVE):
            file = unquote(groups["file"])
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.server.role, self.command, unquote(raw), parse_qs(query), headers, repo, file
        )
        return request, match

    def _find(self, repo: str, sha256: str) -> _File | None:
        entry = self.server.hub._repos.get(repo)
        trees = entry.commits.values() if entry else ()
        files = (file for tree in trees for file in tree.values())
        return next((file for file in files if file.is_lfs and file.sha256 == sha256), None)

    def _route(self, request: Request, match: re.Match[str] | None) -> None:
        hub = self.server.hub
        if match is None:
            if request.path == "/api/models" and request.host == "hub":
                self._send_models(request)
            elif request.path == "/api/agent-harnesses":
                self._send_json({"standardEnvVars": [], "harnesses": {}})
            else:
                raise _Refusal(404, "Not found")
            return
        if match.re is _LFS:
            file = self._find(request.repo, match["sha256"])
            if file is None:
                raise _Refusal(403, "Access denied")
            self._send_file(file, {}, request)
            return

        allowed = hub._readable if match.re in (_SMALL, _RESOLVE) else hub._visible
        repo = allowed(request.repo, request.headers)
        revision = unquote(match["revision"] or "main")
        commit = repo.commit(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if match.re is _INFO:
            self._send_json(hub._info(repo, commit, request.query))
        elif match.re is _TREE:
            self._send_tree(repo.commits[commit], unquote(match["file"] or ""), request.query)
        else:
            self._send_resolved(repo, commit, request, match.re is _SMALL)

    def _send_resolved(self, repo: _Repo, commit: str, request: Request, small: bool) -> None:
        """A file by name: itself, or a redirect to where it lies."""
        file = repo.commits[commit].get(request.file)
        if file is None:
            raise _Refusal(404, "Entry not found", "EntryNotFound", commit)
        headers = {"X-Repo-Commit": commit}
        if small:
            self._send_file(file, headers, request)
            return
        headers |= {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": file.etag}
        if file.is_lfs:
            name = urlencode({"response-content-disposition": f'inline; filename="{file.name}"'})
            location = f"{self.server.hub.cdn_url}/repos/{repo.name}/{file.sha256}?{name}"
            self._send(302, {**headers, "Location": location})
        else:
            path = f"{repo.name}/{commit}/{quote(file.name)}"
            location = f"/api/resolve-cache/models/{path}?{urlencode({'etag': file.etag})}"
            self._send(307, {**headers, "Location": location})

    def _send_tree(self, tree: _Tree, folder: str, query: Mapping[str, list[str]]) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = {name: file for name, file in sorted(tree.items()) if name.startswith(prefix)}
        if folder and not inside:
            raise _Refusal(404, f"{folder} does not exist", "EntryNotFound")
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        folders: set[str] = set()
        entries: list[dict[str, Any]] = []
        for name, file in inside.items():
            parents = name.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parents[: i + 1]) for i in range(len(parents))}
            if recursive or not parents:
                entry = {"type": "file", "oid": file.blob_id, "size": len(file.data), "path": name}
                if file.is_lfs:
                    entry["lfs"] = {"oid": file.sha256, **file.lfs}
                entries.append(entry)
        entries += [
            {"type": "directory", "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0, "path": f}
            for f in sorted(folders)
            if recursive or "/" not in f.removeprefix(prefix)
        ]
        self._send_json(entries)

    def _send_models(self, request: Request) -> None:
        hub = self.server.hub
        found = hub._search(request)
        start = int(request.query.get("cursor", ["0"])[0])
        size = min(int(request.query.get("limit", [hub.page_size])[0]), hub.page_size)
        headers = {}
        if start + size < len(found):
            query = urlencode({**request.query, "cursor": start + size}, doseq=True)
            headers["Link"] = f'<{hub.url}/api/models?{query}>; rel="next"'
        self._send_json(found[start : start + size], headers=headers)

    def _send_json(
        self, body: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(body).encode()
        self._send(status, {**(headers or {}), "Content-Type": "application/json"}, data)

    def _send(self, status: int, headers: Mapping[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_file(self, file: _File, headers: dict[str, str], request: Request) -> None:
        """A file's bytes, or the range asked for; the troubles of a body happen here."""
        size = len(file.data)
        start, stop, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and any(wanted.groups()):
            status = 206
            if not wanted[1]:
                start = max(size - int(wanted[2]), 0)
            else:
                start = int(wanted[1])
                stop = min(int(wanted[2]) + 1, size) if wanted[2] else size
            if start >= stop:
                self._send(416, {"Content-Range": f"bytes */{size}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", file.etag)
        self.end_headers()
        if self.command == "HEAD":
            return
        trouble = self.server.hub._trouble(request, in_body=True)
        if trouble and trouble.after is not None and trouble.after < stop:
            stop = trouble.after
            self.close_connection = True
        rate = trouble.rate if trouble else None
        step = max(rate // 20, 1) if rate else CHUNK
        for begin in range(start, stop, step):
            self.wfile.write(file.data[begin : min(begin + step, stop)])
            if rate and self.server.hub._closing.wait(step / rate):
                break
