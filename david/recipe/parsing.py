"""Check what users pass for a recipe, and parse the short notation (`"0:12, 8:30*0.5"`).

Each check returns the value as a plain number or tuple, or raises `RecipeError` with the value it refuses.
"""

import math
import operator
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from david.errors import RecipeError
from david.recipe.schema import LONGEST, MAX_FILE_BYTES
from david.support.text import brief


def parse_notation(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Parse the short notation.

    Args:
        text: Half-open ranges or single layers, with `*s` after one for a scale.

    Returns:
        The layer and the scale of each visit.

    Raises:
        RecipeError: The text is not in the notation, is too long, or has more than `LONGEST` visits.
    """
    visits: list[int] = []
    scales: list[float] = []
    if len(text) > MAX_FILE_BYTES:
        raise RecipeError(f"a notation has at most {MAX_FILE_BYTES} characters; got {len(text)}")
    for part in text.strip().removeprefix("[").removesuffix("]").split(","):
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?\s*+(?:\*\s*(\S+))?", part.strip(), re.ASCII)
        if match is None or text.strip().startswith("[") != text.strip().endswith("]"):
            raise RecipeError(
                f"cannot read {brief(part.strip())} in {brief(text)}: expected the path of a recipe JSON, or "
                "ranges of layers such as '0:12, 8:30' (half-open, as in Python), single layers, and '*0.5' behind "
                "one for a scale"
            )
        start, stop = int(match[1]), int(match[2] or int(match[1]) + 1)
        if start >= stop:
            raise RecipeError(f"the range {start}:{stop} must go upwards: its end is excluded, as in Python")
        check_length(len(visits) + stop - start)
        visits += range(start, stop)
        scales += [checked_scale(match[3] or 1.0, text=True)] * (stop - start)
    return tuple(visits), tuple(scales)


def checked_sequence(value: Any, name: str, parts: str = "parts") -> Sequence[Any]:
    """Check that a value is a sequence of at most `LONGEST` parts.

    Args:
        value: The value.
        name: What it is, for the error.
        parts: What its parts are, for the error.
    """
    if isinstance(value, (str, bytes, dict)):
        raise RecipeError(f"{name} must be a sequence; got {brief(value)}")
    try:
        items = list(islice(value, LONGEST + 1))
    except TypeError:
        raise RecipeError(f"{name} must be a sequence; got {brief(value)}") from None
    if len(items) > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} {parts}; this one has more")
    return items


def check_length(visits: int) -> None:
    """Refuse more visits than a recipe can have."""
    if visits > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST} visits; this one has more")


def checked_layer(value: Any) -> int:
    """Check that a value is the number of a layer: a whole number of any library, from 0 to `LONGEST`."""
    try:
        layer = operator.index(value)
    except TypeError:
        raise RecipeError(f"a layer must be a whole number from 0 on; got {brief(value)}") from None
    if isinstance(value, bool) or layer < 0:
        raise RecipeError(f"a layer must be a whole number from 0 on; got {brief(value)}")
    if layer > LONGEST:
        raise RecipeError(f"a base has at most {LONGEST} layers; got {layer if layer < 10**18 else 'a number beyond'}")
    return layer


def checked_depth(n_layers: Any) -> int:
    """Check that a value is the number of layers of a base."""
    depth = checked_layer(n_layers)
    if depth < 1:
        raise RecipeError(f"a base needs at least one layer; got {depth}")
    return depth


def checked_scale(value: Any, *, text: bool = False) -> float:
    """Check that a value is a scale: a finite number of any library, or its text if `text` allows that."""
    try:
        scale = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's of several numbers
        raise RecipeError(f"a scale must be a number; got {brief(value)}") from None
    if isinstance(value, bool) or (isinstance(value, str) and not text) or not math.isfinite(scale):
        raise RecipeError(f"a scale must be a finite number; got {brief(value)}")
    return scale


def checked_ratio(value: Any) -> tuple[float, float]:
    """Check that a value is a slice of the depth (start, end), in fractions of it."""
    try:
        start, end = (math.nan if isinstance(bound, bool | str) else float(bound) for bound in value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise RecipeError(f"a ratio slice must be two numbers (start, end); got {brief(value)}") from None
    if not 0 <= start <= end <= 1:
        raise RecipeError(f"a ratio slice needs two numbers 0 ≤ start ≤ end ≤ 1; got {brief(tuple(value))}")
    return start, end


def checked_block(value: Any, n_layers: int) -> tuple[int, int, int, float]:
    """Check that a value is a block (start, stop, times) or (start, stop, times, scale) of a base."""
    parts = checked_sequence(value, "a block")
    if len(parts) not in (3, 4):
        raise RecipeError(f"a block must be (i, j, times) or (i, j, times, scale); got {brief(value)}")
    start, stop, times = map(checked_layer, parts[:3])
    if not start < stop <= n_layers or times < 1:
        raise RecipeError(f"a block needs 0 ≤ i < j ≤ {n_layers} and times ≥ 1; got {brief(value)}")
    return start, stop, times, checked_scale(parts[3]) if len(parts) == 4 else 1.0
