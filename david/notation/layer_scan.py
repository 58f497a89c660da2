"""Results files of layer-scan 0.2.2, which David reads and does not write."""

from david.errors import RecipeError
from david.notation.parsing import (
    BaseHints,
    Format,
    ParsedRecipe,
    as_depth,
    as_json,
    as_layer,
    json_field,
    text_or_none,
)
from david.recipe.parsing import check_length


def read_layer_scan(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read one of `top_configs` in a results file (heatmap.py): block (i, j) is `[0 … j−1, i … N−1]` (config.py)."""
    what = "a layer-scan results file"
    results = as_json(text, what)
    depth = as_depth(json_field(results, "total_layers", what))
    ranked = json_field(results, "top_configs", what)
    if not isinstance(ranked, list) or not 1 <= hints.rank <= len(ranked):
        count = len(ranked) if isinstance(ranked, list) else 0
        raise RecipeError(f"this file has no rank {hints.rank}: expected 1 to {count}, its top_configs")
    start, stop = (as_layer(json_field(ranked[hints.rank - 1], key, "one of top_configs")) for key in ("i", "j"))
    if not start <= stop <= depth:
        raise RecipeError(f"the block ({start}, {stop}) needs 0 ≤ i ≤ j ≤ {depth}, the base's layers")
    check_length(depth + stop - start)
    visits = [*range(stop), *range(start, depth)]
    return ParsedRecipe(visits, n_layers=depth, model=text_or_none(results.get("model")))


LAYER_SCAN = Format(
    name="layer-scan",
    describes="a results file, layer-scan 0.2.2",
    read=read_layer_scan,
    write=None,
    range_end="excluded",
    limits="read only: it states scores that layer-scan measured",
    json_keys=("top_configs",),
    json_priority=2,
    has_ranks=True,
)
