"""`cvt` on a file of weights alone: its options, what it says, and what it makes of errors."""

import json
from pathlib import Path

import torch

from tests.conftest import RunCvt
from tests.tiny import microsoft_names, tiny_model

WIDE = {"embed_dim": [64, 64, 128], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}


def test_a_network_is_chosen_and_named(run_cvt: RunCvt, cat: Path) -> None:
    model = tiny_model(**WIDE)
    both = {"model": model.state_dict(), "model_ema": microsoft_names(model.state_dict())}
    torch.save(both, cat.with_name("Net-64x64.PTH.tar"))
    names = ["one", "two", "three, drei", "four", "five"]
    cat.with_name("names.json").write_text(json.dumps(names))
    several = run_cvt("classify", cat, "-m", "Net-64x64.PTH.tar", expect=3)
    assert "holds 2 networks: model, model_ema" in several.stderr
    assert "--weights-key model" in several.stderr and not several.stdout

    options = ("-m", "Net-64x64.PTH.tar", "--weights-key", "model_ema")
    named = run_cvt(
        "classify", cat, *options, "--class-names", "names.json", "-f", "json", expect=0
    )
    assert {each["label"] for each in named.json()[0]["predictions"]} == set(names)
    assert named.stderr.count("warning:") == 1
    assert "assuming heads 1, 1, 2;" in named.stderr and "config.json" in named.stderr
    found = run_cvt("inspect", *options[1:], "-f", "json", expect=0).json()
    found = found[0] if isinstance(found, list) else found
    assert (found["layout"], found["activation"]) == ("Microsoft", "quick_gelu")
    wrong = run_cvt("classify", cat, *options, "--class-names", "cat.jpg", expect=2)
    assert "--class-names: cat.jpg: not UTF-8" in wrong.stderr
