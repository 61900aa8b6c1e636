"""The subcommands, imported as they are asked for: all of them together take longer than Python and
Typer do."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cvt_cli.cli.home import with_home

# By panel of --help. Each is a function in the module of the same name, next to its EXAMPLES.
COMMANDS = {
    "Label": ("classify", "embed", "merge"),
    "Look": ("explain", "sort", "tag"),
    "Your own labels": ("train", "evaluate", "export"),
    "Measure": ("benchmark", "inspect", "models", "doctor"),
}
NAMES = tuple(name for names in COMMANDS.values() for name in names)


class Command(TyperCommand):
    """A subcommand whose --help is printed by `print_help`, and in whose file names `~` is
    expanded."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        for parameter in self.params:
            if parameter.name in ctx.params:
                value = ctx.params[parameter.name]
                ctx.params[parameter.name] = with_home(parameter.metavar, value)
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help to standard output."""
        _print_help(self, ctx)


class Commands(TyperGroup):
    """`cvt` itself, with `COMMANDS`, whose --help is printed by `print_help`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all subcommands."""
        return list(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a subcommand; None if there is no such one."""
        panels = (panel for panel, names in COMMANDS.items() if cmd_name in names)
        if cmd_name not in self.commands and (panel := next(panels, None)):
            module = import_module(f"cvt_cli.cli.{cmd_name}")
            single = typer.Typer(
                add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
            )
            register = single.command(cls=Command, epilog=module.EXAMPLES, rich_help_panel=panel)
            register(getattr(module, cmd_name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help to standard output."""
        _print_help(self, ctx)


def _print_help(command: Any, context: Any) -> None:
    from cvt_cli.cli.help import print_help  # imports rich

    print_help(command, context)
