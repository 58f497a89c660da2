"""Run a prefix tree on a batch of windows: one call of a layer for each visit.

`Runner.of` records what each layer returns. `Runner.nll` takes from the model's own forward what it gives its layers,
calls the layers in the order of the tree, and the model's own end (norm, head) for each recipe.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from david.engine.meter import Meter
from david.engine.prefix_tree import ROOT, PrefixTree
from david.engine.state_cache import RunStates, State
from david.models import offload
from david.scoring.corpus import Corpus
from david.scoring.likelihood import end_nll, ends_by_position, window_sums
from david.sling import locate
from david.sling.forward import Call, LayerCalls, input_device, layer_outputs, record_layer_calls
from david.sling.views import hidden

_FORM_TOKENS = 8  # read to see what each layer returns


@dataclass(frozen=True)
class Runner:
    """A base whose layers can be called one by one.

    Made by `Runner.of`. The model must run its base, not a sling, in all calls.

    Attributes:
        model: The model.
        home: The layers of its base.
        forms: What each layer returns, for a few tokens: the form that the model's end takes a state in.
        by_position: Whether the model's end treats each position by itself.
        first: The first scored position of a window.
        streamed: Whether the weights of a layer are loaded for each call.
    """

    model: nn.Module
    home: nn.ModuleList
    forms: tuple[Any, ...]
    by_position: bool
    first: int
    streamed: bool

    @classmethod
    def of(cls, model: nn.Module, windows: Tensor, first: int) -> "Runner | str":
        """Return the runner of a model that runs its base, or the reason why it has none.

        Args:
            model: A loaded model.
            windows: Tokens `[B, T]`, of which a few are read.
            first: The first scored position of a window.
        """
        home = locate.find(model).layers
        if locate.is_coupled(model):
            return "its layers hand on more than a hidden state"
        few = windows[:1, :_FORM_TOKENS].to(input_device(model))
        forms, logits = layer_outputs(model, few)
        if len(forms) != len(home):
            return "its forward does not call each layer once"
        by_position = ends_by_position(model, forms[-1], few, logits[:, -1:])
        return cls(model, home, tuple(forms), by_position, first, offload.is_offloaded(home))

    def nll(
        self,
        tree: PrefixTree,
        order: Sequence[int],
        corpus: Corpus,
        *,
        meter: Meter,
        cached: Mapping[int, State] | None = None,
        keep: Callable[[int, State], bool] = lambda _node, _state: False,
        tick: Callable[[bool], None] = lambda _is_end: None,
    ) -> dict[int, list[float]]:
        """Run the nodes of a tree on a corpus.

        Args:
            tree: The prefix tree of recipes.
            order: The nodes to run, parents first.
            corpus: The windows to score.
            meter: Counts visits, ends, loads and states.
            cached: States of nodes that are not run.
            keep: Offered the state of each visit; returns whether it holds that state from now on.
            tick: Called after each node, with whether it is an end.

        Returns:
            The NLL in nats of each window, by the node of the end.
        """
        windows = corpus.windows.to(input_device(self.model))
        inputs = record_layer_calls(self.model, windows, list(self.forms))
        calls, device = inputs.calls, inputs.state.device
        start = self._stored(inputs.state, _empty_mappings(inputs))
        del inputs  # and its state, which is held from here on as long as it is needed
        held = RunStates(tree, order, meter, cached or {}, keep)
        nll: dict[int, list[float]] = {}
        try:
            held.put(ROOT, start)
            del start
            for layer, nodes in groupby(order, key=lambda node: tree.layers[node]):
                with self._loaded(layer, meter):
                    for node in nodes:
                        state = self._on_device(held.states[tree.parents[node]], device)
                        with meter.timing("end" if tree.is_end(node) else "visit"):
                            if tree.is_end(node):
                                nll[node] = window_sums(self._end(state, windows), corpus, self.first)
                            else:
                                held.put(node, self._visit(calls[layer], layer, tree.scales[node], state))
                        held.count_child(tree.parents[node])
                        tick(tree.is_end(node))
        finally:
            held.release()
        return nll

    def _visit(self, call: Call, layer: int, scale: float, state: State) -> State:
        """Return the state after a visit: `h + scale · (layer(h) − h)`, the formula of `views.damp`."""
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
        return self._stored(after, carried)

    def _end(self, state: State, windows: Tensor) -> Tensor:
        """Return the NLL of the scored tokens `[B, T − first]` of finished states."""
        return end_nll(self.model, self.forms[-1], state.hidden, windows, self.first, by_position=self.by_position)

    def _stored(self, state: Tensor, carried: Mapping[str, Any]) -> State:
        """Return a state as it waits: in the host's memory if layers are streamed through the device's."""
        return State(state.to("cpu") if self.streamed else state, carried)

    def _on_device(self, state: State, device: torch.device) -> State:
        """Return a state on the device that streamed layers run on; without streaming, as it is."""
        return replace(state, hidden=state.hidden.to(device)) if self.streamed else state

    @contextmanager
    def _loaded(self, layer: int, meter: Meter) -> Iterator[None]:
        """Load the weights of a layer, or of the end, for the length of a `with`, if they are streamed."""
        with ExitStack() as stack:
            if self.streamed:
                with meter.timing("load"):
                    stack.enter_context(offload.loaded_weights(self._modules(layer)))
            yield

    def _modules(self, layer: int) -> Iterator[nn.Module]:
        """Return the modules of a layer; for the end, all modules that are in no layer."""
        if layer < len(self.home):
            return self.home[layer].modules()
        inside = set(self.home.modules())
        return (module for module in self.model.modules() if module not in inside)


def _empty_mappings(inputs: LayerCalls) -> dict[str, Any]:
    """Return the dictionaries that are empty when the first layer is called: layers fill them for one another."""
    _, kwargs = inputs.calls[0]
    return {name: value for name, value in kwargs.items() if isinstance(value, MutableMapping) and not value}
