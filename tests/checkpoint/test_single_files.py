"""Files of weights as people have them: any wrapping, with or without what belongs to them."""

import argparse
import io
import json
import pickle
import struct
import time
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import parametrizations, prune

from cvt_cli.checkpoint import imagenet
from cvt_cli.checkpoint.architecture import config_from_shapes
from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, BUNDLED_MODEL, CVT_13, CVT_21, CVT_W24
from cvt_cli.checkpoint.class_names import read_class_names
from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.parametrized import Budget, without_parts
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from tests.tiny import LABELS, microsoft_names, tiny_model

# Heads are width / 64 here, as in what is guessed.
WIDE: dict[str, Any] = {"embed_dim": [64, 64, 128], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class QuickGelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.fixture(scope="module")
def wide() -> Any:
    return tiny_model(**WIDE)


@pytest.fixture(scope="module")
def gelu(wide: Any) -> torch.Tensor:
    """The logits that `transformers` computes."""
    with torch.inference_mode():
        logits: torch.Tensor = wide(IMAGES).logits
    return logits


@pytest.fixture(scope="module")
def quick_gelu(wide: Any) -> torch.Tensor:
    """Those of the authors' code: the same weights, QuickGELU."""
    model = tiny_model(**WIDE)
    for module in model.modules():
        if type(module).__name__ == "CvtIntermediate":
            module.activation = QuickGelu()
    with torch.inference_mode():
        logits: torch.Tensor = model(IMAGES).logits
    return logits


def opened(path: Path, key: str | None = None) -> Checkpoint:
    """The checkpoint, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(resolve(str(path), weights_key=key))


def logits(path: Path, key: str | None = None) -> torch.Tensor:
    checkpoint = opened(path, key)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: torch.Tensor = checkpoint.model()(IMAGES)
    return result


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def failure(path: Path, key: str | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        logits(path, key)
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


def said(path: Path) -> str:
    """The one warning that opening it gives; empty if there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(resolve(str(path)))
    assert len(caught) <= 1
    return str(caught[0].message) if caught else ""


# --- wrappings


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda weights: weights,
    "ordered": OrderedDict,
    **{
        key: lambda weights, key=key: {"epoch": 3, key: weights, "optimizer": {"state": {0: 1}}}
        for key in ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
    },
    **{key: lambda weights, key=key: {key: weights} for key in ("teacher", "net", "module", "ema")},
    "nested": lambda weights: {"checkpoint": {"model": {"state_dict": weights}}},
    "lightning": lambda weights: {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
    },
    "with-options": lambda weights: {"model": weights, "args": argparse.Namespace(lr=0.1)},
}
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "backbone.", "module._orig_mod.model.")


@pytest.mark.parametrize("names", ["transformers", "microsoft"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping(
    wrapping: str,
    names: str,
    wide: Any,
    gelu: torch.Tensor,
    quick_gelu: torch.Tensor,
    tmp_path: Path,
) -> None:
    weights = wide.state_dict() if names == "transformers" else microsoft_names(wide.state_dict())
    torch.save(WRAPPINGS[wrapping](weights), tmp_path / "x.pth")
    same(logits(tmp_path / "x.pth"), gelu if names == "transformers" else quick_gelu)


@pytest.mark.parametrize("container", ["plain", "state_dict", "safetensors", "with-config"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_in_every_container(
    prefix: str, container: str, wide: Any, gelu: torch.Tensor, tmp_path: Path
) -> None:
    weights: Any = {prefix + name: value for name, value in wide.state_dict().items()}
    path = tmp_path / "x.pth"
    if container == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(weights, path)
    elif container == "with-config":
        wide.config.save_pretrained(tmp_path)
        torch.save(weights, tmp_path / "pytorch_model.bin")
        path = tmp_path
    else:
        torch.save(WRAPPINGS[container](weights), path)
    same(logits(path), gelu)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar", ".PTH", ".Pt", ".BIN", ".SAFETENSORS"])
def test_every_suffix(suffix: str, wide: Any, gelu: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".SAFETENSORS":
        save_file(wide.state_dict(), path)
    else:
        torch.save(wide.state_dict(), path)
    same(logits(path), gelu)


def test_a_program_is_refused_by_its_suffix(wide: Any, tmp_path: Path) -> None:
    torch.save(wide.state_dict(), tmp_path / "x.pt2")
    assert "a torch.export program" in str(failure(tmp_path / "x.pt2"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.5),
        np.arange(3),
        np.array(["cat", "dog"]),
        defaultdict(list, loss=[0.5]),
        argparse.Namespace(data=Path("photos"), begun=datetime(2026, 1, 1, tzinfo=UTC)),
        partial(torch.optim.AdamW, lr=0.1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_training_code_saves_beside_the_weights(
    beside: Any, zipped: bool, wide: Any, gelu: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(
        {"best": beside, "state_dict": wide.state_dict()},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=zipped,
    )
    same(logits(tmp_path / "x.pth"), gelu)


def test_stand_ins_do_nothing(wide: Any, tmp_path: Path) -> None:
    """numpy's own type of this name, if it were called, would become another for everybody."""

    class Swapped:
        def __reduce__(self) -> tuple[Any, ...]:
            state = (3, ">", None, None, None, -1, -1, 0)
            return np.dtype, ("f8", False, False), state

    torch.save({"state_dict": wide.state_dict(), "x": Swapped()}, tmp_path / "x.pth")
    logits(tmp_path / "x.pth")
    assert np.dtype("f8").isnative


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_modules_that_wrap_others_within_the_network(
    wrapper: str, wide: Any, gelu: torch.Tensor, tmp_path: Path
) -> None:
    weights = {
        name.replace("cvt.encoder.", f"cvt.{wrapper}.encoder.").replace(
            "layers.0.", f"layers.0.{wrapper}."
        ): value
        for name, value in wide.state_dict().items()
    }
    torch.save({"a": weights, "b": weights}, tmp_path / "x.pth")
    same(logits(tmp_path / "x.pth", "a"), gelu)
    save_file(weights, tmp_path / "model.safetensors")
    wide.config.save_pretrained(tmp_path)
    same(logits(tmp_path), gelu)


QUERY = "cvt.encoder.stages.0.layers.0.attention.attention.projection_query"
DENSE = "cvt.encoder.stages.0.layers.0.output.dense"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # PEFT: beside the network, alone in its file, and for a whole layer.
        ({f"{QUERY}.lora_A.default.weight": torch.ones(8, 64)}, "a LoRA adapter"),
        ({"classifier.modules_to_save.default.bias": torch.ones(5)}, "a LoRA adapter"),
        # bitsandbytes, torch.ao, compressed-tensors.
        ({f"{DENSE}.SCB": torch.ones(64)}, "quantised weights"),
        ({f"{DENSE}.weight.quant_state.bitsandbytes__nf4": torch.ones(9)}, "quantised weights"),
        ({f"{DENSE}.scale": torch.tensor(1.0)}, "quantised weights"),
        ({f"{DENSE}.weight_scale": torch.ones(64)}, "quantised weights"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)).rsplit(".", 1)[1],
)
def test_weights_of_others_are_named(
    changed: dict[str, torch.Tensor], words: str, wide: Any, tmp_path: Path
) -> None:
    wide.config.save_pretrained(tmp_path)
    for weights in ({**wide.state_dict(), **changed}, changed):
        save_file(
            {f"base_model.model.{name}": value for name, value in weights.items()},
            tmp_path / "model.safetensors",
        )
        error = failure(tmp_path)
        assert words in str(error) and "save_pretrained" in error.hint


def test_a_head_of_other_layers_is_named_and_replaced_in_training(
    wide: Any, tmp_path: Path
) -> None:
    weights = {n.replace("classifier.", "classifier.1."): v for n, v in wide.state_dict().items()}
    wide.config.save_pretrained(tmp_path)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    error = failure(tmp_path)
    assert "its head is not one linear layer" in str(error) and "head.1.weight" in str(error)
    assert "cvt train" in error.hint
    found, has_head = opened(tmp_path).weights_to_train()
    assert not has_head and not found["head.weight"].any()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused_as_one(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pt")
    assert "a TorchScript program" in str(failure(tmp_path / "x.pt"))


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_arrays_of_numpy(wide: Any, gelu: torch.Tensor, tmp_path: Path) -> None:
    content = arrays(wide)
    np.savez(tmp_path / "a.npz", **content)
    np.savez_compressed(tmp_path / "b.npz", **content)
    for protocol in range(2, 6):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"model": content}))
    torch.save({"state_dict": content, "epoch": np.float64(3)}, tmp_path / "torch.pth")
    odd = {
        name: value.astype(value.dtype.newbyteorder(">"), order="F")
        for name, value in content.items()
    }
    torch.save(odd, tmp_path / "odd.pth")
    np.savez(tmp_path / "odd.npz", **odd, words=np.array(["a"]))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for path in files:
        same(logits(path), gelu)


class Calls:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("called"),)


class Sharing:
    """An array of a megabyte that it has in common with others in a pickle."""

    content = bytes(2**20)

    def __reduce__(self) -> tuple[Any, ...]:
        made, arguments, state = np.zeros(2**20, np.uint8).__reduce__()
        return made, arguments, (*state[:-1], self.content)


class Shaped:
    """An array of three numbers that says it has this shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        made, arguments, state = np.zeros(3, np.float32).__reduce__()
        return made, arguments, (state[0], self.shape, *state[2:])


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(content: bytes, name: str = "data.pkl") -> bytes:
    """A file of torch's with this pickle; torch finds its name in any capitals."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({}))) as plain,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in plain.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            if is_pickle:
                made.writestr(entry.filename.replace("data.pkl", name), content)
            else:
                made.writestr(entry.filename, plain.read(entry))
    return file.getvalue()


def old(content: bytes) -> bytes:
    """A file of torch's before 1.6 with this pickle."""
    whole = saved("x", _use_new_zipfile_serialization=False)
    return whole.replace(pickle.dumps("x", 2), content)


def test_arrays_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = pickle.dumps({"a": np.ones(3, np.float32)}, 3)
    memo = b"\x80\x04}r\xff\xff\xff\x7f."  # room for two thousand million notes
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    often: dict[str, Any] = {}
    often |= dict.fromkeys(map(str, range(30)), often)
    # A function whose function is itself: to call it would end the process.
    state = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00(h\x00)}}tb)R."
    shared = {str(number): Sharing() for number in range(199)}
    # A tuple in a tuple, and so on: to hash it, as a key, would end the process. The second is
    # built so that each part looks as if it held nothing.
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    built = b"\x80\x02})" + b"\x85Nb" * 300_000 + b"K\x01s."
    room = b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x0f\x85Rs."
    number = b"\x80\x04}\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b"K\x01s."
    huge = {str(key): Shaped((2**80_000,) * 60) for key in range(60)}
    attribute = torch.nn.Parameter(torch.ones(2))
    attribute.numel = OrderedDict  # type: ignore[method-assign]
    many = {**dict.fromkeys(range(2**17), 0.5), "x": {}}
    for name, content, word in (
        ("many.pkl", pickle.dumps(many), "not those of a CvT"),
        ("code.pkl", pickle.dumps({"a": Calls()}), "could run code"),
        ("code.pth", pickle.dumps({"a": np.array([Calls()])}), "could run code"),
        ("short.pkl", array.replace(b"K\x03\x85", b"K\x09\x85"), "corrupt or truncated"),
        ("memo.pkl", memo, "it numbers its notes otherwise"),
        ("itself.pkl", pickle.dumps(itself), "not those of a CvT"),
        ("often.pkl", pickle.dumps(often), "dicts hold each other without end"),
        ("often.pth", saved(often), "dicts hold each other without end"),
        ("state.pkl", state, "could run code"),
        ("shared.pkl", pickle.dumps(shared), "unpack to far more"),
        ("deep.pkl", deep, "nests tuples too deep"),
        ("deep.pth", zipped(deep), "nests tuples too deep"),
        ("deep-capitals.pth", zipped(deep, "DATA.PKL"), "nests tuples too deep"),
        ("deep-old.pth", old(deep), "nests tuples too deep"),
        ("deep-noted.pth", old(deep).replace(b"P\x19.", b"P\x19q\0."), "nests tuples too deep"),
        ("built.pkl", built, "nests tuples too deep"),
        ("room.pkl", room, "could run code (builtins.bytearray)"),
        ("number.pkl", number, "not those of a CvT"),
        ("axes.pkl", pickle.dumps(huge), "not those of a CvT"),
        ("attribute.pth", saved({"a": attribute}), "not those of a CvT"),
        ("list.pkl", pickle.dumps([1]), "contains no state dict"),
        ("words.pkl", pickle.dumps({"a": np.array(["a"])}), "not those of a CvT"),
        ("broken.npz", b"PK", "corrupt or truncated"),
    ):
        Path(name).write_bytes(content)
        assert word in str(failure(Path(name))), name
    np.savez("objects.npz", a=np.array([Calls()], object))
    assert "corrupt or truncated" in str(failure(Path("objects.npz")))
    np.savez("zeros.npz", a=np.ones(4, np.float32))
    with zipfile.ZipFile("huge.npz", "w") as made, zipfile.ZipFile("zeros.npz") as plain:
        made.writestr("a.npy", plain.read("a.npy").replace(b"(4,)", b"(4000000000000,)")[:128])
    assert "corrupt or truncated" in str(failure(Path("huge.npz")))
    assert not Path("called").exists()


def pruned(layer: torch.nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)


def with_old_weight_norm(layer: torch.nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "change",
    [
        pruned,
        with_old_weight_norm,
        parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
        parametrizations.spectral_norm,
    ],
)
def test_weights_in_parts(change: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model(**WIDE)
    encoder = model.cvt.encoder.stages[0]
    torch.manual_seed(0)  # a small singular value makes large weights
    for layer in (
        # The first, by whose name the network is found.
        encoder.embedding.convolution_embeddings.projection,
        encoder.layers[0].output.dense,
        model.classifier,
    ):
        change(layer)
    model.eval()
    with torch.inference_mode():
        expected = model(IMAGES).logits
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    same(logits(tmp_path / "x.pth"), expected)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    same(logits(tmp_path), expected)


def test_weights_in_parts_that_do_not_fit(wide: Any, tmp_path: Path) -> None:
    for parts, word in (
        ({"weight_orig": (5, 128), "weight_mask": (1, 128)}, "do not fit: a mask of (1, 128)"),
        ({"weight_g": (4, 1), "weight_v": (5, 128)}, "do not fit: lengths of (4, 1)"),
        ({"weight_orig": (5, 128), "weight_u": (5,), "weight_v": (9,)}, "do not fit: "),
        ({"parametrizations.weight.original": (5, 128)}, "holds a parametrised weight"),
    ):
        weights = dict(wide.state_dict())
        del weights["classifier.weight"]
        weights |= {f"classifier.{name}": torch.ones(shape) for name, shape in parts.items()}
        torch.save(weights, tmp_path / "x.pth")
        assert word in str(failure(tmp_path / "x.pth"))
    one = torch.zeros(1)
    for parts in (
        {"weight_orig": one.expand(10**13), "weight_mask": one.expand(10**13)},
        {"weight_orig": torch.ones(9, 9, 1, 1), "weight_u": torch.ones(9, 9), "weight_v": one},
        {"weight_orig": one, "weight_u": one, "weight_v": one},
    ):
        torch.save({**wide.state_dict(), **parts}, tmp_path / "x.pth")
        assert "the parts of weight do not fit: " in str(failure(tmp_path / "x.pth"))


def test_parts_that_share_their_numbers(wide: Any, tmp_path: Path) -> None:
    """In a file of one and the same numbers each part would become others."""
    one = torch.ones(2**20)
    shared = {f"{n}.weight_{part}": one for n in range(99) for part in ("orig", "mask")}
    torch.save({**wide.state_dict(), "other": shared}, tmp_path / "x.pth")
    assert "share their numbers with others" in str(failure(tmp_path / "x.pth"))


def test_weight_norm_of_one_axis_and_tied_weights(wide: Any, tmp_path: Path) -> None:
    length, direction = torch.tensor([3.0, -4.0]), torch.tensor([3.0, 4.0])
    budget = Budget(100)
    found = without_parts("x", {"a.bias_g": length, "a.bias_v": direction}, budget)
    assert found["a.bias"].equal(torch._weight_norm(direction, length, 0))
    array = np.ones((5, 128), np.float32)
    arrays = {name: value.numpy() for name, value in wide.state_dict().items()}
    arrays["classifier.weight"] = array
    content = {"model": arrays, "ema": {"x": array}, "other": {"x": array}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    assert logits(tmp_path / "x.pkl").shape == (len(IMAGES), 5)


@pytest.mark.parametrize("name", ["lora_a.", "parametrizations.a.1.", "base_layer", "a."])
def test_names_of_any_length(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    torch.save({name * 50_000 + "\n": torch.ones(1)}, tmp_path / "x.pth")
    failure(tmp_path / "x.pth")
    assert time.process_time() - start < 10


def test_weights_that_lie_elsewhere(wide: Any, tmp_path: Path) -> None:
    empty = {name: torch.empty(0) for name in wide.state_dict()}
    torch.save({"module": empty}, tmp_path / "zero.pt")
    assert "zero_to_fp32.py" in failure(tmp_path / "zero.pt").hint
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, tmp_path / "flat.pt")
    assert "FSDP has flattened" in str(failure(tmp_path / "flat.pt"))


@pytest.mark.parametrize(
    ("name", "word", "advice"),
    [
        ("model-00002-of-00003.safetensors", "one shard of several", "name their folder: "),
        ("model.safetensors.index.json", "not a file of weights", "did you mean "),
        ("config.json", "not a file of weights", "did you mean "),
        ("__0_0.distcp", "a distributed checkpoint of PyTorch", "dcp_to_torch"),
        ("model.tar.gz", "an archive", "unpack it"),
        ("model.gguf", "weights of GGUF", "model.safetensors beside a config.json"),
        ("model.tflite", "a LiteRT", "model.safetensors beside a config.json"),
    ],
)
def test_files_of_other_kinds(name: str, word: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    error = failure(tmp_path / name)
    assert word in str(error) and advice in error.hint
    if name.endswith((".distcp", ".gguf", ".tflite")):
        (tmp_path / "config.json").write_text("{}")
        assert word in str(failure(tmp_path))


def test_one_of_several_networks_is_chosen(
    wide: Any, gelu: torch.Tensor, quick_gelu: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    both = {"state_dict": wide.state_dict(), "state_dict_ema": microsoft_names(wide.state_dict())}
    torch.save(both, path)
    error = failure(path)
    assert "2 networks: state_dict, state_dict_ema" in str(error)
    assert "--weights-key state_dict" in error.hint
    same(logits(path, "state_dict"), gelu)
    same(logits(path, "state_dict_ema"), quick_gelu)
    error = failure(path, "ema")
    assert "no CvT under 'ema'" in str(error) and "state_dict, state_dict_ema" in error.hint

    flat = {
        f"{who}.{name}": v
        for who in ("student", "teacher.net")
        for name, v in wide.state_dict().items()
    }
    torch.save({"model": flat}, path)
    assert "model.student, model.teacher.net" in str(failure(path))
    same(logits(path, "model.teacher"), gelu)
    torch.save(
        {**wide.state_dict(), **{f"ema.{k}": v * 2 for k, v in wide.state_dict().items()}}, path
    )
    assert "2 networks: ., ema" in str(failure(path))
    same(logits(path, "."), gelu)


# --- what is left over, or missing


@pytest.mark.parametrize(
    "extra",
    ["total_ops", "cvt.encoder.stages.0.total_params", "loss.weight", "n_averaged", "ema.decay"],
)
def test_what_is_no_part_of_the_network_is_a_warning(
    extra: str, wide: Any, gelu: torch.Tensor, tmp_path: Path
) -> None:
    wide.config.save_pretrained(tmp_path)
    torch.save({**wide.state_dict(), extra: torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.warns(UserWarning, match=f"ignoring 1 tensor .*{extra}"):
        model = opened_quietly(tmp_path).model()
    with torch.inference_mode():
        same(model(IMAGES), gelu)


def opened_quietly(path: Path) -> Checkpoint:
    return load(resolve(str(path)))


@pytest.mark.parametrize("names", ["transformers", "microsoft"])
def test_what_is_left_over_in_the_network_is_an_error(
    names: str, wide: Any, tmp_path: Path
) -> None:
    config = json.loads(wide.config.to_json_string()) | {"depth": [1, 2, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = wide.state_dict()
    if names == "microsoft":
        weights = microsoft_names(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert "left over (stages.2.blocks.2." in str(failure(tmp_path))
    config["depth"] = [1, 2, 3]
    (tmp_path / "config.json").write_text(json.dumps(config))
    extra = "classifier.weight_g" if names == "transformers" else "head.weight_g"
    torch.save({**weights, extra: torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert "left over (" in str(failure(tmp_path)) and "weight_g" in str(failure(tmp_path))
    lacking = {
        k: v
        for k, v in weights.items()
        if "stages.1.layers.1" not in k and "stage1.blocks.1" not in k
    }
    torch.save(lacking, tmp_path / "pytorch_model.bin")
    assert "missing (stages.1.blocks.1." in str(failure(tmp_path))


@pytest.mark.parametrize("how", ["file", "folder", "base"])
def test_without_a_head(how: str, wide: Any, tmp_path: Path) -> None:
    weights = {k: v for k, v in wide.state_dict().items() if not k.startswith("classifier")}
    path = tmp_path
    if how == "base":  # what `CvtModel.save_pretrained` writes: no last norm either
        wide.cvt.save_pretrained(tmp_path)
    elif how == "folder":
        wide.config.save_pretrained(tmp_path)
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        path = tmp_path / "x.pth"
        torch.save(weights, path)
    error = failure(path)
    assert "has no head" in str(error) and "cvt train" in error.hint
    assert opened(path).config.num_labels != 1  # which would be scored by a sigmoid
    found, has_head = opened(path).weights_to_train()
    assert not has_head
    key = "stages.2.blocks.2.mlp.fc2.weight"
    theirs = wide.state_dict()["cvt.encoder.stages.2.layers.2.output.dense.weight"]
    assert torch.equal(found[key], theirs)
    norm = torch.ones(128) if how == "base" else wide.state_dict()["layernorm.weight"]
    assert torch.equal(found["norm.weight"], norm)


# --- the activation


def test_a_configuration_beside_an_authors_file_keeps_its_activation(
    wide: Any, gelu: torch.Tensor, quick_gelu: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(microsoft_names(wide.state_dict()), tmp_path / "x.pth")
    wide.config.save_pretrained(tmp_path)
    assert opened(tmp_path / "x.pth").labels == LABELS
    assert opened(tmp_path / "x.pth").layout == "Microsoft"
    same(logits(tmp_path / "x.pth"), quick_gelu)
    values = json.loads((tmp_path / "config.json").read_text()) | {"hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    same(logits(tmp_path / "x.pth"), gelu)


# --- what is assumed


def shapes_of(config: CvtConfig) -> dict[str, tuple[int, ...]]:
    from cvt_cli.model.cvt import Cvt

    with torch.device("meta"):
        return {name: tuple(v.shape) for name, v in Cvt(config).state_dict().items()}


@pytest.mark.parametrize("config", [CVT_13, CVT_21, CVT_W24], ids=["13", "21", "w24"])
def test_a_published_architecture_is_recognised(config: CvtConfig) -> None:
    assert config_from_shapes(shapes_of(config), "gelu") == (config, "")


def test_a_guess_is_said(wide: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(wide.state_dict(), path)
    text = said(path)
    for words in ("heads 1, 1, 2", "strides 4, 2, 2", "key strides 2", "input of 224 × 224"):
        assert words in text
    assert "config.json" in text and "YAML" in text
    assert opened(path).layout == "Transformers"
    torch.save(wide.state_dict(), tmp_path / "cvt-96x96.pth")
    assert "input of" not in said(tmp_path / "cvt-96x96.pth")


def test_the_bundled_file_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((BUNDLED_FOLDER / BUNDLED_MODEL / "model.safetensors").read_bytes())
    assert said(path) == ""
    checkpoint, bundled = opened(path), load(resolve(BUNDLED_MODEL))
    assert checkpoint.labels == bundled.labels and checkpoint.config == bundled.config
    assert checkpoint.preprocessing == bundled.preprocessing


YAML = """
OUTPUT_DIR: ''
MODEL:
  NAME: cls_cvt
  SPEC:
    INIT: 'trunc_norm'
    NUM_STAGES: 3
    PATCH_SIZE: [7, 3, 3]
    PATCH_STRIDE: [4, 2, 2]
    PATCH_PADDING: [2, 1, 1]
    DIM_EMBED: [64, 64, 128]
    NUM_HEADS: [2, 1, 4]
    DEPTH: [1, 2, 3]
    MLP_RATIO: [4.0, 4.0, 4.0]
    ATTN_DROP_RATE: [0.0, 0.0, 0.0]
    DROP_RATE: [0.0, 0.0, 0.0]
    DROP_PATH_RATE: [0.0, 0.0, 0.1]
    QKV_BIAS: [True, True, True]
    CLS_TOKEN: [False, False, True]
    POS_EMBED: [False, False, False]
    QKV_PROJ_METHOD: ['dw_bn', 'dw_bn', 'dw_bn']
    KERNEL_QKV: [3, 3, 3]
    PADDING_KV: [1, 1, 1]
    STRIDE_KV: [2, 1, 1]
    PADDING_Q: [1, 1, 1]
    STRIDE_Q: [1, 1, 1]
TEST:
  BATCH_SIZE_PER_GPU: 32
  IMAGE_SIZE: [96, 64]
  CENTER_CROP: False
  INTERPOLATION: 3
INPUT:
  MEAN: [0.4, 0.5, 0.6]
"""


def test_the_authors_yaml_is_read(wide: Any, tmp_path: Path) -> None:
    from transformers import CvtConfig as TheirConfig
    from transformers import CvtForImageClassification

    torch.save(microsoft_names(wide.state_dict()), tmp_path / "net.pth")
    (tmp_path / "net.yaml").write_text(YAML)
    (tmp_path / "other.yaml").write_text("a: 1")
    assert said(tmp_path / "net.pth") == ""
    checkpoint = opened(tmp_path / "net.pth")
    assert checkpoint.preprocessing == Preprocessing((64, 96), None, None, mean=(0.4, 0.5, 0.6))
    config = TheirConfig(
        **(WIDE | {"num_heads": [2, 1, 4], "stride_kv": [2, 1, 1]}), num_labels=len(LABELS)
    )
    model = CvtForImageClassification(config).eval()
    model.load_state_dict(wide.state_dict())
    for module in model.modules():
        if type(module).__name__ == "CvtIntermediate":
            module.activation = QuickGelu()
    with torch.inference_mode():
        same(logits(tmp_path / "net.pth"), model(IMAGES).logits)
    (tmp_path / "net.yaml").write_text(YAML.replace("CENTER_CROP: False", "CENTER_CROP: True"))
    assert opened(tmp_path / "net.pth").preprocessing.crop == (96, 96)
    # Under another name it is taken only where it is the only one.
    (tmp_path / "net.yaml").rename(tmp_path / "cvt.yml")
    assert "heads 1, 1, 2" in said(tmp_path / "net.pth")
    (tmp_path / "other.yaml").unlink()
    assert said(tmp_path / "net.pth") == ""


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "MODEL.SPEC has no PATCH_SIZE"),
        ("MODEL: 5", "MODEL.SPEC has no"),
        ("[" * 5000, "corrupt"),
        ("a: !!python/object/apply:os.system ['touch was-run']", "corrupt"),
        (YAML.replace("STRIDE_KV: [2, 1, 1]", "STRIDE_KV: [2, 1]"), "stride_kv"),
        (YAML.replace("'dw_bn', 'dw_bn', 'dw_bn'", "'lstm', 'dw_bn', 'dw_bn'"), "lstm"),
        (YAML.replace("IMAGE_SIZE: [96, 64]", "IMAGE_SIZE: 96"), "IMAGE_SIZE"),
        (YAML.replace("INTERPOLATION: 3", "INTERPOLATION: cubic"), "INTERPOLATION"),
        (YAML.replace("MEAN: [0.4, 0.5, 0.6]", "STD: [0.4, 0.5, 0]"), "STD"),
        (YAML.replace("DEPTH: [1, 2, 3]", "DEPTH: [1, 2, 4]"), "missing"),
    ],
    ids=range(10),
)
def test_yaml_that_makes_no_sense(content: str, word: str, wide: Any, tmp_path: Path) -> None:
    torch.save(microsoft_names(wide.state_dict()), tmp_path / "net.pth")
    (tmp_path / "net.yaml").write_text(content)
    assert word in str(failure(tmp_path / "net.pth"))


# --- names


def test_a_head_of_a_thousand_has_the_names_of_imagenet(tmp_path: Path) -> None:
    model = tiny_model(labels=[str(i) for i in range(1000)], **WIDE)
    path = tmp_path / "CvT-13-224x224-IN-1k.pth"
    torch.save(microsoft_names(model.state_dict()), path)
    assert "the labels of ImageNet-1k" in said(path)
    labels = opened(path).labels
    assert labels[0] == "tench, Tinca tinca"
    assert labels[999] == "toilet tissue, toilet paper, bathroom tissue"
    names = [f"class {i} of mine" for i in range(1000)]
    assert load(resolve(str(path)), class_names=names).labels == tuple(names)
    with pytest.raises(UsageError, match=r"has 2 names, but .* has 1000 classes"):
        load(resolve(str(path)), class_names=["a", "b"])


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog, hound\nbär\n\n",
        "\ufeffcat\r\ndog, hound\r\nbär",
        '["cat", "dog, hound", "bär"]',
        '{"1": "dog, hound", "0": "cat", "2": "bär"}',
        '{"id2label": {"0": "cat", "1": "dog, hound", "2": "bär"}, "model_type": "cvt"}',
        '{"0": ["n1", "cat"], "1": ["n2", "dog, hound"], "2": ["n3", "bär"]}',
        '[["n1", "cat"], ["n2", "dog, hound"], ["n3", "bär"]]',
    ],
    ids=range(7),
)
def test_class_names(content: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(content.encode())
    assert read_class_names(tmp_path / "names") == ("cat", "dog, hound", "bär")


def test_wordnet_ids_become_their_names(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("n01443537\nn01440764\n")
    assert read_class_names(tmp_path / "names") == (
        "goldfish, Carassius auratus",
        "tench, Tinca tinca",
    )
    assert len(imagenet.class_names()) == len(imagenet.SYNSETS) == 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"a\n\nb",
        b"[]",
        b"{}",
        b"[",
        b"[1, 2]",
        b'{"1": "a"}',
        b'{"x": "a"}',
        b"\xff\xfe",
    ],
    ids=range(10),
)
def test_class_names_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UsageError, match="--class-names: ") as caught:
        read_class_names(tmp_path / "names")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        read_class_names(tmp_path / "nothing")


def test_more_class_names_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvt_cli.checkpoint.class_names.MAX_BYTES", 7)
    (tmp_path / "names").write_text("cat\ndog")
    assert read_class_names(tmp_path / "names") == ("cat", "dog")
    (tmp_path / "names").write_text("cat\ndogs")
    with pytest.raises(UsageError, match="names: file too large"):
        read_class_names(tmp_path / "names")


# --- Git LFS


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_git_lfs_pointer_is_called_that(file: str, wide: Any, tmp_path: Path) -> None:
    wide.config.save_pretrained(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    if file == "config.json":
        torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / file).write_text(pointer)
    error = failure(tmp_path)
    assert f"{tmp_path / file} is a Git LFS pointer" in str(error)
    assert "git lfs pull" in error.hint
