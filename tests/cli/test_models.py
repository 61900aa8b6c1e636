"""`cvt models` as a user runs it."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cvt_cli.checkpoint.catalog import PUBLISHED, bundled_names
from tests.conftest import RunCvt
from tests.hub_server import HubServer

MakeCvt = Callable[..., Path]


def plain(text: str) -> str:
    """What a terminal shows, without colours and weights."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_catalogue(hub: HubServer, run_cvt: RunCvt) -> None:
    models = run_cvt("models", "-f", "json", expect=0).json()
    assert not hub.requests
    assert [model["model"] for model in models] == bundled_names() + [e.name for e in PUBLISHED]
    by_name = {model["model"]: model for model in models}
    w24 = by_name["microsoft/cvt-w24-384-22k"]
    assert (w24["parameters"], w24["top1"], w24["published_gmacs"]) == (277_196_392, 87.6, 193.2)
    assert (w24["labels"], w24["image_size"]) == (1000, [384, 384])
    assert w24["macs"] / 1e9 == pytest.approx(193.2, rel=0.02)
    for model in models:
        assert model["cached"] == (model["source"] == "bundled")
    rows = list(csv.DictReader(io.StringIO(run_cvt("models", "-f", "csv").stdout)))
    assert [row["model"] for row in rows] == list(by_name)


def test_download_then_offline(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    hub.add("microsoft/cvt-21", tiny_cvt())
    done = run_cvt("models", "--download", "microsoft/cvt-21", expect=0)
    folder = Path(done.stdout.rstrip("\n"))
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    hub.clear()
    again = run_cvt("models", "--download", "microsoft/cvt-21", expect=0)
    assert again.stdout == done.stdout
    assert not hub.requests
    models = {m["model"]: m for m in run_cvt("models", "-f", "json", expect=0).json()}
    here = models["microsoft/cvt-21"]
    assert (here["cached"], here["path"]) == (True, str(folder))
    assert here["size"] == (folder / "model.safetensors").stat().st_size
    assert models["microsoft/cvt-13"]["cached"] is False


def test_damaged_weights_are_not_computed_with_where_their_digest_is_recorded(
    hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt, cat: Path
) -> None:
    folder = tiny_cvt(embed_dim=[64, 128, 192])
    hub.add("someone/food", folder)
    path = run_cvt("models", "--download", "someone/food", expect=0).stdout.rstrip("\n")
    weights = Path(path) / "model.safetensors"
    whole = weights.read_bytes()
    assert len(whole) > 2**20
    options = ("classify", cat.name, "-m", "someone/food", "-f", "jsonl", "--dtype", "float32")
    expected = run_cvt(*options, expect=0).stdout
    flipped = bytearray(whole)
    flipped[-2] ^= 0x40  # of an exponent
    weights.resolve().write_bytes(flipped)
    done = run_cvt(*options, "-o", "labels.jsonl", expect=0)
    assert "model.safetensors in the cache was damaged; fetching it again" in done.stderr
    assert (cat.parent / "labels.jsonl").read_text() == expected
    assert weights.read_bytes() == whole


def test_what_is_there_in_part(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    hub.add("microsoft/cvt-21", tiny_cvt())
    run_cvt("inspect", "microsoft/cvt-21", "--labels", expect=0)
    lines = {line.split()[0]: line for line in run_cvt("models", expect=0).stdout.splitlines()}
    assert "partly" in lines["microsoft/cvt-21"]
    assert "partly" not in lines["microsoft/cvt-13"]


def test_a_download_has_no_format(run_cvt: RunCvt) -> None:
    failed = run_cvt("models", "--download", "x/y", "-o", "models.json", expect=2)
    assert "leave --format and --output out" in failed.stderr


def test_download_of_a_revision(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    commit = hub.add("someone/food", tiny_cvt(), "v1")
    hub.add("someone/food", tiny_cvt(labels=("soup",)))
    done = run_cvt("models", "--download", "someone/food", "--revision", "v1", expect=0)
    assert Path(done.stdout.rstrip("\n")).name == commit


def test_search(hub: HubServer, run_cvt: RunCvt, tiny_cvt: MakeCvt) -> None:
    folder = tiny_cvt()
    hub.add("someone/food", folder, downloads=3, tags=("dataset:food101",))
    hub.add("another/FOOD-2", folder, downloads=70)
    hub.add("someone/food-vit", {"config.json": '{"model_type": "vit"}'}, downloads=900)
    hub.add("someone/cats", folder)
    found = run_cvt("models", "--search", "food", "-f", "json", expect=0).json()
    assert [model["model"] for model in found] == ["another/FOOD-2", "someone/food"]
    assert found[1]["datasets"] == ["food101"]
    assert not hub.fetched()
    table = run_cvt("models", "--search", "food", tty=True, columns=60, expect=0).stdout
    assert "another/FOOD-2" in table and "food101" in table
    assert len(run_cvt("models", "--search", "", "-f", "json", expect=0).json()) == 3
    nothing = run_cvt("models", "--search", "zebra", expect=0)
    assert nothing.stdout == "no CvT on the Hub has that in its name\n"
    assert run_cvt("models", "--search", "zebra", "-f", "json", expect=0).json() == []
    header = run_cvt("models", "--search", "zebra", "-f", "csv", expect=0).stdout
    assert header == "model,downloads,likes,task,datasets\r\n"


@pytest.mark.parametrize(
    ("arguments", "env", "code", "said"),
    [
        (["--search", "food"], {"HF_ENDPOINT": "http://127.0.0.1:1"}, 3, "can't be searched"),
        (["--search", "food"], {"HF_HUB_OFFLINE": "1"}, 3, "can't be searched: offline"),
        (["--download", "someone/nosuch"], {}, 3, "no such repository"),
        (["--download", "nosuch"], {}, 3, "no such model"),
        (["--download", "a/b"], {"HF_HUB_OFFLINE": "1"}, 3, "and offline"),
        (["--download", "a/b", "--search", "c"], {}, 2, "exclude each other"),
        (["--refresh"], {}, 2, "need --download"),
        (["-f", "xml"], {}, 2, "no such format"),
        (["nosuch"], {}, 2, "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failures_are_one_clear_line(
    arguments: list[str],
    env: dict[str, str],
    code: int,
    said: str,
    hub: HubServer,
    run_cvt: RunCvt,
) -> None:
    done = run_cvt("models", *arguments, env=env, expect=code)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_the_hub_fails_while_it_is_searched(hub: HubServer, run_cvt: RunCvt) -> None:
    hub.fail(404, "/api/models", method="GET")
    done = run_cvt("models", "--search", "food", expect=3)
    assert done.stderr.startswith("cvt: error: the Hub can't be searched: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_fits_the_terminal(columns: int, run_cvt: RunCvt) -> None:
    out = plain(run_cvt("models", tty=True, columns=columns, expect=0).stdout)
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out
