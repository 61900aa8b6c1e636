"""`cvt inspect` as a user runs it: every count against an independent one."""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from cvt_cli.checkpoint.catalog import PUBLISHED, bundled_names
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from tests.conftest import RunCvt
from tests.hub_server import HubServer
from tests.tiny import LABELS, save_tiny

MakeCvt = Callable[..., Path]

ESCAPE = "\x1b"
BLOCKS = "▏▎▍▌▋▊▉█"


def plain(text: str) -> str:
    """What a terminal shows, without colours and weights."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@cache
def counted(config: CvtConfig, size: tuple[int, int]) -> tuple[Cvt, int]:
    """A network's first blocks on the meta device, and all its FLOPs for one image as torch counts
    them: more blocks of a stage are more of the same."""
    with torch.device("meta"):
        first = Cvt(replace(config, depth=(1,) * config.num_stages)).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        first(torch.empty(1, config.num_channels, *size, device="meta"))
    flops = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    more = sum(
        (depth - 1) * flops[f"Cvt.stages.{stage}.blocks.0"]
        for stage, depth in enumerate(config.depth)
    )
    return first, flops["Cvt"] + more


def check_counts(found: dict[str, Any]) -> None:
    """Hold a JSON inspection against the network that its configuration describes."""
    config = CvtConfig.from_dict(found["config"] | {"num_labels": found["num_labels"]})
    with torch.device("meta"):
        network = Cvt(config)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    first, flops = counted(config, tuple(found["image_size"]))
    assert found["flops"] == 2 * found["macs"] == pytest.approx(flops, rel=0.005)
    for number in ("parameters", "macs", "activation_bytes"):
        parts = [*found["stages"], found["head"]]
        assert sum(part[number] for part in parts) == found[number]
        assert sum(kind[number] for kind in found["kinds"].values()) == found[number]
    x = torch.empty(1, config.num_channels, *found["image_size"], device="meta")
    stages = zip(found["stages"], network.stages, first.stages, strict=True)
    for number, (stage, whole, module) in enumerate(stages):
        assert stage["parameters"] == sum(p.numel() for p in whole.parameters())
        x, cls_token = module(x)
        proj, attn = module.embed.proj, module.blocks[0].attn
        assert stage["stage"] == number + 1
        assert [stage["width"], stage["rows"], stage["columns"]] == list(x.shape[1:])
        assert [stage["key_rows"], stage["key_columns"]] == list(attn.conv_proj_k(x).shape[2:])
        assert stage["class_token"] == bool(cls_token.shape[1])
        assert (stage["heads"], stage["depth"]) == (attn.num_heads, len(whole.blocks))
        assert ((stage["kernel"],) * 2, (stage["stride"],) * 2) == (proj.kernel_size, proj.stride)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_published_names_need_no_file(entry: Any, hub: HubServer, run_cvt: RunCvt) -> None:
    found = run_cvt("inspect", entry.name, "--format", "json", expect=0).json()
    assert not hub.requests
    assert (found["model"], found["source"], found["cached"]) == (entry.name, "catalogue", False)
    assert found["macs"] / 1e9 == pytest.approx(entry.gmacs, rel=0.02)
    assert found["published"]["top1"] == entry.top1
    assert found["image_size"] == [entry.image_size] * 2
    assert found["num_labels"] == 1000
    check_counts(found)


@pytest.mark.parametrize("name", bundled_names())
def test_bundled(name: str, run_cvt: RunCvt) -> None:
    found = run_cvt("inspect", name, "--format", "json", expect=0).json()
    assert (found["source"], found["cached"]) == ("bundled", True)
    check_counts(found)
    weights = run_cvt("inspect", name, "--weights", "-f", "json", expect=0).json()["weights"]
    assert sum(torch.Size(t["shape"]).numel() for t in weights["tensors"]) == sum(
        tensor.numel()
        for file in found["files"]
        if file["name"].endswith(".safetensors")
        for key, tensor in load_file(file["path"]).items()
        if not key.endswith("num_batches_tracked")
    )


def test_a_folder_saved_by_transformers(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    from transformers import CvtForImageClassification

    folder = tiny_cvt()
    theirs = CvtForImageClassification.from_pretrained(folder)
    found = run_cvt("inspect", folder, "--format", "json", expect=0).json()
    check_counts(found)
    assert found["parameters"] == theirs.num_parameters()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        theirs.to("meta")(torch.empty(1, 3, 64, 64, device="meta"))
    assert found["flops"] == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert found["num_labels"] == len(LABELS)
    assert found["preprocessing"] == "shorter side to 73, centre crop 64 × 64, bicubic"
    assert (found["source"], found["layout"], found["cached"]) == ("folder", "Transformers", True)
    for file in found["files"]:
        path = folder / file["name"]
        digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
        assert (file["size"], file["sha256"]) == (path.stat().st_size, digest.stdout.split()[0])
    assert [file["name"] for file in found["files"]] == [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]


def test_a_file_of_the_authors(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    file = tiny_cvt("microsoft")
    found = run_cvt("inspect", file, "--format", "json", expect=0).json()
    check_counts(found)
    assert (found["layout"], found["activation"]) == ("Microsoft", "quick_gelu")
    assert found["source"] == "file"


def test_without_weights_in_the_folder(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    folder = tiny_cvt()
    (folder / "model.safetensors").unlink()
    found = run_cvt("inspect", folder, "-f", "json", expect=0).json()
    assert found["cached"] is False
    check_counts(found)
    refused = run_cvt("inspect", folder, "--weights", expect=3)
    assert "weights are not on this machine" in refused.stderr


def test_of_another_hub_id_only_the_json_files_are_fetched(
    hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt
) -> None:
    commit = hub.add("someone/food", tiny_cvt())
    found = run_cvt("inspect", "someone/food", "-f", "json", expect=0).json()
    assert sorted(hub.fetched()) == ["config.json", "preprocessor_config.json"]
    assert (found["source"], found["commit"], found["cached"]) == ("Hub", commit, False)
    check_counts(found)
    hub.clear()
    run_cvt("inspect", "someone/food", "--layers", expect=0)
    assert not hub.requests
    run_cvt("inspect", f"someone/food@{commit}", expect=0)
    assert not hub.requests
    gone = run_cvt("inspect", "someone/food", "--revision", "nosuch", expect=3)
    assert "no revision nosuch" in gone.stderr


def test_cached_and_with_a_card(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    folder = tiny_cvt()
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets:\n- food101\n---\n# Food\n")
    hub.add("microsoft/cvt-21", folder)
    run_cvt("models", "--download", "microsoft/cvt-21", expect=0)
    hub.clear()
    found = run_cvt("inspect", "microsoft/cvt-21", "-f", "json", expect=0).json()
    assert not hub.requests
    # What is here counts, not what the catalogue remembers.
    assert (found["source"], found["cached"], found["num_labels"]) == ("Hub", True, len(LABELS))
    weights = found["files"][-1]
    blob = Path(weights["path"]).resolve()
    assert blob.name == weights["sha256"]
    # The card is fetched by no command of ours; where another one did, it is read.
    (Path(weights["path"]).parent / "README.md").write_text((folder / "README.md").read_text())
    found = run_cvt("inspect", "microsoft/cvt-21", "-f", "json", expect=0).json()
    assert (found["license"], found["datasets"]) == ("mit", ["food101"])
    (Path(weights["path"]).parent / "README.md").write_text("---\n: [\n---\n")
    run_cvt("inspect", "microsoft/cvt-21", "-f", "json", expect=0)


def test_refresh_asks_for_a_newer_commit(
    hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt
) -> None:
    hub.add("someone/food", tiny_cvt())
    run_cvt("inspect", "someone/food", expect=0)
    newer = hub.add("someone/food", tiny_cvt(labels=("soup", "salad")))
    assert run_cvt("inspect", "someone/food", "-f", "json").json()["commit"] != newer
    found = run_cvt("inspect", "someone/food", "--refresh", "-f", "json").json()
    assert (found["commit"], found["num_labels"]) == (newer, 2)


@pytest.mark.parametrize(
    ("size", "shape"), [("320", [320, 320]), ("512x384", [512, 384]), ("65535x3", [65535, 3])]
)
def test_another_image_size(size: str, shape: list[int], run_cvt: RunCvt) -> None:
    found = run_cvt("inspect", "--image-size", size, "-f", "json", expect=0).json()
    assert found["image_size"] == shape
    check_counts(found)


def test_batch_size_and_dtype(run_cvt: RunCvt) -> None:
    one = run_cvt("inspect", "-f", "json", expect=0).json()
    arguments = ("inspect", "--batch-size", 8, "--dtype", "float16", "-f", "json")
    eight = run_cvt(*arguments, expect=0).json()
    assert (eight["batch_size"], eight["dtype"]) == (8, "float16")
    assert eight["macs"] == 8 * one["macs"]
    assert eight["weight_bytes"] * 2 == one["weight_bytes"]
    assert eight["peak_activation_bytes"] == 4 * one["peak_activation_bytes"]


def test_layers_add_up(run_cvt: RunCvt) -> None:
    found = run_cvt("inspect", "--layers", "-f", "json", expect=0).json()
    rows = list(csv.DictReader(io.StringIO(run_cvt("inspect", "--layers", "-f", "csv").stdout)))
    assert len(rows) == len(found["layers"])
    for number in ("parameters", "macs", "activation_bytes"):
        assert sum(layer[number] for layer in found["layers"]) == found[number]
        assert sum(int(row[number]) for row in rows) == found[number]
    assert rows[0]["shape_in"] == "1x3x224x224"
    assert found["layers"][-1]["shape_out"] == [1, 1000]
    text = run_cvt("inspect", "--layers", expect=0).stdout
    assert all(row["name"] in text for row in rows)


def test_stages_as_csv_add_up(run_cvt: RunCvt) -> None:
    rows = list(csv.DictReader(io.StringIO(run_cvt("inspect", "-f", "csv", expect=0).stdout)))
    assert [row["stage"] for row in rows] == ["1", "2", "3", "head"]
    assert sum(int(row["parameters"]) for row in rows) == 19_997_480


def test_labels(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    folder = tiny_cvt()
    assert run_cvt("inspect", folder, "--labels", expect=0).stdout.splitlines() == [
        f"{index}  {label}" for index, label in enumerate(LABELS)
    ]
    assert run_cvt("inspect", folder, "--labels", "-f", "json").json()["labels"] == list(LABELS)
    # The catalogue has no labels: the configuration is fetched for them, and nothing else.
    hub.add("microsoft/cvt-13", folder)
    assert "goldfish" in run_cvt("inspect", "--labels", expect=0).stdout
    assert sorted(hub.fetched()) == ["config.json", "preprocessor_config.json"]


def test_weights(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    folder = tiny_cvt()
    weights = load_file(folder / "model.safetensors")
    values = weights["cvt.encoder.stages.1.layers.0.output.dense.weight"]
    found = run_cvt("inspect", folder, "--weights", "-f", "json", expect=0).json()["weights"]
    assert not (found["missing"] or found["left_over"] or found["other_shape"])
    assert (found["nan"], found["infinite"]) == (0, 0)
    facts = {tensor["name"]: tensor for tensor in found["tensors"]}
    fc2 = facts["stages.1.blocks.0.mlp.fc2.weight"]
    assert (fc2["shape"], fc2["dtype"]) == (list(values.shape), "float32")
    assert fc2["mean"] == pytest.approx(float(values.mean()))
    assert fc2["std"] == pytest.approx(float(values.std(correction=0)))
    assert (fc2["min"], fc2["max"]) == (float(values.min()), float(values.max()))

    # Damaged: what `classify` refuses to load can still be looked at.
    values[0, 0], values[0, 1] = float("nan"), float("-inf")
    weights["extra"] = torch.zeros(2, dtype=torch.float16)
    weights["classifier.bias"] = torch.zeros(7)
    del weights["cvt.encoder.stages.2.cls_token"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = run_cvt("inspect", folder, "--weights", "-f", "json", expect=0).json()["weights"]
    assert (found["nan"], found["infinite"]) == (1, 1)
    assert (found["missing"], found["left_over"]) == (["stages.2.cls_token"], ["extra"])
    assert found["other_shape"] == [f"head.bias: [7], not [{len(LABELS)}]"]
    assert found["dtypes"]["float16"] == 1
    fc2 = {t["name"]: t for t in found["tensors"]}["stages.1.blocks.0.mlp.fc2.weight"]
    assert (fc2["nan"], fc2["infinite"]) == (1, 1)
    assert fc2["mean"] == pytest.approx(float(values[values.isfinite()].mean()))
    text = run_cvt("inspect", folder, "--weights", expect=0).stdout
    assert re.search(r"NaN or infinite +stages\.1\.blocks\.0\.mlp\.fc2\.weight\n", text)
    rows = list(
        csv.DictReader(io.StringIO(run_cvt("inspect", folder, "--weights", "-f", "csv").stdout))
    )
    assert len(rows) == len(found["tensors"])


def test_truncated_weights(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    file = tiny_cvt() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refused = run_cvt("inspect", file.parent, "--weights", expect=3)
    assert "corrupt or truncated" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_diff(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    first, same = tiny_cvt(), tiny_cvt("sharded-bin")
    found = run_cvt("inspect", first, same, "--diff", "-f", "json", expect=0).json()
    assert found["configuration"] == found["preprocessing"] == found["labels"] == {}
    assert {weight["status"] for weight in found["weights"]} == {"equal"}
    csv_text = run_cvt("inspect", first, same, "--diff", "-f", "csv", expect=0).stdout
    assert csv_text == "aspect,name,first,second,status,largest\r\n"

    # Fine-tuned: a head for other labels, one weight changed a little, another input.
    other = tiny_cvt(labels=("tench", "cat"), processor="vit")
    weights = load_file(first / "model.safetensors")
    ours = {k: v for k, v in weights.items() if not k.startswith("classifier")}
    ours["cvt.encoder.stages.2.cls_token"] += 0.25
    heads = {k: v for k, v in load_file(other / "model.safetensors").items() if k not in ours}
    save_file(ours | heads, other / "model.safetensors", metadata={"format": "pt"})
    found = run_cvt("inspect", first, other, "--diff", "-f", "json", expect=0).json()
    assert found["num_labels"] == [len(LABELS), 2]
    assert found["labels"]["1"] == ["goldfish", "cat"]
    assert found["labels"]["4"] == ["hammerhead, shark", None]
    assert "0" not in found["labels"]
    assert "resample" in found["preprocessing"]
    status = {weight["name"]: weight for weight in found["weights"]}
    assert status["head.weight"]["status"] == "other shape"
    assert status["stages.2.cls_token"]["largest"] == pytest.approx(0.25)
    changed = [name for name, weight in status.items() if weight["status"] != "equal"]
    assert changed == ["stages.2.cls_token", "head.weight", "head.bias"]
    text = run_cvt("inspect", first, other, "--diff", expect=0).stdout
    assert "Labels: 4 differ" in text
    assert "Without a counterpart: head.weight (other shape)" in text


def test_diff_of_what_is_not_here(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    done = run_cvt("inspect", "microsoft/cvt-13", tiny_cvt(), "--diff", expect=0)
    assert "Labels: not compared: those of microsoft/cvt-13 are not here" in done.stdout
    assert "cvt models --download microsoft/cvt-13" in done.stdout
    assert "embed_dim" in done.stdout
    two = ("inspect", "microsoft/cvt-13", "microsoft/cvt-21", "--diff", "-f", "json")
    found = run_cvt(*two, expect=0).json()
    assert found["configuration"] == {"depth": [[1, 2, 10], [1, 4, 16]]}
    assert found["weights"] is None


def test_compare(run_cvt: RunCvt) -> None:
    found = run_cvt("inspect", "--compare", "-f", "json", expect=0).json()
    models = {row["model"]: row for row in found["models"]}
    others = ["ViT-B/16", "DeiT-S", "DeiT-B", "CPVT-S", "CPVT-B", "TNT-S", "TNT-B"]
    others += ["T2T-ViT-14", "T2T-ViT-19", "T2T-ViT-24", "PVT-S", "PVT-M", "PVT-L"]
    cvts = [entry.name.removeprefix("microsoft/") for entry in PUBLISHED]
    assert list(models) == [*others, *cvts]
    assert models["cvt-21"]["parameters"] == 31_622_696
    assert models["cvt-21"]["top1"] == 82.5
    families = {family["name"] for family in found["families"]}
    for row in models.values():
        assert row["source"].startswith("arXiv ")
        assert row["gmacs_source"]
        assert row["family"] in families
    text = run_cvt("inspect", "--compare", expect=0).stdout
    assert "T2T-ViT-19" in text and "overlapping (convolution)" in text


def test_compare_with_ones_own(tiny_cvt: MakeCvt, run_cvt: RunCvt) -> None:
    folder = tiny_cvt()
    found = run_cvt("inspect", folder, "--compare", "-f", "json", expect=0).json()
    own = run_cvt("inspect", folder, "-f", "json", expect=0).json()
    last = found["models"][-1]
    assert (last["model"], last["top1"]) == (str(folder), None)
    assert last["gmacs"] == own["macs"] / 1e9


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_plot(suffix: str, run_cvt: RunCvt) -> None:
    pytest.importorskip("matplotlib")
    run_cvt("inspect", "--compare", "--plot", f"a{suffix}", expect=0)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".PDF": b"%PDF"}[suffix]
    assert (run_cvt.cwd / f"a{suffix}").read_bytes().startswith(start)
    assert "exists; --overwrite" in run_cvt("inspect", "--compare", "--plot", f"a{suffix}").stderr
    assert not list(run_cvt.cwd.glob("*.part"))


def test_plot_without_matplotlib(run_cvt: RunCvt) -> None:
    (run_cvt.cwd / "matplotlib.py").write_text("raise ImportError")
    env = {"PYTHONPATH": str(run_cvt.cwd)}
    done = run_cvt("inspect", "--compare", "--plot", "a.png", env=env, expect=2)
    assert done.stderr == ('cvt: error: --plot needs matplotlib; pip install "matplotlib>=3.8"\n')
    assert not done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nosuch"], 3, "no such model"),
        (["microsoft/cvt13"], 3, "config.json is not in the cache"),
        (["./nosuch"], 3, "no such file or folder"),
        (["nosuch.pth"], 3, "no such file or folder"),
        (["."], 3, "no config.json"),
        (["bert"], 3, "not a CvT: its model_type is 'bert'"),
        (["broken"], 3, "config.json is corrupt"),
        (["odd"], 3, "embed_dim"),
        (["--image-size", "0"], 2, "1 to 65,535 pixels"),
        (["--image-size", "-1"], 2, "not an image size"),
        (["--image-size", "2x"], 2, "not an image size"),
        (["--image-size", "10000000x10000000"], 2, "1 to 65,535 pixels"),
        (["--image-size", "2"], 2, "the smallest is"),
        (["--nonsense"], 2, "--nonsense"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--dtype", "int8"], 2, "no such dtype"),
        (["--format", "xml"], 2, "no such format"),
        (["-o", "a.txt"], 2, "the suffix names no format"),
        (["-o", "a.xlsx"], 2, "a.xlsx: xlsx can't be used here; one of .csv .tsv .json"),
        (["-o", "no/where.csv"], 2, "no is not a folder"),
        (["-o", "broken/config.json"], 2, "exists; --overwrite"),
        (["a", "b"], 2, "one model at a time"),
        (["a", "--diff"], 2, "two models, not 1"),
        (["--labels", "--compare"], 2, "combined with other views"),
        (["--plot", "a.png"], 2, "needs --compare"),
        (["--compare", "--plot", "a.gif"], 2, "a.gif: the suffix names no format"),
        (["--compare", "--plot", "a.svg", "-f", "csv", "-o", "./a.svg"], 2, "and by --output"),
        (["--compare", "-b", "8"], 2, "counts a single image"),
        (["--offline", "--labels"], 3, "and offline"),
        (["--weights"], 3, "cvt models --download microsoft/cvt-13"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failures_are_one_clear_line(
    arguments: list[str], code: int, said: str, run_cvt: RunCvt
) -> None:
    configs = {
        "bert": '{"model_type": "bert"}',
        "broken": "{",
        "odd": '{"model_type": "cvt", "embed_dim": [64, 0, 384]}',
    }
    for name, text in configs.items():
        (run_cvt.cwd / name).mkdir()
        (run_cvt.cwd / name / "config.json").write_text(text)
    env = {"HF_HUB_OFFLINE": "1"}
    done = run_cvt("inspect", *arguments, env=env, expect=code)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_the_default_model_may_be_named_in_the_environment(
    tiny_cvt: MakeCvt, run_cvt: RunCvt
) -> None:
    folder = save_tiny(run_cvt.cwd / "my own cvt")
    found = run_cvt("inspect", "-f", "json", env={"CVT_MODEL": str(folder)}, expect=0).json()
    assert found["model"] == str(folder)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("arguments", [(), ("--layers",), ("--compare",)], ids=" ".join)
def test_tables_fit_the_terminal(columns: int, arguments: tuple[str, ...], run_cvt: RunCvt) -> None:
    done = run_cvt("inspect", *arguments, tty=True, columns=columns, expect=0)
    assert "\\n" not in done.stdout  # a line break of a note, made visible
    text = plain(done.stdout)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    if not arguments:
        assert any(block in text for block in BLOCKS)
        for word in ("tokens", "width", "heads", "depth", "kernel", "stride", "MACs", "FLOPs"):
            assert word in text


def test_no_color(run_cvt: RunCvt) -> None:
    color = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert color.search(run_cvt("inspect", tty=True, expect=0).stdout)
    assert not color.search(run_cvt("inspect", tty=True, no_color=True, expect=0).stdout)


def test_many_stages_on_a_narrow_terminal(run_cvt: RunCvt) -> None:
    from transformers import CvtConfig as TheirConfig

    eight: dict[str, Any] = {
        name: (value * 8)[:8]
        for name, value in TheirConfig().to_dict().items()
        if isinstance(value, list) and len(value) == 3
    }
    eight |= {"patch_stride": [4] + [1] * 7, "embed_dim": [64] * 8, "num_heads": [1] * 8}
    TheirConfig(**eight).save_pretrained(run_cvt.cwd / "eight")
    text = plain(run_cvt("inspect", "eight", tty=True, columns=60, expect=0).stdout)
    assert max(map(len, text.splitlines())) <= 60
    assert all(f"stage {stage}" in text for stage in range(1, 9))
    check_counts(run_cvt("inspect", "eight", "-f", "json", expect=0).json())


def test_piped_it_is_plain_text(run_cvt: RunCvt) -> None:
    out = run_cvt("inspect", columns=60, expect=0).stdout
    assert ESCAPE not in out
    assert not any(block in out for block in BLOCKS)
    assert all(line == line.rstrip() for line in out.splitlines())
    assert re.search(r"^parameters +61\.7 k +1\.01 M +18\.5 M +386 k$", out, re.MULTILINE)
    assert re.search(r"4\.57 GMACs = 9\.13 GFLOPs", out)


def test_into_a_pipe_that_closes(run_cvt: RunCvt) -> None:
    with run_cvt.start("inspect", "microsoft/cvt-w24-384-22k", "--layers", "-f", "json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""


def test_output_file(run_cvt: RunCvt) -> None:
    shown = run_cvt("inspect", "-f", "json", expect=0).stdout
    assert run_cvt("inspect", "-o", "a.json", expect=0).stdout == ""
    assert (run_cvt.cwd / "a.json").read_text("utf-8") == shown
    run_cvt("inspect", "-o", "a.json", expect=2)
    run_cvt("inspect", "microsoft/cvt-21", "-o", "a.json", "--overwrite", expect=0)
    assert (run_cvt.cwd / "a.json").read_text("utf-8") != shown
    run_cvt("inspect", "-o", "a.txt", "-f", "table", expect=0)
    assert (run_cvt.cwd / "a.txt").read_text("utf-8").startswith("microsoft/cvt-13\n")


def test_control_characters_in_labels_do_not_reach_the_terminal(
    tiny_cvt: MakeCvt, run_cvt: RunCvt
) -> None:
    folder = tiny_cvt(labels=("a\x1b[2Jb", "c\nd"))
    for tty in (False, True):
        out = plain(run_cvt("inspect", folder, "--labels", tty=tty, expect=0).stdout)
        assert ESCAPE not in out
        assert len(out.splitlines()) == 2


def test_needs_no_torch() -> None:
    code = (
        "import sys; from cvt_cli.__main__ import main\n"
        "try: main()\n"
        "finally: print({'torch', 'transformers'} & {*sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "inspect", "microsoft/cvt-w24-384-22k", "--layers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_nothing_of_the_largest_is_allocated(run_cvt: RunCvt) -> None:
    # Linux gives a child the peak of whoever starts it: these tests have one of their own.
    code = """if True:
        import resource, subprocess, sys
        subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""
    command = (run_cvt.script, "inspect", "microsoft/cvt-w24-384-22k")
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=run_cvt.env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 600e6  # Linux counts in KiB
