"""Make docs/reference.md from the help of every command.

python tools/reference.py            # write it
python tools/reference.py --check    # exit 1 if it is not current
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from cvt_cli.cli.app import app
from cvt_cli.cli.help import names, panels, text, usage

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """\
# Command reference

Every command of `cvt` with all its options, as `--help` prints them. This page is generated:
`python tools/reference.py` writes it.
"""
_MARKUP = re.compile(r"\[/?(?:bold)?\]")


def reference() -> str:
    """Return the page."""
    group: Any = get_command(app)
    context = group.make_context("cvt", ["--quiet", "models"], resilient_parsing=True)
    parts = [HEAD, *_command(group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if not command.hidden:
            inner = command.make_context(name, [], parent=context, resilient_parsing=True)
            parts += _command(command, inner)
    return "\n".join(parts).rstrip() + "\n"


def _command(command: Any, context: Any) -> Iterator[str]:
    yield f"## {context.command_path}\n"
    yield f"```\n{usage(command, context)}\n```\n"
    for paragraph in (command.help or "").strip().split("\n\n"):
        yield f"{_escaped(' '.join(paragraph.split()))}\n"
    for title, params in panels(command.get_params(context)).items():
        rows = [(names(each, context), text(each, context)) for each in params]
        yield f"**{title}**\n"
        yield "| | |\n| --- | --- |"
        for name, meaning in rows:
            yield f"| `{name.replace('|', chr(92) + '|')}` | {_escaped(meaning)} |"
        yield ""
    examples = _examples(command)
    if examples:
        yield "```\n" + "\n".join(examples) + "\n```\n"


def _examples(command: Any) -> list[str]:
    lines = _MARKUP.sub("", command.epilog or "").splitlines()
    return [line.strip() for line in lines if "cvt " in line and not line.startswith("Start with")]


def _escaped(words: str) -> str:
    """Escape what Markdown would take for markup."""
    return re.sub(r"([|*_<>`\\])", r"\\\1", words)


def main() -> None:
    """Write the page, or check it."""
    # Defaults that come from the environment would be those of this machine.
    for name in list(os.environ):
        if name.startswith(("CVT_", "RAY_")):
            del os.environ[name]
    page = reference()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, "utf-8")
    elif not PAGE.is_file() or PAGE.read_text("utf-8") != page:
        sys.exit(f"{PAGE} is not current: run python tools/reference.py")


if __name__ == "__main__":
    main()
