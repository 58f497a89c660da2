"""The tree of exceptions that the docstring draws is the one that exists."""

import inspect
import re

from david import errors

PUBLIC = {
    name: value for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == "david.errors"
}


def drawn_tree() -> dict[str, str | None]:
    """Each class drawn in the docstring → the class it hangs from."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"^[ │├└─]+(\w+Error)\b", line):
            column, name = match.start(1), match[1]
            above = [(at, other) for at, other in above if at < column]
            parents[name] = above[-1][1] if above else None
            above.append((column, name))
    return parents


def test_the_docstring_lists_every_public_class() -> None:
    assert drawn_tree().keys() == PUBLIC.keys()


def test_every_class_hangs_where_it_is_drawn() -> None:
    real = {
        name: next((base.__name__ for base in cls.__bases__ if base.__name__ in PUBLIC), None)
        for name, cls in PUBLIC.items()
    }
    assert drawn_tree() == real


def test_one_except_clause_catches_them_all() -> None:
    assert len(PUBLIC) > 1
    assert all(issubclass(cls, errors.DavidError) for cls in PUBLIC.values())
    assert issubclass(errors.DavidError, Exception)


def test_a_bad_recipe_is_a_value_error_too() -> None:
    assert issubclass(errors.RecipeError, ValueError)


def test_every_class_says_what_it_is_for() -> None:
    assert all(cls.__dict__["__doc__"] for cls in PUBLIC.values())
