"""Runs a plan on a batch of windows: each layer is called with what the model's own forward gives it, once a visit."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from david.engine.meter import Meter
from david.engine.prefix_tree import ROOT, Plan
from david.engine.state_cache import State, StateCache
from david.models import offload
from david.scoring.corpus import Corpus
from david.scoring.likelihood import end_nll, ends_by_position, window_sums
from david.sling import locate
from david.sling.forward import Call, Given, given, input_device, outputs
from david.sling.views import hidden

_FORM_TOKENS = 8


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
        home = locate.find(model).layers
        if locate.is_coupled(model):
            return "its layers hand on more than a hidden state"
        few = windows[:1, :_FORM_TOKENS].to(input_device(model))
        forms, logits = outputs(model, few)
        if len(forms) != len(home):
            return "its forward does not call each layer once"
        by_position = ends_by_position(model, forms[-1], few, logits[:, -1:])
        return cls(model, home, tuple(forms), by_position, first, offload.is_offloaded(home))

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
            held.release()
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
                    stack.enter_context(offload.loaded_weights(self._modules(layer)))
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
