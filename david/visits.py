"""Runs a plan on a batch of windows: each layer is called with what the model's own forward gives it, once a visit."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from david import layers, memory
from david.corpus import Corpus
from david.forward import Call, Given, given, input_device, outputs
from david.plan import ROOT, Plan
from david.score import end_nll, ends_by_position, window_sums
from david.views import hidden

_FORM_TOKENS = 8


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


@dataclass
class Meter:
    """What runs have cost: visits, ends, and loads of a layer that is offloaded, with their seconds.

    And the bytes of states: held now, held at most, of the largest.
    """

    visits: int = 0
    ends: int = 0
    loads: int = 0
    visit_seconds: float = 0.0
    end_seconds: float = 0.0
    load_seconds: float = 0.0
    held: int = 0
    peak: int = 0
    largest: int = 0
    exact: bool = False  # wait for the device after each

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count a `visit`, an `end` or a `load`, and how long it takes."""
        start = time.perf_counter()
        yield
        if self.exact and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        state = vars(self)
        state[f"{what}s"] += 1
        state[f"{what}_seconds"] += time.perf_counter() - start

    def hold(self, nbytes: int) -> None:
        """Count a state that is held from now on, or with a negative number one that no longer is."""
        self.held += nbytes
        self.peak, self.largest = max(self.peak, self.held), max(self.largest, nbytes)


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

    def let_go(self) -> None:
        """Hold none any more: there are some only where a run broke off."""
        for node in list(self.states):
            self._drop(node)

    def _drop(self, node: int) -> None:
        state = self.states.pop(node)
        if node not in self._kept:
            self._meter.hold(-state.nbytes)


@dataclass(frozen=True)
class Runner:
    """A base whose layers can be called one by one. Made by `Runner.of`; the model must stand as its base in all calls.

    `forms` are what each layer hands on, of a few tokens; `first` is the first scored position of a window.
    """

    model: nn.Module
    home: nn.ModuleList
    forms: tuple[Any, ...]
    by_position: bool
    first: int
    streamed: bool

    @classmethod
    def of(cls, model: nn.Module, windows: Tensor, first: int) -> "Runner | str":
        """The runner of a base that stands as such, or why it has none. A few tokens of `windows` are read."""
        home = layers.find(model).layers
        if layers.is_coupled(model):
            return "its layers hand on more than a hidden state"
        few = windows[:1, :_FORM_TOKENS].to(input_device(model))
        forms, logits = outputs(model, few)
        if len(forms) != len(home):
            return "its forward does not call each layer once"
        by_position = ends_by_position(model, forms[-1], few, logits[:, -1:])
        return cls(model, home, tuple(forms), by_position, first, memory.is_offloaded(home))

    def nll(
        self,
        plan: Plan,
        order: Sequence[int],
        corpus: Corpus,
        *,
        meter: Meter,
        known: Mapping[int, State] | None = None,
        keep: Callable[[int, State], bool] = lambda _node, _state: False,
        tick: Callable[[bool], None] = lambda _is_end: None,
    ) -> dict[int, list[float]]:
        """NLL in nats of each window of a corpus at each end of a plan: the nodes of `order` are run one by one.

        `known` are states that need not be made; `keep` is offered each that was, and says whether it holds it from now
        on; `tick` is called for each node with whether it was an end.
        """
        windows = corpus.windows.to(input_device(self.model))
        told = given(self.model, windows, list(self.forms))
        calls, device = told.calls, told.state.device
        start = self._put(told.state, _empty_mappings(told))
        del told  # and its state, which is held from here on as long as it is needed
        held = StateCache(plan, order, meter, known or {}, keep)
        found: dict[int, list[float]] = {}
        try:
            held.put(ROOT, start)
            del start
            for layer, nodes in groupby(order, key=lambda node: plan.layers[node]):
                with self._loaded(layer, meter):
                    for node in nodes:
                        state = self._at_hand(held.states[plan.parents[node]], device)
                        with meter.timing("end" if plan.is_end(node) else "visit"):
                            if plan.is_end(node):
                                found[node] = window_sums(self._end(state, windows), corpus, self.first)
                            else:
                                held.put(node, self._visit(calls[layer], layer, plan.scales[node], state))
                        held.used(plan.parents[node])
                        tick(plan.is_end(node))
        finally:
            held.let_go()
        return found

    def _visit(self, call: Call, layer: int, scale: float, state: State) -> State:
        """The state behind a visit: `h + scale · (layer(h) − h)`, as `views.damp` has it."""
        args, kwargs = call
        carried = {name: copy.copy(value) for name, value in state.carried.items()}
        if args:
            output = self.home[layer](state.hidden, *args[1:], **(kwargs | carried))
        else:
            output = self.home[layer](**(kwargs | carried | {"hidden_states": state.hidden}))
        after = hidden(output)
        if scale != 1:
            before = state.hidden.to(after.device)
            after = before + scale * (after - before)
        return self._put(after, carried)

    def _end(self, state: State, windows: Tensor) -> Tensor:
        return end_nll(self.model, self.forms[-1], state.hidden, windows, self.first, by_position=self.by_position)

    def _put(self, state: Tensor, carried: Mapping[str, Any]) -> State:
        """A state where states wait: in the host's memory where layers are streamed through the device's."""
        return State(state.to("cpu") if self.streamed else state, carried)

    def _at_hand(self, state: State, device: torch.device) -> State:
        """A state where the layers that are streamed through a device want it."""
        return replace(state, hidden=state.hidden.to(device)) if self.streamed else state

    @contextmanager
    def _loaded(self, layer: int, meter: Meter) -> Iterator[None]:
        """The weights of a layer, or of the end, in hand."""
        with ExitStack() as stack:
            if self.streamed:
                with meter.timing("load"):
                    stack.enter_context(memory.held(self._modules(layer)))
            yield

    def _modules(self, layer: int) -> Iterator[nn.Module]:
        """The modules of a layer; of the end, all that are in none."""
        if layer < len(self.home):
            return self.home[layer].modules()
        inside = set(self.home.modules())
        return (module for module in self.model.modules() if module not in inside)


def _empty_mappings(told: Given) -> dict[str, Any]:
    """The dictionaries that are empty when the first layer is called: layers fill them for one another."""
    _, kwargs = told.calls[0]
    return {name: value for name, value in kwargs.items() if isinstance(value, MutableMapping) and not value}
