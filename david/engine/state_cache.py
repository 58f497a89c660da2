"""Hidden states: those of one run, and those that are kept from one call of an engine to the next.

`RunStates` holds a state until its last child has run. `StateCache` keeps the states of the base and of the best
recipes, so that a later recipe costs only what follows its first difference from them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from david.engine.memory_budget import MemoryBudget
from david.engine.meter import Meter
from david.engine.prefix_tree import ROOT, Path, PrefixTree
from david.recipe.recipe import Recipe

_BEST_RECIPES = 8  # whose states are kept when states become many, besides the base's


@dataclass(frozen=True)
class State:
    """The hidden state of a batch of windows, and the dictionaries that layers fill for one another (shared keys)."""

    hidden: Tensor  # [B, T, D]
    carried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held, those of the dictionaries included."""
        beside = [part for value in self.carried.values() for parts in value.values() for part in parts]
        return int(self.hidden.nbytes + sum(part.nbytes for part in beside if isinstance(part, Tensor)))


class RunStates:
    """The states of one run of a prefix tree on one batch of windows.

    Each is held until its last child has run; a state that `keep` has taken stays with its keeper.
    """

    def __init__(
        self,
        tree: PrefixTree,
        order: Sequence[int],
        meter: Meter,
        cached: Mapping[int, State],
        keep: Callable[[int, State], bool],
    ) -> None:
        self.states, self._cached, self._children_left = dict(cached), set(cached), tree.child_counts(order)
        self._meter, self._keep = meter, keep

    def put(self, node: int, state: State) -> None:
        """Hold the state of a node for the node's children."""
        if node != ROOT and self._keep(node, state):
            self._cached.add(node)
        elif node in self._children_left:
            self._meter.hold(state.nbytes)
        if node in self._children_left:
            self.states[node] = state

    def count_child(self, node: int) -> None:
        """Note that one more child of a node has run; after the last one, drop the node's state."""
        self._children_left[node] -= 1
        if not self._children_left[node]:
            self._drop(node)

    def release(self) -> None:
        """Drop all states; some are left only if a run broke off."""
        for node in list(self.states):
            self._drop(node)

    def _drop(self, node: int) -> None:
        state = self.states.pop(node)
        if node not in self._cached:
            self._meter.hold(-state.nbytes)


class StateCache:
    """States that are kept between the calls of an engine, by batch of windows and by the visits that lead to them.

    It takes at most half of the memory budget. If the budget keeps no states, the cache stays empty.

    Attributes:
        pools: The states of each batch of windows, by path.
    """

    def __init__(self, budget: MemoryBudget, meter: Meter, n_layers: int) -> None:
        self.pools: dict[range, dict[Path, State]] = {}
        self._budget, self._meter, self._n_layers = budget, meter, n_layers
        self._best: list[tuple[float, Recipe]] = []  # the base comes first

    def attach(
        self, tree: PrefixTree, batch: range, n_batches: int
    ) -> tuple[dict[int, State], Callable[[int, State], bool]]:
        """Return what a run of a tree needs of the cache.

        Args:
            tree: The prefix tree that is to run.
            batch: The batch of windows that it runs on.
            n_batches: Batches that share the cache.

        Returns:
            The cached states by the node of the tree; and a function that is offered the state of each further node,
            and returns whether the cache has taken it.
        """
        if not self._budget.keeps:
            return {}, lambda _node, _state: False
        paths, pool = tree.paths(), self.pools.setdefault(batch, {})

        def keep(node: int, state: State) -> bool:
            return node in paths and self._keep(pool, paths[node], state, n_batches)

        return {node: pool[path] for node, path in paths.items() if path in pool}, keep

    def _keep(self, pool: dict[Path, State], path: Path, state: State, n_batches: int) -> bool:
        """Take a state if there is room: every k-th state of a path, if there is no room for all."""
        share = self._budget.total // (2 * n_batches)  # the other half is for the run itself
        stride = -(-self._n_layers * state.nbytes // max(1, share))
        if len(path) % stride or self._meter.held + state.nbytes > self._budget.total // 2:
            return False
        pool[path] = state
        self._meter.hold(state.nbytes)
        return True

    def keep_best(self, scored: Iterable[tuple[Recipe, float]]) -> None:
        """Remember the best recipes; once states are many, drop those of all other recipes.

        Args:
            scored: Recipes that were scored on the whole corpus, with their NLL; smaller is better.
        """
        if not self._budget.keeps:
            return
        base = Recipe.identity(self._n_layers)
        ranked = [(-math.inf if recipe == base else nll, recipe) for recipe, nll in scored]
        self._best = sorted([*self._best, *ranked], key=lambda entry: entry[0])[: _BEST_RECIPES + 1]
        if self._meter.held <= self._budget.total // 4:
            return
        paths = {tuple(recipe)[:depth] for _, recipe in self._best for depth in range(1, len(recipe) + 1)}
        for pool in self.pools.values():
            for path in [path for path in pool if path not in paths]:
                self._meter.hold(-pool.pop(path).nbytes)

    def clear(self) -> None:
        """Drop all states."""
        self.pools.clear()
        self._meter.held = 0
