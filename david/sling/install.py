"""Put the visits of a recipe into a model, and take them out again exactly.

`install` sets layers and all that goes with them; a `BaseRecord` on the owner of the layers remembers the base, so that
whoever holds the model, or a copy of it, finds it. While a recipe runs, `.to()` and `.train()` reach the base's layers
too; `save_pretrained` and `push_to_hub` are refused, and so is a new tensor in the place of a weight that visits share.
"""

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils import parametrize
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import output_capturing as capturing

from david.errors import SlingError
from david.recipe.recipe import Recipe
from david.sling import adapters, locate, remap
from david.sling.locate import Stack
from david.sling.remap import Values
from david.sling.views import SHARED, share_again, shared_names

Model = TypeVar("Model", bound=nn.Module)
CHANGING = threading.RLock()  # held while layers are read or exchanged, so that no thread sees half of a recipe
# By the owner of the layers: the thread that runs a model within a `with`, once for each level.
_RESERVATIONS: "weakref.WeakKeyDictionary[nn.Module, list[threading.Thread]]" = weakref.WeakKeyDictionary()
# By the owner of the layers: the thread that slung a model last, if not within a `with`.
_SLUNG_BY: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[threading.Thread]]" = weakref.WeakKeyDictionary()
# Attribute of a model: the manager of `generate_batch(persistent_manager=True)`, with a cache as deep as the model was.
_BATCH_MANAGER = "_cached_continuous_batching_manager"
_MANAGERS: "weakref.WeakSet[Any]" = weakref.WeakSet()  # of continuous batching, of whatever model
_REACH_ALL = ("_apply", "train")  # what `to`, `half`, `eval` and the like call


@dataclass(frozen=True)
class BaseRecord:
    """The base of a slung model: the name of its list of layers, the layers, and all that followed the map."""

    name: str
    layers: nn.ModuleList
    values: Values


def base_record(stack: Stack) -> BaseRecord:
    """Return the base of a stack, with those adapters active that were switched on while a recipe ran."""
    record: BaseRecord | None = stack.owner.__dict__.get(locate.KEPT)
    if record is None:
        return BaseRecord(stack.name, stack.layers, remap.read_state(stack))
    adapters.carry_adapters(stack.layers, record.layers)
    return record


def current_state(stack: Stack) -> tuple[Values, BaseRecord | None]:
    """Return what `install` needs to bring back the present state."""
    return remap.read_state(stack), stack.owner.__dict__.get(locate.KEPT)


@contextmanager
def reserved(model: nn.Module) -> Iterator[Stack]:
    """Find the layers of a model; refuse other threads that want to exchange them, for the length of a `with`."""
    with CHANGING:
        stack = locate.find(model)
        refuse_other_threads(stack)
        threads = _RESERVATIONS.setdefault(stack.owner, [])
        threads.append(threading.current_thread())
    try:
        yield stack
    finally:
        with CHANGING:
            threads.pop()


def refuse_other_threads(stack: Stack) -> None:
    """Raise `SlingError` if another thread has reserved a model, or serves batches with it."""
    if any(manager.is_running() for manager in _batch_managers(stack)):
        raise SlingError(
            "this model is in use by a manager of continuous batching, whose cache is as deep as the model was; "
            "expected none that runs. Stop it (manager.stop()), or take a second model: David.view(model, recipe)"
        )
    threads = _RESERVATIONS.get(stack.owner)
    if threads and threads[-1] is not threading.current_thread() and threads[-1].is_alive():
        raise SlingError(
            f"this model is in use in another thread ({threads[-1].name}), within `slung` or a score; expected one "
            "thread. Give each thread a model of its own on the same weights: David.view(model, recipe)"
        )


def warn_of_other_thread(stack: Stack) -> None:
    """Warn if a thread that still runs has slung a model: its next forward passes run the recipe of this thread."""
    thread = _SLUNG_BY.get(stack.owner, lambda: None)()
    if thread is not None and thread is not threading.current_thread() and thread.is_alive():
        warnings.warn(
            f"this model runs a recipe of another thread ({thread.name}), which now gets another one; expected one "
            "thread. Give each thread a model of its own on the same weights: David.view(model, recipe)",
            stacklevel=3,
        )


def note_thread(stack: Stack) -> None:
    """Note that this thread has slung a model."""
    _SLUNG_BY[stack.owner] = weakref.ref(threading.current_thread())


def _batch_managers(stack: Stack) -> list[Any]:
    """Return the managers of continuous batching of a model, or of one around it."""
    return [manager for manager in _MANAGERS if any(part is stack.owner for part in manager.model.modules())]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collector: a sling makes thousands of objects, and none of them is garbage.

    The collector would search them thirty times, and sometimes all objects of the process, which takes longer than ten
    slings.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_garbage_collection_paused()
def install_recipe(model: Model, stack: Stack, base: BaseRecord, recipe: Recipe) -> Model:
    """Run a recipe on a model in place; on an error the model is what it was before."""
    remap.check_map(stack, base.values, recipe)
    visits = build_visits(base, recipe)
    before = current_state(stack)
    try:
        install(model, stack, remap.remap_state(stack, base.values, visits, recipe.repeat_map), base)
    except BaseException:
        install(model, stack, *before)
        raise
    return model


def build_visits(base: BaseRecord, recipe: Recipe) -> nn.ModuleList:
    """Return a module for each visit of a recipe, on the weights of the base's layers."""
    home = base.layers
    visits = nn.ModuleList(
        remap.visit_view(home[layer], layer, slot, scale) for slot, (layer, scale) in enumerate(recipe)
    )
    visits.training = home.training
    visits.register_load_state_dict_pre_hook(_check_loaded_weights)  # type: ignore[no-untyped-call]
    adapters.guard_adapters(visits)
    return visits


def install(model: nn.Module, stack: Stack, values: Values, base: BaseRecord | None) -> None:
    """Set the layers and all that goes with them, and the record of the base (None if these are the base's layers)."""
    for name in _REACH_ALL:  # a list that is no longer used keeps nothing alive
        stack.layers.__dict__.pop(name, None)
    remap.write_state(stack, values)
    _reinstall_capture_hooks(stack)
    stack.owner.__dict__.pop(locate.KEPT, None)
    _SLUNG_BY.pop(stack.owner, None)
    for _, module in model.named_modules({stack.layers}):
        if getattr(module.__dict__.get(_BATCH_MANAGER), "model", module) is not module:
            del module.__dict__[_BATCH_MANAGER]  # a view has the manager of its base
    for manager in _batch_managers(stack):  # `generate_batch` makes another one
        if manager.model.__dict__.pop(_BATCH_MANAGER, None) is not None:
            manager.destroy()
    if base is not None:
        stack.owner.__dict__[locate.KEPT] = base
        for name in _REACH_ALL:
            stack.layers.__dict__[name] = partial(_apply_to_all, base, stack.layers, name)
        _guard_saving(getattr(sys.modules.get("peft"), "PeftModel", None))


def _apply_to_all(base: BaseRecord, visits: nn.ModuleList, name: str, *args: Any, **kwargs: Any) -> Any:
    """Apply to the base's modules, too, what is applied to the visits: a recipe may leave layers out."""
    tables = shared_names(visits)
    for module in base.values[0].values():
        if isinstance(module, nn.Module):
            getattr(module, name)(*args, **kwargs)
    share_again(tables)
    result = getattr(nn.ModuleList, name)(visits, *args, **kwargs)
    share_again(tables)
    return result


def _reinstall_capture_hooks(stack: Stack) -> None:
    """Hook new layers if transformers has hooked the old ones to capture hidden states.

    transformers installs these hooks once, when they are first needed. So it is shown the owner again, with nothing but
    the layers in it.
    """
    owner, hooked = stack.owner, "_output_capturing_hooks_installed"
    if not vars(owner).get(hooked) or any(_has_capture_hook(module) for module in stack.layers.modules()):
        return
    modules = owner._modules
    owner._modules = {stack.name: stack.layers}
    try:
        delattr(owner, hooked)
        capturing.maybe_install_capturing_hooks(owner)
    finally:
        owner._modules = modules


def _has_capture_hook(module: nn.Module) -> bool:
    return any(getattr(hook, "__module__", "") == capturing.__name__ for hook in module._forward_hooks.values())


def is_slung(model: nn.Module) -> bool:
    """Return whether a model runs a recipe rather than its base."""
    return any(locate.KEPT in module.__dict__ for module in model.modules())


def _guard_saving(kind: type | None) -> None:
    """Have the methods of a class of models that write checkpoints refuse a slung model.

    An instance is not enough: a model may be slung by a handle inside it, which does not know what is around it.
    """
    for name in ("save_pretrained", "push_to_hub"):
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, "refuses_slung"):
            setattr(kind, name, _refusing_slung(method))


def _refusing_slung(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that refuses a slung model before it does anything; for any other model it is what it was."""

    @wraps(method)
    def guarded(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_slung(model):
            base = next(vars(module)[locate.KEPT] for module in model.modules() if locate.KEPT in vars(module))
            # PEFT writes adapters only, and transformers too if it has loaded them; those of visits may be written.
            whole = isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False)
            if whole or adapters.has_adapters(base.layers):
                raise SlingError(
                    "a slung model cannot be saved: its layers share their weights, and a checkpoint has no scales. "
                    "Save the recipe (recipe.save), write it stacked (david export), or David.reset(model) first"
                )
        return method(model, *args, **kwargs)

    guarded.refuses_slung = True  # type: ignore[attr-defined]
    return guarded


_guard_saving(PreTrainedModel)


def _noting_manager(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that notes the manager of continuous batching which it returns."""

    @wraps(method)
    def noting(*args: Any, **kwargs: Any) -> Any:
        manager = method(*args, **kwargs)
        _MANAGERS.add(manager)
        return manager

    return noting


if hasattr(GenerationMixin, "init_continuous_batching"):  # older versions of transformers have none
    GenerationMixin.init_continuous_batching = _noting_manager(GenerationMixin.init_continuous_batching)


def _refusing_visits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of `torch.nn.utils.parametrize` that refuses a part of a visit: it writes into the weight."""

    @wraps(function)
    def guarded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if SHARED in vars(module):
            raise SlingError(
                f"a {type(module).__name__} of a visit cannot be parametrized, since it shares the base's weights: "
                "David.reset(model), parametrize the base, then sling it"
            )
        return function(module, *args, **kwargs)

    return guarded


for _name in ("register_parametrization", "remove_parametrizations"):
    setattr(parametrize, _name, _refusing_visits(getattr(parametrize, _name)))


def _refuse_new_weight(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
    """Refuse another tensor for a weight that visits share; torch calls this for each parameter that a module gets.

    Quantising puts another weight under the name; pruning moves the weight to another name, or takes it away first.
    A parameter that the base does not have belongs to the visit.
    """
    base = vars(module).get(SHARED)
    if base is None or weight is None:
        return
    table, shared = module._parameters, base.get(name)
    if weight is shared or weight is table.get(name) or (shared is not None and shared.is_meta):
        return
    missing = base.keys() - table.keys()
    if name not in base and not missing and all(weight is not other for other in base.values()):
        return
    table.update((name, base[name]) for name in missing)
    raise SlingError(
        f"{type(module).__name__}.{name} cannot be replaced in a visit, which shares the base's weights: "
        "David.reset(model), prune or quantise the base, then sling it"
    )


register_module_parameter_registration_hook(_refuse_new_weight)


def _check_loaded_weights(
    visits: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """Refuse weights to load into visits that share them: other tensors, or values of which the last would win."""
    if metadata.get("assign_to_params_buffers"):
        raise SlingError(
            "weights cannot be loaded into a slung model with assign=True: its visits share the base's weights. "
            "David.reset(model) first"
        )
    first: dict[int, Any] = {}
    for name, weight in visits.named_parameters(remove_duplicate=False):
        value: Any = state_dict.get(prefix + name)
        if type(value) not in (torch.Tensor, nn.Parameter) or value.is_meta:
            continue  # missing, or no plain tensor
        other = first.setdefault(id(weight), value)
        if value.dtype != other.dtype or not torch.equal(value, other):
            raise SlingError(
                f"the weights to load differ between visits of one layer ({prefix}{name}), which share them: "
                "load them into a stacked copy (david export), or David.reset(model) and load the base's"
            )


def warn_of_adapters(stack: Stack, base: BaseRecord) -> None:
    """Warn if adapters disappear with the visits that hold them, or stay in the base only."""
    on_visits, on_base = (adapters.has_adapters(part) for part in (stack.layers, base.layers))
    if on_visits and not on_base:
        warnings.warn(
            "adapters on the visits of this recipe are removed with it (save_pretrained keeps them); those elsewhere "
            "in the model stay (unload takes them off)",
            stacklevel=3,
        )
    if on_base and not on_visits:
        warnings.warn(
            "adapters were unloaded from the visits of a recipe; the base still has them: unload them from the base",
            stacklevel=3,
        )
