"""The installed command on a GPU: its labels beside the CPU's, and what it measures."""

from pathlib import Path

import pytest

from tests.conftest import RunCvt

# Not forks: who forks may have asked for the GPU, which its children can't use then.
pytestmark = [pytest.mark.cuda, pytest.mark.real_start]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float16", 0.01), ("bfloat16", 0.05)]
)
def test_the_labels_of_the_cpu(dtype: str, tolerance: float, run_cvt: RunCvt) -> None:
    options = (
        "--model",
        "cvt-tiny-cifar10",
        "--format",
        "jsonl",
        "--top-k",
        "10",
        "--batch-size",
        "4",
    )
    sides = []
    for device in (("cpu", "float32"), ("cuda", dtype)):
        done = run_cvt("classify", EXAMPLES, *options, "--device", device[0], "--dtype", device[1])
        assert done.returncode == 0 and "without CUDA graphs" not in done.stderr, done.stderr
        sides.append(done.jsonl())
    assert len(sides[0]) > 8
    for expected, found in zip(*sides, strict=True):
        scores = [
            {each["label"]: each["score"] for each in r["predictions"]} for r in (expected, found)
        ]
        assert scores[1] == pytest.approx(scores[0], abs=tolerance)
        best = [r["predictions"][0]["label"] for r in (expected, found)]
        runner_up = expected["predictions"][1]["score"]
        if expected["predictions"][0]["score"] - runner_up > 2 * tolerance:
            assert best[0] == best[1]


def test_the_benchmark(run_cvt: RunCvt) -> None:
    done = run_cvt(
        *("benchmark", "--device", "cuda", "--dtype", "float16,bfloat16", "--batch-size", "1,16"),
        *("--baseline", "transformers", "--duration", "0.2", "--format", "json"),
    )
    assert done.returncode == 0, done.stderr
    for row in done.json()["results"]:
        assert row["error"] is None
        assert row["ratio"] > 1 and row["labels_agree"] >= 0.75
