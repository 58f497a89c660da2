"""Many recipes of one base as one tree of visits: what is done once for all of them, in which order, and what it costs.

Two recipes with the same first visits (layers and scales) have the same hidden states there. So recipes become a tree
with a node for each distinct beginning, and one for the end (norm, head) of each distinct recipe.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

from david.recipe.recipe import Recipe

ROOT = -1  # the parent of first visits: what the embedding gives


@dataclass(frozen=True)
class Cost:
    """What a plan costs for one batch of windows.

    `visits` are the distinct ones, `visits_one_by_one` those of all recipes together, `ends` the distinct recipes;
    `sweeps` is how often the elevator walks up the layers. `states` are the hidden states held at once at most, depth
    first, and `elevator_states` those that the elevator holds.
    """

    recipes: int
    visits: int
    visits_one_by_one: int
    ends: int
    sweeps: int
    states: int
    elevator_states: int

    def __add__(self, other: "Cost") -> "Cost":
        """What one plan costs and then another: all is added up, but of the states held at once the most counts."""
        most = {"states", "elevator_states"}
        pairs = ((name, mine, getattr(other, name)) for name, mine in vars(self).items())
        return Cost(**{name: max(mine, its) if name in most else mine + its for name, mine, its in pairs})

    def ratio(self, end: float) -> float:
        """How many times less work this is than recipe by recipe, where an end costs as much as `end` visits."""
        return (self.visits_one_by_one + end * self.recipes) / (self.visits + end * self.ends)


@dataclass(frozen=True, eq=False)
class Plan:
    """Recipes as a tree. Of each node the layer and the scale of its visit, and its parent, which comes before it.

    An end is a node too, with `n_layers` for its layer. `ends` holds the end of each recipe.

    Example:
        >>> plan = Plan.of([Recipe.parse("0:4"), Recipe.parse("0:2, 1:4")], 4)
        >>> plan.cost.visits, plan.cost.visits_one_by_one
        (7, 9)
    """

    n_layers: int
    parents: tuple[int, ...]
    layers: tuple[int, ...]
    scales: tuple[float, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, recipes: Sequence[Recipe], n_layers: int) -> "Plan":
        """The tree of some recipes of a base of `n_layers` layers."""
        parents: list[int] = []
        visits: list[tuple[int, float]] = []
        known: dict[tuple[int, int, float], int] = {}
        ends = []
        for recipe in recipes:
            recipe.check(n_layers)
            node = ROOT
            for layer, scale in (*recipe, (n_layers, 1.0)):
                child = known.setdefault((node, layer, scale), len(parents))
                if child == len(parents):
                    parents.append(node)
                    visits.append((layer, scale))
                node = child
            ends.append(node)
        layers, scales = zip(*visits, strict=True) if visits else ((), ())
        return cls(n_layers, tuple(parents), layers, scales, tuple(ends))

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The nodes that come behind a node, or behind ROOT."""
        found: dict[int, list[int]] = {node: [] for node in range(ROOT, len(self.parents))}
        for node, parent in enumerate(self.parents):
            found[parent].append(node)
        return found

    def is_end(self, node: int) -> bool:
        """Whether a node is the end of a recipe rather than a visit."""
        return node != ROOT and self.layers[node] == self.n_layers

    def paths(self) -> dict[int, tuple[tuple[int, float], ...]]:
        """The visits from the embedding to each node that is one, its own included."""
        found: dict[int, tuple[tuple[int, float], ...]] = {ROOT: ()}
        for node, parent in enumerate(self.parents):
            if not self.is_end(node):
                found[node] = (*found[parent], (self.layers[node], self.scales[node]))
        del found[ROOT]
        return found

    def depth_first(self, known: Collection[int] = ()) -> list[int]:
        """Every node that is to be run, in the order that holds the fewest states; nothing before a `known` node is.

        At each node the subtree that needs the most comes last, when the node's own state is needed no more (Sethi
        and Ullman, 1970). A full scan of blocks then holds two states at once, a single recipe one.
        """
        wanted = self._wanted(known)
        needs = dict.fromkeys(range(ROOT, len(self.parents)), 0)
        for node in range(len(self.parents) - 1, ROOT - 1, -1):
            if not self.is_end(node):
                below = sorted(needs[child] for child in self.children[node] if child in wanted)
                needs[node] = max([1, *(need + 1 for need in below[:-1]), *below[-1:]])
        order: list[int] = []
        todo = sorted((n for n in (ROOT, *known) if n == ROOT or self.children[n]), key=lambda n: -needs[n])
        while todo:
            node = todo.pop()
            if node in wanted:
                order.append(node)
            below = [child for child in self.children[node] if child in wanted]
            todo += sorted(below, key=lambda child: (-needs[child], child))
        return order

    def elevator(self, known: Collection[int] = ()) -> list[int]:
        """The same nodes in sweeps over the layers 0 … N − 1 and the end: at each, all that wait for it."""
        wanted = self._wanted(known)
        waiting: list[list[int]] = [[] for _ in range(self.n_layers + 1)]

        def reach(node: int) -> None:
            for child in self.children[node]:
                if child in wanted:
                    waiting[self.layers[child]].append(child)

        for node in (ROOT, *known):
            reach(node)
        order: list[int] = []
        while any(waiting):
            for at_layer in waiting:
                while at_layer:
                    node = at_layer.pop(0)
                    order.append(node)
                    reach(node)
        return order

    def sweeps(self, order: Sequence[int]) -> int:
        """How often an order walks up the layers."""
        stops = [self.layers[node] for node in order]
        return (1 if stops else 0) + sum(after < before for before, after in pairwise(stops))

    def stops(self, order: Sequence[int]) -> int:
        """At how many layers, or the end, an order stops, all that it does there at once counted as one."""
        return sum(1 for _ in groupby(order, key=lambda node: self.layers[node]))

    def peak(self, order: Sequence[int], known: Collection[int] = ()) -> int:
        """How many states an order holds at most: each from its visit on until its last child is made."""
        left = self.uses(order)
        held = peak = 1 if left.get(ROOT) else 0
        for node in order:
            parent = self.parents[node]
            left[parent] -= 1
            held -= left[parent] == 0 and parent not in known
            held += left.get(node, 0) > 0
            peak = max(peak, held)
        return peak

    def uses(self, order: Sequence[int]) -> dict[int, int]:
        """How many of the nodes of an order come directly behind each."""
        found: dict[int, int] = {}
        for node in order:
            found[self.parents[node]] = found.get(self.parents[node], 0) + 1
        return found

    @cached_property
    def cost(self) -> Cost:
        """What this plan costs; see `Cost`."""
        depth_first, elevator = self.depth_first(), self.elevator()
        distinct, depths = len(set(self.ends)), {ROOT: -1}
        for node, parent in enumerate(self.parents):
            depths[node] = depths[parent] + 1  # visits before it
        return Cost(
            recipes=len(self.ends),
            visits=len(self.parents) - distinct,
            visits_one_by_one=sum(depths[end] for end in self.ends),
            ends=distinct,
            sweeps=self.sweeps(elevator),
            states=self.peak(depth_first),
            elevator_states=self.peak(elevator),
        )

    def _wanted(self, known: Collection[int]) -> set[int]:
        """The nodes between what is known and the ends."""
        wanted: set[int] = set()
        for node in self.ends:
            while node != ROOT and node not in wanted and node not in known:
                wanted.add(node)
                node = self.parents[node]
        return wanted


def groups(recipes: Sequence[Recipe], n_layers: int, states: int, *, elevator: bool) -> Iterator[list[int]]:
    """Recipes, by their numbers, in groups whose plan holds no more states at once than that; one recipe at least.

    Recipes that share beginnings come together.
    """
    alike = sorted(range(len(recipes)), key=lambda i: tuple(recipes[i]))

    def fits(numbers: list[int]) -> bool:
        plan = Plan.of([recipes[i] for i in numbers], n_layers)
        order = plan.elevator() if elevator else plan.depth_first()
        return plan.peak(order) <= states

    while alike:
        size = 1
        while size < len(alike) and fits(alike[: 2 * size]):
            size = min(2 * size, len(alike))
        step = size  # the largest that fits lies before size + step, as far as halving finds it
        while (step := step // 2) > 0:
            if size + step <= len(alike) and fits(alike[: size + step]):
                size += step
        yield alike[:size]
        alike = alike[size:]
