"""A second module tree on the same parameters and buffers; the formula of a visit's strength.

This is the one place in David that computes `h + s · (layer(h) − h)`. Two others do so on purpose, each with a
formula of its own: `stacked_copy` and `verify`, the independent references that prove this one right.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from david.errors import SlingError

Module = TypeVar("Module", bound=nn.Module)
HOOK_VALUE = "_david_value"  # attribute of a view: what the forward hook of `add_output_hook` reads
SHARED = "_david_shared"  # attribute of each part of a visit: the table of parameters of the base's part
# Attributes of an instance that replace its class's forward: of accelerate, torch or a user.
_FORWARDS = {"forward": "forward", "_old_forward": "forward", "_compiled_call_impl": "compiled call"}
# Attributes that torch keeps in every module. A view has hooks and children of its own, and shares the rest.
_TORCHS = vars(nn.Module())
_CHANGING_ROPE_TYPES = ("dynamic", "longrope")
_HOOKS = frozenset(name for name, value in _TORCHS.items() if "hooks" in name and isinstance(value, dict | set))


def module_view(module: Module, replace: dict[int, Any]) -> Module:
    """Return a second module tree on the same parameters and buffers.

    Args:
        module: The root of the tree.
        replace: By the id of an object (a module, a configuration), what stands in its place in the view. Each view
            that is made is added, so that shared modules stay shared.
    """
    if id(module) in replace:
        return replace[id(module)]  # type: ignore[no-any-return]
    own_buffers = is_rotary(module) and _changes_in_forward(module)
    if is_rotary(module) and not own_buffers:
        return module
    view = object.__new__(type(module))
    replace[id(module)] = view
    state, called = _state(module, replace)
    if own_buffers:
        state["_buffers"] = {name: value if value is None else value.clone() for name, value in module._buffers.items()}
    for name, value in called:
        if isinstance(value, nn.Module):
            state[name] = module_view(value, replace)
    for name, child in state["_modules"].items():
        if child is not None:
            state["_modules"][name] = module_view(child, replace)
    object.__setattr__(view, "__dict__", state)
    _bind(view, called, replace)
    return view


def parts(module: nn.Module) -> list[nn.Module]:
    """Return what `module.modules()` yields, in less than half the time."""
    modules, left = [], [module]
    while left:
        part = left.pop()
        modules.append(part)
        if part._modules:
            left.extend(child for child in reversed(part._modules.values()) if child is not None)
    return list(dict.fromkeys(modules))


def own_tables(visit: nn.Module) -> None:
    """Give each part of a visit a table of parameters of its own, which holds the base's very parameters.

    A tool that knows tied weights (`functional_call`, offloading, pruning) then changes the visit alone. Buffers stay
    in the base's table: a move of the base replaces them there. So do parameters of which a library keeps the table
    (compressed-tensors, to move them to a device and back).
    """
    for part in parts(visit):
        if not is_rotary(part) and type(vars(part)["_parameters"]) is dict:
            vars(part)[SHARED] = shared = vars(part)["_parameters"]
            vars(part)["_parameters"] = shared.copy()


def shared_names(visits: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any], list[str]]]:
    """Return the tables of each part: its own, the base's, and the names under which both hold one parameter."""
    tables = [(vars(part)["_parameters"], vars(part)[SHARED]) for part in parts(visits) if SHARED in vars(part)]
    return [(own, base, [name for name in own if own[name] is base.get(name)]) for own, base in tables]


def share_again(tables: list[tuple[dict[str, Any], dict[str, Any], list[str]]]) -> None:
    """Take the base's parameters for those that were shared before: a move may have made new ones."""
    for own, base, names in tables:
        own.update((name, base[name]) for name in names)


def damp(view: nn.Module, scale: float) -> None:
    """Make a view return `h + scale · (layer(h) − h)`; at scale 1 nothing is added, so that it stays bit-equal.

    What a layer returns besides the hidden state (router states, chosen tokens) is passed on unchanged.
    """
    if scale != 1:
        add_output_hook(view, _damped, scale)


def add_output_hook(view: nn.Module, hook: Callable[..., Any], value: Any) -> None:
    """Register a forward hook that reads `view._david_value`, so that `torch.compile` sees it come, change and go.

    torch guards no hooks of submodules: a compiled model would go on with the hooks of the recipe that it was compiled
    for. It guards attributes that are read, and whether a submodule has a `forward` on the instance.
    """
    view.__dict__[HOOK_VALUE] = value
    view.__dict__.setdefault("forward", types.MethodType(type(view).forward, view))  # the class's own: only a mark
    view.register_forward_hook(hook, prepend=True, with_kwargs=True)


def hidden(output: Any) -> Tensor:
    """Return the hidden state in a layer's output: the output itself, or its first part."""
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state


def with_hidden(output: Any, state: Tensor) -> Any:
    """Return a layer's output with another hidden state in it."""
    if isinstance(output, Tensor):
        return state
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: state})
    return type(output)((state, *output[1:]))


def is_rotary(module: nn.Module) -> bool:
    """Return whether a module is a leaf with buffers and no weights, as rotary embeddings are.

    Such a module keeps attributes in step with its buffers as texts grow. A view of it would share the buffers but not
    the attributes, so the module itself is used; or, if a forward pass changes its buffers, a view with buffers of
    its own, since two models may run in two threads.
    """
    leaf = bool(module._buffers) and not module._modules
    return leaf and "layer_idx" not in module.__dict__ and all(p is None for p in module._parameters.values())


def _changes_in_forward(rotary: nn.Module) -> bool:
    """Return whether its buffers follow the length of the text (`rope_type: dynamic`, `longrope`; a growing table)."""
    if hasattr(rotary, "make_weights"):  # XGLM's table of positions, and its like
        return True
    types = [value for name, value in vars(rotary).items() if name.endswith("rope_type")]
    names = {name for value in types for name in (value.values() if isinstance(value, dict) else (value,))}
    return not names.isdisjoint(_CHANGING_ROPE_TYPES)


def _state(module: nn.Module, replace: dict[int, Any]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return the attributes of a view (children not yet replaced), and those of them that can be called."""
    state = module.__dict__.copy()
    state["_modules"] = dict(module._modules)
    called = []
    for name, value in state.items():
        if name in _HOOKS:
            state[name] = value.copy()
        elif name in _TORCHS:
            continue
        elif callable(value):  # asked first: a configuration is slow to say what it is
            called.append((name, value))
        elif id(value) in replace:
            state[name] = replace[id(value)]
        elif "hooks" in name and isinstance(value, dict | set):
            state[name] = value.copy()
    return state, called


def _damped(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Return `h + scale · (layer(h) − h)`, from a layer's arguments and output: a forward hook."""
    before = args[0] if args else kwargs["hidden_states"]  # [B, T, D]
    return with_hidden(output, before + getattr(module, HOOK_VALUE) * (hidden(output) - before))


def _bind(view: nn.Module, called: list[tuple[str, Any]], views: dict[int, Any]) -> None:
    """Bind methods that are kept on the instance to the view: they still run the base's module and its cache place.

    accelerate keeps two (`add_hook_to_module`): `_old_forward`, bound to the module, and `forward`, a partial of it.
    torch keeps a compiled call.
    """
    for name, value in called:
        bound = _bound(value, views)
        if bound is not None:
            view.__dict__[name] = bound
        elif name in _FORWARDS and value is not None:
            raise SlingError(
                f"{type(view).__name__} is refused: its {_FORWARDS[name]} was replaced on the instance, which a view "
                "cannot follow. Sling first, or take the replacement away"
            )


def _bound(value: Any, views: dict[int, Any]) -> Any:
    """Return a method of a viewed module (or its partial or compilation) bound to the view; else None."""
    if isinstance(value, types.MethodType):
        view = views.get(id(value.__self__))
        return None if view is None else types.MethodType(value.__func__, view)
    if isinstance(value, functools.partial):
        function = _bound(value.func, views)
        if function is not None or any(id(part) in views for part in value.args):
            args = [views.get(id(part), part) for part in value.args]
            own = functools.partial(function or value.func, *args, **value.keywords)
            return functools.update_wrapper(own, value, updated=()) if hasattr(value, "__wrapped__") else own
    if isinstance(value, types.FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):
        function = _bound(value._torchdynamo_orig_callable, views)
        compiler = inspect.getclosurevars(value).nonlocals.get("self")  # with the backend and options it was given
        return None if function is None or compiler is None else compiler(function)
    return None
