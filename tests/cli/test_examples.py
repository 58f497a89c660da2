"""The commands of every `--help` and of the README do what they say: pasted as they stand, one after the other.

By default a tiny model stands in for the demo model; the slow test pastes them into a shell, on the real one.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from david.cli.app import app
from tests.helpers.command import same_levels
from tests.helpers.demo_stand_in import furnish_cache

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("david/*/README.md"))]
README = "\n".join(path.read_text(encoding="utf-8") for path in GUIDES)  # and the guides beside the rooms
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
TYPED = "What is the capital of France?\n/quit\n"
NEEDS = re.compile(r"postgresql://|grpc://")  # a server that others have


def of_help() -> list[str]:
    """The examples of the commands' help texts, in the order in which these are listed."""
    texts = [command.help or "" for command in COMMANDS.values()]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line.removeprefix("Example: ") for line in lines if line.startswith("Example: ")]


def of_readme() -> list[str]:
    """The guides' commands that begin with `david`: lines of its blocks, what follows `&&` there, and in its text."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split(" && ")]
    inline = re.findall(r"`(david [^`]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE))
    meant = [line for line in inline if len(line.split()) > 2]  # others name a command
    found = [line for line in [*lines, *meant] if line.startswith("david ")]
    return [line for line in dict.fromkeys(found) if not NEEDS.search(line)]


def in_order(commands: list[str]) -> list[str]:
    """What makes a file first, for those that read it."""
    makers = ("david search demo", "david scan", "david export", "david convert")
    return sorted(dict.fromkeys(commands), key=lambda line: not line.startswith(makers))


def furnish(folder: Path) -> None:
    """The files that examples take from their reader: a recipe made on the demo model, and PoLar's paths."""
    from david.checkpoint.model_card import complete_recipe
    from david.models.load import load_model
    from david.recipe.recipe import Recipe

    model, _ = load_model("demo", device="cpu")
    complete_recipe(model, Recipe.from_blocks(30, [(8, 12, 2, 0.3)])).save(folder / "recipe.json")
    samples = [{"final_valid_transitions": [[*range(30)], [*range(12), *range(8, 30)]]}]
    (folder / "merged_mcts_samples.json").write_text(json.dumps(samples), encoding="utf-8")


def here(line: str) -> tuple[int, str]:
    """Run a command in this process; its exit code, and what it said and printed."""
    from david.cli import app

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", shlex.split(line))
        patch.setattr(sys, "stdin", io.StringIO(TYPED))
        code: Any = 0
        try:
            app.main()
        except SystemExit as end:
            code = end.code or 0
    return code, said.getvalue()


def pasted(line: str) -> tuple[int, str]:
    """Run a command in a shell, which stays: a fuzzer in its place would count this process's memory as its own."""
    path = f"PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH"
    shell = ["bash", "-c", f"{path} {line}\nexit $?"]
    done = subprocess.run(shell, input=TYPED, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def failures(commands: list[str], run: Callable[[str], tuple[int, str]]) -> list[str]:
    """What went wrong with those that did not end well, or said nothing."""
    found = [(line, *run(line)) for line in in_order(commands)]
    return [f"{line}\n→ {code}: {said[-400:]}" for line, code, said in found if code != 0 or not said.strip()]


def test_every_command_has_an_example_and_only_commands_that_exist_are_written_of() -> None:
    assert {line.split()[1] for line in of_help()} == set(COMMANDS)
    assert {line.split()[1] for line in of_readme()} >= set(COMMANDS)
    assert {line.split()[1] for line in of_readme()} <= {*COMMANDS, "--help"}


@pytest.mark.slow
@pytest.mark.parametrize("commands", [of_help, of_readme])
def test_the_examples_run_on_a_tiny_model(
    commands: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAVID_CACHE", str(furnish_cache(tmp_path / "cache")))
    (place := tmp_path / "place").mkdir()
    furnish(place)
    monkeypatch.chdir(place)
    with same_levels():
        assert failures(commands(), here) == []


@pytest.mark.slow
def test_examples_of_the_help_run_as_pasted_on_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, said = pasted("david search demo --trials 3 --windows 2 --held-out 2 --window 32 --out run")
    assert code == 0, said
    kinds = ("david convert", "david explain", "david generate", "david report", "david score")  # the rest: above
    lines = [line for line in of_help() if line.startswith(kinds)]
    assert len(lines) >= len(kinds)
    assert failures(lines, pasted) == []


@pytest.mark.slow
def test_the_readmes_own_modules_run_as_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert failures(re.findall(r"`(python -m [^`]+)`", README), pasted) == []
