"""PEFT adapters in layers: whether there are any, which are active, and what they may write into shared weights.

PEFT merges an adapter into the weight below it, and some ways to begin an adapter change that weight. Visits share
their weights with the base, so an adapter of one visit must do neither. PEFT is told so on each of its layers: when
`build_visits` views an adapter of the base, or when torch says that PEFT wraps a part of a visit.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from david.errors import SlingError
from david.sling.views import SHARED, is_rotary, parts


def has_adapters(module: nn.Module) -> bool:
    """Return whether a module holds PEFT adapters."""
    return any(_is_peft(kind) for kind in {type(part) for part in parts(module)})


def carry_adapters(old: nn.Module, new: nn.Module) -> None:
    """Make the adapters that are active in one list of layers active in another: PEFT keeps this in each layer."""
    names = ("_active_adapter", "_disable_adapters")
    state = next((vars(part) for part in parts(old) if names[0] in vars(part)), None)
    for part in parts(new) if state is not None else ():
        if names[0] in vars(part):
            vars(part).update({name: state[name] for name in names})  # type: ignore[index]


def guard_adapters(visits: nn.Module) -> None:
    """Keep the adapters in visits from writing into weights that other visits have too."""
    for part in parts(visits):
        if _is_peft(type(part)):
            _guard(part)


def _is_peft(kind: type) -> bool:
    return kind.__module__.startswith("peft.")


def _guard(adapter: nn.Module) -> None:
    """Put checks before the two methods of a PEFT layer that write into the weight below it."""
    for name, check in (("merge", _checked_merge), ("update_layer", _checked_update)):
        if hasattr(type(adapter), name):
            vars(adapter)[name] = partial(check, adapter)


def _checked_merge(adapter: Any, *args: Any, **kwargs: Any) -> None:
    """Merge an adapter that the base has too, once for all visits; refuse one that is put on a visit."""
    _refuse_merge_into_visits(adapter)
    type(adapter).merge(adapter, *args, **kwargs)


def _checked_merge_of_all(tuner: Any) -> None:
    """Do PEFT's own check before it merges all layers, and refuse before the first, which may be an embedding."""
    for part in parts(tuner.model):
        if isinstance(vars(part).get("merge"), partial):
            _refuse_merge_into_visits(part)
    type(tuner)._check_merge_allowed(tuner)


def _refuse_merge_into_visits(adapter: nn.Module) -> None:
    """Raise `SlingError` if a PEFT layer has parts that the base's does not have."""
    for part in parts(adapter):
        base = vars(part).get(SHARED, {})
        if not is_rotary(part) and (SHARED not in vars(part) or base.keys() != part._parameters.keys()):
            raise SlingError(
                "adapters on visits cannot be merged: visits share the base's weights, so that each would be merged "
                "into the others too. Write the model stacked (david export), load the adapter there and merge it"
            )


def _checked_update(adapter: Any, *args: Any, **kwargs: Any) -> None:
    """Put an adapter on a part of a visit; refuse it if that changes the weight below (PiSSA, OLoRA and others)."""
    table = adapter.get_base_layer()._parameters
    shared = {name: weight for name, weight in table.items() if type(weight) is nn.Parameter and not weight.is_meta}
    lent = {name: nn.Parameter(weight.detach().clone(), weight.requires_grad) for name, weight in shared.items()}
    table.update(lent)
    try:
        type(adapter).update_layer(adapter, *args, **kwargs)
    finally:
        table.update(shared)
    if not all(torch.equal(weight, shared[name]) for name, weight in lent.items()):
        raise SlingError(
            "an adapter on a visit cannot begin by changing the weight below it (init_lora_weights 'pissa', 'olora' "
            "and the like): visits share the base's weights. Take another, or David.reset(model) and put it on the base"
        )


def _guard_new_adapter(module: nn.Module, _name: str, part: nn.Module | None) -> None:
    """Guard what PEFT puts around a part of a visit, or a model; torch calls this for each child that a module gets."""
    if part is None or not _is_peft(type(module)):
        return
    if SHARED in vars(part):
        _guard(module)
    elif hasattr(type(module), "_check_merge_allowed"):
        vars(module)["_check_merge_allowed"] = partial(_checked_merge_of_all, module)


register_module_module_registration_hook(_guard_new_adapter)
