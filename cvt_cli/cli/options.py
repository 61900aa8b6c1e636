"""The common ground of all options: panels of --help, global options, what was typed.

The options that several subcommands share are in groups, by what they are about: `input_options`,
`model_options`, `compute_options`, `output_options`. `option_groups` turns groups into what Typer
reads.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import typer

from cvt_cli.cli.option_groups import Panel
from cvt_cli.errors import UsageError

INPUT = Panel("Input")
MODEL = Panel("Model")
OUTPUT = Panel("Output")
PERFORMANCE = Panel("Performance")
SCALE = Panel("Scale")

# More images than any memory holds; the numbers made of it still fit 64 bits.
MAX_BATCH_SIZE = 10**9


@dataclass(frozen=True)
class GlobalOptions:
    """The global options, kept in `context.obj`."""

    debug: bool = False
    quiet: bool = False


def named_path(text: str) -> Path:
    """Turn an argument into a path. An empty one, as `"$folder"` may be, is not the current folder,
    though `Path` takes it for that.

    Raises:
        UsageError: if it is empty.
    """
    if not text:
        raise UsageError("no name is given for a file or folder", hint="is a variable empty?")
    return Path(text)


def is_typed(context: typer.Context, name: str | None) -> bool:
    """Tell whether an option stood on the command line.

    Args:
        name: of its parameter.
    """
    source = context.get_parameter_source(name or "")
    return source is not None and source.name == "COMMANDLINE"


def typed_options(context: typer.Context) -> dict[str, str]:
    """Return the options that stood on the command line, by their parameters' names."""
    return {
        parameter.name or "": parameter.opts[0]
        for parameter in context.command.params
        if is_typed(context, parameter.name)
    }


def split_names(names: str | None) -> list[str]:
    """Split names at commas; a comma that is part of a name is written with a backslash."""
    if names is None:
        return []
    parts = re.split(r"(?<!\\),", names)
    return [part.replace("\\,", ",").strip() for part in parts if part.strip()]
