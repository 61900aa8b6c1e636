"""`cvt embed`: the vectors that `transformers` computes, in files that others read."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CvtForImageClassification

from cvt_cli.output.embeddings import EmbeddingJournal
from cvt_cli.output.journal import part_of
from tests.conftest import RunCvt
from tests.photos import picture


@pytest.fixture(scope="module")
def model(tiny_cvt: Callable[..., Path]) -> Path:
    return tiny_cvt()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images and, third in order, what is none."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(11):
        picture(80 + seed, 70, seed).save(folder / f"{seed:02}.png")
    (folder / "01a.png").write_text("no image")
    return folder


def reference(model: Path, paths: list[str]) -> np.ndarray:
    """(len(paths), embed_dim[-1]): the class token after the last norm."""
    network = CvtForImageClassification.from_pretrained(model).eval()
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    tokens: list[torch.Tensor] = []
    network.layernorm.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.inference_mode():
        network(**processor([Image.open(path) for path in paths], return_tensors="pt"))
    return tokens[0].mean(dim=1).numpy()


def test_parquet_and_numpy(run_cvt: RunCvt, model: Path, folder: Path, tmp_path: Path) -> None:
    options = (folder, "-m", model, "--decode", "exact", "-b", 4)
    done = run_cvt("embed", *options, "-o", "features.parquet", expect=1)
    assert "1 of 12 inputs could not be read" in done.stderr
    table = pq.read_table(tmp_path / "features.parquet")
    assert table.column_names == ["path", "embedding", "error"]
    paths = [str(path) for path in sorted(folder.iterdir())]
    assert table.column("path").to_pylist() == paths
    assert table.column("error").to_pylist() == [None] * 2 + ["text, not an image"] + [None] * 9
    vectors = table.column("embedding").to_pylist()
    assert vectors[2] is None
    good = [row for row in range(12) if row != 2]
    expected = reference(model, [paths[row] for row in good])
    numbers = np.float32([vectors[row] for row in good])
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-4)
    assert numbers.std(axis=0).max() > 0.01

    # The other format, interrupted, has the same numbers in the same rows.
    output = tmp_path / "features.npy"
    names = b"".join(os.fsencode(path) + b"\0" for path in paths)
    command = ("embed", "--files-from", "-", "--null", *options[1:], "-o", output)
    with run_cvt.start(*command, encoding=None, errors=None) as process:
        assert process.stdin is not None
        process.stdin.write(names[: names.index(b"09.png")])
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while not part_of(output).exists() or part_of(output).read_bytes().count(b"\n") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    with part_of(output).open("rb") as file:
        assert 4 <= len(list(EmbeddingJournal.read(file))) < 12
    run_cvt(*command, "--resume", stdin=names, expect=1)
    assert "nothing to resume" in run_cvt(*command, "--resume", stdin=names, expect=0).stderr
    matrix = np.load(output)
    assert matrix.dtype == np.float32
    assert np.isnan(matrix[2]).all()
    np.testing.assert_array_equal(matrix[good], numbers)
    assert (tmp_path / "features.paths.txt").read_text().splitlines() == paths
    assert (tmp_path / "features.errors.txt").read_text() == f"{paths[2]}\ttext, not an image\n"
    files = [path for path in tmp_path.glob("features*") if not path.name.endswith(".run.json")]
    assert len(files) == 4


def test_every_option_reaches_what_it_is_for(
    run_cvt: RunCvt, model: Path, folder: Path, tmp_path: Path
) -> None:
    picture(32, 32).save(tmp_path / "small.png")
    run_cvt(
        *(
            "embed",
            folder,
            "small.png",
            "-m",
            model,
            "--activation",
            "quick_gelu",
            "--image-size",
            "48x64",
        ),
        *("--include", "1*.png", "--max-pixels", 90 * 70 - 1, "--dtype", "bfloat16", "-b", 3),
        *("--decode", "exact", "-o", "x.npy", "--run-record", "run.json"),
        expect=1,
    )
    # 10.png, of 90x70 pixels, and none other of the folder.
    assert "more than the limit of 6299" in (tmp_path / "x.errors.txt").read_text()
    assert np.load(tmp_path / "x.npy").shape == (2, 64)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["preprocessing"]["crop_size"] == {"height": 48, "width": 64}
    wanted = {
        "activation": "quick_gelu",
        "batch_size": 3,
        "decode": "exact",
        "device": "cpu",
        "dtype": "bfloat16",
        "format": "npy",
        "max_pixels": 6299,
        "model": str(model),
    }
    assert {key: run[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "output"),
        (["a.png", "-o", "features.csv"], "one of .parquet .npy"),
        (["a.png", "-o", "there.npy"], "there.npy exists"),
        (["a.png", "-o", "beside.npy"], "beside.paths.txt exists"),
        (["a.png", "-o", "beside.npy", "--resume"], "beside.paths.txt exists"),
        (["a.png", "-o", "folder.npy", "--overwrite"], "folder.errors.txt is a folder"),
    ],
)
def test_what_can_not_be_done(
    run_cvt: RunCvt, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "there.npy").touch()
    (tmp_path / "beside.paths.txt").touch()
    (tmp_path / "folder.errors.txt").mkdir()
    done = run_cvt("embed", *arguments, expect=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
