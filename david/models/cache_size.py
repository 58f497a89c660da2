"""Measure what a model keeps in its cache for a text, without computing anything: `measure_cache`.

A twin of the model is built from its configuration and run on tensors that have a shape and a type but no values: so
the count is that of the model's own code, in each layer's own types, for weights of any size.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from david.sling import locate
from david.sling.architectures import PROVED_HERE

_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")  # outputs that hold a cache
_LONG = 256  # tokens: a multiple of what layers that compress their cache make one entry of


class LayerCache(NamedTuple):
    """What one layer keeps: bytes for a token, tokens at most (None: all), and bytes whatever the length."""

    token_bytes: int
    window: int | None
    state_bytes: int


def measure_cache(model: nn.Module) -> list[LayerCache] | None:
    """Measure the cache of a base, layer by layer.

    Args:
        model: A causal language model, with or without weights; it is not run.

    Returns:
        For each layer what it keeps; None if its forward pass cannot run without values.
    """
    inner = locate.unwrapped(model)
    # Tensors on `meta` are fast; fake ones know more, such as the value of a constant.
    for without_values in (torch.device("meta"), FakeTensorMode()):
        with suppress(Exception), without_values, torch.no_grad(), no_init_weights():  # any kind: the code of any model
            # Only this way of running experts does not look at values.
            options = {"dtype": inner.dtype, "experts_implementation": "batched_mm"}
            return _layer_caches(type(inner)._from_config(copy.deepcopy(inner.config), **options).eval())
    return None


def _layer_caches(twin: PreTrainedModel) -> list[LayerCache]:
    setattr(twin, PROVED_HERE, True)  # whether it slings exactly is not asked here
    layers = locate.find(twin).layers
    short, entries = _run(twin, layers, 1)
    lengths = (1, 2)
    if any(type(entry).__module__ != "transformers.cache_utils" for entry in entries):  # it may keep less than a token
        lengths = (_LONG, _LONG * 3 // 2)
        short, _ = _run(twin, layers, lengths[0])
    long, _ = _run(twin, layers, lengths[1])
    caches = []
    for index, (first, second) in enumerate(zip(short, long, strict=True)):
        token_bytes = (second - first) // (lengths[1] - lengths[0])
        own = entries[index * len(entries) // len(layers)] if entries else None
        window = getattr(own, "sliding_window", None) if lengths[0] == 1 else None
        caches.append(LayerCache(token_bytes, window and window - 1, first - token_bytes * lengths[0]))
    return caches


def _run(twin: PreTrainedModel, layers: nn.ModuleList, n_tokens: int) -> tuple[list[int], Sequence[Any]]:
    """Run a model on some tokens; return the bytes that each layer keeps, and the entries of the cache's list."""
    out = twin(input_ids=torch.zeros(1, n_tokens, dtype=torch.long), use_cache=True)
    sizes = [0] * len(layers)
    entries: Sequence[Any] = ()
    for name in _CACHES:
        cache = out.get(name)
        cache = getattr(cache, "self_attention_cache", cache)
        entries = getattr(cache, "layers", entries)
        _add(sizes, cache)
    for index, layer in enumerate(layers):  # a few keep their states themselves
        for module in layer.modules():
            sizes[index] += _bytes({name: value for name, value in vars(module).items() if not name.startswith("_")})
    return sizes, entries


def _add(sizes: list[int], cache: Any) -> None:
    """Add the bytes of a cache to those of the layers that they belong to; what belongs to none is shared out."""
    if isinstance(cache, dict):
        cache = list(cache.values())
    if isinstance(cache, list | tuple) and cache and len(cache) % len(sizes) == 0:
        for index, entry in enumerate(cache):
            sizes[index * len(sizes) // len(cache)] += _bytes(entry)
    elif isinstance(cache, Tensor | list | tuple):
        for index in range(len(sizes)):
            sizes[index] += _bytes(cache) // len(sizes)
    elif hasattr(cache, "__dict__"):
        for value in vars(cache).values():
            if isinstance(value, Tensor | list | tuple | dict):
                _add(sizes, value)


def _bytes(value: Any) -> int:
    """Return the bytes of the tensors inside a value, each once; single numbers, such as lengths, are left out."""
    return sum({id(tensor): tensor.nbytes for tensor in _tensors(value) if tensor.dim() > 0}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | PreTrainedConfig | type):
        yield from _tensors(vars(value))
