"""A model's own forward in two parts: the calls of its layers, and its end, from the last hidden state to the logits.

Both parts run the model's own code with its layers replaced, so no special case of an architecture is written again.
`record_layer_calls` returns the arguments of each layer, `run_end` the logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerateDecoderOnlyOutput

from david.sling import locate, remap
from david.sling.install import CHANGING, BaseRecord, reserved
from david.sling.views import with_hidden

# What transformers calls the cache, as an argument and in an output: 5.24 has renamed it.
CACHE = "cache" if any(part.name == "cache" for part in fields(GenerateDecoderOnlyOutput)) else "past_key_values"

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args and kwargs


@dataclass(frozen=True)
class LayerCalls:
    """The first hidden state of a model, and the args and kwargs with which it calls each layer.

    In `calls` the hidden state (the first of the args, or else the kwarg `hidden_states`) is replaced by None.
    """

    state: Tensor  # [B, T, D] (Gemma 3n: [4, B, T, D])
    calls: tuple[Call, ...]


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text decoder."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]


def context_of(model: nn.Module) -> int | None:
    """Return how many tokens a model takes; None if its configuration does not say (XLNet says -1: any length)."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    return longest if longest is not None and longest > 0 else None


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which a model takes its tokens."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves the inputs


def forward(model: nn.Module, tokens: Tensor, **options: Any) -> Any:
    """Return the model's output without a cache, whatever else its configuration asks for."""
    if getattr(text_config(model), "output_router_logits", False):
        options["output_router_logits"] = False  # their load-balancing loss needs those of every layer
    return model(input_ids=tokens, use_cache=False, return_dict=True, **options)


def layer_outputs(model: nn.Module, tokens: Tensor) -> tuple[list[Any], Tensor]:
    """Return the output of each layer for tokens `[B, T]`, and the logits `[B, T, V]`.

    The output of a layer is a hidden state, or a tuple that begins with one.
    """
    recorded: list[Any] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _args, output: recorded.append(output))
        for layer in locate.find(model).layers
    ]
    try:
        logits: Tensor = forward(model, tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    return recorded, logits


def record_layer_calls(model: nn.Module, tokens: Tensor, forms: list[Any]) -> LayerCalls:
    """Return the arguments of each layer when a model reads tokens; the layers are not run.

    Args:
        model: The model.
        tokens: Token ids `[B, T]`.
        forms: The `layer_outputs` of any text: they show whether a layer returns a state or a tuple.
    """
    calls: list[Call] = []
    states: list[Tensor] = []

    def stand_in(form: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs["hidden_states"]
            states.append(state)
            calls.append(((None, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": None}))
            if len(calls) == len(forms):
                raise _StopForward
            return with_hidden(form, state)

        return call

    with _layers_replaced(model, [stand_in(form) for form in forms]), suppress(_StopForward):
        forward(model, tokens)
    return LayerCalls(states[0], tuple(calls))


def run_end(model: nn.Module, form: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits `[B, t, V]` of final hidden states `[B, t, D]`: run a model's end (norm, head, …) alone.

    Args:
        model: The model.
        form: The output of the last layer for any text: a state or a tuple.
        states: Hidden states after the last layer.
        tokens: Their token ids `[B, t]`.
    """
    last_output = with_hidden(form, states)
    with _layers_replaced(model, [lambda *_args, **_kwargs: last_output]):
        logits: Tensor = forward(model, tokens).logits
    return logits


class _StopForward(Exception):  # noqa: N818  # no error
    """Raised instead of running the last layer, where nothing after it is needed."""


class _StandIn(nn.Module):
    """Replaces a layer: has the attributes of that layer, and another `forward`."""

    def __init__(self, like: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__ |= {"_like": like, "_call": call}  # names that no layer has

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_like"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


@contextmanager
def _layers_replaced(model: nn.Module, calls: list[Callable[..., Any]]) -> Iterator[None]:
    """Replace the layers of a model by calls, or only its last layers if there are fewer calls."""
    with reserved(model) as stack:
        before, n_layers = remap.read_state(stack), len(stack.layers)
        attributes, record = vars(stack.owner), BaseRecord(stack.name, stack.layers, before)
        places = list(range(n_layers - len(calls), n_layers))
        stand_ins = nn.ModuleList(_StandIn(stack.layers[i], call) for i, call in zip(places, calls, strict=True))
        stand_ins.train(stack.layers.training)
        try:
            with CHANGING:  # with the record another thread can make a view meanwhile
                record = attributes.setdefault(locate.KEPT, record)
                remap.write_state(stack, remap.remap_state(stack, before, stand_ins, places))
            yield
        finally:
            with CHANGING:
                remap.write_state(stack, before)
                if record.values is before:
                    attributes.pop(locate.KEPT, None)
