"""The schedule of a list of recipes: which are valid, which run together, in which order, and what they cost.

`make_schedule` in `engine.py` checks each recipe once. `Schedule.groups` makes the prefix trees once for each limit of
states, for all batches of windows; the engine's cost, its estimate and its runs all read them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from david.engine.prefix_tree import Cost, PrefixTree
from david.errors import DavidError
from david.recipe.recipe import Recipe

_NO_COST = Cost(0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class RecipeGroup:
    """Recipes that run together on a batch of windows.

    Attributes:
        numbers: Their places in the list of recipes.
        tree: Their prefix tree; `tree.ends` has the order of `numbers`.
        layer_sweep: Whether nodes run layer by layer rather than depth first.
    """

    numbers: tuple[int, ...]
    tree: PrefixTree
    layer_sweep: bool

    def order(self, cached: Collection[int] = ()) -> list[int]:
        """Return the nodes to run, where the states of `cached` nodes exist already."""
        return self.tree.layer_sweep_order(cached) if self.layer_sweep else self.tree.depth_first_order(cached)

    @cached_property
    def peak_states(self) -> int:
        """The states held at once at most, if none is cached."""
        return self.tree.peak_states(self.order())

    @property
    def stops(self) -> int:
        """At how many layers (or the end) a run stops: how often weights are loaded if they are offloaded."""
        return self.tree.count_stops(self.order())


class Schedule:
    """The valid recipes of a list, and the groups in which they run.

    Attributes:
        recipes: All recipes of the list, in its order.
        refusals: Why a recipe cannot run on the model, by its place in the list.
        n_layers: Layers of the base.
        numbers: The places of the recipes that are to run, in ascending order.
    """

    def __init__(
        self, recipes: tuple[Recipe, ...], n_layers: int, refusals: dict[int, DavidError], numbers: tuple[int, ...]
    ) -> None:
        self.recipes, self.n_layers, self.refusals, self.numbers = recipes, n_layers, refusals, numbers
        self._groups: dict[tuple[int | None, bool], tuple[RecipeGroup, ...]] = {}

    def only(self, numbers: Sequence[int]) -> "Schedule":
        """Return the schedule of some of the recipes that are to run, by their places; they keep these places."""
        if tuple(numbers) == self.numbers:
            return self
        return Schedule(self.recipes, self.n_layers, self.refusals, tuple(numbers))

    def groups(self, max_states: int | None = None, *, layer_sweep: bool = False) -> tuple[RecipeGroup, ...]:
        """Return the groups in which the recipes run, made at the first call with these arguments.

        Args:
            max_states: States that a group may hold at once, at least 1; if None, any number. All recipes are one
                group if they fit. A group of one recipe may exceed the limit.
            layer_sweep: Whether the nodes of a group run layer by layer rather than depth first.
        """
        key = max_states, layer_sweep
        if key not in self._groups:
            if max_states is None:
                self._groups[key] = (RecipeGroup(self.numbers, self._tree, layer_sweep),)
            elif (whole := self.groups(layer_sweep=layer_sweep))[0].peak_states <= max_states:
                self._groups[key] = whole
            else:
                recipes = [self.recipes[number] for number in self.numbers]
                parts = split_recipes(recipes, self.n_layers, max_states, layer_sweep=layer_sweep)
                self._groups[key] = tuple(
                    RecipeGroup(tuple(self.numbers[i] for i in part.numbers), part.tree, layer_sweep) for part in parts
                )
        return self._groups[key]

    @cached_property
    def _tree(self) -> PrefixTree:
        """The prefix tree of all recipes that are to run."""
        return PrefixTree.of([self.recipes[number] for number in self.numbers], self.n_layers)


def total_cost(groups: Sequence[RecipeGroup]) -> Cost:
    """Return the cost of groups that run one after another, for one batch of windows."""
    return sum((group.tree.cost for group in groups), start=_NO_COST)


def split_recipes(
    recipes: Sequence[Recipe], n_layers: int, max_states: int, *, layer_sweep: bool
) -> Iterator[RecipeGroup]:
    """Split recipes into groups that hold few enough states at once.

    Recipes that begin alike come together: they are sorted by their visits, and each group is a run of them, as long as
    doubling and then halving its size finds. All trees are cut from one tree of the sorted recipes.

    Args:
        recipes: Recipes in any order.
        n_layers: Layers of their base.
        max_states: States that a group may hold at once; a group of one recipe may exceed it.
        layer_sweep: Whether the nodes of a group run layer by layer rather than depth first.
    """
    places = sorted(range(len(recipes)), key=lambda i: tuple(recipes[i]))
    tree = PrefixTree.of([recipes[i] for i in places], n_layers)
    start = 0

    def cut(size: int) -> RecipeGroup:
        stop = start + size
        return RecipeGroup(tuple(places[start:stop]), tree.subset(start, stop), layer_sweep)

    while start < len(places):
        group, size, left = cut(1), 1, len(places) - start
        while size < left and (larger := cut(min(2 * size, left))).peak_states <= max_states:
            group, size = larger, len(larger.numbers)
        step = size  # the largest that fits has fewer than size + step recipes, as far as halving finds it
        while (step := step // 2) > 0:
            if size + step <= left and (larger := cut(size + step)).peak_states <= max_states:
                group, size = larger, size + step
        yield group
        start += size
