"""Results files of layer-scan 0.2.2, read."""

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    ParsedRecipe,
    as_json,
    as_layer,
    check_layers,
    depth_from_text,
    json_field,
    text_or_none,
)


def read_layer_scan(text: str, known: BaseHints) -> ParsedRecipe:
    """A results file of layer-scan 0.2.2 (heatmap.py): block (i, j) is `[0 … j−1, i … N−1]`, by its config.py."""
    what = "a layer-scan results file"
    found = as_json(text, what)
    depth = depth_from_text(json_field(found, "total_layers", what))
    best = json_field(found, "top_configs", what)
    if not isinstance(best, list) or not 1 <= known.rank <= len(best):
        many = len(best) if isinstance(best, list) else 0
        raise RecipeError(f"rank {known.rank} is not among the {many} top_configs of this file")
    start, stop = (as_layer(json_field(best[known.rank - 1], key, "one of top_configs")) for key in ("i", "j"))
    if not start <= stop <= depth:
        raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ i ≤ j ≤ {depth}, the base's layers")
    check_layers(depth + stop - start)
    visits = [*range(stop), *range(start, depth)]
    return ParsedRecipe(visits, n_layers=depth, model=text_or_none(found.get("model")))
