"""The house: a module imports only modules above it, the light ones load without torch, the names are all there."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import david

HOUSE = Path(david.__file__).parent
LIGHT = [
    "errors",
    "units",
    "messages",
    "stopping",
    "storage",
    "workers",
    "claims",
    "origin",
    "picture",
    "recipe",
    "explain",
    "readers",
    "writers",
    "notation",
    "plan",
    "parts",
    "slots",
    "space",
    "neighbours",
    "verdict",
    "luck",
    "records",
    "queueing",
    "table",
    "strategy",
    "racing",
    "plot",
    "report",
    "drawing",
    "markup",
    "page",
]
HEAVY = [
    "memory",
    "views",
    "layers",
    "forward",
    "sling",
    "stack",
    "check",
    "sources",
    "cuts",
    "corpus",
    "files",
    "base",
    "models",
    "card",
    "rebuilt",
    "checkpoint",
    "score",
    "harness",
    "tasks",
    "visits",
    "fit",
    "engine",
    "also",
    "profile",
    "store",
    "rounds",
    "judging",
    "study",
    "measures",
    "comparison",
]
ORDER = [
    *LIGHT,
    *HEAVY,
    "widgets",
    "writing",
    "chat",
    "options",
    "inputs",
    "printing",
    "session",
    "fleet",
    "cli_studies",
    "cli_scores",
    "cli_recipes",
    "cli_models",
    "cli_talk",
    "cli",
]
UPWARD = {"sling": {"check"}}  # when David.check is called: it stands beside sling under one name, and needs it
MODULES = sorted(path.stem for path in HOUSE.glob("*.py") if path.stem != "__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of david that a module imports, also inside functions, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("david."))
        elif isinstance(node, ast.ImportFrom):
            home = "david" * bool(node.level) + "." * bool(node.level and node.module) + (node.module or "")
            if home == "david":
                yield from (alias.name for alias in node.names if alias.name != "__version__")
            elif home.startswith("david."):
                yield home.split(".")[1]
        else:
            yield from imports(node)


def in_fresh_python(code: str) -> str:
    """What a new interpreter prints; it runs beside this package, so that it imports the same one."""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_reader_sees_every_kind_of_import() -> None:
    source = """
from typing import TYPE_CHECKING
import david.a, os, davidson.x
from david.b import c
from david import d, __version__
from .e import f
from . import g
if TYPE_CHECKING:
    from david.hidden import x
else:
    from david.h import x
def function():
    if True:
        from david.i import x
class Kind:
    try:
        import david.j as k
    except ImportError:
        pass
"""
    assert list(imports(ast.parse(source))) == ["a", "b", "d", "e", "g", "h", "i", "j"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_above_it(module: str) -> None:
    assert module in ORDER, f"david/{module}.py has no place in the house: give it one in the order of this test"
    above = ORDER[: ORDER.index(module)]
    wrong = set(imports(ast.parse((HOUSE / f"{module}.py").read_text(encoding="utf-8")))) - set(above)
    assert wrong >= UPWARD.get(module, set()), "an exception that is no longer needed"
    wrong -= UPWARD.get(module, set())
    assert not wrong, f"david/{module}.py may import only what stands above it, not {sorted(wrong)}"


def test_the_light_modules_load_without_torch() -> None:
    light = [f"david.{module}" for module in LIGHT]
    code = f"import importlib, sys\nfor m in {light}: importlib.import_module(m); print(m, 'torch' in sys.modules)"
    assert in_fresh_python(code).splitlines() == [f"{module} False" for module in light]


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


@pytest.mark.parametrize("name", david.__all__)
def test_a_public_name_is_what_its_own_module_calls_it(name: str) -> None:
    value = getattr(david, name)
    assert value.__name__ == name
    assert value.__module__.startswith("david.")
    assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("module", ["notation", "page", "plot", "space", "table"])
def test_promised_modules_are_attributes_without_an_import(module: str) -> None:
    assert in_fresh_python(f"import david; print(david.{module}.__name__)").strip() == f"david.{module}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = david.no_such_name


def test_search_is_the_function_also_after_its_module_was_imported() -> None:
    code = "import david.study\nfrom david import search\nprint(callable(search))"
    assert in_fresh_python(code).strip() == "True"
