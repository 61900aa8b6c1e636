"""Each failure is one clear line on stderr and an exit code, through the installed command."""

import errno
import json
import os
import pickle
import pty
import re
import resource
import shlex
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL
from cvt_cli.cli.app import _in_words
from cvt_cli.cli.hints import with_whole_command
from cvt_cli.cli.input_options import Input
from cvt_cli.images.source import MOST_SECONDS
from cvt_cli.records import as_written
from tests.cli.test_export import TWO_STAGES
from tests.conftest import Completed, RunCvt
from tests.hub_server import HubServer
from tests.images.test_decode import png
from tests.photos import picture
from tests.tiny import save_tiny

TinyCvt = Callable[..., Path]
REPO = "someone/small-cvt"


def check_line(done: Completed, code: int, *words: str) -> str:
    """The one line on stderr."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("cvt: "), lines[0]
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0]
    return lines[0]


# --- 2: wrong usage, nothing started


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", ["nonsense"]),
        ("classify", ["image"]),
        ("classify cat.jpg --nonsense", ["--nonsense"]),
        ("classify cat.jpg --top-k 0", ["top-k"]),
        ("classify cat.jpg --top-k many", ["top-k"]),
        ("classify cat.jpg --batch-size 0", ["batch-size"]),
        ("classify cat.jpg --format xml", ["xml", "csv"]),
        ("classify cat.jpg -o labels.doc", ["labels.doc", "suffix", ".csv"]),
        ("classify cat.jpg -o labels", ["labels", "suffix"]),
        ("classify cat.jpg -o -", ["-: no name for a file", "leave --output out", "--format"]),
        ("classify cat.jpg -o - --format csv", ["-: no name for a file"]),
        ("evaluate . -o -", ["-: no name for a file", "leave --output out"]),
        ("embed cat.jpg -o -", ["-: no name for a file", "only be written to a file"]),
        ("explain cat.jpg -o -", ["-: no name for a folder"]),
        ("classify cat.jpg --engine ray -o -", ["one --output, a folder"]),
        ("classify cat.jpg -o ..", [".. is a folder"]),
        ("merge cat.jpg -o ../", [".. is a folder"]),
        ("benchmark -o ..", [".. is a folder"]),
        ("classify cat.jpg --output=", ["no name is given"]),
        ("embed cat.jpg --output=", ["no name is given"]),
        ("classify cat.jpg --engine ray --output=", ["one --output, a folder"]),
        ("classify cat.jpg -o cat.jpg --format csv", ["cat.jpg exists"]),
        ("classify cat.jpg -o cat.jpg --format csv --overwrite", ["one of the inputs"]),
        ("classify ./cat.jpg -o cat.jpg --format csv --overwrite", ["one of the inputs"]),
        ("classify . -o cat.jpg --format csv --overwrite", ["one of the inputs"]),
        ("classify cat.jpg --columns widht", ["widht: no such column", "width"]),
        ("classify cat.jpg --gpus-per-worker 1", ["--gpus-per-worker needs --engine ray"]),
        ("classify cat.jpg --workers 2", ["--workers needs --engine ray"]),
        (f"classify cat.jpg -o {LONG}.csv", ["can't be written: file name too long"]),
        ("classify cat.jpg -o cat.jpg/x.csv", ["can't be written: not a directory"]),
        (f"classify cat.jpg --run-record {LONG}", ["can't be written: file name too long"]),
        ("classify cat.jpg --run-record cat.jpg --overwrite", ["one of the inputs"]),
        ("classify . --run-record cat.jpg --overwrite", ["one of the inputs"]),
        ("classify a.jpg --run-record cat.jpg", ["cat.jpg exists and is no run record"]),
        ("classify cat.jpg -o a.csv --run-record ./a.csv", ["a.csv is one of the outputs"]),
        ("classify cat.jpg -o a.csv --run-record a.csv.part", ["is one of the outputs"]),
        ("classify cat.jpg -o a.csv --run-record a.csv.part.json", ["is one of the outputs"]),
        ("classify cat.jpg -o a.csv --run-record a.csv.run.json", ["or a file beside one"]),
        ("classify cat.jpg -o a.csv --errors a.csv.run.json", ["or a file beside one"]),
        ("embed cat.jpg -o a.npy --run-record a.paths.txt", ["is one of the outputs"]),
        ("classify cat.jpg --resume", ["--output"]),
        ("classify cat.jpg -o a.csv --resume --overwrite", ["--resume", "--overwrite"]),
        ("--nonsense", ["--nonsense"]),
    ],
)
def test_wrong_usage(arguments: str, words: list[str], run_cvt: RunCvt, cat: Path) -> None:
    before = cat.read_bytes()
    done = run_cvt(*arguments.split(), expect=2)
    check_line(done, 2, *words)
    assert done.stdout == ""
    assert cat.read_bytes() == before
    assert sorted(path.name for path in cat.parent.iterdir() if path.name[0] != ".") == ["cat.jpg"]


@pytest.mark.parametrize("option", ["-o", "--run-record"])
def test_what_is_no_file_is_not_replaced(option: str, run_cvt: RunCvt, cat: Path) -> None:
    os.mkfifo(cat.parent / "fifo.csv")
    (cat.parent / "folder.csv").mkdir()
    for name, what in (("fifo.csv", "is not a regular file"), ("folder.csv", "is a folder")):
        done = run_cvt("classify", cat, option, name, "--overwrite")
        check_line(done, 2, f"{name} {what}")
    check_line(run_cvt("classify", cat, "-o", "fifo.csv", "--update"), 2, "not a regular file")
    assert (cat.parent / "fifo.csv").is_fifo()


def test_a_current_folder_that_is_gone(run_cvt: RunCvt, cat: Path) -> None:
    (cat.parent / "gone").mkdir()
    process = run_cvt.start(
        *("classify", cat, "-m", "cvt-tiny-cifar10"),
        first="import os; os.chdir('gone'); os.rmdir('../gone')",
    )
    out, err = process.communicate(timeout=300)
    done = Completed(process.args, process.returncode, out, err)
    check_line(done, 2, "the current folder has been deleted")


def test_no_memory_for_torch_itself(run_cvt: RunCvt, cat: Path) -> None:
    room = 500 * 2**20
    process = run_cvt.start(
        *("classify", cat, "-m", "cvt-tiny-cifar10"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)),
    )
    out, err = process.communicate(timeout=300)
    done = Completed(process.args, process.returncode, out, err)
    assert "bug" not in check_line(done, 4, "memory")


def test_a_name_that_looks_like_an_option(run_cvt: RunCvt, cat: Path) -> None:
    for name in ("-dash.jpg", "--dashes.jpg"):
        cat.rename(cat.parent / name)
        done = run_cvt("classify", "other.jpg", name)
        check_line(done, 2, "(see cvt classify --help)", f"write ./{name} or put it after --")
        for names in ((f"./{name}",), ("--", name)):
            run_cvt("classify", "-m", "cvt-tiny-cifar10", *names, expect=0)
        (cat.parent / name).rename(cat)
    check_line(run_cvt("classify", "-dash.jpg"), 2, "(see cvt classify --help)")


# Root without its leave to open everything, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: neither what
# runs this nor what it starts.
AS_ANYBODY = """
import ctypes, os

if os.geteuid() == 0:
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    version, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(version, held) == 0
    for kind in (0, 1):  # effective and permitted
        held[kind] &= ~0b110
    assert libc.capset(version, held) == 0
"""


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        ("classify cat.jpg -o private/x.csv", 0),
        ("classify cat.jpg --run-record private/x.json", 0),
        ("sort labels.csv private/sorted", 0),
        ("sort labels.csv private", 0o500),
        # May be looked into; and what is measured for hours would be lost.
        ("classify cat.jpg -o private/x.csv", 0o500),
        ("evaluate data -o private/x.json", 0o500),
        ("benchmark -o private/x.json", 0o500),
        ("benchmark --plot private/x.svg", 0o500),
        ("explain cat.jpg -o private/why.png", 0o500),
        ("explain cat.jpg -o private", 0o500),
        ("explain cat.jpg -o private/why", 0o500),
        ("merge labels.csv -o private/x.csv", 0o500),
        ("inspect -o private/x.csv", 0o500),
        ("models -o private/x.csv", 0o500),
    ],
)
def test_a_folder_that_is_not_for_this_user(
    arguments: str, mode: int, run_cvt: RunCvt, cat: Path
) -> None:
    (cat.parent / "private").mkdir(mode=mode)
    (cat.parent / "labels.csv").write_text("path,label,score,error\ncat.jpg,cat,0.5,\n")
    process = run_cvt.start(*arguments.split(), first=AS_ANYBODY)
    out, err = process.communicate(timeout=300)
    done = Completed(process.args, process.returncode, out, err)
    check_line(done, 2, "private", "permission denied")
    assert out == ""


@pytest.mark.parametrize("command", ["sort labels.csv sorted", "tag labels.csv"])
def test_a_picture_in_a_folder_that_is_not_for_this_user(
    command: str, run_cvt: RunCvt, cat: Path
) -> None:
    (cat.parent / "private").mkdir()
    cat.rename(cat.parent / "private/cat.jpg")
    (cat.parent / "private").chmod(0)
    (cat.parent / "labels.csv").write_text("path,label,score,error\nprivate/cat.jpg,cat,0.5,\n")
    process = run_cvt.start(*command.split(), first=AS_ANYBODY)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.splitlines()[0] == "cvt: private/cat.jpg: permission denied"


def test_a_disk_that_is_full_at_the_end_loses_no_figures(run_cvt: RunCvt, cat: Path) -> None:
    (cat.parent / "data/cat").mkdir(parents=True)
    (cat.parent / "data/cat/1.jpg").hardlink_to(cat)
    for command in ("evaluate data", "benchmark -b 1 --dtype float32 --duration 0.05 --tune never"):
        process = run_cvt.start(
            *command.split(),
            *("-m", "cvt-tiny-cifar10", "-o", "x.json"),
            # Python would cut its own caches of modules, too.
            env={"PYTHONDONTWRITEBYTECODE": "1"},
            first="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))",
        )
        out, err = process.communicate(timeout=300)
        done = Completed(process.args, process.returncode, out, err)
        check_line(done, 4, "x.json can't be written", "it went to standard output instead")
        assert {"run", "machine"} & done.json().keys()
    assert not list(cat.parent.glob("x.json*"))


def test_a_disk_that_is_full_names_the_file(run_cvt: RunCvt, cat: Path) -> None:
    save_tiny(cat.parent / "tiny", **TWO_STAGES)
    process = run_cvt.start(
        *("export", "tiny", "-o", "x.pt2"),
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        # A part of what the file has.
        first="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))",
    )
    out, err = process.communicate(timeout=300)
    done = Completed(process.args, process.returncode, out, err)
    check_line(done, 4, "can't write: x.pt2: file too large")
    assert not [each for each in cat.parent.iterdir() if "x.pt2" in each.name or "tmp" in each.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--device tpu", ["tpu"]),
        ("--device cuda:99", ["cuda:99"]),
        ("--device cuda:-1", ["cuda:-1"]),
        ("--device xpu", ["xpu"]),
        ("--device mps", ["mps"]),
        ("--dtype int8", ["int8", "float32"]),
        ("--activation relu", ["relu", "gelu"]),
    ],
)
def test_wrong_choices(
    arguments: str, words: list[str], run_cvt: RunCvt, cat: Path, tiny_cvt: TinyCvt
) -> None:
    done = run_cvt("classify", cat, "-m", tiny_cvt(), *arguments.split(), "-o", "x.csv")
    check_line(done, 2, *words)
    assert not list(cat.parent.glob("x.csv*"))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("classify x", "--batch-size 99999999999999999999"),
        ("train x -o y --arch cvt-tiny", "--batch-size 99999999999999999999"),
        ("train x -o y --arch cvt-tiny", "--warmup-epochs inf"),
        ("train x -o y --arch cvt-tiny", "--minutes inf"),
        ("sort x --order uncertain", "--first 99999999999999999999"),
    ],
)
def test_numbers_beyond_all_bounds(command: str, option: str, run_cvt: RunCvt) -> None:
    name, value = option.split()
    check_line(run_cvt(*command.split(), name, value), 2, name)


def test_limits_that_are_none(run_cvt: RunCvt, cat: Path) -> None:
    with zipfile.ZipFile(cat.parent / "cats.zip", "w") as archive:
        archive.write(cat, "1.jpg")
        archive.write(cat, "2.jpg")
    options = ("--image-timeout", "inf", "--max-pixels", "99999999999999999999")
    run_cvt("classify", "cats.zip", cat, "-m", "cvt-tiny-cifar10", *options, expect=0)
    assert Input(timeout=float("inf")).search.timeout == MOST_SECONDS


# --- 3: the model could not be had


def without_a_model(
    run_cvt: RunCvt, model: object, *arguments: object, **options: Any
) -> Completed:
    picture().save(run_cvt.cwd / "cat.jpg")
    done = run_cvt("classify", "cat.jpg", "-m", model, *arguments, "-o", "x.csv", **options)
    assert done.stdout == ""
    assert not list(run_cvt.cwd.glob("x.csv*"))
    return done


def test_names_of_no_model(run_cvt: RunCvt) -> None:
    check_line(without_a_model(run_cvt, "cvt-13"), 3, "did you mean microsoft/cvt-13?")
    check_line(without_a_model(run_cvt, "./nothing"), 3, "./nothing: no such file or folder")
    check_line(without_a_model(run_cvt, "x\ny"), 3, "x")


def test_no_repository(run_cvt: RunCvt, hub: HubServer) -> None:
    check_line(without_a_model(run_cvt, REPO), 3, REPO, "no such repository")


def test_private_and_gated(run_cvt: RunCvt, hub: HubServer, tiny_cvt: TinyCvt) -> None:
    folder = tiny_cvt()
    hub.add("someone/private", folder, private=True)
    hub.add("someone/gated", folder, gated=True)
    for repo, word in (("someone/private", "private"), ("someone/gated", "gated")):
        done = without_a_model(run_cvt, repo)
        check_line(done, 3, repo, word, "hf auth login", "HF_TOKEN")
    run_cvt("classify", "cat.jpg", "-m", "someone/gated", env={"HF_TOKEN": hub.token}, expect=0)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_offline_and_not_cached(how: str, run_cvt: RunCvt, hub: HubServer) -> None:
    option, env = (["--offline"], {}) if how == "option" else ([], {"HF_HUB_OFFLINE": "1"})
    done = without_a_model(run_cvt, REPO, *option, env=env)
    check_line(done, 3, REPO, "not in the cache", "offline", f"cvt models --download {REPO}")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_a_timeout_of_the_hub_that_is_no_number(
    name: str, run_cvt: RunCvt, hub: HubServer, tiny_cvt: TinyCvt, cat: Path
) -> None:
    hub.add(REPO, tiny_cvt())
    env = {name: "30s"}
    for arguments in (("classify", cat, "-m", REPO), ("models", "--search", "x")):
        check_line(run_cvt(*arguments, env=env), 2, f"{name} is '30s'", "seconds")
    assert hub.requests == []
    # It is no business of what needs no Hub, or only its cache.
    run_cvt("models", env=env, expect=0)
    assert run_cvt("classify", cat, "-m", tiny_cvt(), env=env, expect=0).stderr == ""
    run_cvt("classify", cat, "-m", REPO, env={name: ""}, expect=0)
    run_cvt("classify", cat, "-m", REPO, env=env, expect=0)


def test_an_endpoint_without_a_scheme(run_cvt: RunCvt) -> None:
    done = run_cvt("models", "--download", REPO, env={"HF_ENDPOINT": "mirror.example"})
    check_line(done, 3, "HF_ENDPOINT is 'mirror.example'", "set it to https://mirror.example")


def test_no_network(run_cvt: RunCvt) -> None:
    done = without_a_model(run_cvt, REPO)
    check_line(done, 3, REPO, "can't be reached", "cvt models --download")


@pytest.mark.parametrize(
    ("arguments", "env", "command"),
    [
        ("classify 'a cat.jpg' -f csv", {}, "cvt classify 'a cat.jpg' -f csv --model BUNDLED"),
        ("explain -o x.png -- cat.jpg", {}, "cvt explain -o x.png --model BUNDLED -- cat.jpg"),
        ("classify cat.jpg -m org/name", {}, "--model BUNDLED"),
        ("classify cat.jpg", {"CVT_MODEL": "org/name"}, "--model BUNDLED"),
        ("models --download org/name", {}, "--model BUNDLED"),
        (f"classify {'cat.jpg ' * 30}", {}, "--model BUNDLED"),
    ],
)
def test_the_model_that_ships_is_offered_by_the_whole_command(
    arguments: str, env: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    hint = f"fetch it; or use `--model {BUNDLED_MODEL}`"
    found = with_whole_command(hint, shlex.split(arguments))
    assert found == f"fetch it; or use `{command.replace('BUNDLED', BUNDLED_MODEL)}`"


def test_the_command_that_is_offered_without_the_default_model_works(run_cvt: RunCvt) -> None:
    picture().save(run_cvt.cwd / "cat.jpg")
    done = run_cvt("classify", "cat.jpg", "-f", "plain", "--offline", expect=3)
    command = re.findall(r"`cvt ([^`]*--model[^`]*)`", done.stderr)[0]
    assert run_cvt(*command.split(), expect=0).stdout.startswith("cat.jpg\t")


def test_a_download_that_breaks_off(run_cvt: RunCvt, hub: HubServer, tiny_cvt: TinyCvt) -> None:
    hub.add(REPO, tiny_cvt())
    hub.fail(404, "model.safetensors", method="GET")
    done = without_a_model(run_cvt, REPO)
    check_line(done, 3, REPO, "model.safetensors")


def not_a_cvt(folder: Path, elsewhere: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


def corrupt_config(folder: Path, elsewhere: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "cvt", ')


def corrupt_preprocessor(folder: Path, elsewhere: Path) -> None:
    (folder / "preprocessor_config.json").write_text("no")


def truncated(folder: Path, elsewhere: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def missing(folder: Path, elsewhere: Path) -> None:
    (folder / "model.safetensors").unlink()


def do_not_fit(folder: Path, elsewhere: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"embed_dim": [32, 64, 128]}))


def endless(folder: Path, elsewhere: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth": [1, 2, 10**9]}))


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def code(folder: Path, elsewhere: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Code(elsewhere / "was-run")}, folder / "pytorch_model.bin")


def bare_code(folder: Path, elsewhere: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code(elsewhere / "was-run")))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (not_a_cvt, ["not a CvT", "'vit'"]),
        (corrupt_config, ["config.json is corrupt"]),
        (corrupt_preprocessor, ["preprocessor_config.json is corrupt"]),
        (truncated, ["model.safetensors is corrupt or truncated"]),
        (missing, ["model.safetensors"]),
        (do_not_fit, ["do not fit the configuration", "stages.0.embed.proj.weight"]),
        (endless, ["config.json: depth has 1000000000, out of range"]),
        (code, ["pytorch_model.bin holds more than weights", "refused"]),
        (bare_code, ["pytorch_model.bin holds more than weights", "refused"]),
    ],
)
def test_broken_models(
    damage: Callable[[Path, Path], None],
    words: list[str],
    run_cvt: RunCvt,
    tiny_cvt: TinyCvt,
    tmp_path: Path,
) -> None:
    folder = tiny_cvt()
    damage(folder, tmp_path)
    check_line(without_a_model(run_cvt, folder), 3, *words)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; a smaller --batch-size"),
        (torch.OutOfMemoryError("x"), "out of memory; a smaller --batch-size"),
        (ImportError("libx.so"), "a library can't be loaded: libx.so; "),
        (ModuleNotFoundError("no x"), "ModuleNotFoundError: no x; this is a bug in cvt"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "can't write: disk quota exceeded"),
        (OSError(errno.EACCES, "Permission denied", "x.csv"), "x.csv: permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files; raise the limit"),
        (BlockingIOError(errno.EAGAIN, "Try again"), "try again; the limit on processes"),
        (RuntimeError("x"), "RuntimeError: x; this is a bug in cvt"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_command_has_put_into_words(error: Exception, said: str) -> None:
    message, hint, code = _in_words(error)
    assert f"{message}; {hint}".startswith(said)
    assert code == 4


def test_debug_shows_the_traceback(run_cvt: RunCvt) -> None:
    done = run_cvt("classify", "cat.jpg", "-m", "./nothing", "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("cvt: error: ./nothing")


# --- 1: finished, some inputs unreadable

NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")


@pytest.fixture
def bad_inputs(tmp_path: Path) -> dict[str, str]:
    """Inputs that can't be read, each with a word of why; good ones with none. In order."""
    good = tmp_path / "good.jpg"
    picture().save(good)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is a text.\n" * 30)
    (tmp_path / "truncated.jpg").write_bytes(good.read_bytes()[:-400])
    (tmp_path / "bomb.png").write_bytes(png(50_000, 50_000))
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("again.jpg", "new\nline.jpg", NOT_UTF8, 'tab\t, quote".jpg'):
        (tmp_path / name).write_bytes(good.read_bytes())
    return {
        "good.jpg": "",
        "missing.jpg": "no such file",
        "folder": "without images",
        "empty.jpg": "empty file",
        "text.jpg": "text, not an image",
        "new\nline.jpg": "",
        "truncated.jpg": "truncated",
        "bomb.png": "decompression bomb",
        "dangling.jpg": "dangling link",
        "fifo.jpg": "not a regular file",
        NOT_UTF8: "",
        "x" * 300 + ".jpg": "too long",
        "new\nmissing.jpg": "no such file",
        'tab\t, quote".jpg': "",
        "again.jpg": "",
    }


def test_unreadable_inputs(run_cvt: RunCvt, tiny_cvt: TinyCvt, bad_inputs: dict[str, str]) -> None:
    """One record each, in order, the good ones between the bad ones unharmed."""
    arguments = ["classify", *bad_inputs, "-m", tiny_cvt(), "-b", "4", "--offline"]
    done = run_cvt(*arguments, "--format", "jsonl")
    failed = sum(map(bool, bad_inputs.values()))
    assert done.returncode == 1
    skipped, *named, total = done.stderr.splitlines()
    assert skipped == "cvt: warning: skipped 1 file that is not an image: .txt 1"
    bad = [f"cvt: {name}: " for name, word in bad_inputs.items() if word]
    assert len(named) == 5
    assert all(line.startswith(start) for line, start in zip(named, bad, strict=False))
    assert total.startswith(f"cvt: {failed} of {len(bad_inputs)} inputs could not be read, ")
    assert f", {failed - 5} of them not named here; " in total
    records = done.jsonl()
    assert [record["path"] for record in records] == list(map(as_written, bad_inputs))
    for record, word in zip(records, bad_inputs.values(), strict=True):
        if word:
            assert word in record["error"] and "\n" not in record["error"]
            assert record["predictions"] == []
        else:
            assert record["error"] is None
            for found, wanted in zip(
                record["predictions"], records[0]["predictions"], strict=True
            ):  # what is beside it in a batch changes the last digit
                assert found == {**wanted, "score": pytest.approx(wanted["score"], abs=1e-5)}

    # The same in lines for pipes: no name breaks a line.
    done = run_cvt(*arguments, "--no-progress")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == len(bad_inputs)
    for line, word in zip(lines, bad_inputs.values(), strict=True):
        assert (word in line) if word else len(line.split("\t")) == 3


def test_all_inputs_unreadable(run_cvt: RunCvt, tiny_cvt: TinyCvt) -> None:
    done = run_cvt("classify", "a.jpg", "b.jpg", "-m", tiny_cvt(), "-f", "json", "-q")
    assert done.returncode == 1
    assert done.stderr == ""
    assert [record["error"] for record in done.json()] == ["no such file"] * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path) -> None:
    cat.chmod(0)
    locked = cat.parent / "locked"
    locked.mkdir(mode=0)
    done = run_cvt("classify", cat, locked, "-m", tiny_cvt(), "-f", "jsonl")
    locked.chmod(0o700)
    assert done.returncode == 1
    assert [record["error"] for record in done.jsonl()] == ["permission denied"] * 2


# --- 130, and readers that go away


def interrupt(
    process: subprocess.Popen[str], kind: signal.Signals, after: int = 1
) -> tuple[str, str]:
    """Send a signal once there are so many lines on stdout; what came out."""
    assert process.stdout is not None
    first = "".join(process.stdout.readline() for _ in range(after))
    process.send_signal(kind)
    out, err = process.communicate(timeout=300)
    return first + out, err


@pytest.fixture
def many(cat: Path) -> Path:
    """A folder of more pictures than there is time for."""
    folder = cat.parent / "many"
    folder.mkdir()
    for i in range(5000):
        (folder / f"{i:04}.jpg").hardlink_to(cat)
    return folder


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(kind: signal.Signals, run_cvt: RunCvt, tiny_cvt: TinyCvt, many: Path) -> None:
    # Nothing is measured before, which would be said.
    options = ("-f", "jsonl", "-b", "1", "--tune", "never")
    process = run_cvt.start("classify", many, "-m", tiny_cvt(), *options)
    out, err = interrupt(process, kind, after=3)
    assert process.returncode == 130
    records = [json.loads(line) for line in out.splitlines()]
    assert 3 <= len(records) < 5000
    assert all(record["error"] is None for record in records)
    assert err.startswith("cvt: ") and err.count("\n") == 1
    # It may come between a record and its count.
    said = re.search(r"interrupted after (\d+) inputs", err)
    assert said and int(said[1]) in (len(records), len(records) - 1)


def wait_for(part: Path, size: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not part.exists() or part.stat().st_size < size:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupted_with_an_output_file(run_cvt: RunCvt, tiny_cvt: TinyCvt, many: Path) -> None:
    """Once, in order, though what sends a signal on may send it twice."""
    folder = many.parent
    part = folder / "x.jsonl.part"
    outputs = ("-o", "x.jsonl", "--run-record", "run.json")
    process = run_cvt.start("classify", many, "-m", tiny_cvt(), *outputs, "-b", "1")
    wait_for(part, 1000, process)
    for _ in range(50):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert not (folder / "x.jsonl").exists()
    assert "x.jsonl.part keeps them: --resume continues" in err
    assert all(json.loads(line)["error"] is None for line in part.read_text().splitlines())
    assert json.loads((folder / "run.json").read_text())["outcome"] == "interrupted"


def test_a_terminal_that_is_closed(run_cvt: RunCvt, tiny_cvt: TinyCvt, many: Path) -> None:
    """Its signal goes to all processes, also to those that read; but nohup has them ignore it."""
    command = ("classify", many, "-m", tiny_cvt(), "-o", "x.jsonl", "-b", "1", "--tune", "never")
    process = run_cvt.start(*command, first="import os; os.setsid()")
    wait_for(many.parent / "x.jsonl.part", 1000, process)
    os.killpg(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert re.fullmatch(r"cvt: error: interrupted after .*: --resume continues\n", err)
    part = (many.parent / "x.jsonl.part").read_text()
    assert all(json.loads(line)["error"] is None for line in part.splitlines())

    ignored = "import os, signal; os.setsid(); signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = run_cvt.start(*command, "--resume", first=ignored)
    wait_for(many.parent / "x.jsonl.part", len(part) + 1000, process)
    os.killpg(process.pid, signal.SIGHUP)
    wait_for(many.parent / "x.jsonl.part", len(part) + 10_000, process)
    process.kill()
    process.communicate()


def test_an_interruption_waits_for_no_reader(run_cvt: RunCvt, tiny_cvt: TinyCvt) -> None:
    """That waits for the rest of an image, say."""
    process = run_cvt.start("classify", "-", "-m", tiny_cvt(), "-o", "x.jsonl")
    with process:
        wait_for(run_cvt.cwd / "x.jsonl.part", 0, process)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 130
        assert process.stderr is not None
        assert "interrupted after 0 inputs" in process.stderr.read()


def test_ctrl_c_is_not_for_what_runs_in_the_background(
    run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path
) -> None:
    """A shell's `cvt … &` within a script."""
    process = run_cvt.start(
        *("classify", "-", "-m", tiny_cvt(), "-o", "x.jsonl"),
        first="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    )
    with process:
        wait_for(run_cvt.cwd / "x.jsonl.part", 0, process)
        process.send_signal(signal.SIGINT)
        assert process.stdin is not None
        process.stdin.buffer.write(cat.read_bytes())
        process.stdin.close()
        assert process.wait(timeout=300) == 0


def test_a_reader_that_goes_away(run_cvt: RunCvt, tiny_cvt: TinyCvt, many: Path) -> None:
    """`cvt classify … | head -n 1` is quiet."""
    process = run_cvt.start("classify", many, "-m", tiny_cvt(), "-b", "1", "--tune", "never")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(str(many))
    process.stdout.close()
    assert process.wait(timeout=300) in (141, -signal.SIGPIPE)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = run_cvt.start("classify", cat, "-m", tiny_cvt(), stdout=full)
        _, err = process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err and "bug" not in err
    assert "no space left" in err.lower()


def test_a_terminal_that_goes_away(run_cvt: RunCvt) -> None:
    """What is read fails with the same words."""
    ours, theirs = pty.openpty()
    os.close(ours)
    process = run_cvt.start("--version", stdout=theirs)
    os.close(theirs)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (4, "cvt: error: input/output error\n")


@pytest.mark.parametrize("gone", ["reader", "terminal"])
def test_no_message_is_worth_a_run(
    gone: str, run_cvt: RunCvt, tiny_cvt: TinyCvt, cat: Path
) -> None:
    """Who reads the messages goes away; the run goes on."""
    ours, theirs = os.pipe() if gone == "reader" else pty.openpty()
    os.close(ours)
    process = run_cvt.start(
        "classify", cat, cat, "missing.jpg", "-m", tiny_cvt(), "-o", "x.csv", "--progress",
        stderr=theirs, env={"PYTHONUNBUFFERED": "1"} if gone == "reader" else {},
    )  # fmt: skip
    os.close(theirs)
    assert process.communicate(timeout=300) == ("", None)
    assert process.returncode == 1
    lines = (run_cvt.cwd / "x.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["path", str(cat), "missing.jpg"]


def test_a_name_that_no_file_can_have(run_cvt: RunCvt) -> None:
    done = run_cvt("merge", LONG, "-o", "x.csv")
    line = check_line(done, done.returncode, f"error: {LONG}: file name too long")
    assert done.returncode in (2, 4)
    assert "bug" not in line


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed(
    closed: int, run_cvt: RunCvt, cat: Path, tiny_cvt: TinyCvt
) -> None:
    """As by `>&-`: the next file that is opened would get its number."""
    process = run_cvt.start(
        *("classify", cat, *(["-"] if closed == 0 else []), "-m", tiny_cvt(), "-o", "x.csv"),
        first=f"import os; os.close({closed})",
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == (1 if closed == 0 else 0), err
    assert "Traceback" not in err
    assert out == ""
    lines = (cat.parent / "x.csv").read_text().splitlines()
    assert len(lines) == (3 if closed == 0 else 2)
    assert lines[0].startswith("path,label,score")
    assert lines[-1].endswith("standard input is closed") == (closed == 0)


@pytest.mark.parametrize(
    "arguments", ["classify cat.jpg -m cvt-tiny-cifar10", "models", "--version", "--help"]
)
def test_results_for_a_closed_standard_output(arguments: str, run_cvt: RunCvt, cat: Path) -> None:
    process = run_cvt.start(*arguments.split(), first="import os; os.close(1)")
    _, err = process.communicate(timeout=300)
    said = "cvt: error: can't write: standard output is closed\n"
    assert (process.returncode, err) == (4, said)


def test_the_command_alone_is_no_error(run_cvt: RunCvt) -> None:
    said = run_cvt(expect=2)
    assert "Usage: cvt" in said.stdout + said.stderr
    assert "error" not in said.stderr


def test_names_that_are_piped_in_as_a_picture(run_cvt: RunCvt, cat: Path) -> None:
    done = run_cvt("classify", "-", "-m", "cvt-tiny-cifar10", stdin="cat.jpg\n", expect=1)
    assert done.stderr.splitlines()[-1].endswith("; --files-from - reads a list of names")
    done = run_cvt("classify", "-", "-m", "cvt-tiny-cifar10", stdin="", expect=1)
    assert "--files-from" not in done.stderr


def test_variables_that_are_not_set(run_cvt: RunCvt, cat: Path) -> None:
    check_line(run_cvt("classify", cat, "-m", ""), 3, "no model is named; is a variable empty?")
    done = run_cvt("classify", "", "-m", "cvt-tiny-cifar10", expect=1)
    assert done.stdout == "\t\t\tan empty name, as of an unset variable\n"


def test_weights_that_can_not_be_opened_are_not_corrupt(run_cvt: RunCvt, cat: Path) -> None:
    no_handles = (
        "import torch\n"
        "def refuse(*_, **__):\n"
        "    torch.UntypedStorage.from_file('/no/such', False, 1)\n"
        "import safetensors.torch\n"
        "safetensors.torch.load_file = refuse"
    )
    process = run_cvt.start("classify", cat, "-m", "cvt-tiny-cifar10", first=no_handles)
    out, err = process.communicate(timeout=300)
    done = Completed(process.args, process.returncode, out, err)
    line = check_line(done, 3, "model.safetensors can't be read: no such file or directory")
    assert "corrupt" not in line
