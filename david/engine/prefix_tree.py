"""The prefix tree of recipes: each distinct visit is one node, and recipes share the nodes of a common beginning.

Two recipes that begin with the same visits (layers and scales) have the same hidden states there, so each node needs to
run once for all of them. A tree has a node for each distinct beginning, and one for the end (norm, head) of each
distinct recipe. `PrefixTree.of` builds it, `depth_first_order` and `layer_sweep_order` order its nodes, and
`PrefixTree.cost` counts what it costs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

from david.errors import RecipeError
from david.recipe.recipe import Recipe

ROOT = -1  # the parent of first visits: the state that the embedding gives
Path = tuple[tuple[int, float], ...]  # the visits (layer, scale) that lead to a state


@dataclass(frozen=True)
class Cost:
    """What prefix trees cost for one batch of windows.

    Attributes:
        recipes: Recipes, duplicates included.
        visits: Distinct visits.
        visits_one_by_one: Visits of all recipes together, if each is run by itself.
        ends: Distinct recipes; the end of each runs once.
        sweeps: How often the layer-sweep order walks up the layers.
        states: Hidden states held at once at most, in depth-first order.
        sweep_states: Hidden states held at once at most, in layer-sweep order.
    """

    recipes: int
    visits: int
    visits_one_by_one: int
    ends: int
    sweeps: int
    states: int
    sweep_states: int

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of two trees run one after the other: sums, except that the larger peak of states counts."""
        peaks = {"states", "sweep_states"}
        pairs = ((name, value, getattr(other, name)) for name, value in vars(self).items())
        return Cost(**{name: max(a, b) if name in peaks else a + b for name, a, b in pairs})

    def ratio(self, end: float) -> float:
        """Return how many times less work this is than one recipe at a time.

        Args:
            end: What an end costs, in visits.
        """
        return (self.visits_one_by_one + end * self.recipes) / (self.visits + end * self.ends)


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Recipes of one base as a tree of visits.

    A node is a number; its parent has a smaller one.

    Attributes:
        n_layers: Layers of the base.
        parents: The parent of each node, or `ROOT`.
        layers: The layer that each node visits; `n_layers` for the end of a recipe.
        scales: The scale of each visit; 1 for an end.
        ends: The node of the end of each recipe, in the order of the recipes.

    Example:
        >>> tree = PrefixTree.of([Recipe.parse("0:4"), Recipe.parse("0:2, 1:4")], 4)
        >>> tree.cost.visits, tree.cost.visits_one_by_one
        (7, 9)
    """

    n_layers: int
    parents: tuple[int, ...]
    layers: tuple[int, ...]
    scales: tuple[float, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, recipes: Sequence[Recipe], n_layers: int) -> "PrefixTree":
        """Build the tree of recipes.

        Args:
            recipes: Recipes in any order, duplicates allowed.
            n_layers: Layers of their base. Whether a recipe was made for this base is for the caller to check.

        Raises:
            RecipeError: A recipe visits a layer that the base does not have.
        """
        parents: list[int] = []
        visits: list[tuple[int, float]] = []
        nodes: dict[tuple[int, int, float], int] = {}
        ends = []
        for recipe in recipes:
            if (deepest := max(recipe.repeat_map)) >= n_layers:
                raise RecipeError(f"layer {deepest} is out of range: the base has {n_layers} layers")
            node = ROOT
            for layer, scale in (*recipe, (n_layers, 1.0)):
                child = nodes.setdefault((node, layer, scale), len(parents))
                if child == len(parents):
                    parents.append(node)
                    visits.append((layer, scale))
                node = child
            ends.append(node)
        layers, scales = zip(*visits, strict=True) if visits else ((), ())
        return cls(n_layers, tuple(parents), layers, scales, tuple(ends))

    def subset(self, start: int, stop: int) -> "PrefixTree":
        """Return the tree of the recipes `start` to `stop - 1`, whose nodes keep their relative order.

        If the recipes of this tree are sorted, the result equals the tree that `of` builds from that slice.
        """
        ends = self.ends[start:stop]
        nodes = sorted(self._nodes_above(ends))
        numbers = {ROOT: ROOT} | {node: number for number, node in enumerate(nodes)}
        return PrefixTree(
            self.n_layers,
            tuple(numbers[self.parents[node]] for node in nodes),
            tuple(self.layers[node] for node in nodes),
            tuple(self.scales[node] for node in nodes),
            tuple(numbers[end] for end in ends),
        )

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each node, and of ROOT."""
        children: dict[int, list[int]] = {node: [] for node in range(ROOT, len(self.parents))}
        for node, parent in enumerate(self.parents):
            children[parent].append(node)
        return children

    def is_end(self, node: int) -> bool:
        """Return whether a node is the end of a recipe rather than a visit."""
        return node != ROOT and self.layers[node] == self.n_layers

    def paths(self) -> dict[int, Path]:
        """Return the visits from the embedding to each node that is a visit, including the node's own visit."""
        paths: dict[int, Path] = {ROOT: ()}
        for node, parent in enumerate(self.parents):
            if not self.is_end(node):
                paths[node] = (*paths[parent], (self.layers[node], self.scales[node]))
        del paths[ROOT]
        return paths

    def depth_first_order(self, cached: Collection[int] = ()) -> list[int]:
        """Return the nodes to run, in the order that holds the fewest states at once.

        At each node the subtree that needs the most states comes last, when the node's own state is needed no more
        (Sethi and Ullman, 1970). A full scan of blocks then holds two states at once, a single recipe one.

        Args:
            cached: Nodes whose states exist already: neither they nor what leads to them is run.
        """
        pending = self._nodes_above(self.ends, cached)
        needs = dict.fromkeys(range(ROOT, len(self.parents)), 0)  # states that the subtree of a node needs
        for node in range(len(self.parents) - 1, ROOT - 1, -1):
            if not self.is_end(node):
                below = sorted(needs[child] for child in self.children[node] if child in pending)
                needs[node] = max([1, *(need + 1 for need in below[:-1]), *below[-1:]])
        order: list[int] = []
        starts = (node for node in (ROOT, *cached) if node == ROOT or self.children[node])
        stack = sorted(starts, key=lambda node: -needs[node])
        while stack:
            node = stack.pop()
            if node in pending:
                order.append(node)
            below = [child for child in self.children[node] if child in pending]
            stack += sorted(below, key=lambda child: (-needs[child], child))
        return order

    def layer_sweep_order(self, cached: Collection[int] = ()) -> list[int]:
        """Return the nodes to run in sweeps over the layers 0 … N − 1 and the end: at each, all that wait for it.

        Args:
            cached: Nodes whose states exist already: neither they nor what leads to them is run.
        """
        pending = self._nodes_above(self.ends, cached)
        waiting: list[list[int]] = [[] for _ in range(self.n_layers + 1)]

        def queue_children(node: int) -> None:
            for child in self.children[node]:
                if child in pending:
                    waiting[self.layers[child]].append(child)

        for node in (ROOT, *cached):
            queue_children(node)
        order: list[int] = []
        while any(waiting):
            for at_layer in waiting:
                while at_layer:
                    node = at_layer.pop(0)
                    order.append(node)
                    queue_children(node)
        return order

    def count_sweeps(self, order: Sequence[int]) -> int:
        """Return how often an order walks up the layers."""
        stops = [self.layers[node] for node in order]
        return (1 if stops else 0) + sum(after < before for before, after in pairwise(stops))

    def count_stops(self, order: Sequence[int]) -> int:
        """Return at how many layers (or the end) an order stops; consecutive nodes of one layer are one stop."""
        return sum(1 for _ in groupby(order, key=lambda node: self.layers[node]))

    def peak_states(self, order: Sequence[int], cached: Collection[int] = ()) -> int:
        """Return how many states an order holds at most: each from its visit until its last child has run."""
        left = self.child_counts(order)
        held = peak = 1 if left.get(ROOT) else 0
        for node in order:
            parent = self.parents[node]
            left[parent] -= 1
            held -= left[parent] == 0 and parent not in cached
            held += left.get(node, 0) > 0
            peak = max(peak, held)
        return peak

    def child_counts(self, order: Sequence[int]) -> dict[int, int]:
        """Return how many nodes of an order are children of each node; nodes without any are left out."""
        counts: dict[int, int] = {}
        for node in order:
            counts[self.parents[node]] = counts.get(self.parents[node], 0) + 1
        return counts

    @cached_property
    def cost(self) -> Cost:
        """The cost of this tree for one batch of windows."""
        depth_first, layer_sweep = self.depth_first_order(), self.layer_sweep_order()
        n_ends, depths = len(set(self.ends)), {ROOT: -1}
        for node, parent in enumerate(self.parents):
            depths[node] = depths[parent] + 1  # visits before it
        return Cost(
            recipes=len(self.ends),
            visits=len(self.parents) - n_ends,
            visits_one_by_one=sum(depths[end] for end in self.ends),
            ends=n_ends,
            sweeps=self.count_sweeps(layer_sweep),
            states=self.peak_states(depth_first),
            sweep_states=self.peak_states(layer_sweep),
        )

    def _nodes_above(self, ends: Sequence[int], cached: Collection[int] = ()) -> set[int]:
        """Return the ends, and the nodes between them and the root or the nearest cached node."""
        nodes: set[int] = set()
        for node in ends:
            while node != ROOT and node not in nodes and node not in cached:
                nodes.add(node)
                node = self.parents[node]
        return nodes
