"""Public names are the objects of their modules, and no module replaces one, whatever is imported first."""

import importlib
import inspect
import json
import pkgutil

import pytest

import david
from tests.helpers.source_tree import MODULES, in_fresh_python


@pytest.mark.parametrize("name", david.__all__)
def test_a_public_name_is_what_its_own_module_calls_it(name: str) -> None:
    value = getattr(david, name)
    assert value.__name__ == name
    assert value.__module__.startswith("david.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_no_public_name_is_replaced_by_a_module_whatever_is_imported_first() -> None:
    code = (
        f"import importlib, json, types\nfor m in {MODULES}: importlib.import_module(m)\nimport david\n"
        "print(json.dumps([n for n in david.__all__ if isinstance(getattr(david, n), types.ModuleType)]))"
    )
    assert json.loads(in_fresh_python(code)) == []
    assert not {module.split(".")[1] for module in MODULES} & set(david.__all__)  # not even for a moment


@pytest.mark.parametrize(
    "module", [module for module in MODULES if hasattr(importlib.import_module(module), "__path__")]
)
def test_a_lazy_name_of_a_room_is_no_module_of_it(module: str) -> None:
    room = importlib.import_module(module)
    names = set(getattr(room, "__all__", ()))
    assert not names & {found.name for found in pkgutil.iter_modules(room.__path__)}
    for name in names:
        assert not inspect.ismodule(getattr(room, name))


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("space.named", "candidates.spaces.space_named"),
        ("space.Sayable", "candidates.spaces.InvertibleSpace"),
        ("strategy.named", "candidates.strategies.strategy_named"),
        ("study.search", "study.run_search.search"),
        ("checkpoint.export", "checkpoint.export_stacked.export"),
        ("sling.David", "sling.namespace.David"),
    ],
)
def test_the_paths_of_the_first_version_lead_to_what_they_meant(path: str, now: str) -> None:
    objects = []
    for dotted in (path, now):
        module, name = f"david.{dotted}".rsplit(".", 1)
        objects.append(getattr(importlib.import_module(module), name))
    assert objects[0] is objects[1]
