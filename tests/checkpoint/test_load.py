"""Local files become a checkpoint: right ones, odd ones, broken ones and hostile ones."""

import codecs
import errno
import io
import json
import math
import os
import pickle
import random
import struct
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cvt_cli.checkpoint.load import MAX_LABELS, Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import Preprocessing
from tests.tiny import LABELS, LAYOUTS, microsoft_names, tiny_model

TinyCvt = Callable[..., Path]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def open_model(path: Path) -> tuple[Checkpoint, torch.Tensor]:
    """The checkpoint, and the logits of `IMAGES`."""
    checkpoint = load(resolve(str(path)))
    with torch.inference_mode():
        return checkpoint, checkpoint.model()(IMAGES)


def failure(path: Path) -> ModelError:
    """What opening it says, in one line that ends, soon."""
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        open_model(path)
    assert time.process_time() - start < 10
    assert "\n" not in str(caught.value) + caught.value.hint
    assert len(str(caught.value)) < 500 + len(str(path))
    return caught.value


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = tiny_model()(IMAGES).logits
    return logits


# --- right ones


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "microsoft"])
def test_every_transformers_layout(layout: str, tiny_cvt: TinyCvt, expected: torch.Tensor) -> None:
    checkpoint, logits = open_model(tiny_cvt(layout))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert checkpoint.labels == LABELS
    assert checkpoint.config.hidden_act == "gelu"
    assert checkpoint.preprocessing == Preprocessing.convnext(64)
    assert not checkpoint.model().training


def wide_model() -> Any:
    """Widths that the Microsoft layout can be read off: heads are width / 64."""
    return tiny_model(embed_dim=[64, 64, 128], num_heads=[1, 1, 2], depth=[1, 2, 3])


class QuickGelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_microsoft_layout(nesting: str | None, prefix: str, tmp_path: Path) -> None:
    model = wide_model()
    weights: Any = {prefix + k: v for k, v in microsoft_names(model.state_dict()).items()}
    if nesting:
        weights = {nesting: weights, "epoch": 300, "optimizer": {"lr": 0.1}}
    path = tmp_path / "CvT-x-224x224-IN-1k.pth"
    torch.save(weights, path)
    checkpoint, logits = open_model(path)
    # The same weights with the activation of the authors' code.
    for module in model.modules():
        if type(module).__name__ == "CvtIntermediate":
            module.activation = QuickGelu()
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(IMAGES).logits, rtol=0, atol=1e-5)
    assert checkpoint.labels == tuple(f"LABEL_{i}" for i in range(5))
    assert checkpoint.config.num_heads == (1, 1, 2)
    assert checkpoint.preprocessing == Preprocessing.convnext(224)


def test_the_microsoft_file_name_says_the_input_size(tmp_path: Path) -> None:
    (tmp_path / "384x384").mkdir()
    for name, size in {
        "CvT-13-384x384-IN-22k.pth": 384,
        "384x384/CvT-13-224x224-IN-1k.pth": 224,
        "384.pth": 224,
    }.items():
        torch.save(microsoft_names(tiny_model().state_dict()), tmp_path / name)
        assert open_model(tmp_path / name)[0].preprocessing == Preprocessing.convnext(size)


def test_old_files_without_counters(tiny_cvt: TinyCvt, expected: torch.Tensor) -> None:
    folder = tiny_cvt("bin")
    weights = torch.load(folder / "pytorch_model.bin")
    kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(weights)
    torch.save(kept, folder / "pytorch_model.bin")
    torch.testing.assert_close(open_model(folder)[1], expected, rtol=0, atol=1e-5)


def test_torchs_old_file_format(tiny_cvt: TinyCvt, expected: torch.Tensor) -> None:
    folder = tiny_cvt("bin")
    file = folder / "pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(open_model(folder)[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tiny_cvt: TinyCvt, expected: torch.Tensor) -> None:
    folder = tiny_cvt()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()},
        folder / "model.safetensors",
    )
    model = load(resolve(str(folder))).model()
    assert model.head.weight.dtype == dtype
    with torch.inference_mode():
        torch.testing.assert_close(model.float()(IMAGES), expected, rtol=0.1, atol=0.1)


def test_the_activation_can_be_overridden(tiny_cvt: TinyCvt, expected: torch.Tensor) -> None:
    folder = tiny_cvt()
    checkpoint = load(resolve(str(folder)), hidden_act="quick_gelu")
    with torch.inference_mode():
        assert (checkpoint.model()(IMAGES) - expected).abs().max() > 1e-3
    edit(folder / "config.json", hidden_act="quick_gelu")
    with pytest.warns(UserWarning, match="transformers always uses GELU"):
        assert open_model(folder)[0].config.hidden_act == "quick_gelu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(resolve(str(folder)), hidden_act="quick_gelu")


def test_json_that_an_editor_has_marked_as_utf_8(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    same = load(resolve(str(folder)))
    for name in ("config.json", "preprocessor_config.json"):
        file = folder / name
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert load(resolve(str(folder))) == same


# --- labels


def test_gaps_in_the_labels(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", id2label={"0": "a", "2": "c", "4": None, "3": 7})
    assert open_model(folder)[0].labels == ("a", "LABEL_1", "c", "7", "LABEL_4")


@pytest.mark.parametrize("id2label", [None, {}])
def test_no_labels(id2label: Any, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", id2label=id2label, num_labels=3)
    # The weights know better than `num_labels`.
    assert open_model(folder)[0].labels == tuple(f"LABEL_{i}" for i in range(5))
    for count, labels in ((3, 3), (0, 2), (-1, 2), (2**21, 2), ("3", 2)):
        edit(folder / "config.json", num_labels=count)
        assert len(load(resolve(str(folder), weights=False)).labels) == labels


@pytest.mark.parametrize(
    "id2label",
    [
        ["a", "b"],
        "abc",
        5,
        {"a": "b"},
        {"0": ["a"]},
        {"0": {"x": 1}},
        {"-1": "a", "0": "b"},
        {"0": "a", "00": "b", "1": "c", "2": "d", "3": "e", "4": "f"},
        {str(MAX_LABELS): "a"},
        {str(10**18): "a"},
        {"9" * 5000: "a"},
        {"1.5": "a"},
        {"": "a"},
    ],
    ids=lambda value: str(value)[:30],
)
def test_labels_that_make_no_sense(id2label: Any, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", id2label=id2label)
    assert "id2label" in str(failure(folder))


def test_more_labels_than_the_network_has(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", id2label={str(i): "x" for i in range(6)})
    assert "head.weight is (5, 64), not (6, 64)" in str(failure(folder))


# --- configurations that are none


@pytest.mark.parametrize("kind", ["vit", None, 5, ["cvt"]])
def test_not_a_cvt(kind: Any, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", model_type=kind)
    assert f"is not a CvT: its model_type is {kind!r}" in str(failure(folder))


BROKEN_JSON = {
    "empty": b"",
    "cut": b'{"model_type": "cvt", "depth": [1, 2',
    "no-json": b"<html>Not found</html>",
    "list": b"[]",
    "number": b"5",
    "not-utf8": b'{"model_type": "\xff\xfe"}',
    "nested": b'{"a":' * 100_000,
    "nested-list": b"[" * 100_000,
    "long-number": b'{"depth": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("kind", BROKEN_JSON)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_corrupt_json(name: str, kind: str, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    (folder / name).write_bytes(BROKEN_JSON[kind])
    assert f"{folder / name} is corrupt" in str(failure(folder))


def test_a_truncated_config(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    whole = (folder / "config.json").read_bytes()
    for cut in range(0, len(whole.rstrip()) - 1, 61):
        (folder / "config.json").write_bytes(whole[:cut])
        assert "config.json is corrupt" in str(failure(folder))


def test_a_wrong_preprocessor_is_named(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    edit(folder / "preprocessor_config.json", image_mean=[0.5, None, 0.5])
    assert "preprocessor_config.json: image_mean is" in str(failure(folder))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        # The largest of each that a network may have: the weights are looked at, nothing is built.
        ({"depth": [1, 2, 2**10]}, "the weights do not fit"),
        ({"embed_dim": [16, 32, 2**16]}, "the weights do not fit"),
        ({"embed_dim": [2**16, 2**16, 2**16]}, "the weights do not fit"),
        ({"patch_sizes": [2**10, 3, 3]}, "the weights do not fit"),
        ({"mlp_ratio": [4.0, 4.0, 2.0**10]}, "the weights do not fit"),
        # And more than that, which is refused by the configuration alone.
        ({"depth": [1, 2, 2**10 + 1]}, "depth has 1025, out of range (0 to 1024)"),
        ({"depth": [1, 2, 2**31]}, "depth has 2147483648, out of range"),
        ({"depth": [1] * 33}, "depth has 33 stages, more than 32"),
        ({"depth": [1] * 32}, "has not one entry for each of 32 stages"),
        ({"depth": [1] * 100_000}, "depth has 100000 stages, more than 32"),
        ({"embed_dim": [16, 32, 2**16 + 1]}, "embed_dim has 65537, out of range (1 to 65536)"),
        ({"patch_sizes": [2**10 + 1, 3, 3]}, "patch_sizes has 1025, out of range"),
        ({"mlp_ratio": [4.0, 4.0, 1e9]}, "mlp_ratio has 1000000000.0, out of range"),
        ({"mlp_ratio": [4.0, 4.0, math.inf]}, "mlp_ratio has inf, out of range (0 to 1024)"),
        ({"embed_dim": [16, 32, math.nan]}, "embed_dim"),
        ({"embed_dim": [16, 32, "64"]}, "embed_dim"),
        ({"embed_dim": [16, 32, 64, 128]}, "embed_dim"),
        ({"embed_dim": [16, 32, [64]]}, "embed_dim"),
        ({"embed_dim": {"0": 16}}, "embed_dim"),
        ({"embed_dim": [32, 64, 128]}, "fit"),
        ({"num_heads": [1, 1, 7]}, "num_heads"),
        ({"depth": [1, 2, 4]}, "stages.2.blocks.3.norm1.weight"),
        ({"depth": [1, 2, 2]}, "left over"),
        ({"num_channels": 1}, "1 channels"),
        ({"num_channels": 10**9}, "channels"),
        ({"kernel_qkv": [5, 5, 5], "padding_q": [2, 2, 2]}, "of a different shape"),
        ({"cls_token": [False, False, False]}, "left over (stages.2.cls_token)"),
        ({"qkv_bias": [True, True, False]}, "left over"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"drop_rate": [2.0, 0.0, 0.0]}, "drop_rate"),
        ({"initializer_range": "wide"}, "initializer_range"),
        ({"qkv_projection_method": ["avg", "avg", "avg"]}, "left over"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_configurations_that_do_not_fit(
    changes: dict[str, Any], word: str, tiny_cvt: TinyCvt
) -> None:
    folder = tiny_cvt()
    edit(folder / "config.json", **changes)
    assert word in str(failure(folder))


def test_the_first_keys_that_do_not_fit_are_named(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    weights = load_file(folder / "model.safetensors")
    weights = {k: v for k, v in weights.items() if ".1." not in k}
    weights |= {f"cvt.encoder.stages.0.extra.{i}": torch.zeros(1) for i in range(9)}
    save_file(weights, folder / "model.safetensors")
    message = str(failure(folder))
    assert "left over (cvt.encoder.stages.0.extra.0, " in message
    assert "missing (stages.1.embed.proj.weight, " in message
    assert "9 left over" in message


# --- weights that are none


def cuts(data: bytes) -> list[int]:
    rng = random.Random(0)
    return [0, 1, 7, 8, 9, 100, *(rng.randrange(len(data)) for _ in range(12)), len(data) - 1]


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_truncated_weights(layout: str, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt(layout)
    path = next(iter(resolve(str(folder)).weights))
    whole = path.read_bytes()
    for cut in cuts(whole):
        path.write_bytes(whole[:cut])
        error = failure(folder)
        assert f"{path} is corrupt or truncated" in str(error), cut
        assert "again" in error.hint
        assert "weights_only" not in str(error)


@pytest.mark.parametrize("reader", ["safetensors.torch.load_file", "torch.load"])
def test_weights_that_are_not_for_this_user(
    reader: str, tiny_cvt: TinyCvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_cvt("bin" if reader == "torch.load" else "safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reader, refuse)
    (path,) = resolve(str(folder)).weights
    assert str(failure(folder)).endswith(f"{path}: permission denied")


@pytest.mark.parametrize("layout", ["safetensors", "bin", "microsoft"])
def test_damaged_weights(layout: str, tiny_cvt: TinyCvt) -> None:
    """Random bytes changed where structure is: it opens, or it is a `ModelError`."""
    path = tiny_cvt(layout)
    file = next(iter(resolve(str(path)).weights))
    whole = file.read_bytes()
    rng = random.Random(layout)
    failures = 0
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            near = rng.choice((8, 4000, len(whole)))
            at = rng.randrange(near)
            broken[at if rng.random() < 0.6 else -at - 1] = rng.randrange(256)
        file.write_bytes(broken)
        try:
            load(resolve(str(path))).model()
        except ModelError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures > 5


def header(values: object, data: bytes = b"") -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 100_000_001) + b"{}",
        header(b"[" * 10_000),
        header(b'{"a":' * 10_000),
        header({"a": entry("F32", [2**62, 2**62], [0, 4])}, b"\0" * 4),
        header({"a": entry("F32", [10**12], [0, 4 * 10**12])}, b"\0" * 4),
        header({"a": entry("F32", [1], [0, 2**63])}, b"\0" * 4),
        header({"a": entry("F32", [-1], [0, 4])}, b"\0" * 4),
        header({"a": entry("X7", [1], [0, 4])}, b"\0" * 4),
        header({"a": entry("F32", [1], [0, 4]), "b": entry("F32", [1], [2, 6])}, b"\0" * 6),
        header(b'{"a": 5}'),
        header(b"\xff\xff"),
        b"PK\x03\x04 a zip",
    ],
    ids=range(14),
)
def test_tricks_with_the_header_of_safetensors(content: bytes, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    (folder / "model.safetensors").write_bytes(content)
    message = str(failure(folder))
    assert f"{folder / 'model.safetensors'} is corrupt or truncated" in message


def test_safetensors_without_a_tensor(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    (folder / "model.safetensors").write_bytes(header({}))
    assert "not those of a CvT" in str(failure(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.to(torch.int32),
        lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
        lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda value: value.to("meta"),
        lambda value: torch.nested.nested_tensor([value, value]),
        lambda value: torch.nested.nested_tensor([value, value], layout=torch.jagged),
        lambda value: value[:1, :1].clone().expand(value.shape),
        lambda value: value[..., None],
        lambda value: value.flatten()[0],
        lambda value: [value],
        lambda value: None,
    ],
    ids=[
        "int",
        "complex",
        "sparse",
        "quantised",
        "meta",
        "nested",
        "jagged",
        "expanded",
        "rank",
        "scalar",
        "list",
        "none",
    ],
)
@pytest.mark.parametrize(
    "name", ["classifier.weight", "cvt.encoder.stages.0.layers.0.output.dense.weight"]
)
@pytest.mark.filterwarnings("ignore")
def test_weights_of_other_kinds(
    change: Callable[[torch.Tensor], Any], name: str, tiny_cvt: TinyCvt
) -> None:
    for layout in ("bin", "microsoft"):
        path = tiny_cvt(layout)
        file = next(iter(resolve(str(path)).weights))
        weights = torch.load(file)
        key = name if layout == "bin" else next(iter(microsoft_names({name: 0})))
        weights[key] = change(weights[key])
        torch.save(weights, file)
        failure(path)


def test_a_tensor_of_any_size_out_of_one_number(tmp_path: Path) -> None:
    """10**9 labels in a file of a few kilobytes."""
    weights = microsoft_names(tiny_model().state_dict())
    weights["head.weight"] = torch.zeros(1, 1).expand(10**9, 64)
    weights["head.bias"] = torch.zeros(1).expand(10**9)
    torch.save(weights, tmp_path / "x.pth")
    assert "head.weight is not a plain tensor" in str(failure(tmp_path / "x.pth"))


@pytest.mark.parametrize("content", [[], "text", 5, None, {}, {"model": 5}, {"state_dict": {}}])
def test_a_pickle_of_something_else(content: Any, tiny_cvt: TinyCvt, tmp_path: Path) -> None:
    folder = tiny_cvt("bin")
    torch.save(content, folder / "pytorch_model.bin")
    failure(folder)
    torch.save(content, tmp_path / "x.pth")
    failure(tmp_path / "x.pth")


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(5)}, tmp_path / "x.pt"
    )
    assert "not those of a CvT" in str(failure(tmp_path / "x.pt"))


class Code:
    """Its pickle would create a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def plain_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("layout", ["bin", "sharded-bin", "microsoft"])
@pytest.mark.parametrize("save", [torch.save, plain_pickle], ids=["torch", "pickle"])
@pytest.mark.parametrize("whole", [True, False], ids=["all", "one-entry"])
def test_a_pickle_that_holds_code_is_never_run(
    layout: str,
    save: Callable[[object, Path], None],
    whole: bool,
    tiny_cvt: TinyCvt,
    tmp_path: Path,
) -> None:
    path = tiny_cvt(layout)
    file = resolve(str(path)).weights[-1]
    evil = Code(tmp_path / "was-run")
    weights: Mapping[str, Any] = torch.load(file)
    save(evil if whole else {**weights, "x": evil}, file)
    error = failure(path)
    assert not (tmp_path / "was-run").exists()
    assert f"{file} holds more than weights" in str(error)
    assert "could run code" in str(error) and "refused" in str(error)
    # The trap works.
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "was-run").exists()


def test_other_classes_in_a_pickle_are_refused(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt("bin")
    torch.save(tiny_model(), folder / "pytorch_model.bin")
    assert "run code (transformers.models.cvt.modeling_cvt.Cvt" in str(failure(folder))


def test_a_deeply_nested_pickle(tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt("bin")
    data = pickle.PROTO + b"\x02" + pickle.EMPTY_LIST * 10**4 + pickle.APPEND * (10**4 - 1) + b"."
    (folder / "pytorch_model.bin").write_bytes(data)
    failure(folder)


def test_a_zip_bomb(tiny_cvt: TinyCvt) -> None:
    """An archive whose pickle claims more than there is memory for."""
    import zipfile

    folder = tiny_cvt("bin")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**26)
    (folder / "pytorch_model.bin").write_bytes(buffer.getvalue())
    failure(folder)


INTERRUPTED = """
import random, signal, sys
from pathlib import Path
from cvt_cli.system import signals
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve

def interrupt():
    raise KeyboardInterrupt

signals.REPEAT_SECONDS = 0
signal.signal(signal.SIGALRM, signals.once(interrupt))
checkpoint, interrupted = load(resolve(sys.argv[1])), 0
checkpoint.model()
for _ in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-3))
        while True:
            checkpoint.model()
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted)
"""


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_an_interruption_is_no_corrupt_file(
    layout: str, tiny_cvt: TinyCvt, run_python: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = run_python(INTERRUPTED, tiny_cvt(layout))
    assert process.communicate(timeout=300) == ("200\n", "")
