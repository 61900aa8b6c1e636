"""`cvt export` as a user runs it."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.photos import picture
from tests.tiny import KEEPS_ASPECT, LABELS, save_tiny

# What torch does with a network takes as long as it has blocks.
TWO_STAGES = {
    **{"embed_dim": [16, 32], "num_heads": [1, 1], "depth": [1, 2], "mlp_ratio": [4.0, 4.0]},
    **{"patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1]},
    **{name: [0.0, 0.0] for name in ("attention_drop_rate", "drop_rate", "drop_path_rate")},
    **{
        "qkv_bias": [True, True],
        "cls_token": [False, True],
        "qkv_projection_method": ["dw_bn"] * 2,
    },
    **{"kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2]},
    **{"padding_q": [1, 1], "stride_q": [1, 1]},
}
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.slow
def test_onnx_runtime_gives_the_scores_of_cvt_by_the_lines_of_the_page(
    run_cvt, tmp_path, monkeypatch
):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import numpy as np

    save_tiny(tmp_path / "tiny", size=64, **TWO_STAGES)
    picture(300, 200).save(tmp_path / "cat.jpg")
    done = run_cvt("export", "tiny", "-o", "model.onnx", expect=0)
    assert done.stdout == "model.onnx\n"
    assert "ONNX opset 18: pixel_values (batch, 3, 64, 64) to logits (batch, 5)" in done.stderr
    assert done.stderr.count("\n") == 1
    before = (tmp_path / "model.onnx").read_bytes()
    again = run_cvt("export", "tiny", "-o", "model.onnx", expect=2)
    assert "--overwrite replaces it" in again.stderr
    assert (tmp_path / "model.onnx").read_bytes() == before

    (record,) = run_cvt(
        *("classify", "cat.jpg", "--model", "tiny", "--decode", "exact", "-f", "jsonl"), expect=0
    ).jsonl()
    monkeypatch.chdir(tmp_path)
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    with redirect_stdout(io.StringIO()) as printed:
        exec(block, {})
    rows = [line.split("\t") for line in printed.getvalue().splitlines()]
    expected = [(each["label"], each["score"]) for each in record["predictions"]]
    assert [label for label, _ in rows] == [label for label, _ in expected]
    assert [float(score) for _, score in rows] == pytest.approx(
        [score for _, score in expected], abs=2e-4
    )
    session = onnxruntime.InferenceSession("model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert taken.shape == ["batch", 3, 64, 64] and given.shape == ["batch", 5]
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["labels"]) == list(LABELS) and known["scores"] == "softmax"
    images = np.random.default_rng(0).standard_normal((7, 3, 64, 64), np.float32)
    (together,) = session.run(None, {"pixel_values": images})
    (alone,) = session.run(None, {"pixel_values": images[6:]})
    np.testing.assert_allclose(together[6:], alone, atol=1e-4)


@pytest.mark.slow
def test_a_program_of_torch_keeps_quick_gelu(run_cvt, tmp_path):
    import torch

    from cvt_cli.checkpoint.load import load
    from cvt_cli.checkpoint.resolve import resolve

    weights = save_tiny(tmp_path / "authors", "microsoft", **TWO_STAGES)
    run_cvt("export", weights, "-o", "model.pt2", "--quiet", expect=0)
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    known = json.loads(extra["metadata.json"])
    assert known["activation"] == "quick_gelu" and len(json.loads(known["labels"])) == 5
    with pytest.warns(UserWarning, match="assuming"):
        checkpoint = load(resolve(str(weights)))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = checkpoint.model()(images)
        torch.testing.assert_close(program.module()(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("tiny", "-o", "model.tflite"), 2, "no such format; a name in .onnx or .pt2"),
        (("tiny", "-o", "no/model.pt2"), 2, "no is not a folder"),
        (("open", "-o", "model.pt2"), 2, "open names no input size"),
        (("tiny", "-o", "model.pt2", "--image-size", "2"), 2, "too small"),
        (("missing/model", "-o", "model.pt2", "--offline"), 3, "missing/model"),
        (("tiny",), 2, "--output"),
    ],
)
def test_what_can_not_be_exported(run_cvt, tmp_path, arguments, code, message):
    save_tiny(tmp_path / "tiny", size=32)
    save_tiny(tmp_path / "open", processor=KEEPS_ASPECT)
    failed = run_cvt("export", *arguments, expect=code)
    assert message in failed.stderr and failed.stderr.count("\n") == 1
    assert not list(tmp_path.glob("model.*"))
