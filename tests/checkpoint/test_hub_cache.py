"""What the Hub's cache holds may be damaged, its place may be full, and names come as they are."""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.integrity import sha256_of
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError
from tests.hub_server import HubServer

REPO = "someone/small-cvt"
TinyCvt = Callable[..., Path]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """The same length, one byte of a number changed."""
    return data[:-100] + bytes([data[-100] ^ 0x40]) + data[-99:]


def failure(name: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


def file_of(found: ResolvedFiles, name: str) -> Path:
    paths = {path.name: path for path in (found.config, *found.weights) if path is not None}
    return paths[name]


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("safetensors", "model.safetensors"),
        ("bin", "pytorch_model.bin"),
        ("safetensors", "config.json"),
    ],
    ids=["safetensors", "bin", "json"],
)
def test_a_damaged_file_is_fetched_again(
    damage: Callable[[bytes], bytes],
    refresh: bool,
    layout: str,
    name: str,
    local_hub: HubServer,
    tiny_cvt: TinyCvt,
) -> None:
    folder = tiny_cvt(layout)
    local_hub.add(REPO, folder)
    found = resolve(REPO)
    whole = (folder / name).read_bytes()
    file_of(found, name).resolve().write_bytes(damage(whole))
    local_hub.requests.clear()

    error = failure(REPO, offline=True)
    assert f"{name} is damaged" in str(error) and "--refresh" in error.hint
    with pytest.warns(UserWarning, match=f"{name} in the cache was damaged; fetching it again"):
        assert resolve(REPO, refresh=refresh) == found
    assert local_hub.fetched() == [name]
    assert file_of(found, name).read_bytes() == whole
    assert found.weights_digest() == hashlib.sha256(found.weights[0].read_bytes()).hexdigest()
    local_hub.requests.clear()
    assert resolve(REPO) == resolve(REPO, refresh=True) == found
    assert local_hub.fetched() == []


@pytest.mark.parametrize("option", ["refresh", "verify"])
@pytest.mark.parametrize("damage", [truncated, flipped])
def test_large_files(
    damage: Callable[[bytes], bytes],
    option: str,
    local_hub: HubServer,
    tiny_cvt: TinyCvt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their digests cost time: where nothing needs them, the length has to do."""
    monkeypatch.setattr("cvt_cli.checkpoint.integrity._SMALL", 0)
    folder = tiny_cvt()
    local_hub.add(REPO, folder)
    found = resolve(REPO)
    whole = (folder / "model.safetensors").read_bytes()
    found.weights[0].resolve().write_bytes(damage(whole))
    if damage is flipped:
        assert resolve(REPO, offline=True) == found
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged") as caught:
            found.weights_digest()
        assert "--refresh" in caught.value.hint
    else:
        error = failure(REPO, offline=True)
        assert "model.safetensors is damaged" in str(error) and "--refresh" in error.hint
    error = failure(REPO, offline=True, verify=True)
    assert "model.safetensors is damaged" in str(error)
    with pytest.warns(UserWarning, match="was damaged"):
        assert resolve(REPO, **{option: True}) == found
    assert found.weights[0].read_bytes() == whole


def test_a_digest_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for content in (b"one", b"two", b"four"):
        file.write_bytes(content)
        os.utime(file, ns=(0, len(content) + content[0]))
        assert sha256_of(file) == sha256_of(file) == hashlib.sha256(content).hexdigest()


def test_a_link_to_a_damaged_blob_is_no_repair(local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    local_hub.add(REPO, folder)
    (file,) = resolve(REPO).weights
    whole = (folder / "model.safetensors").read_bytes()
    file.resolve().write_bytes(truncated(whole))
    file.unlink()  # as was once advised: the client links the same blob again
    with pytest.warns(UserWarning, match="was damaged"):
        assert resolve(REPO).weights[0].read_bytes() == whole


def test_what_is_published_so_is_not_fetched_for_ever(
    local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    folder = tiny_cvt()
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    local_hub.add(REPO, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resolve(REPO)
        resolve(REPO, refresh=True)
    assert local_hub.fetched().count("model.safetensors") == 1
    with pytest.raises(ModelError, match="is corrupt or truncated"):
        load(found).model()


def test_another_architecture_is_refused_before_its_weights_are_fetched(
    local_hub: HubServer, tiny_cvt: TinyCvt
) -> None:
    folder = tiny_cvt()
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config))
    local_hub.add(REPO, folder)
    assert str(failure(REPO)) == f"{REPO} is not a CvT: its model_type is 'vit'"
    assert local_hub.fetched() == ["config.json"]


def test_a_cache_that_is_a_file(
    local_hub: HubServer, tiny_cvt: TinyCvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.add(REPO, tiny_cvt())
    (tmp_path / "home").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    error = failure(REPO)
    assert f"config.json can't be stored in {tmp_path / 'home' / 'hub'}: " in str(error)
    assert "HF_HOME" in error.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_takes_nothing_more(
    number: int, local_hub: HubServer, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub.add(REPO, tiny_cvt())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    error = failure(REPO)
    assert "can't be stored in" in str(error) and "make room" in error.hint


@pytest.mark.parametrize(
    "name",
    [
        f"https://huggingface.co/{REPO}",
        f"https://huggingface.co/{REPO}/",
        f"huggingface.co/{REPO}?library=transformers",
        f"https://hf.co/{REPO}#usage",
        f"{REPO}/",
        f"https://huggingface.co/{REPO}/tree/v2",
        f"https://huggingface.co/{REPO}/blob/v2/config.json",
        f"https://huggingface.co/{REPO}/tree/refs/pr/1",
    ],
)
def test_addresses_of_pages(name: str, local_hub: HubServer, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    commits = {"main": local_hub.add(REPO, folder)}
    (folder / "README.md").write_text("another commit")
    for branch in ("v2", "refs/pr/1"):
        (folder / "README.md").write_text(branch)
        commits[branch] = local_hub.add(REPO, folder, revision=branch)
    found = resolve(name, weights=False)
    wanted = next((each for each in ("v2", "refs/pr/1") if each in name), "main")
    assert (found.name, found.commit) == (REPO, commits[wanted])


@pytest.mark.parametrize("name", ["Microsoft/CvT-13", "CVT-13", "CvT-Tiny-CIFAR10"])
def test_capitals_have_their_suggestion(name: str, local_hub: HubServer) -> None:
    meant = "cvt-tiny-cifar10" if "Tiny" in name else "microsoft/cvt-13"
    assert f"did you mean {meant}?" in failure(name).hint
