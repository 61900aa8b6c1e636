"""Groups of options: dataclasses whose fields are annotated as Typer reads them.

A command takes groups as it would take options, and `grouped` shows Typer what is in them:

    @grouped
    def classify(context: typer.Context, *, images: Input, model: ModelOptions) -> None: ...

Where a command has no use for an option of a group, a subclass fixes its value with
`field(default=..., init=False)`; where its default is another, a subclass says so.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer

from cvt_cli.cli.completion import of_option


@dataclass(frozen=True)
class Panel:
    """A heading in --help, and the options listed under it."""

    title: str

    def option(self, *names: str, **settings: Any) -> Any:
        """Declare an option.

        Args:
            names: as the user types them, such as `--top-k` and `-k`.
            settings: parameters of `typer.Option`.
        """
        settings.setdefault("autocompletion", of_option(names))
        return typer.Option(*names, rich_help_panel=self.title, **settings)

    def argument(self, **settings: Any) -> Any:
        """Declare an argument.

        Args:
            settings: parameters of `typer.Argument`.
        """
        return typer.Argument(rich_help_panel=self.title, **settings)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the option groups that a command takes into options.

    Args:
        command: a function with keyword parameters, some of which are annotated with a dataclass.

    Returns:
        A function with the fields of those dataclasses as keyword parameters of its own, in the
        same order. It fills the groups from them and calls the command.

    Raises:
        ValueError: if two groups of the command have an option of the same name.
    """
    parameters = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            options = _parameters(hint)
            groups[parameter.name] = hint, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))

    def run(*context: Any, **values: Any) -> None:
        given = {}
        for name, (group, options) in groups.items():
            given[name] = group(**{each: values.pop(each) for each in options if each in values})
        command(*context, **given, **values)

    update_wrapper(run, command)
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameters(group: Any) -> list[Parameter]:
    """List a parameter for each field of a group that is an option."""
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            option.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if option.default is MISSING else option.default,
            annotation=hints[option.name],
        )
        for option in fields(group)
        if option.init
    ]
