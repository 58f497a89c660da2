"""Check what a public function is given, before anything slow, and say what it should be given instead."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from david.errors import DavidError
from david.support.text import brief

# What a type is called in an error, and what gives one: users read these words, not annotations.
_EXPECTED = {
    "Base": "a Base of david.recipe",
    "Corpus": "a corpus, as Corpus.load gives it",
    "DataFrame": "a table, as the functions of david.table give it",
    "FrozenTrial": "a trial of the study",
    "Mapping": "a dictionary",
    "Measurement": "a Measurement of david.recipe",
    "Module": "a loaded model, as load_model gives it",
    "Origin": "an Origin of david.recipe",
    "PathLike": "a path or a name",
    "Recipe": "a Recipe, as Recipe.of makes it from a notation, a file or a list of layers",
    "Score": "a Score, as perplexity returns it",
    "Study": "an Optuna study, as search returns it",
    "Versions": "Versions of david.recipe",
    "str": "a text",
}


def described(value: object) -> str:
    """Return what a value is, for an error: its type, and the value itself if that is short to say.

    Example:
        >>> described("demo"), described(None), described([1, 2])
        ("str 'demo'", 'None', 'list')
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{kind} {brief(value)}" if isinstance(value, str | bytes | int | float) else kind


def check_type(name: str, value: object, kind: type | tuple[type, ...], error: type[DavidError]) -> None:
    """Check that an argument is of a type.

    Args:
        name: The argument, as the caller knows it.
        value: The value.
        kind: The type, or several, of which the last one gives the words.
        error: The error to raise.

    Raises:
        DavidError: It is of another type; the error is an `error`.
    """
    if not isinstance(value, kind):
        expected = kind[-1] if isinstance(kind, tuple) else kind
        words = _EXPECTED.get(expected.__name__, expected.__name__)
        raise error(f"{name} must be {words}; got {described(value)}")


def check_whole(name: str, value: object, error: type[DavidError], *, least: int | None = None) -> None:
    """Check that an argument is a whole number.

    Args:
        name: The argument, as the caller knows it.
        value: The value.
        error: The error to raise.
        least: The least number that is right; None if the caller checks that.

    Raises:
        DavidError: It is no whole number, or less; the error is an `error`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise error(f"{name} must be a whole number; got {described(value)}")
    if least is not None and int(value) < least:
        raise error(f"{name} must be {'0 or more' if least == 0 else f'at least {least}'}; got {value}")


def checked_list(name: str, values: Any, kind: type, error: type[DavidError]) -> list[Any]:
    """Return the values of an argument as a list, all of one type.

    Raises:
        DavidError: The argument is no sequence, or a value is of another type; the error is an `error`.
    """
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise error(f"{name} must be a list; got {described(values)}")
    items = list(values)
    for place, value in enumerate(items):
        check_type(f"{name}[{place}]", value, kind, error)
    return items


def check_function(name: str, value: object, signature: str, error: type[DavidError]) -> None:
    """Check that an argument can be called.

    Args:
        name: The argument, as the caller knows it.
        value: The value.
        signature: What it takes and returns, for the error.
        error: The error to raise.

    Raises:
        DavidError: It cannot be called; the error is an `error`.
    """
    if not callable(value):
        raise error(f"{name} must be a function {signature}; got {described(value)}")


def check_tokenizer(value: object, error: type[DavidError]) -> None:
    """Check that an argument is a tokenizer.

    Raises:
        DavidError: It is none; the error is an `error`.
    """
    if not (callable(value) and hasattr(value, "bos_token_id")):
        raise error(f"tokenizer must be the tokenizer that load_model gives; got {described(value)}")
