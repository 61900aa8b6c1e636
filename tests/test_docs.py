"""README and docs: what they show is what `cvt` prints, links lead somewhere, and the Chinese page
has the same commands."""

import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from cvt_cli.cli.app import app
from tests.conftest import RunCvt

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REFERENCE = ROOT / "docs/reference.md"
CHINESE = ROOT / "docs/README.zh-CN.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINES = 220
SCORE = 0.1  # in percent: what another processor's last digits may make of a rounded score
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def shown(command: str, page: Path = README) -> list[list[str]]:
    """Command lines of a page that begin so, each with its output."""
    examples = [block for block in blocks(page) if block.startswith(f"$ {command}")]
    return [block.removeprefix("$ ").split("\n", 1) for block in examples]


def check_same(found: str, wanted: str) -> None:
    """The same words, and numbers that differ in their last digit at most."""
    found_words, wanted_words = _STYLE.sub("", found).split(), wanted.split()
    if "…" in wanted_words:  # cut there
        wanted_words = wanted_words[: wanted_words.index("…")]
        found_words = found_words[: len(wanted_words)]
    assert len(found_words) == len(wanted_words), found
    for one, other in zip(found_words, wanted_words, strict=True):
        if one != other:
            numbers = [_NUMBER.fullmatch(word.rstrip("%")) for word in (one, other)]
            assert all(numbers), f"{one} instead of {other}"
            values = [float(word.rstrip("%").replace(",", "")) for word in (one, other)]
            assert abs(values[0] - values[1]) <= SCORE * 1.01, f"{one} instead of {other}"


def test_labels_in_the_readme_are_what_it_prints(run_cvt: RunCvt) -> None:
    examples = shown("cvt classify")
    assert examples
    for command, output in examples:
        done = run_cvt(
            *shlex.split(command)[1:], "--dtype", "float32",
            cwd=ROOT, tty=True, no_color=True, columns=80, expect=0,
        )  # fmt: skip
        check_same(done.stdout, output)


def test_sorting_in_the_readme(run_cvt: RunCvt, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    model = ("--model", "cvt-small-everyday100", "--dtype", "float32")
    run_cvt("classify", "examples", *model, "-o", "labels.csv", expect=0)
    ((command, output),) = shown("cvt sort")
    done = run_cvt(*shlex.split(command)[1:], tty=True, no_color=True, columns=80, expect=0)
    check_same(done.stdout, output)


def test_inspecting_in_the_readme(run_cvt: RunCvt) -> None:
    ((command, output),) = shown("cvt inspect")
    done = run_cvt(*shlex.split(command)[1:], tty=True, no_color=True, columns=88, expect=0)
    check_same(done.stdout, output)


def test_the_reference_is_current() -> None:
    tool = runpy.run_path(str(ROOT / "tools/reference.py"))
    assert REFERENCE.read_text("utf-8") == tool["reference"](), "run python tools/reference.py"


def test_the_reference_has_every_command_and_option() -> None:
    page = REFERENCE.read_text("utf-8")
    group: Any = get_command(app)
    context = group.make_context("cvt", ["--quiet", "models"], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        section = page.partition(f"## cvt {name}\n")[2].partition("\n## ")[0]
        assert " ".join(command.help.split("\n\n")[0].split()) in section
        for option in (each for param in command.params for each in param.opts):
            assert not option.startswith("-") or re.search(rf"`.*{option}\b", section), option


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_starts_with_what_it_is_for(page: Path) -> None:
    title, empty, first, *_ = page.read_text("utf-8").splitlines()
    assert title.startswith("# ") and not empty and re.match(r"[^-#|`!<]", first)


# Left out: what needs data (cvt evaluate) or a quiet machine (cvt benchmark).
@pytest.mark.parametrize("command", ["classify", "inspect", "models"])
def test_what_docs_show(run_cvt: RunCvt, command: str) -> None:
    found = [
        each
        for page in PAGES
        if page not in (README, CHINESE)
        for each in shown(f"cvt {command}", page)
    ]
    assert found
    for line, output in found:
        exact = ("--dtype", "float32") if command == "classify" else ()
        done = run_cvt(
            *shlex.split(line)[1:], *exact, cwd=ROOT, tty=True, no_color=True, columns=104, expect=0
        )
        check_same(done.stdout, output)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_LINES


def test_the_chinese_page_has_the_same_commands() -> None:
    here = [block for block in blocks(README) if not block.startswith("cvt_cli/")]
    assert blocks(CHINESE) == here


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def command_lines() -> list[tuple[str, str]]:
    """Each command line of `cvt` on the pages: page and line, without what other commands do."""
    found = []
    for page in PAGES:
        if page in (REFERENCE, CHINESE):
            continue
        for block in blocks(page):
            for line in block.splitlines():
                parts = map(str.strip, re.split(r"&&|\|\s|;\s", line.removeprefix("$ ")))
                found += [
                    (page.name, each)
                    for each in parts
                    if re.match(r"(\S*/)?cvt (?!…|.*--help)", each)
                ]
    return found


def test_commands_on_the_pages_parse() -> None:
    """Each names a command, and options and values that it takes."""
    group: Any = get_command(app)
    lines = command_lines()
    assert len(lines) > 50
    for page, line in lines:
        words = shlex.split(line, comments=True)
        words = [each for each in words if not re.match(r"\d?>|…", each)]
        flags = ("-q",)
        start = next(i for i, word in enumerate(words[1:], 1) if word not in flags)
        name, arguments = words[start], words[start + 1 :]
        context = group.make_context("cvt", [name], resilient_parsing=True)
        command = group.get_command(context, name)
        assert command is not None, f"{page}: {line}"
        try:
            command.make_context(name, arguments, parent=context)
        except Exception as error:
            raise AssertionError(f"{page}: {line}: {error}") from error


def words_alone(text: str) -> list[str]:
    """The words of a document: figures, which depend on data and machine, left out."""
    return [each for each in _STYLE.sub("", text).split() if not re.search(r"\d|^–$", each)]


def test_the_evaluation_that_docs_show(run_cvt: RunCvt, tmp_path: Path) -> None:
    """With a picture for each label in place of the 10,000."""
    ((line, output),) = shown("cvt evaluate", ROOT / "docs/training.md")
    labels = re.findall(r"^([a-z]+) +1000 ", output, re.MULTILINE)
    assert len(labels) == 10
    for index, label in enumerate(labels):
        folder = tmp_path / "cifar10/test" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * index, 99, 200)).save(folder / "a.png")
    done = run_cvt(*shlex.split(line)[1:], tty=True, no_color=True, columns=104, expect=0)
    wanted, found = (text.partition("Most confused")[0] for text in (output, done.stdout))
    assert words_alone(found) == words_alone(wanted)


def test_the_benchmark_that_the_readme_shows(run_cvt: RunCvt) -> None:
    """Its columns, with a smaller network."""
    ((line, output),) = shown("cvt benchmark")
    smaller = ("--model", "cvt-tiny-cifar10", "--duration", "0.05", "--tune", "never")
    done = run_cvt(*shlex.split(line)[1:], *smaller, tty=True, no_color=True, columns=120, expect=0)
    header = words_alone(output.partition("…")[2].strip().splitlines()[0])
    lines = [words_alone(each) for each in done.stdout.splitlines()]
    assert any(each == header for each in lines), done.stdout
