"""Settings of a configuration that say by a number which layers are of which kind: set to those of the visits.

Most types list the kind of each layer, and these lists follow a map by themselves (`sling.remap`). Others count: the
first two layers are dense, every fourth is attention. Such a number is read only when a model is built, so that a sling
leaves it alone. A checkpoint needs the number that says the same of the visits, if there is one.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from david.sling.locate import Stack

# The first so many layers are dense, the others have experts.
_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers")
# Layers i with i % period == offset are attention, or have experts.
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))


def update_shared_count(stack: Stack) -> None:
    """Set the number of last layers that share keys and values (a setting of Gemma 3n and 4) to that of the visits."""
    shared = [getattr(getattr(visit, "self_attn", None), "is_kv_shared_layer", False) for visit in stack.layers]
    last = next((place for place, shares in enumerate(reversed(shared)) if not shares), len(shared))
    for config in stack.configs:
        if "num_kv_shared_layers" in vars(config):
            config.num_kv_shared_layers = last


def update_layer_counts(stack: Stack, repeat_map: Sequence[int]) -> bool:
    """Set every number that says which layers are of a kind to one that says it of the visits, where there is one.

    Args:
        stack: The layers of a view. Its configurations are changed, and hold the numbers of the base.
        repeat_map: The layer of each visit.

    Returns:
        Whether a number has changed.
    """
    before = [dict(vars(config)) for config in stack.configs]
    for config in stack.configs:
        _update_first_dense(config, repeat_map)
        _update_range(config, repeat_map)
        _update_step(config, repeat_map)
        for period, offset in _PERIODS:
            if period in vars(config):
                _update_period(config, period, offset, repeat_map)
    return before != [vars(config) for config in stack.configs]


def _update_first_dense(config: PreTrainedConfig, repeat_map: Sequence[int]) -> None:
    for name in _FIRST_DENSE:
        count = vars(config).get(name)
        if isinstance(count, int):
            sparse = (visit for visit, layer in enumerate(repeat_map) if layer >= count)
            setattr(config, name, next(sparse, len(repeat_map)))


def _update_range(config: PreTrainedConfig, repeat_map: Sequence[int]) -> None:
    """Update ERNIE's first and last layer with experts, and their interval."""
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    if not all(isinstance(vars(config).get(name), int) for name in names):
        return
    first, last, interval = (getattr(config, name) for name in names)
    sparse = [v for v, layer in enumerate(repeat_map) if first <= layer <= last and (layer + 1) % interval == 0]
    bounds = (sparse[0], sparse[-1]) if sparse else (len(repeat_map), len(repeat_map))
    for step in range(1, len(repeat_map) + 1):
        if [visit for visit in range(bounds[0], bounds[1] + 1) if (visit + 1) % step == 0] == sparse or not sparse:
            for name, value in zip(names, (*bounds, step), strict=True):
                setattr(config, name, value)
            return


def _update_step(config: PreTrainedConfig, repeat_map: Sequence[int]) -> None:
    """Replace "every so many layers has experts" (Qwen) by the list of the visits that have none, which always can."""
    step, listed = vars(config).get("decoder_sparse_step"), vars(config).get("mlp_only_layers")
    if isinstance(step, int) and isinstance(listed, list) and step != 1:
        dense = {visit for visit, layer in enumerate(repeat_map) if (layer + 1) % step}
        config.mlp_only_layers = sorted(dense | set(listed))
        config.decoder_sparse_step = 1


def _update_period(config: PreTrainedConfig, period: str, offset: str, repeat_map: Sequence[int]) -> None:
    length, every, start = len(repeat_map), getattr(config, period), getattr(config, offset)
    chosen = [visit for visit, layer in enumerate(repeat_map) if layer % every == start]
    pairs = ((step, place) for step in range(1, length + 2) for place in range(step))
    for step, place in pairs:
        if list(range(place, length, step)) == chosen:
            setattr(config, period, step)
            setattr(config, offset, place)
            return
