"""`cvt classify` as a user runs it."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.cells import cell_len

from cvt_cli.model.processor import is_slow
from tests.conftest import RunCvt
from tests.endings import at_call
from tests.hub_server import HubServer
from tests.photos import PHOTOS, picture
from tests.tiny import LABELS

TinyCvt = Callable[..., Path]
REPO = "someone/small-cvt"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@pytest.fixture(scope="module")
def model(tiny_cvt: TinyCvt) -> Path:
    return tiny_cvt()


def pipeline(model: Path, files: list[Path]) -> list[list[dict[str, Any]]]:
    """What `transformers` says, from its Pillow backend."""
    import torch
    from transformers import AutoImageProcessor, CvtForImageClassification
    from transformers import pipeline as make

    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    assert type(processor).__name__.endswith("Pil")
    network = CvtForImageClassification.from_pretrained(model)
    classify = make("image-classification", model=network, image_processor=processor)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a network as small as this only waits for more
    try:
        return [classify(str(file), top_k=5) for file in files]
    finally:
        torch.set_num_threads(threads)


# --- the answer


@pytest.mark.parametrize("processor", ["convnext", "vit"])
def test_equal_to_the_pipeline_of_transformers(
    processor: str, run_cvt: RunCvt, photos: dict[str, Path], tiny_cvt: TinyCvt
) -> None:
    folder = tiny_cvt(processor=processor)
    files = list(photos.values())
    options = ("-f", "json", "-b", "4", "--dtype", "float32", "--decode", "exact")
    records = run_cvt("classify", *files, "-m", folder, *options, expect=0).json()
    assert [record["path"] for record in records] == [str(file) for file in files]
    for record, theirs in zip(records, pipeline(folder, files), strict=True):
        assert record["error"] is None
        assert [p["label"] for p in record["predictions"]] == [p["label"] for p in theirs]
        assert [LABELS[p["index"]] for p in record["predictions"]] == [p["label"] for p in theirs]
        for prediction, their in zip(record["predictions"], theirs, strict=True):
            assert prediction["score"] == pytest.approx(their["score"], abs=1e-4)
    # The tests' models tell pictures apart.
    assert len({record["predictions"][0]["score"] for record in records}) > len(PHOTOS) / 2


# --- formats


def test_every_format_says_the_same(run_cvt: RunCvt, model: Path, cat: Path) -> None:
    """JSON, JSON Lines, CSV, TSV and plain lines, of one good and one bad input."""
    texts = {}
    for name in ("json", "jsonl", "csv", "tsv", "plain"):
        done = run_cvt("classify", cat, "gone.jpg", "-m", model, "-k", "3", "-f", name, expect=1)
        texts[name] = done.stdout
        assert done.stderr.splitlines() == [
            "cvt: gone.jpg: no such file",
            "cvt: 1 of 2 inputs could not be read; its error is in the output",
        ]
    records = json.loads(texts["json"])
    good, bad = records
    assert list(good) == ["path", "predictions", "error"]
    assert [list(p) for p in good["predictions"]] == [["label", "score", "index"]] * 3
    assert [p["label"] for p in good["predictions"]] == [
        LABELS[p["index"]] for p in good["predictions"]
    ]
    scores = [p["score"] for p in good["predictions"]]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    assert bad == {"path": "gone.jpg", "predictions": [], "error": "no such file"}
    assert [json.loads(line) for line in texts["jsonl"].splitlines()] == records

    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        rows = list(csv.DictReader(io.StringIO(texts[name], newline=""), delimiter=delimiter))
        assert list(rows[0]) == [
            *("path", "label", "score", "label_2", "score_2", "label_3", "score_3", "error")
        ]
        assert rows[0]["path"] == str(cat) and rows[0]["error"] == ""
        assert rows[0]["label_3"] == good["predictions"][2]["label"]
        assert [float(rows[0][key]) for key in ("score", "score_2", "score_3")] == scores
        assert rows[1] == dict.fromkeys(rows[1], "") | {"path": "gone.jpg", "error": "no such file"}
    assert texts["csv"].count("\r\n") == 3
    assert "\r" not in texts["tsv"]

    first, second = texts["plain"].splitlines()
    assert first.split("\t") == [str(cat), good["predictions"][0]["label"], f"{scores[0]:.6f}"]
    assert second == "gone.jpg\t\t\tno such file"


@pytest.mark.parametrize(
    ("columns", "no_color"), [(40, False), (60, True), (80, False), (200, True)]
)
def test_the_table_fits_the_terminal(
    columns: int, no_color: bool, run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path
) -> None:
    labels = (
        "a [bold]label[/] in brackets",
        "日本語のラベル " * 9,
        "word " * 40,
        "\x1b[31mred",
        "e",
    )
    done = run_cvt(
        *("classify", cat.name, "gone.jpg", "-m", tiny_cvt(labels=labels), "-k", "9"),
        tty=True,
        columns=columns,
        no_color=no_color,
        expect=1,
    )
    assert "\x1b[31mred" not in done.stdout  # a label is text, never a command to the terminal
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", done.stdout)) is not no_color
    lines = [ESCAPES.sub("", line).rstrip() for line in done.stdout.splitlines()]
    assert max(map(cell_len, lines)) <= columns
    text = "\n".join(lines)
    assert cat.name in lines and "gone.jpg" in lines and "no such file" in text
    assert sum(bool(re.search(r"\d\.\d%", line)) for line in lines) == 5  # there are five labels
    assert text.count("%") == 5
    if columns >= 60:
        assert "[bold]label[/]" in text


def test_plain_lines_in_a_pipe_and_a_table_on_request(
    run_cvt: RunCvt, model: Path, cat: Path
) -> None:
    plain = run_cvt("classify", cat, "-m", model, expect=0).stdout
    assert len(plain.splitlines()) == 1 and plain.count("\t") == 2
    table = run_cvt("classify", cat, "-m", model, "-f", "table", expect=0).stdout
    assert "\x1b" not in table and table.count("%") == 5


def test_odd_labels_and_names(run_cvt: RunCvt, tiny_cvt: TinyCvt, tmp_path: Path) -> None:
    """Commas, quotes, tabs, line breaks and characters from everywhere survive every format."""
    labels = ('a "quoted", comma', "tab\there", "line\nbreak", "日本語 🐈", "=SUM(A1)")
    folder = tiny_cvt(labels=labels)
    names = ['a,b "c".jpg', "日本語 🐈.jpg", " space .jpg", "[red]x.jpg", "line\nbreak.jpg"]
    for name in names:
        picture().save(tmp_path / name)
    out = {
        name: run_cvt("classify", *names, "-m", folder, "-f", name, expect=0).stdout
        for name in ("json", "csv", "tsv", "plain")
    }
    records = json.loads(out["json"])
    assert [record["path"] for record in records] == names
    assert {p["label"] for p in records[0]["predictions"]} == set(labels)
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        rows = list(csv.reader(io.StringIO(out[name], newline=""), delimiter=delimiter))
        assert [row[0] for row in rows[1:]] == names
        assert set(rows[1][1:11:2]) == set(labels)
    assert len(out["plain"].splitlines()) == len(names)
    assert all(line.count("\t") == 2 for line in out["plain"].splitlines())


def test_more_labels_than_there_are(run_cvt: RunCvt, model: Path, cat: Path) -> None:
    for more, count in (((), len(LABELS)), (("--labels", "tench"), 1)):
        command = ("classify", cat, "-m", model, "-k", "7", *more)
        run_cvt(*command, "-o", f"{count}.parquet", "-o", f"{count}.csv", expect=0)
        with (cat.parent / f"{count}.csv").open(newline="") as file:
            header, row = csv.reader(file)
        assert len(header) == len(row) == 2 + 2 * count
        assert all(row[:-1])
        assert pq.read_schema(cat.parent / f"{count}.parquet").names == header


def test_standard_input(run_cvt: RunCvt, model: Path, cat: Path) -> None:
    expected = run_cvt("classify", cat, "-m", model, "-f", "json", expect=0).json()
    for given in (cat.read_bytes(), cat):
        found = run_cvt("classify", "-", "-m", model, "-f", "json", stdin=given, expect=0).json()
        assert found == [{**expected[0], "path": "-"}]
    done = run_cvt("classify", cat, "-", "-m", model, "-f", "jsonl", stdin=b"", expect=1)
    assert [record["error"] for record in done.jsonl()] == [None, "empty file"]


def test_files_and_folders_mixed(run_cvt: RunCvt, model: Path, tmp_path: Path) -> None:
    for name in ("p/b.png", "p/a/c.jpg", "p/.hidden.png", "z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "p/notes.txt").write_text("no image")
    done = run_cvt("classify", "z.png", "p", "z.png", "-m", model, expect=0)
    paths = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert paths == ["z.png", "p/a/c.jpg", "p/b.png"]


# --- models


def test_models_from_the_hub(run_cvt: RunCvt, hub: HubServer, tiny_cvt: TinyCvt, cat: Path) -> None:
    hub.add(REPO, tiny_cvt(labels=("first", "second")))
    hub.add(REPO, tiny_cvt(labels=("v2 first", "v2 second"), seed=1), revision="v2")

    def labels(*arguments: object, **env: str | None) -> set[str]:
        done = run_cvt("classify", cat, "-f", "json", *arguments, env=env, expect=0)
        return {prediction["label"] for prediction in done.json()[0]["predictions"]}

    assert labels("-m", REPO) == {"first", "second"}
    hub.requests.clear()
    # From the cache, without one request.
    assert labels(CVT_MODEL=REPO) == {"first", "second"}
    assert labels("-m", REPO, "--offline") == {"first", "second"}
    assert labels("-m", REPO, HF_HUB_OFFLINE="1") == {"first", "second"}
    cache = str(run_cvt.hf_home / "hub")
    assert labels("-m", REPO, HF_HOME=None, HF_HUB_CACHE=cache) == {"first", "second"}
    assert hub.requests == []
    assert labels("-m", f"{REPO}@v2") == labels("-m", REPO, "--revision", "v2")
    assert labels("-m", f"{REPO}@v2", "--offline") == {"v2 first", "v2 second"}
    hub.add(REPO, tiny_cvt(labels=("new", "newer"), seed=2))
    assert labels("-m", REPO) == {"first", "second"}
    assert labels("-m", REPO, "--refresh") == {"new", "newer"}


@pytest.mark.parametrize("layout", ["bin", "sharded", "microsoft"])
def test_other_layouts(layout: str, run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path) -> None:
    path = tiny_cvt(layout)
    record = run_cvt("classify", cat, "-m", path, "-f", "json", expect=0).json()[0]
    wanted = {f"LABEL_{i}" for i in range(5)} if layout == "microsoft" else set(LABELS)
    assert {prediction["label"] for prediction in record["predictions"]} == wanted


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(dtype: str, run_cvt: RunCvt, model: Path, cat: Path) -> None:
    common = ("classify", cat, "-m", model, "-f", "json", "--dtype")
    whole = run_cvt(*common, "float32", expect=0).json()
    done = run_cvt(*common, dtype, expect=0)
    half = done.json()
    slow = f"cvt: warning: {dtype} is slow on this processor"
    assert [line[: len(slow)] for line in done.stderr.splitlines()] == [slow] * is_slow(
        getattr(torch, dtype)
    )
    for a, b in zip(whole[0]["predictions"], half[0]["predictions"], strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=0.05)
    assert half != whole


def test_the_environment_and_options(run_cvt: RunCvt, model: Path, cat: Path) -> None:
    env = {"CVT_MODEL": str(model), "CVT_DEVICE": "tpu"}
    assert "tpu" in run_cvt("classify", cat, env=env, expect=2).stderr
    run_cvt("classify", cat, "--device", "cpu", env=env, expect=0)


def test_every_option_reaches_what_it_is_for(run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path) -> None:
    (cat.parent / "dog.jpg").hardlink_to(cat)
    model = tiny_cvt(labels=("a, b", "c", "d", "e", "f"))
    done = run_cvt(
        *("classify", ".", "-m", model, "--labels", r"a\, b,C", "--threshold", 0.5),
        *("--activation", "quick_gelu", "--image-size", "48x64", "--dtype", "float32"),
        *("--include", "c*", "--columns", "width", "--max-pixels", 10**5, "--decode", "exact"),
        *("-b", 3, "-k", 4, "-f", "jsonl", "--run-record", "run.json"),
        expect=0,
    )
    (record,) = done.jsonl()
    assert record["path"] == "./cat.jpg"
    assert record["width"] == 96
    # Two labels to choose from: one of them has half or more.
    (best,) = record["predictions"]
    assert best["label"] in ("a, b", "c") and best["score"] >= 0.5
    run = json.loads((cat.parent / "run.json").read_text())
    assert run["preprocessing"]["crop_size"] == {"height": 48, "width": 64}
    wanted = {
        "activation": "quick_gelu",
        "batch_size": 3,
        "columns": ["width"],
        "decode": "exact",
        "background": None,
        "truncated": "refuse",
        "device": "cpu",
        "dtype": "float32",
        "format": "jsonl",
        "labels": ["a, b", "c"],
        "max_pixels": 10**5,
        "model": str(model),
        "shard": "1/1",
        "default_excludes": True,
        "threshold": 0.5,
        "top_k": 2,
    }
    assert {key: run[key] for key in wanted} == wanted


def test_labels_to_choose_from(run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path) -> None:
    """Several times, from a file, by synonym and index; what is advised can be pasted."""
    labels = ("tabby, tabby cat", "dog", "crane", "crane", "owl")
    model = tiny_cvt(labels=labels)
    (cat.parent / "names.txt").write_text("\ufefftabby, tabby cat\n\n#3\n", "utf-8")
    options = ("classify", cat.name, "-m", model, "-f", "jsonl")

    def found(*values: str) -> set[int]:
        chosen = [each for value in values for each in ("--labels", value)]
        (record,) = run_cvt(*options, *chosen, expect=0).jsonl()
        return {each["index"] for each in record["predictions"]}

    assert found("@names.txt", "owl") == {0, 3, 4}
    done = run_cvt(*options, "--labels", "dog,tabby catt", expect=2)
    assert "did you mean --labels 'tabby cat'? " in done.stderr
    assert found("dog", "tabby cat") == {0, 1}
    assert f"`cvt inspect {model} --labels` lists them" in done.stderr
    assert "tabby, tabby cat" in run_cvt("inspect", model, "--labels", expect=0).stdout
    done = run_cvt(*options, "--labels", "crane", expect=2)
    assert "2 classes of that name: #2 crane; #3 crane; --labels '#2' is the first" in done.stderr
    for value, message in (
        ("@gone.txt", "gone.txt can't be read: no such file"),
        (",", "no label"),
    ):
        done = run_cvt(*options, "--labels", value, expect=2)
        assert message in done.stderr and len(done.stderr.splitlines()) == 1


# --- output files


def test_an_output_file_is_whole_or_absent(run_cvt: RunCvt, model: Path, cat: Path) -> None:
    out = cat.parent / "out"
    out.mkdir()
    done = run_cvt("classify", cat, "-m", model, "-o", "out/x.csv", expect=0)
    assert done.stdout == ""
    assert re.fullmatch(r"cvt: out/x.csv: 1 input, [\d.]+ images/s\n", done.stderr)
    assert {path.name for path in out.iterdir()} == {"x.csv", "x.csv.run.json"}
    first = (out / "x.csv").read_bytes()
    assert first == run_cvt("classify", cat, "-m", model, "-f", "csv").stdout.encode()

    # What is there stays, unless --overwrite says otherwise.
    other = ("classify", cat, "out", "-m", model, "-o", "out/x.csv")
    assert "--overwrite" in run_cvt(*other, expect=2).stderr
    assert (out / "x.csv").read_bytes() == first
    # Quiet or not, a file that lacks something is said, for cron to mail.
    quiet = run_cvt("--quiet", *other, "--overwrite", expect=1).stderr.splitlines()
    assert quiet[0].startswith("cvt: out: ") and len(quiet) == 2
    assert quiet[1] == "cvt: 1 of 2 inputs could not be read; its error is in the output"
    assert (out / "x.csv").read_bytes().startswith(first)
    assert {path.name for path in out.iterdir()} == {"x.csv", "x.csv.run.json"}

    done = run_cvt("classify", cat, "-m", model, "-o", "out/x.csv/x.csv", expect=2)
    assert "out/x.csv/x.csv can't be written" in done.stderr


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_a_killed_run_resumed_equals_an_uninterrupted_one(
    name: str, run_cvt: RunCvt, model: Path, tmp_path: Path
) -> None:
    names = [f"{i}.png" for i in range(60)]
    for i, each in enumerate(names):
        if i % 11:
            picture(24, 24, seed=i).save(tmp_path / each)
        else:
            (tmp_path / each).write_text("no image")
    whole = tmp_path / f"whole.{name.partition('.')[2]}"
    common = ("-m", model, "-b", "4")
    run_cvt("classify", *names, *common, "-o", whole, expect=1)

    part = tmp_path / f"{name}.part"
    killed = at_call("cvt_cli.output.journal:Journal.write", 6)
    with run_cvt.start("classify", *names, *common, "-o", name, first=killed) as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / name).exists()
    # As if the last record was cut while it was written.
    part.write_bytes(part.read_bytes()[:-3])
    assert "--resume" in run_cvt("classify", *names, *common, "-o", name, expect=2).stderr
    run_cvt("classify", *names, *common, "-o", name, "--resume", expect=1)
    assert (tmp_path / name).read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.glob(f"{name}.*")] == [f"{name}.run.json"]


# --- the command itself


def test_version_and_module(run_cvt: RunCvt) -> None:
    from cvt_cli import __version__

    assert run_cvt("--version", expect=0).stdout == f"cvt {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "cvt_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cvt {__version__}\n"


def test_help_has_examples_and_panels(run_cvt: RunCvt) -> None:
    text = run_cvt("classify", "--help", columns=100, expect=0).stdout
    for word in ("Examples", "cvt classify cat.jpg", "Input", "Model", "Output", "Performance"):
        assert word in text
    assert "classify" in run_cvt("--help", expect=0).stdout


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", "complete -o default -F _cvt_completion cvt"),
        ("zsh", "compdef _cvt_completion cvt"),
        ("fish", "complete --command cvt"),
    ],
)
def test_completion(shell: str, words: str, run_cvt: RunCvt) -> None:
    # Else Typer looks which shell started the tests, if one did, and takes no name of another.
    env = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert words in run_cvt("--show-completion", shell, env=env, expect=0).stdout
    if shell == "bash":
        env = {"_CVT_COMPLETE": "complete_bash", "COMP_WORDS": "cvt clas", "COMP_CWORD": "1"}
        assert run_cvt(env=env, expect=0).stdout.split() == ["classify"]
