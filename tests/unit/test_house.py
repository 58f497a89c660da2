"""The structure of the code: rooms import downwards, light ones load without torch, public names are all there."""

import json
import subprocess
import sys
import tomllib

import pytest

import david
from tests.helpers.source_tree import HOUSE, MODULES, in_fresh_python

LIGHT_PARTS = (
    *("errors", "neighbours", "page", "plot", "space", "strategy", "table", "verdict"),
    *("support", "metrics", "recipe", "notation", "storage", "candidates", "report"),
)
LIGHT = [module for module in MODULES if module.split(".")[1] in LIGHT_PARTS]
LIGHT.append("david.scoring.conventions")  # the command reads its choices there
ROOMS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))


def test_rooms_import_downwards_and_no_module_is_in_a_circle() -> None:
    linter = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run(linter, cwd=HOUSE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_room_has_a_floor() -> None:
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    floors = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert sorted(room for floor in floors for room in floor.split(" | ") if room != "errors") == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_twelve_files(room: str) -> None:
    assert len([path for path in (HOUSE / room).glob("*.py") if path.stem != "__init__"]) <= 12


def test_no_file_is_longer_than_450_lines() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in HOUSE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_the_light_modules_load_without_torch() -> None:
    code = f"import importlib, sys\nfor m in {LIGHT}: importlib.import_module(m); print(m, 'torch' in sys.modules)"
    assert in_fresh_python(code).splitlines() == [f"{module} False" for module in LIGHT]


def test_import_david_loads_nothing_heavy_and_takes_under_300_ms() -> None:
    code = (
        "import json, sys, time\nstart = time.perf_counter()\nimport david\ntook = time.perf_counter() - start\n"
        "print(json.dumps([took, sorted({'torch', 'transformers', 'pandas'} & sys.modules.keys())]))"
    )
    runs = [json.loads(in_fresh_python(code)) for _ in range(3)]
    assert [loaded for _, loaded in runs] == [[], [], []]
    assert min(took for took, _ in runs) < 0.3  # a promise to whoever types `import david` in a REPL


def test_the_public_names_are_sorted() -> None:
    assert david.__all__ == sorted(david.__all__)
    assert set(david.__all__) <= set(dir(david))


@pytest.mark.parametrize("module", ["notation", "page", "plot", "report", "space", "table", "verdict"])
def test_promised_modules_are_attributes_without_an_import(module: str) -> None:
    assert in_fresh_python(f"import david; print(david.{module}.__name__)").strip() == f"david.{module}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = david.no_such_name
