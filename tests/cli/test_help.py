"""`--help`, and what is said where a command or an option is not known."""

import re
from importlib import import_module

import pytest
from typer.main import get_params_from_function
from typer.models import OptionInfo

from cvt_cli.cli.commands import NAMES
from tests.conftest import RunCvt

COMMANDS = (
    "classify", "embed", "merge", "explain", "sort", "train", "evaluate", "benchmark", "inspect",
    "models", "doctor", "export", "tag",
)  # fmt: skip


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(run_cvt: RunCvt, columns: int) -> None:
    for command in ("classify", "train"):
        text = run_cvt(command, "--help", columns=columns, expect=0).stdout
        options, _, examples = text.partition("\nExamples:\n")
        assert max(map(len, examples.splitlines())) <= columns or columns == 40
        joined = re.sub(r" \\\n +", " ", examples)  # as a shell does
        for example in import_module(f"cvt_cli.cli.{command}").EXAMPLES.splitlines()[2:]:
            assert f"  {example}\n" in joined or not example
        assert "\nExamples:\n  cvt " in text
        lines = options.splitlines()[2:]
        assert max(map(len, lines)) <= columns
        assert not any(line.endswith(" ") for line in lines)
        assert "<bool>" not in text and "RANGE" not in text
        # A name has its text beside it, or below it on a narrow terminal.
        at = next(i for i, line in enumerate(lines) if line.strip().startswith("--overwrite"))
        assert "Replace existing files" in " ".join(lines[at : at + 2]) or command == "train"


def test_examples_fit_eighty_columns() -> None:
    for name in NAMES:
        examples = import_module(f"cvt_cli.cli.{name}").EXAMPLES.splitlines()
        assert max(map(len, examples)) <= 78, name


def test_help_names_every_command_in_its_group(run_cvt: RunCvt) -> None:
    text = run_cvt("--help", expect=0).stdout
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert text.index("Label:") < text.index("classify") < text.index("Measure:")
    assert run_cvt("help", expect=0).stdout == text
    wanted = run_cvt("sort", "--help", expect=0).stdout
    assert run_cvt("help", "sort", expect=0).stdout == wanted


def test_versions(run_cvt: RunCvt) -> None:
    wanted = run_cvt("--version", expect=0).stdout
    assert run_cvt("-V", expect=0).stdout == run_cvt("version", expect=0).stdout == wanted


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["photos/"], "photos/ (see cvt --help); did you mean `cvt classify photos/`?"),
        (["a.jpg", "-k", "1"], "did you mean `cvt classify a.jpg -k 1`?"),
        (["predict"], "did you mean `cvt classify`?"),
        (["clasify"], "did you mean `cvt classify`?"),
        (["sort"], "error: missing argument 'LABELS' (see cvt sort --help)\n"),
        (["classify", "x", "-k", "a"], "invalid value for '--top-k' / '-k': not a whole number"),
        (["sort", "x", "y", "--min-score", "a"], ": not a number (see"),
        (["zebra"], "no such command: zebra (see cvt --help)\n"),
        (["--model", "x", "classify"], "it goes after the command: cvt classify … --model …"),
        (["classify", "--json"], "did you mean --format json?"),
        (["classify", "--force"], "did you mean --overwrite?"),
        (["train", "--num-workers", "4"], "did you mean --readers?"),
        (["classify", "--recursve"], "did you mean --recursive?"),
        (["models", "--search"], "'--search' requires an argument (see cvt models --help)\n"),
        (["classify", "--zebra"], "no such option: --zebra (see cvt classify --help)\n"),
        (["classify", "x", "-k", "0"], "'-k': must be 1 or more (see cvt classify --help)\n"),
        (["classify", "-qk3"], "cvt classify --help); it stands alone: cvt -q classify …"),
        (["export", "--model", "x"], "the model is an argument: cvt export MODEL …\n"),
        (["inspect", "-m", "x"], "the model is an argument: cvt inspect MODEL …\n"),
        (["classify", "--undo"], "(see cvt classify --help); `cvt sort` has it\n"),
        (["embed", "--top-k", "2"], "; `cvt classify` and `cvt tag` have it\n"),
        (["models", "--overwrit"], "did you mean --overwrite?\n"),
        (["doctor", "--model"], "no such option: --model (see cvt doctor --help)\n"),
        (["inspect", "--gpu"], "no such option: --gpu (see cvt inspect --help)\n"),
    ],
)  # fmt: skip
def test_hints_are_right_or_absent(run_cvt: RunCvt, typed: list[str], said: str) -> None:
    done = run_cvt(*typed, expect=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_format_in_any_case(run_cvt: RunCvt) -> None:
    capitals = run_cvt("models", "--format", "JSON", expect=0).stdout
    assert capitals == run_cvt("models", "--format", "json", expect=0).stdout


def test_every_option_says_its_name() -> None:
    # Typer 0.27 takes the name of a value, DEVICE, for the option's where it has none.
    for command in COMMANDS:
        function = getattr(import_module(f"cvt_cli.cli.{command}"), command)
        for name, param in get_params_from_function(function).items():
            if isinstance(param.default, OptionInfo):
                assert param.default.param_decls, f"{command} {name}"


def test_ranges_are_left_to_the_words(run_cvt: RunCvt) -> None:
    for command in ("classify", "train", "benchmark"):
        text = run_cvt(command, "--help", columns=100, expect=0).stdout
        assert "x>" not in text and "<=" not in text and "<x" not in text
        assert "[default: " in text
        assert text.count("[") == text.count("]")
