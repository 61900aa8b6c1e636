"""`--help` as `git` and `ruff` print it: names on the left, words on the right, no boxes.

Typer's own panels spend a column on the types of flags and two on frames: at 60 columns eleven
characters are left for the text.
"""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

OPTIONS = "Options"
# Columns for names; the text of a longer one starts on the next line. On a terminal narrower than
# SIDE_BY_SIDE_FROM every text is below its name.
NAME_WIDTH = 26
SIDE_BY_SIDE_FROM = 72
MAX_WIDTH = 100
INDENT = 2
BELOW = 8
# Typer's names of types, and how a value of each is written in a usage line.
_VALUES = {"INTEGER": "N", "INT": "N", "FLOAT": "X", "PATH": "FILE", "STR": "TEXT"}
_RANGE = re.compile(r" RANGE\b", re.IGNORECASE)
# A word of a shell's command line, or a comment.
_WORD = re.compile(r"""#.*|(?:[^\s'"]|'[^']*'|"[^"]*")+""")
_NUMBER = r"[\d.e+-]+"
# The range of a value, left out: the text says it where it matters.
_RANGE_FACT = rf"(?:{_NUMBER}<=?)?x(?:[<>]=?{_NUMBER})?"
_BRACKETED = re.compile(rf"; {_RANGE_FACT}(?=\])|  \[{_RANGE_FACT}\]|  \[required\]")


def print_help(command: Any, context: Any) -> None:
    """Print the usage line, the description, options and subcommands by panel, and the examples."""
    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH)
    console.print(Text.assemble(("Usage: ", "bold"), usage(command, context)))
    if command.help:
        console.print()
        # Each paragraph is joined into one line, for the terminal to wrap.
        for paragraph in command.help.strip().split("\n\n"):
            _print_wrapped(console, " ".join(paragraph.split()), 0)
    for title, params in panels(command.get_params(context)).items():
        _section(console, title, ((names(p, context), text(p, context)) for p in params))
    if isinstance(command, TyperGroup):
        listed = (command.get_command(context, name) for name in command.list_commands(context))
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in listed:
            if each is not None and not each.hidden:
                first = (each.help or "").strip().split("\n\n")[0]
                row = (each.name or "", " ".join(first.split()))
                groups.setdefault(getattr(each, "rich_help_panel", "") or "Commands", []).append(
                    row
                )
        for title, rows in groups.items():
            _section(console, title, rows)
    if command.epilog:
        _print_epilog(console, command.epilog)


def usage(command: Any, context: Any) -> str:
    """Return the usage line: `cvt sort [OPTIONS] LABELS DIR`."""
    line = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    # Typer puts required arguments in braces, as nobody else does.
    return re.sub(r"\{([^{}]*)\}", r"\1", line).replace("......", "...")


def panels(params: Iterable[Any]) -> dict[str, list[Any]]:
    """Group parameters by panel, in the order in which the panels first occur; unnamed ones come
    last."""
    found: dict[str, list[Any]] = {}
    for param in params:
        if not getattr(param, "hidden", False):
            title = getattr(param, "rich_help_panel", None) or OPTIONS
            found.setdefault(title, []).append(param)
    if OPTIONS in found:
        found[OPTIONS] = found.pop(OPTIONS)
    return found


def names(param: Any, context: Any) -> str:
    """Return the names of an option and of its value, or the name of an argument."""
    record = param.get_help_record(context)
    if param.param_type_name == "argument":
        name = str(param.metavar or (record[0] if record else param.name))
        return name + ("..." if param.nargs != 1 and not name.endswith("...") else "")
    # Short names first, and the value's name only once.
    spellings = sorted(param.opts, key=len) + sorted(param.secondary_opts, key=len)
    value = "" if param.is_flag else " " + str(param.metavar or _value(param, context))
    return ", ".join(spellings) + value


def _value(param: Any, context: Any) -> str:
    # Before 0.27 Typer was built on click, whose parameters have a `type`.
    if hasattr(param, "display_type"):
        name = str(param.display_type(context))
    else:
        name = str(param.make_metavar(context))
    name = _RANGE.sub("", name.split(" [")[0]).strip("<>[] ")
    return _VALUES.get(name.upper(), name)


def text(param: Any, context: Any) -> str:
    """Return what an option means, with its default."""
    record = param.get_help_record(context)
    meaning = _BRACKETED.sub("", record[1]) if record else str(param.help or "")
    return " ".join(meaning.split())


def _section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    console.print()
    console.print(Text(f"{title}:", style="bold"))
    side_by_side = console.width >= SIDE_BY_SIDE_FROM
    left = INDENT + NAME_WIDTH + 2 if side_by_side else BELOW
    for name, text in rows:
        label = Text(" " * INDENT + name, style="cyan")
        beside = side_by_side and len(name) <= NAME_WIDTH
        if not beside:
            for line in label.wrap(console, console.width):
                line.rstrip()
                console.print(line)
        _print_wrapped(console, text, left, label=label if beside else Text())


def _print_wrapped(console: Console, text: str, left: int, *, label: Text | None = None) -> None:
    """Print text wrapped from column `left` on, with the label in front of its first line."""
    start = label or Text()
    for line in Text(text).wrap(console, console.width - left) or [Text()]:
        start.append(" " * (left - len(start)))
        console.print(Text.assemble(start, line.plain.rstrip()) if line.plain else start)
        start = Text()


def _print_epilog(console: Console, epilog: str) -> None:
    console.print()
    title, *examples = filter(None, map(str.strip, epilog.splitlines()))
    console.print(f"{title}:")
    for example in examples:
        for line in _continued(" " * INDENT + example, console.width):
            console.print(line, soft_wrap=True)


def _continued(command: str, width: int) -> list[str]:
    """Break a command line, of Rich's markup, as a shell lets it be broken, so that it can still be
    pasted."""
    lines, line = [], " " * INDENT
    for word in _WORD.findall(command):
        # With room for a space and a backslash, where more follows.
        if line.strip() and len(line) + 1 + len(word) + 2 > width and len(command) > width:
            lines.append(line + " \\")
            line = " " * BELOW + word
        else:
            line += (" " if line.strip() else "") + word
    return [*lines, line]
