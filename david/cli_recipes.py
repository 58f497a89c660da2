"""The commands that read and write recipes: `explain`."""

from typing import Annotated

import typer

from david.errors import RecipeError
from david.inputs import one_of, recipe_of
from david.options import Json, Ratios
from david.printing import print_found


def explain(
    recipe: Annotated[str | None, typer.Argument(help="A recipe JSON, or its notation: '0:12, 8:30'.")] = None,
    ratios: Ratios = None,
    model: Annotated[
        str | None, typer.Option(help="The base, for costs in bytes and weights; none are loaded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a recipe does and what it costs, without loading weights.

    Example: david explain "0:12, 8:30" --model demo
    """
    from david.explain import explain as tell

    one_of(recipe, ratios)
    if ratios is not None and model is None:
        raise RecipeError("--ratios need --model, whose depth they are of")
    costs = None
    if model is not None:
        from david.models import read_costs

        costs = read_costs(model)
    n_layers = None if costs is None else len(costs.layer_parameters)
    explanation = tell(recipe_of(recipe, ratios, n_layers), costs)
    print_found(explanation.to_dict(), str(explanation), as_json)
