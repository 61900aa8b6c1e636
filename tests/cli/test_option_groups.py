"""Groups of options become one signature, and the groups come back filled."""

from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from cvt_cli.cli import app
from cvt_cli.cli.option_groups import grouped


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(min=1)]
    height: Annotated[int, typer.Option(min=1)] = 2


@dataclass(frozen=True, kw_only=True)
class Square(Size):
    height: int = field(default=0, init=False)


@dataclass(frozen=True, kw_only=True)
class Wide(Size):
    height: Annotated[int, typer.Option(min=1)] = 1


@pytest.mark.parametrize(
    ("group", "arguments", "expected"),
    [
        (Size, ["--width", "3"], (3, 2)),
        (Size, ["--width", "3", "--height", "4"], (3, 4)),
        (Wide, ["--width", "3"], (3, 1)),  # a default of its own
        (Square, ["--width", "3"], (3, 0)),  # no option at all
        (Square, ["--width", "3", "--height", "4"], None),
        (Size, ["--height", "4"], None),
        (Size, ["--width", "0"], None),
    ],
)
def test_a_group_is_filled(group: Any, arguments: list[str], expected: Any) -> None:
    found: list[Any] = []

    def paint(*, size: group, name: Annotated[str, typer.Option()] = "x") -> None:
        found.append(((size.width, size.height), name))

    cli = typer.Typer()
    cli.command()(grouped(paint))
    done = CliRunner().invoke(cli, [*arguments, "--name", "y"])
    assert done.exit_code == (0 if expected else 2)
    assert found == ([(expected, "y")] if expected else [])


def test_options_stand_where_their_group_does() -> None:
    def paint(context: typer.Context, *, first: int, size: Size, last: str = "x") -> None: ...

    names = signature(grouped(paint)).parameters
    assert list(names) == ["context", "first", "width", "height", "last"]
    assert names["width"].default is Parameter.empty
    assert (names["height"].default, names["last"].default) == (2, "x")
    assert grouped(paint).__name__ == "paint"


def test_two_groups_can_not_share_a_name() -> None:
    def paint(*, size: Size, other: Wide) -> None: ...

    with pytest.raises(ValueError, match="width"):
        grouped(paint)


def test_an_option_is_the_same_in_every_command() -> None:
    """But for those of one name that mean another thing in another command."""
    own = {
        *("--batch-size", "--compile", "--device", "--dtype", "--format", "--image-size"),
        *(
            "--groups",
            "--labels",
            "--min-score",
            "--model",
            "--null",
            "--output",
            "--overwrite",
            "--plot",
        ),
        *("--resume", "--top-k"),
    }
    ways: dict[str, set[Any]] = {}
    group: Any = typer.main.get_command(app.app)
    context: Any = None
    for name in group.list_commands(context):
        for parameter in group.get_command(context, name).params:
            if parameter.param_type_name == "option":
                ways.setdefault(parameter.opts[0], set()).add((parameter.help, parameter.default))
    assert {name for name, several in ways.items() if len(several) > 1} == own
