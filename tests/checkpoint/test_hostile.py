"""Checkpoints that ask for more than any network takes: refused in one line, before the work."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError

PREPROCESSOR = "preprocessor_config.json"
VIT = {"image_processor_type": "ViTImageProcessor"}


def refusal(folder: Path) -> str:
    """What is said of it. It takes no time to find out."""
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load(resolve(str(folder))).model()
    assert time.process_time() - start < 20
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"patch_padding": [10**9] * 3}, "patch_padding[0] = 1000000000 is more"),
        ("config.json", {"padding_kv": [9] * 3}, "padding_kv[0] = 9 is more than kernel_qkv 3"),
        ("config.json", {"embed_dim": [10**9] * 3}, "embed_dim has 1000000000, out of range"),
        ("config.json", {"depth": [10**6] * 3}, "depth has 1000000, out of range"),
        ("config.json", {"depth": [1] * 10**5}, "depth has 100000 stages"),
        ("config.json", {"mlp_ratio": [2**30] * 3}, "mlp_ratio has 1073741824, out of range"),
        ("config.json", {"depth": [[1] * 10**5]}, "has not one entry for each"),
        ("config.json", {"id2label": {"0": "a", "1": "\ud800"}}, "not Unicode text"),
        (PREPROCESSOR, VIT | {"size": {"height": 65535, "width": 500}}, "2048000 tokens"),
        (PREPROCESSOR, {"size": [["x"] * 10**5] * 3}, "size"),
    ],
)  # fmt: skip
def test_what_a_configuration_asks_for(
    file: str, changes: dict[str, Any], reason: str, tiny_cvt: Callable[..., Path]
) -> None:
    folder = tiny_cvt()
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | changes))
    assert reason in refusal(folder)


def test_a_configuration_of_any_size(
    tiny_cvt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvt_cli.checkpoint.checkpoint_files.MAX_JSON_BYTES", 100)
    assert "more than 100 bytes" in refusal(tiny_cvt())


def write_names(path: Path, names: list[str]) -> None:
    """A file of tensors of no numbers."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps(dict.fromkeys(names, entry)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


FIRST = "cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight"


@pytest.mark.parametrize("name", ["x.{}." + FIRST, "stages.0.blocks.{}.x", "{}"])
def test_tensors_without_number(
    name: str, tiny_cvt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvt_cli.checkpoint.weights_file.MAX_TENSORS", 2999)
    folder = tiny_cvt()
    write_names(folder / "model.safetensors", [name.format(i) for i in range(3000)])
    assert "3000 tensors, more than the limit of 2999" in refusal(folder)


def test_many_networks_are_not_all_named(tiny_cvt: Callable[..., Path]) -> None:
    folder = tiny_cvt()
    write_names(folder / "model.safetensors", [f"x.{i}.{FIRST}" for i in range(5000)])
    assert "holds 5000 networks" in refusal(folder)
