"""Groups of options: a command takes dataclasses, typer sees their fields."""

import inspect
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from david.cli.app import app
from david.cli.option_groups import Omit, expand_groups
from david.cli.studies import scan, search

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Size:
    panel: ClassVar[str] = "Size"
    width: Annotated[int, typer.Option(min=1, help="How wide.")] = 1
    height: Annotated[int, typer.Option("--tall", rich_help_panel="Other", help="How tall.")] = 1
    depth: int = 7


def area(
    name: Annotated[str, typer.Argument()],
    size: Annotated[Size, Omit(("depth",))] = Size(2, 3, 4),  # frozen
    loud: bool = False,
) -> None:
    """Print an area."""
    print(name, size, loud)


@pytest.fixture
def small() -> typer.Typer:
    small = typer.Typer()
    small.command()(expand_groups(area))
    return small


def test_fields_are_options_with_the_defaults_of_the_command(small: typer.Typer) -> None:
    done = CliRunner().invoke(small, ["floor"])
    assert done.output == "floor Size(width=2, height=3, depth=4) False\n"
    done = CliRunner().invoke(small, ["--tall", "5", "floor", "--width", "6", "--loud"])
    assert done.output == "floor Size(width=6, height=5, depth=4) True\n"


@pytest.mark.parametrize("line", ["floor --depth 3", "floor --width 0", "floor --height 3", ""])
def test_what_a_command_does_not_offer_is_a_usage_error(line: str, small: typer.Typer) -> None:
    assert CliRunner().invoke(small, line.split()).exit_code == 2


def test_a_command_without_groups_is_as_it_was() -> None:
    def plain(name: str, times: int = 2) -> str:
        """Say it."""
        return name * times

    expanded = expand_groups(plain)
    assert (expanded.__name__, expanded.__doc__) == ("plain", "Say it.")
    assert expanded(name="a", times=3) == "aaa"


def test_options_stand_in_the_panel_of_their_group_unless_they_name_one() -> None:
    options = {option.opts[0]: option.rich_help_panel for option in get_command(_app(area)).params}
    assert (options["--width"], options["--tall"], options["--loud"]) == ("Size", "Other", None)


def _app(command: Any) -> typer.Typer:
    one = typer.Typer(add_completion=False)
    one.command()(expand_groups(command))
    return one


def test_search_and_scan_share_their_options() -> None:
    names = {name: {option for one in COMMANDS[name].params for option in one.opts} for name in ("search", "scan")}
    assert len(names["search"] & names["scan"]) >= 20
    assert len(inspect.signature(search).parameters) <= 10
    assert len(inspect.signature(scan).parameters) <= 10


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, [name, "--help"], terminal_width=80).output
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert rows
    assert max(map(len, text.splitlines())) <= 80
    assert all(len(column) <= 46 for row in rows for column in re.split(r"\s{2,}", row.strip("│ "))[:-1])
