"""A model's own forward in two parts: what it gives each layer, and what its end makes of a finished hidden state.

Both parts are the model's own code, run with stand-ins in the place of its layers: no architecture's quirk is
rewritten.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from david.sling import locate, remap
from david.sling.views import with_hidden

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args and kwargs


@dataclass(frozen=True)
class Given:
    """The state that a model begins with, and the args and kwargs that it calls each of its layers with.

    The state is the first of the args, or else the kwarg `hidden_states`; None stands in its place.
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
    return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves what it is given


def forward(model: nn.Module, tokens: Tensor, **options: Any) -> Any:
    """Return the model's output without a cache, whatever else its configuration asks for."""
    if getattr(text_config(model), "output_router_logits", False):
        options["output_router_logits"] = False  # the load-balancing loss they are for needs every layer's
    return model(input_ids=tokens, use_cache=False, return_dict=True, **options)


def outputs(model: nn.Module, tokens: Tensor) -> tuple[list[Any], Tensor]:
    """Return what each layer passes on when a model reads tokens `[B, T]`, and the logits `[B, T, V]`.

    A layer hands on a hidden state, or a tuple that begins with it.
    """
    caught: list[Any] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _args, output: caught.append(output))
        for layer in locate.find(model).layers
    ]
    try:
        logits: Tensor = forward(model, tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    return caught, logits


def given(model: nn.Module, tokens: Tensor, forms: list[Any]) -> Given:
    """Return what a model gives its layers when it reads tokens, without running them.

    `forms` are `outputs` of any text: they show the form of what each layer returns.
    """
    seen: list[Call] = []
    states: list[Tensor] = []

    def stand_in(form: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs["hidden_states"]
            states.append(state)
            seen.append(((None, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": None}))
            if len(seen) == len(forms):
                raise _Enough
            return with_hidden(form, state)

        return call

    with _in_the_place_of_layers(model, [stand_in(form) for form in forms]), suppress(_Enough):
        forward(model, tokens)
    return Given(states[0], tuple(seen))


def end(model: nn.Module, form: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits `[B, t, V]` that the end of a model (norm, head, …) makes of final states `[B, t, D]`.

    `form` is what the last layer hands on, of any text.
    """
    finished = with_hidden(form, states)
    with _in_the_place_of_layers(model, [lambda *_args, **_kwargs: finished]):
        logits: Tensor = forward(model, tokens).logits
    return logits


class _Enough(Exception):  # noqa: N818  # no error
    """Raised in the place of the last layer when what follows it is not needed."""


class _StandIn(nn.Module):
    """Stands in the place of a layer, and is like that layer except when it is called."""

    def __init__(self, like: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__ |= {"_like": like, "_call": call}  # names that no layer has

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_like"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


@contextmanager
def _in_the_place_of_layers(model: nn.Module, calls: list[Callable[..., Any]]) -> Iterator[None]:
    """Put stand-ins in the place of all of a model's layers, or of its last ones if they are fewer."""
    stack = locate.find(model)
    before, n_layers = remap.read_state(stack), len(stack.layers)
    places = list(range(n_layers - len(calls), n_layers))
    stand_ins = nn.ModuleList(_StandIn(stack.layers[i], call) for i, call in zip(places, calls, strict=True))
    try:
        remap.write_state(stack, remap.remap_state(stack, before, stand_ins, places))
        yield
    finally:
        remap.write_state(stack, before)
