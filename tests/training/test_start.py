"""A training goes on from any checkpoint, and `transformers` computes what it writes."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.checkpoint.save import save_checkpoint
from cvt_cli.training.start import Start, from_checkpoint, from_scratch
from tests.tiny import LABELS, microsoft_names, save_tiny, tiny_model

WIDE: dict[str, Any] = {"embed_dim": [64, 64, 128], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}


def started(path: Path, labels: tuple[str, ...] = LABELS) -> Start:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_checkpoint(load(resolve(str(path))), labels, 64, seed=0)


def written(start: Start, folder: Path) -> Path:
    weights = start.model.state_dict()
    save_checkpoint(
        folder,
        start.model.config,
        LABELS,
        preprocessing=start.preprocessing,
        weights=weights,
        model_card="a card",
    )
    return folder


@pytest.mark.parametrize("kind", ["authors", "named", "transformers"])
def test_transformers_computes_what_training_writes(kind: str, tmp_path: Path) -> None:
    from transformers import CvtForImageClassification

    model = tiny_model(**WIDE)
    path = save_tiny(tmp_path / "x", model=model)
    if kind == "authors":
        path = tmp_path / "CvT-64x64.pth"
        torch.save(microsoft_names(model.state_dict()), path)
    elif kind == "named":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "hidden_act": "quick_gelu"}))
    start = started(path)
    assert start.model.config.hidden_act == "gelu"
    assert ("QuickGELU; trained on with GELU" in start.origin) == (kind != "transformers")
    assert start.new_head == (kind == "authors")  # its labels are numbers

    folder = written(start, tmp_path / "out")
    ours = load(resolve(str(folder))).model()
    theirs = CvtForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=1e-4)
        assert ours(x).std() > 1e-3


@pytest.mark.parametrize("labels", [LABELS, ("a", "b")])
def test_a_checkpoint_without_a_head_gets_one(labels: tuple[str, ...], tmp_path: Path) -> None:
    model = tiny_model(**WIDE)
    model.cvt.save_pretrained(tmp_path)
    start = started(tmp_path, labels)
    assert start.new_head
    assert start.model.head.weight.shape == (len(labels), 128)
    assert start.model.head.weight.std() > 0
    theirs = model.state_dict()["cvt.encoder.stages.2.cls_token"]
    assert torch.equal(start.model.state_dict()["stages.2.cls_token"], theirs)


@pytest.mark.parametrize(
    ("crop", "size", "edge"), [("auto", 64, None), ("resized", 64, 73), ("padded", 96, 109)]
)
def test_what_was_trained_on_resized_crops_is_cropped(
    crop: str, size: int, edge: int | None
) -> None:
    rule = from_scratch("cvt-small", LABELS, size, crop=crop, seed=0).preprocessing
    assert (rule.shortest_edge, rule.image_size) == (edge, (size, size))
    assert rule.resize_to == (None if edge else (64, 64))
