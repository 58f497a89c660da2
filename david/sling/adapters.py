"""PEFT adapters in layers: whether there are any, and which are active."""

from torch import nn

from david.sling.views import parts


def has_adapters(module: nn.Module) -> bool:
    """Return whether a module holds PEFT adapters."""
    return any(kind.__module__.startswith("peft.") for kind in {type(part) for part in parts(module)})


def carry_adapters(old: nn.Module, new: nn.Module) -> None:
    """Make the adapters that are active in one list of layers active in another: PEFT keeps this in each layer."""
    names = ("_active_adapter", "_disable_adapters")
    state = next((vars(part) for part in parts(old) if names[0] in vars(part)), None)
    for part in parts(new) if state is not None else ():
        if names[0] in vars(part):
            vars(part).update({name: state[name] for name in names})  # type: ignore[index]
