"""Search spaces: functions from an Optuna trial to a recipe, and back from a recipe to a trial's parameters.

Any function `(trial, n_layers) → Recipe` is a space. Those in `SPACES` are named on the command line and also have
`params`, so that a search can begin with the base and a scan can be written as trials. Their parameters are static: a
block that is off still has its parameters, which keeps one joint space for samplers that model it. `scales` is the
range (low, high) of strengths in steps of 0.05: below 1 is damped, above 1 over-driven, below 0 turned round; left out,
every visit is plain. `max_visits` is the most visits a recipe may have, at least the base's.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from david.candidates.block_spaces import Block, Blocks, Removal
from david.candidates.depth_spaces import Ratios, Visits, Windows
from david.candidates.encoding import Params, Scales, Space, params_if_lowest
from david.errors import SearchError
from david.recipe.recipe import Recipe
from david.support.arguments import check_function, check_type
from david.support.text import join_or

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

__all__ = [
    "SPACES",
    "Block",
    "Blocks",
    "InvertibleSpace",
    "Params",
    "Ratios",
    "Removal",
    "Space",
    "Visits",
    "Windows",
    "is_built_in",
    "params_of",
    "space_named",
]


@runtime_checkable
class InvertibleSpace(Protocol):
    """A space that can also return the parameters of a recipe."""

    def __call__(self, trial: "BaseTrial", n_layers: int, /) -> Recipe:
        """Return the recipe of a trial."""

    def params(self, recipe: Recipe, n_layers: int) -> Params | None:
        """Return the parameters that give a recipe, or None if the space cannot express it."""


# By their names on the command line and in a study. A new space is a class and a word here.
SPACES: Mapping[str, type[InvertibleSpace]] = {
    space.__name__.lower(): space for space in (Block, Blocks, Windows, Ratios, Visits, Removal)
}


def space_named(
    name: str,
    *,
    scales: Scales = None,
    max_length: int | None = None,
    max_visits: int | None = None,
) -> InvertibleSpace:
    """Return a built-in space.

    Args:
        name: One of `SPACES`.
        scales: Range of strengths.
        max_length: Layers of the longest block or window.
        max_visits: Visits of the deepest recipe.

    Raises:
        SearchError: There is no such space, it does not have an option that is given, or an option is out of range.

    Example:
        >>> space_named("block", scales=(0.1, 1.0)).scales
        (0.1, 1.0)
    """
    if name not in SPACES:
        raise SearchError(f"unknown space {name!r}: expected {join_or(SPACES)}")
    options = {"scales": scales, "max_length": max_length, "max_visits": max_visits}
    given = {option: value for option, value in options.items() if value is not None}
    accepted = {field.name for field in fields(cast(Any, SPACES[name]))}
    for option in given:
        if option not in accepted:
            raise SearchError(f"the space {name} has no {option}: leave it out")
    return SPACES[name](**given)


def is_built_in(space: Space) -> bool:
    """Return whether a space is one of `SPACES`: a study names it by its class.

    Example:
        >>> is_built_in(Block())
        True
    """
    return type(space) in SPACES.values()


def params_of(space: Space, recipe: Recipe, n_layers: int) -> Params | None:
    """Return the parameters with which a space gives a recipe.

    A plain function is tried with its lowest values, which give the base in a space whose parameters can turn every
    change off.

    Args:
        space: The space.
        recipe: The recipe.
        n_layers: Layers of the base.

    Returns:
        The parameters for `study.enqueue_trial`, or None if they cannot be found.

    Example:
        >>> params_of(Block(), Recipe.parse("0:3, 1:8"), 8)
        {'start': 1, 'length': 2}
    """
    check_function("space", space, "(trial, n_layers) → Recipe", SearchError)
    check_type("recipe", recipe, Recipe, SearchError)
    if isinstance(space, InvertibleSpace):
        return space.params(recipe, n_layers)
    return params_if_lowest(space, recipe, n_layers)
