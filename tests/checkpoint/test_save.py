"""What is saved is what `load` and `transformers` read."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cvt_cli.checkpoint import save as module
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.checkpoint.save import save_checkpoint
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.cvt import Cvt
from cvt_cli.training.architectures import CVT_TINY
from tests.rounding import rounding

LABELS = tuple(f"label {index}" for index in range(CVT_TINY.num_labels))
RULE = Preprocessing(resize_to=(32, 32), shortest_edge=None, crop=None)


def save_to(folder, dtype=torch.float32, labels=LABELS):
    torch.manual_seed(0)
    model = Cvt(CVT_TINY).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    weights = model.to(memory_format=torch.channels_last).state_dict()
    save_checkpoint(
        folder,
        CVT_TINY,
        labels,
        preprocessing=RULE,
        weights=weights,
        model_card="# A card\n",
        dtype=dtype,
    )
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_survive_in_both_readers(tmp_path, dtype):
    from transformers import AutoImageProcessor, CvtForImageClassification

    model = save_to(tmp_path / "new" / "folder", dtype)
    path = tmp_path / "new" / "folder"
    x = torch.randn(2, 3, 32, 32)
    checkpoint = load(resolve(str(path)))
    theirs = CvtForImageClassification.from_pretrained(path).eval()
    with torch.no_grad():
        ours = checkpoint.model().float()(x)
        terms, layers = 2 * CVT_TINY.embed_dim[-1], 6 * sum(CVT_TINY.depth)
        tolerance = rounding(ours, terms, layers)
        torch.testing.assert_close(theirs(x).logits, ours, atol=tolerance, rtol=0)
        if dtype == torch.float16:  # which the weights went through
            tolerance = 2e-2
        torch.testing.assert_close(ours, model(x), atol=tolerance, rtol=0)
    assert theirs.dtype == torch.float32
    stored = load_file(path / "model.safetensors")
    counters = {value.dtype for key, value in stored.items() if key.endswith("batches_tracked")}
    assert counters == {torch.int64}
    assert checkpoint.labels == LABELS and theirs.config.id2label[7] == "label 7"
    assert checkpoint.preprocessing == RULE and checkpoint.config == CVT_TINY
    size = AutoImageProcessor.from_pretrained(path, backend="pil").size
    assert (size.height, size.width) == (32, 32)


def test_the_folder_holds_four_files(tmp_path):
    save_to(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["label2id"]["label 3"] == 3 and values["id2label"]["3"] == "label 3"


def test_the_configuration_makes_it_a_model_and_comes_last(tmp_path, monkeypatch):
    names = []
    whole = module.write_atomically

    def write(path, content):
        names.append(path.name)
        whole(path, content)

    monkeypatch.setattr(module, "write_atomically", write)
    save_to(tmp_path)
    assert names[-1] == "config.json"
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())


def test_as_many_labels_as_classes(tmp_path):
    with pytest.raises(ValueError, match="999 labels for 1000 classes"):
        save_to(tmp_path, labels=LABELS[:-1])
    assert not list(tmp_path.iterdir())
