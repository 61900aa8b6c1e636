"""Exported networks are checked before anybody relies on them."""

import pytest
import torch

from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.export import exported
from tests.tiny import save_tiny


@pytest.fixture
def checkpoint(tmp_path):
    return load(resolve(str(save_tiny(tmp_path / "tiny", size=32))))


def test_other_logits_are_refused(checkpoint):
    model = checkpoint.model()

    @torch.inference_mode()
    def off(images, by=0.0):
        return model(images) + by

    assert exported.check(checkpoint, off, (32, 32)) == 0
    assert exported.check(checkpoint, lambda images: off(images, 5e-5), (32, 32)) < 1e-4
    for wrong in (
        lambda images: off(images, 1e-3),
        lambda images: off(images, float("nan")),
        lambda images: off(images)[:, :-1],
        # Right for one image, not for more: as where the batch is a constant.
        lambda images: off(images[:1]).expand(len(images), -1),
    ):
        with pytest.raises(CvtError, match="gives other logits than"):
            exported.check(checkpoint, wrong, (32, 32))


def test_weights_that_one_file_does_not_hold(checkpoint, monkeypatch):
    monkeypatch.setattr(exported, "MOST_ONNX_BYTES", 1000)
    with pytest.raises(UsageError, match="an ONNX file holds 2") as error:
        exported.to_onnx(checkpoint, torch.zeros(2, 3, 32, 32))
    assert "model.pt2" in error.value.hint


def test_metadata_names_what_makes_scores(tmp_path):
    model = save_tiny(tmp_path / "several", problem_type="multi_label_classification")
    known = exported.metadata_of(load(resolve(str(model))))
    assert known["scores"] == "sigmoid" and known["activation"] == "gelu"
    assert len(known["weights_sha256"]) == 64
