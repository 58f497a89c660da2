"""Move a recipe to a base of another depth."""

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe, Segment
from david.recipe.schema import LONGEST
from david.support.arguments import check_type


def moved(recipe: Recipe, n_layers: int) -> Recipe:
    """Move a recipe to a sibling model of another depth, each place at the same fraction of the depth.

    A place b between two of N layers (a segment's start or stop) goes to the nearest place to b·M/N among M layers,
    the deeper of two. Places that would fall together are kept apart: going up, each is at least one layer
    after the one before; going back, the next segment starts at least one layer before the last one stops. So every
    segment keeps a layer, its scale and its place in the order, and every seam its direction. If a recipe leaves out
    the first or the last layers, at least one is left out there. The base stays the base, N layers to N
    change nothing, and N to k·N and back is the recipe itself.

    Args:
        recipe: A recipe that states its base's depth N.
        n_layers: Layers M of the sibling.

    Returns:
        A recipe without fingerprint, scores and search, which belong to the base that was measured; `written_as`
        states which recipe it comes from.

    Raises:
        RecipeError: The recipe does not state its base's depth, or M layers are too few for its segments.

    Example:
        >>> str(moved(Recipe.from_blocks(30, [(8, 12, 2, 0.5)]), 48))
        '0:19, 13:19*0.5, 19:48'
    """
    check_type("recipe", recipe, Recipe, RecipeError)
    if recipe.depth is None:
        raise RecipeError("the recipe does not state its base's depth: name the base (--model)")
    depth, to = recipe.n_layers, Recipe.identity(n_layers).n_layers  # the latter checked
    chains: list[list[Segment]] = []
    for segment in recipe.segments:
        if not chains or segment.start < chains[-1][-1].stop:
            chains.append([])
        chains[-1].append(segment)
    # the lowest and highest place: one layer stays left out at an end where the recipe leaves some out
    ends = int(min(recipe.repeat_map) > 0), to - (max(recipe.repeat_map) < depth - 1)
    placed: list[Segment] = []
    for chain in chains:
        below = placed[-1].stop if placed else to
        placed += _move_chain(chain, depth, to, below, ends)
        if sum(stop - start for start, stop, _ in placed) > LONGEST:
            raise RecipeError(f"on {to} layers this recipe would have more than the {LONGEST} visits it can have")
    visits = tuple(layer for start, stop, _ in placed for layer in range(start, stop))
    scales = tuple(scale for start, stop, scale in placed for _ in range(start, stop))
    origin = f"{(recipe.search is None and recipe.written_as) or recipe} of {depth} layers"
    if len(origin) > 200:
        origin = f"a recipe of {depth} layers"
    return Recipe(visits, scales, base=Base(num_layers=to), written_as=f"{origin}, moved to {to}")


def _move_chain(chain: list[Segment], depth: int, to: int, below: int, ends: tuple[int, int]) -> list[Segment]:
    """Move segments that go upwards: the first place under `below`, each above the last, all within the ends."""
    old = sorted({bound for segment in chain for bound in segment[:2]})
    new = [(2 * bound * to + depth) // (2 * depth) for bound in old]
    new[0] = max(min(new[0], below - 1), ends[0])
    for i in range(1, len(new)):
        new[i] = max(new[i], new[i - 1] + 1)
    new[-1] = min(new[-1], ends[1])
    for i in range(len(new) - 2, -1, -1):
        new[i] = min(new[i], new[i + 1] - 1)
    if not ends[0] <= new[0] < below:
        raise RecipeError(
            f"{to} layers are too few for this recipe: from layer {old[0]} to {old[-1] - 1} it has {len(old) - 1} "
            f"parts, which would each need a layer{'' if ends == (0, to) else ', and it leaves some out at an end'}"
        )
    new_place = dict(zip(old, new, strict=True))
    return [Segment(new_place[start], new_place[stop], scale) for start, stop, scale in chain]
