"""A name becomes local files: through the real client from the loopback Hub, or from the disk."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError
from tests.hub_server import HubServer
from tests.tiny import LAYOUTS

REPO = "someone/small-cvt"
JSON_FILES = {"config.json", "preprocessor_config.json"}
# What else a repository holds; none of it is ours to fetch.
OTHERS = dict.fromkeys(
    [
        "README.md",
        ".gitattributes",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "rust_model.ot",
        "training_args.bin",
        "optimizer.pt",
        "pytorch_model.pth",
    ],
    "not for us",
)
NOWHERE_TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE
TinyCvt = Callable[..., Path]


def contents(folder: Path, **extra: bytes | str) -> dict[str, Any]:
    return OTHERS | {path.name: path.read_bytes() for path in folder.iterdir()} | extra


def failure(name: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


def weights_of(files: dict[str, Any]) -> set[str]:
    return {
        name for name in files if name.startswith(("model", "pytorch_model")) and name not in OTHERS
    }


# --- from the Hub


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "microsoft"])
def test_exactly_the_needed_files_are_fetched(
    layout: str, local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    files = contents(tiny_cvt(layout))
    commit = local_hub.add(REPO, files)
    found = resolve(REPO)
    assert set(local_hub.fetched()) == JSON_FILES | weights_of(files)
    assert len(local_hub.fetched()) == len(set(local_hub.fetched()))
    assert not {request.file for request in local_hub.requests} & OTHERS.keys()
    assert found.commit == commit
    assert {path.name for path in found.weights} == {
        name for name in weights_of(files) if not name.endswith(".index.json")
    }
    assert load(found).model().config.num_labels == 5

    # From now on, the cache does.
    local_hub.requests.clear()
    assert resolve(REPO) == found
    assert resolve(REPO, offline=True) == found
    assert local_hub.requests == []


def test_safetensors_are_preferred(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt(), **{"pytorch_model.bin": b"a pickle"}))
    resolve(REPO)
    assert "pytorch_model.bin" not in {request.file for request in local_hub.requests}


def test_what_is_cached_is_preferred(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    """Another program has fetched the .bin only: that is enough."""
    from huggingface_hub import hf_hub_download

    folder = tiny_cvt("bin")
    both = contents(
        folder, **{"model.safetensors": (tiny_cvt() / "model.safetensors").read_bytes()}
    )
    local_hub.add(REPO, both)
    for name in (*JSON_FILES, "pytorch_model.bin"):
        hf_hub_download(REPO, name)
    local_hub.requests.clear()
    assert [path.name for path in resolve(REPO).weights] == ["pytorch_model.bin"]
    assert local_hub.requests == []


def test_without_a_preprocessor(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt(processor=None)))
    found = resolve(REPO)
    assert found.preprocessor is None and found.card is not None
    # That there is none is remembered too.
    local_hub.requests.clear()
    assert resolve(REPO) == resolve(REPO, offline=True) == found
    assert local_hub.requests == []


def test_the_newer_preprocessor(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    newer = json.dumps({"image_processor": {"size": {"shortest_edge": 32}}})
    local_hub.add(REPO, contents(tiny_cvt(), **{"processor_config.json": newer}))
    found = resolve(REPO)
    assert load(found).preprocessing.image_size == (32, 32)
    local_hub.requests.clear()
    assert resolve(REPO) == resolve(REPO, offline=True) == found
    assert local_hub.requests == []


def test_the_card_is_read_where_no_preprocessor_tells_the_size(
    local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    files = contents(tiny_cvt(processor=None), **{"README.md": "for images of 96x96 pixels"})
    local_hub.add(REPO, files)
    with pytest.warns(UserWarning, match="96 × 96 pixels .as its model card says"):
        assert load(resolve(REPO)).preprocessing.image_size == (96, 96)


def test_without_weights_only_the_json_files(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    assert resolve(REPO, weights=False).weights == ()
    assert set(local_hub.fetched()) == JSON_FILES


@pytest.mark.parametrize("revision", [None, "main"])
def test_refresh_picks_up_a_new_commit(
    revision: str | None, local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    old = local_hub.add(REPO, contents(tiny_cvt(labels=("old", "older"))))
    resolve(REPO, revision)
    new = local_hub.add(REPO, contents(tiny_cvt(labels=("new", "newer", "newest"), seed=1)))
    assert resolve(REPO, revision).commit == old
    found = resolve(REPO, revision, refresh=True)
    assert found.commit == new
    assert load(found).labels == ("new", "newer", "newest")
    assert {path.parent.name for path in (found.config, found.preprocessor, *found.weights)} == {
        new
    }
    assert resolve(REPO, revision).commit == new
    # Nothing new: nothing is fetched.
    local_hub.requests.clear()
    assert resolve(REPO, revision, refresh=True) == found
    assert local_hub.fetched() == []
    assert len(local_hub.requests) >= 1


def test_all_files_are_of_one_commit(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    """A commit between two files of one checkpoint must not mix them."""
    old = local_hub.add(REPO, contents(tiny_cvt()))
    resolve(REPO, weights=False)
    local_hub.add(REPO, contents(tiny_cvt("bin", seed=1)))
    found = resolve(REPO)
    assert found.commit == old
    assert [path.name for path in found.weights] == ["model.safetensors"]
    assert found.weights[0].parent.name == old


@pytest.mark.parametrize("how", ["at", "option", "both", "hash", "pull-request"])
def test_revisions(how: str, local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    main = local_hub.add(REPO, contents(tiny_cvt()))
    branch = "refs/pr/1" if how == "pull-request" else "v2"
    other = local_hub.add(REPO, contents(tiny_cvt(labels=("a", "b"), seed=1)), revision=branch)
    name, revision = {
        "at": (f"{REPO}@v2", None),
        "option": (REPO, "v2"),
        "both": (f"{REPO}@v2", "v2"),
        "hash": (f"{REPO}@{other}", None),
        "pull-request": (f"{REPO}@refs/pr/1", None),
    }[how]
    found = resolve(name, revision)
    assert found.commit == other
    assert found.name == REPO
    assert load(found).labels == ("a", "b")
    local_hub.requests.clear()
    assert resolve(name, revision, offline=True) == found
    assert local_hub.requests == []
    assert resolve(REPO).commit == main


def test_two_revisions_at_once() -> None:
    assert "two revisions" in str(failure(f"{REPO}@v1", revision="v2"))


def test_an_unknown_revision(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    assert str(failure(f"{REPO}@nope")) == f"{REPO} has no revision nope"


def test_offline_without_the_files(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    error = failure(REPO, offline=True)
    assert "config.json is not in the cache, and offline" in str(error)
    assert f"cvt models --download {REPO}" in error.hint
    assert local_hub.requests == []
    # Half of it is not enough, and what is missing is named.
    resolve(REPO, weights=False)
    assert "model.safetensors is not in the cache" in str(failure(REPO, offline=True))


def test_private(local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch) -> None:
    local_hub.add(REPO, contents(tiny_cvt()), private=True)
    for token in (None, HubServer.stranger):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        error = failure(REPO)
        assert "no such repository on the Hub, or it is private" in str(error)
        assert "hf auth login" in error.hint and "HF_TOKEN" in error.hint
    monkeypatch.setenv("HF_TOKEN", HubServer.token)
    assert load(resolve(REPO)).config.num_labels == 5


def test_gated(local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch) -> None:
    local_hub.add(REPO, contents(tiny_cvt()), gated=True)
    for token in (None, HubServer.stranger):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        error = failure(REPO)
        assert "gated" in str(error)
        assert "hf auth login" in error.hint and "HF_TOKEN" in error.hint
    monkeypatch.setenv("HF_TOKEN", HubServer.token)
    assert load(resolve(REPO)).config.num_labels == 5


def test_a_wrong_token(
    local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = failure(REPO)
    assert "the Hub answers 401" in str(error)
    assert "hf auth login" in error.hint and "HF_TOKEN" in error.hint


def test_a_token_in_typographic_quotation_marks(
    local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    monkeypatch.setenv("HF_TOKEN", f"“{local_hub.token}”")
    error = failure(REPO)
    assert "the token has a character that is not ASCII" in str(error)
    assert "HF_TOKEN" in error.hint and local_hub.token not in f"{error}{error.hint}"


def test_unknown_repository(local_hub: HubServer) -> None:
    assert "no such repository" in str(failure(REPO))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_needed_file(
    missing: str, local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    files = contents(tiny_cvt())
    del files[missing]
    local_hub.add(REPO, files)
    assert missing in str(failure(REPO))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_with_troubles(status: int, local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    local_hub.fail(status, "model.safetensors")
    error = failure(REPO)
    assert "model.safetensors" in str(error) and str(status) in str(error)
    # Another time all is well.
    local_hub.clear()
    assert load(resolve(REPO)).config.num_labels == 5


def test_no_hub_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    error = failure(REPO)  # the endpoint of these tests, where nobody answers
    assert "config.json is not in the cache, and the Hub can't be reached" in str(error)
    assert "cvt models --download" in error.hint
    assert pauses == []  # the client's own tries take half a minute


def test_refresh_without_the_hub(
    local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.add(REPO, contents(tiny_cvt()))
    found = resolve(REPO)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE_TEMPLATE)
    error = failure(REPO, refresh=True)
    assert "can't check for a newer commit: the Hub can't be reached" in str(error)
    assert resolve(REPO) == found


def test_a_short_cut_connection_is_taken_up(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    local_hub.add(REPO, contents(folder))
    local_hub.cut("model.safetensors", after=100_000, times=2)
    found = resolve(REPO)
    assert found.weights[0].read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_cut_connection_leaves_no_half_file(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    local_hub.add(REPO, contents(folder))
    local_hub.cut("model.safetensors", after=100_000, times=None)
    error = failure(REPO)
    assert "model.safetensors could not be fetched" in str(error)
    assert "again" in error.hint
    assert "model.safetensors is not in the cache" in str(failure(REPO, offline=True))
    local_hub.clear()
    found = resolve(REPO)
    assert local_hub.fetched() == ["model.safetensors"]
    assert found.weights[0].read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_shard_that_the_repository_lacks(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    files = contents(tiny_cvt("sharded"))
    shard = sorted(name for name in files if name.startswith("model-"))[1]
    del files[shard]
    local_hub.add(REPO, files)
    assert f"{shard}, listed in model.safetensors.index.json, is missing" in str(failure(REPO))


@pytest.mark.parametrize(
    "name", ["nobody", "a/b/c", "/", "a/", "/b c", "", " ", "x@y", "cvt-13", "microsoft\\cvt-13"]
)
def test_names_of_nothing(name: str) -> None:
    error = failure(name)
    assert str(error)


@pytest.mark.parametrize("name", ["a b/c", "-a/b", "a/b..c", "a/b--c", "ä/ö", "a/" + "b" * 200])
def test_what_is_no_hub_id(name: str, local_hub: HubServer) -> None:
    assert "Hub" in str(failure(name))


def test_a_typing_error_is_recognised() -> None:
    assert "did you mean microsoft/cvt-13?" in failure("cvt-13").hint


@pytest.mark.parametrize(
    "name",
    [
        "./nothing",
        "~/nothing-of-the-kind",
        "~nobody-of-this-name/x",
        "/no/such/folder",
        "nothing.safetensors",
        "weights/nothing.PTH",
        "../x.bin",
        "./" + "x" * 5000,
        "x" * 5000 + ".bin",
    ],
    ids=lambda name: name[:20],
)
def test_paths_of_nothing(name: str) -> None:
    assert "no such file or folder" in str(failure(name))


def test_a_name_with_a_nul() -> None:
    failure("a\0b")
    failure("org/a\0b")


# --- from the disk


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_and_files(layout: str, tiny_cvt: TinyCvt) -> None:
    path = tiny_cvt(layout)
    found = resolve(str(path))
    assert found.commit is None
    assert found.weights and all(file.is_file() for file in found.weights)
    assert load(found).config.num_labels == 5
    assert len(found.weights_digest()) == 64


@pytest.mark.parametrize(
    ("layout", "file"), [("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")]
)
def test_a_file_with_its_configuration_beside_it(layout: str, file: str, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt(layout)
    found = resolve(str(folder / file))
    assert found.config == folder / "config.json"
    assert found.preprocessor == folder / "preprocessor_config.json"
    assert load(found).labels[0] == "tench"


def test_a_folder_shadows_the_hub(
    local_hub: HubServer, tiny_cvt: TinyCvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someone").mkdir()
    (tmp_path / REPO).symlink_to(tiny_cvt())
    monkeypatch.chdir(tmp_path)
    assert resolve(REPO).commit is None
    assert local_hub.requests == []


def test_a_folder_shadows_no_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / BUNDLED_MODEL).mkdir()
    (tmp_path / BUNDLED_MODEL / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    config = resolve(BUNDLED_MODEL, weights=False).config
    assert config is not None and config.is_absolute() and config.stat().st_size > 0


def test_home(tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_cvt()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve(f"~/{folder.name}").weights == (folder / "model.safetensors",)


def test_folders_that_lack_something(tiny_cvt: TinyCvt, tmp_path: Path) -> None:
    assert "has no config.json" in str(failure(str(tmp_path)))
    folder = tiny_cvt()
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(failure(str(folder)))
    assert resolve(str(folder), weights=False).weights == ()
    (tmp_path / "notes.txt").write_text("no weights")
    assert "not a file of weights" in str(failure(str(tmp_path / "notes.txt")))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["config.json", "model.onnx"], "an ONNX export"),
        (["config.json", "openvino_model.xml", "openvino_model.bin"], "an OpenVINO export"),
        (["config.json", "tf_model.h5"], "weights of TensorFlow"),
        (["config.json", "flax_model.msgpack"], "weights of Flax"),
        (["config.json", "zero_to_fp32.py", "latest"], "a checkpoint of DeepSpeed"),
        (["config.json", "pytorch_model_fsdp_0/x"], "a sharded checkpoint of FSDP"),
        (["config.json", "model-00001-of-00002.safetensors"], "without the file that lists them"),
        (["config.json", "model.fp16.safetensors"], "did you mean {}/model.fp16.safetensors?"),
        (["training_args.bin", "optimizer.pt", "best.pth"], "did you mean {}/best.pth?"),
        (["training_args.bin", "optimizer.pt"], "a model folder holds config.json"),
        (
            ["checkpoint-500/config.json", "checkpoint-1000/config.json", "runs/x"],
            "did you mean {}/checkpoint-1000?",
        ),
        (["blobs/x", "refs/main", "snapshots/abc/config.json"], "did you mean {}/snapshots/abc?"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_folders_of_others(files: list[str], words: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text('{"model_type": "cvt"}')
    error = failure(str(tmp_path))
    assert words.format(tmp_path) in f"{error} {error.hint}"
    assert "the folder has no" in str(error)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.onnx", "an ONNX export"),
        ("tf_model.h5", "weights of TensorFlow"),
        ("openvino_model.bin", "an OpenVINO export"),
    ],
)
def test_files_of_others(file: str, words: str, tmp_path: Path) -> None:
    for name in (file, "openvino_model.xml"):
        (tmp_path / name).write_text("x")
    assert words in str(failure(str(tmp_path / file)))


def test_an_adapter_on_the_hub(local_hub: HubServer) -> None:
    local_hub.add(REPO, {"adapter_config.json": "{}", "adapter_model.safetensors": b"x"})
    error = failure(REPO)
    assert "has no config.json; it holds a PEFT adapter" in str(error)
    assert "merge" in error.hint
    assert local_hub.fetched() == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling"])
def test_needed_files_that_are_none(file: str, kind: str, tiny_cvt: TinyCvt) -> None:
    """Least of all must a FIFO be opened: that would wait for ever."""
    folder = tiny_cvt()
    path = folder / file
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    assert file in str(failure(str(folder)))
    if file != "config.json":
        assert "no such file" in str(failure(str(path))) or kind == "folder"


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("index", "word"),
    [
        ("", "lists no shards"),
        ("[]", "lists no shards"),
        ("{", "lists no shards"),
        ("{}", "lists no shards"),
        ('{"weight_map": {}}', "lists no shards"),
        ('{"weight_map": []}', "lists no shards"),
        ('{"weight_map": {"a": 5}}', "lists no shards"),
        ('{"weight_map": {"a": null, "b": "x"}}', "lists no shards"),
        ('{"weight_map": {"a": ["x"]}}', "lists no shards"),
        ("[" * 100_000, "lists no shards"),
        ("\xff\xfe", "lists no shards"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "no file beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no file beside it"),
        ('{"weight_map": {"a": "sub/x.safetensors"}}', "no file beside it"),
        ('{"weight_map": {"a": ".."}}', "no file beside it"),
        ('{"weight_map": {"a": ""}}', "no file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors, listed in"),
        ('{"weight_map": {"a": "gone\\u0000.safetensors"}}', "is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("where", ["disk", "hub"])
def test_lists_of_shards(
    index: str, word: str, where: str, local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    folder = tiny_cvt()
    (folder.parent / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(index, encoding="latin-1")
    name = str(folder)
    if where == "hub":
        local_hub.add(name := REPO, folder)
    error = failure(name)
    if "\\u0000" not in index or where == "disk":
        assert INDEX in str(error) and word in str(error)
    asked = {request.file for request in local_hub.requests}
    assert not any("secret" in file or "passwd" in file for file in asked)


def test_the_digest_covers_every_shard(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt("sharded")
    before = resolve(str(folder)).weights_digest()
    last = resolve(str(folder)).weights[-1]
    last.write_bytes(last.read_bytes() + b"x")
    assert resolve(str(folder)).weights_digest() != before


def test_an_index_is_followed_in_order(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt("sharded")
    listed = json.loads((folder / INDEX).read_text())["weight_map"].values()
    assert [path.name for path in resolve(str(folder)).weights] == sorted(set(listed))
