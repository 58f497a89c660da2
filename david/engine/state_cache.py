"""Hidden states that are held while recipes are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from david.engine.meter import Meter
from david.engine.prefix_tree import ROOT, Plan


@dataclass(frozen=True)
class State:
    """A hidden state of a batch of windows, and the dictionaries that layers fill for one another (shared keys)."""

    hidden: Tensor  # [B, T, D]
    carried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        beside = [part for value in self.carried.values() for parts in value.values() for part in parts]
        return int(self.hidden.nbytes + sum(part.nbytes for part in beside if isinstance(part, Tensor)))


class StateCache:
    """The states of one run: each is held until its last child is made, or from then on by who keeps it."""

    def __init__(
        self,
        plan: Plan,
        order: Sequence[int],
        meter: Meter,
        known: Mapping[int, State],
        keep: Callable[[int, State], bool],
    ) -> None:
        self.states, self._kept, self._left = dict(known), set(known), plan.uses(order)
        self._meter, self._keep = meter, keep

    def put(self, node: int, state: State) -> None:
        """Hold a state for those that come behind it."""
        if node != ROOT and self._keep(node, state):
            self._kept.add(node)
        elif node in self._left:
            self._meter.hold(state.nbytes)
        if node in self._left:
            self.states[node] = state

    def used(self, node: int) -> None:
        """One of those is made."""
        self._left[node] -= 1
        if not self._left[node]:
            self._drop(node)

    def release(self) -> None:
        """Hold none any more: there are some only where a run broke off."""
        for node in list(self.states):
            self._drop(node)

    def _drop(self, node: int) -> None:
        state = self.states.pop(node)
        if node not in self._kept:
            self._meter.hold(-state.nbytes)
