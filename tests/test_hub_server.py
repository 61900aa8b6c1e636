"""The loopback Hub, seen by the real client."""

import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.conftest import NOWHERE
from tests.hub_server import HubServer

REPO = "microsoft/cvt-13"
CONFIG = '{"model_type": "cvt", "architectures": ["CvtForImageClassification"]}'
# More than the client takes in at once: it keeps no part of a smaller piece.
WEIGHTS = bytes(range(256)) * (25 * 2**20 // 256)


class Client:
    """`huggingface_hub` with a cache of its own."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url = url
        self.cache = cache
        self.api = HfApi(endpoint=url, token=False)

    def get(
        self, file: str, repo: str = REPO, token: str | bool = False, **options: object
    ) -> Path:
        path = hf_hub_download(
            repo, file, endpoint=self.url, cache_dir=self.cache, token=token, **options
        )
        return Path(path)

    def snapshot(self, repo: str = REPO, **options: object) -> Path:
        path = snapshot_download(
            repo, endpoint=self.url, cache_dir=self.cache, token=False, **options
        )
        return Path(path)


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub.url, tmp_path / "cache")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client retries without its pauses."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def add(hub: HubServer, repo: str = REPO, **options: object) -> str:
    files = {"config.json": CONFIG, "model.safetensors": b"weights", "tf_model.h5": b"others"}
    return hub.add(repo, files, **options)


def test_the_client_is_set_to_nowhere():
    assert constants.ENDPOINT == NOWHERE
    with pytest.raises(httpx2.ConnectError):
        HfApi().model_info(REPO)


def test_a_small_file_stays_on_the_hub(hub: HubServer, client: Client):
    commit = add(hub)
    path = client.get("config.json")
    assert path.read_text() == CONFIG
    assert path.parent.name == commit
    assert hub.fetched() == ["config.json"]
    assert {request.host for request in hub.requests} == {"hub"}


def test_a_large_file_comes_from_the_cdn_without_the_token(hub: HubServer, client: Client):
    add(hub, private=True)
    path = client.get("model.safetensors", token=hub.token)
    assert path.read_bytes() == b"weights"
    head, get = hub.requests
    assert (head.host, head.method, get.host, get.method) == ("hub", "HEAD", "cdn", "GET")
    assert head.headers["authorization"] == f"Bearer {hub.token}"
    assert "authorization" not in get.headers
    assert hub.fetched(REPO) == [get.file] == ["model.safetensors"]


def test_a_folder_is_served_with_its_subfolders(hub: HubServer, client: Client, tmp_path: Path):
    (tmp_path / "repo" / "sub folder").mkdir(parents=True)
    (tmp_path / "repo" / "sub folder" / "ä.txt").write_text("inside")
    hub.add(REPO, tmp_path / "repo")
    assert client.get("sub folder/ä.txt").read_text() == "inside"
    folder, file = client.api.list_repo_tree(REPO, recursive=True)
    assert {folder.path, file.path} == {"sub folder", "sub folder/ä.txt"}
    (folder,) = client.api.list_repo_tree(REPO)
    assert folder.path == "sub folder"
    (file,) = client.api.list_repo_tree(REPO, "sub folder")
    assert file.size == len("inside")


def test_a_cached_commit_needs_no_request(hub: HubServer, client: Client):
    commit = add(hub)
    client.get("config.json", revision=commit)
    hub.clear()
    client.get("config.json", revision=commit)
    assert hub.requests == []


def test_a_cached_file_is_not_fetched_again(hub: HubServer, client: Client):
    add(hub)
    first = client.get("model.safetensors")
    hub.clear()
    assert client.get("model.safetensors") == first
    assert [request.method for request in hub.requests] == ["HEAD"]
    assert hub.fetched() == []


def test_a_cut_download_is_resumed(hub: HubServer, client: Client, no_waiting: None):
    hub.add(REPO, {"model.safetensors": WEIGHTS})
    hub.cut("model.safetensors", after=12_000_000)
    assert client.get("model.safetensors").read_bytes() == WEIGHTS
    first, second = (request for request in hub.requests if request.host == "cdn")
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-"


def test_a_download_that_is_always_cut_fails(hub: HubServer, client: Client, no_waiting: None):
    add(hub)
    hub.cut("*.safetensors", after=3, times=None)
    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("model.safetensors")
    assert not list(client.cache.rglob("*.safetensors"))
    assert set(hub.fetched()) == {"model.safetensors"}
    assert client.get("config.json").read_text() == CONFIG


def test_a_slow_body_takes_its_time(hub: HubServer, client: Client):
    hub.add(REPO, {"model.safetensors": bytes(1000)})
    hub.slow("model.safetensors", bytes_per_second=2000)
    start = time.monotonic()
    client.get("model.safetensors")
    assert time.monotonic() - start > 0.4


def test_the_server_ends_in_the_middle_of_a_slow_body():
    with httpx2.Client(follow_redirects=True) as client:
        with HubServer() as hub:
            hub.add(REPO, {"model.safetensors": bytes(1000)})
            hub.slow("model.safetensors", bytes_per_second=1)
            url = f"{hub.url}/{REPO}/resolve/main/model.safetensors"
            response = client.send(client.build_request("GET", url), stream=True)
            assert hub.fetched() == ["model.safetensors"]
        with pytest.raises(httpx2.TransportError):
            response.read()


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error(hub: HubServer, client: Client, no_waiting: None, status: int):
    add(hub)
    hub.fail(status)
    with pytest.raises(HfHubHTTPError) as error:
        client.api.model_info(REPO)
    assert error.value.response.status_code == status
    with pytest.raises(LocalEntryNotFoundError):
        client.get("config.json")


def test_an_error_that_goes_away(hub: HubServer, client: Client, no_waiting: None):
    add(hub)
    hub.fail(503, "config.json", times=2, method="HEAD")
    assert client.get("config.json").read_text() == CONFIG


@pytest.mark.parametrize("token", ["nobody", "stranger"])
def test_a_gated_repository_shows_no_files(hub: HubServer, client: Client, token: str):
    commit = add(hub, gated=True)
    with pytest.raises(GatedRepoError) as error:
        client.get("config.json", token=hub.stranger if token == "stranger" else False)
    assert error.value.response.status_code == (403 if token == "stranger" else 401)
    info = client.api.model_info(REPO)
    assert (info.sha, info.gated) == (commit, "auto")


def test_a_gated_repository_opens_to_a_member(hub: HubServer, client: Client):
    add(hub, gated=True)
    assert client.get("model.safetensors", token=hub.token).read_bytes() == b"weights"


@pytest.mark.parametrize("token", ["nobody", "stranger"])
def test_a_private_repository_does_not_seem_to_exist(hub: HubServer, client: Client, token: str):
    add(hub, private=True)
    given = hub.stranger if token == "stranger" else False
    for repo in (REPO, "nobody/nothing"):
        with pytest.raises(RepositoryNotFoundError) as error:
            client.get("config.json", repo, given)
        assert not isinstance(error.value, GatedRepoError)
        assert error.value.response.status_code == (404 if token == "stranger" else 401)
        with pytest.raises(RepositoryNotFoundError):
            client.api.model_info(repo, token=given)


def test_a_token_that_is_none_is_refused_everywhere(hub: HubServer, client: Client):
    add(hub)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        client.get("config.json", token="hf_invented")


def test_a_missing_file_is_remembered_with_its_commit(hub: HubServer, client: Client):
    commit = add(hub)
    with pytest.raises(RemoteEntryNotFoundError):
        client.get("missing.json")
    (mark,) = client.cache.rglob("missing.json")
    assert mark.parent.name == commit


def test_a_missing_revision(hub: HubServer, client: Client):
    add(hub)
    for revision in ("v2", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            client.get("config.json", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            client.api.model_info(REPO, revision=revision)


def test_branches_and_older_commits(hub: HubServer, client: Client):
    old = hub.add(REPO, {"config.json": "old"})
    new = hub.add(REPO, {"config.json": "new"})
    branch = hub.add(REPO, {"config.json": "branch"}, revision="refs/pr/1")
    assert client.get("config.json").read_text() == "new"
    assert client.get("config.json", revision=old).read_text() == "old"
    assert client.get("config.json", revision="refs/pr/1").read_text() == "branch"
    assert client.api.model_info(REPO, revision="refs/pr/1").sha == branch
    assert client.api.model_info(REPO).sha == new


def test_a_snapshot_of_some_files(hub: HubServer, client: Client):
    commit = add(hub)
    folder = client.snapshot(allow_patterns=["*.json", "*.safetensors"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert folder.name == commit
    assert sorted(hub.fetched()) == ["config.json", "model.safetensors"]
    hub.clear()
    assert client.snapshot(allow_patterns="*.json", local_files_only=True) == folder
    assert hub.requests == []


def test_the_description_of_a_model(hub: HubServer, client: Client):
    add(hub, tags=["license:apache-2.0"], downloads=7)
    info = client.api.model_info(REPO, files_metadata=True)
    assert (info.downloads, info.pipeline_tag) == (7, "image-classification")
    assert {"cvt", "safetensors", "tf", "license:apache-2.0"} <= set(info.tags)
    assert info.config["model_type"] == "cvt"
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["model.safetensors"] == len(b"weights")
    only = client.api.model_info(REPO, expand=["downloads"])
    assert (only.downloads, only.siblings, only.tags) == (7, None, None)


def test_a_search(hub: HubServer, client: Client):
    add(hub, "microsoft/cvt-13", downloads=10)
    add(hub, "microsoft/cvt-21", downloads=30)
    add(hub, "someone/my-cvt-flowers", downloads=20)
    add(hub, "someone/secret-cvt", private=True)
    hub.add("someone/resnet", {"config.json": '{"model_type": "resnet"}'}, downloads=99)

    def search(**query: object) -> list[str]:
        return [model.id for model in client.api.list_models(**query)]

    everything = ["microsoft/cvt-21", "someone/my-cvt-flowers", "microsoft/cvt-13"]
    assert search(filter="cvt", sort="downloads") == everything
    assert search(filter=["cvt", "image-classification"], limit=2) == everything[:2]
    assert search(filter="cvt", search="FLOWERS") == ["someone/my-cvt-flowers"]
    assert search(author="microsoft") == ["microsoft/cvt-21", "microsoft/cvt-13"]
    assert "someone/secret-cvt" in search(filter="cvt", token=hub.token)
    hub.page_size = 2
    assert search(filter="cvt", sort="downloads") == everything
    (model,) = client.api.list_models(search="flowers", full=True)
    assert {sibling.rfilename for sibling in model.siblings} >= {"config.json"}


def test_every_request_is_written_down(hub: HubServer):
    httpx2.post(f"{hub.url}/api/telemetry?a=1", json={})
    (request,) = hub.requests
    assert (request.method, request.path, request.query) == ("POST", "/api/telemetry", {"a": ["1"]})
    assert request.headers["content-type"] == "application/json"
