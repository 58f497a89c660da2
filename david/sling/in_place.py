"""Make a loaded model run a recipe by reference: in place, for the length of a `with`, or beside it."""

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing as capturing

from david.errors import RecipeError, SlingError
from david.recipe.recipe import Recipe
from david.sling import adapters, locate, remap
from david.sling.locate import Stack
from david.sling.remap import Values
from david.sling.views import module_view

if TYPE_CHECKING:
    from david.sling.verify import Certificate

Model = TypeVar("Model", bound=nn.Module)
AnyRecipe = Recipe | str | os.PathLike[str] | Sequence[int]
Ratios = Sequence[tuple[float, float]]
_TO_ALL = ("_apply", "train")  # under `to`, `half`, `eval` and the like


@dataclass(frozen=True)
class _Base:
    """What a slung model keeps of its base: its list of layers, and all that followed the map.

    It is kept on the module that holds the layers: whoever holds the model finds it there, and copies carry it.
    """

    name: str
    home: nn.ModuleList
    values: Values


def sling(
    model: Model,
    recipe: AnyRecipe | None = None,
    *,
    ratio_repeat: Ratios | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
) -> Model:
    """Make a model run a recipe, in place and without copying a byte of weights; returns the model.

    Give one of: a recipe (a `Recipe`, the path of its JSON, or its notation such as `"0:12, 8:30"`), `ratio_repeat`
    (see `Recipe.from_ratios`), or `repeat_map_raw` with `scales` if wanted. A map always speaks of the base's layers,
    also when the model is slung already.

    Freeze the base, not its sling, and compile it, load, switch and delete its adapters, and set its gradient
    checkpointing before slinging: on a slung model these reach its visits, and go with them. `.to()`, `.half()` and
    `.train()` reach the layers that a sling leaves out too. Two models built on one configuration object are both told
    of a sling's depth.

    Raises `RecipeError` for a recipe that does not fit the model and `SlingError` for a model that is refused; the
    model is then what it was before.

    Example:
        >>> David.sling(model, "0:12, 8:30").config.num_hidden_layers
        34
        >>> David.reset(model).config.num_hidden_layers
        30
    """
    stack = locate.find(model)
    base = _base(stack)
    wanted = _wanted(len(base.home), recipe, ratio_repeat, repeat_map_raw, scales)
    _tell_of_adapters(stack, base)
    return _slung(model, stack, base, wanted)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector waits: a sling makes thousands of objects, and none of them is garbage.

    It would search them thirty times, and now and then all that Python holds, which takes longer than ten slings.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def _slung(model: Model, stack: Stack, base: _Base, wanted: Recipe) -> Model:
    remap.check_map(stack, base.values, wanted)
    visits = _visits(base, wanted)
    before = _now(stack)
    try:
        _put(model, stack, remap.remap_state(stack, base.values, visits, wanted.repeat_map), base)
    except BaseException:
        _put(model, stack, *before)
        raise
    return model


def reset(model: Model) -> Model:
    """Make a slung model its base again, exactly; one that is not slung is left alone. Returns the model.

    Example:
        >>> David.reset(David.sling(model, repeat_map_raw=[0, 1, 2, 1])) is model
        True
    """
    stack = locate.find(model)
    base = _base(stack)
    if base.home is not stack.layers:
        _tell_of_adapters(stack, base)
        _put(model, stack, base.values, None)
    return model


@contextmanager
def slung(
    model: Model,
    recipe: AnyRecipe | None = None,
    *,
    ratio_repeat: Ratios | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
) -> Iterator[Model]:
    """`sling` for the length of a `with`; afterwards the model is what it was on entry, whatever happened. Nests.

    Example:
        >>> with David.slung(model, recipe):
        ...     slung = perplexity(model, corpus).nll
        >>> slung == score_recipes(model, [recipe], corpus)[0].nll
        True
    """
    stack = locate.find(model)
    before, training = _now(stack), stack.owner.training
    try:
        base = _base(stack)
        wanted = _wanted(len(base.home), recipe, ratio_repeat, repeat_map_raw, scales)
        yield _slung(model, stack, base, wanted)
    finally:
        home = _base(stack).home
        _put(model, stack, *before)
        adapters.carry_adapters(home, stack.layers)
        if stack.owner.training != training:
            stack.layers.train(stack.owner.training)


@contextmanager
def running_base(model: nn.Module) -> Iterator[None]:
    """A model as its base for the length of a `with`, slung or not; afterwards it is what it was on entry."""
    stack = locate.find(model)
    before = _now(stack)
    try:
        reset(model)
        yield
    finally:
        _put(model, stack, *before)


def check_recipe(model: nn.Module, recipe: Recipe) -> None:
    """`RecipeError` or `SlingError` where a model cannot run a recipe; nothing is touched."""
    stack = locate.find(model)
    base = _base(stack)
    recipe.check(len(base.home))
    remap.check_map(stack, base.values, recipe)


def can_run(model: nn.Module, recipe: Recipe) -> bool:
    """Whether a model can run a recipe; nothing is touched."""
    try:
        check_recipe(model, recipe)
    except (RecipeError, SlingError):
        return False
    return True


def view(
    model: Model,
    recipe: AnyRecipe | None = None,
    *,
    ratio_repeat: Ratios | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
) -> Model:
    """A second model that runs a recipe on the same weights, the first one untouched. Arguments as for `sling`.

    The view has its own module objects and its own configuration; it can be slung again and starts from the base too.

    Example:
        >>> franken = David.view(model, [0, 1, 2, 1, 2, 3])
        >>> len(franken.model.layers), len(model.model.layers)
        (6, 30)
        >>> franken.model.layers[3].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
        True
    """
    stack = locate.find(model)
    base = _base(stack)
    wanted = _wanted(len(base.home), recipe, ratio_repeat, repeat_map_raw, scales)
    _visits(base, wanted)  # refusals come before anything is touched
    copies = remap.config_copies(model)
    configs = tuple(copies[id(config)] for config in stack.configs)
    home = {}
    for name, value in base.values[0].items():
        if isinstance(value, nn.Module):  # the view's own, made of the base's, stands where a sling's stands now
            copies[id(getattr(stack.owner, name))] = home[name] = module_view(value, copies)
    second = module_view(model, copies)
    own = Stack(copies[id(stack.owner)], stack.name, configs)
    _put(second, own, [base.values[0] | home, *base.values[1:]], None)
    return _slung(second, own, _base(own), wanted)


def base_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model's base, slung or not."""
    return _base(locate.find(model)).home


def base_depth(model: nn.Module) -> int:
    """How many layers the base of a model has, slung or not."""
    return len(base_layers(model))


def is_slung(model: nn.Module) -> bool:
    """Whether a model runs a sling, rather than its base."""
    return any(locate.KEPT in module.__dict__ for module in model.modules())


class David:
    """The functions of this module under one name, as the seed's users import them."""

    sling = staticmethod(sling)
    reset = staticmethod(reset)
    slung = staticmethod(slung)
    view = staticmethod(view)

    @staticmethod
    def check(model: PreTrainedModel, *, recipe: AnyRecipe | None = None) -> "Certificate":
        """The proof that a model slings exactly: see `david.sling.verify.check_model`."""
        from david.sling.verify import check_model  # above this module, and of no use to it: only its name is here

        return check_model(model, recipe=recipe)


def _base(stack: Stack) -> _Base:
    """What is kept of the base, with those adapters active that were switched on while its layers were out."""
    kept: _Base | None = stack.owner.__dict__.get(locate.KEPT)
    if kept is None:
        return _Base(stack.name, stack.layers, remap.read_state(stack))
    adapters.carry_adapters(stack.layers, kept.home)
    return kept


def _tell_of_adapters(stack: Stack, base: _Base) -> None:
    """A warning where adapters go with the visits that they were put on, or stay in a base that lost them only here."""
    on_visits, on_base = (adapters.has_adapters(part) for part in (stack.layers, base.home))
    if on_visits and not on_base:
        warnings.warn(
            "the adapters that were put on this sling's visits go with it (save_pretrained keeps them)", stacklevel=3
        )
    if on_base and not on_visits:
        warnings.warn(
            "adapters were unloaded from a sling's visits, and the base still has them: unload them from the base",
            stacklevel=3,
        )


def _visits(base: _Base, recipe: Recipe) -> nn.ModuleList:
    home = base.home
    visits = nn.ModuleList(
        remap.visit_view(home[layer], layer, slot, scale) for slot, (layer, scale) in enumerate(recipe)
    )
    visits.training = home.training
    return visits


def _now(stack: Stack) -> tuple[Values, _Base | None]:
    return remap.read_state(stack), stack.owner.__dict__.get(locate.KEPT)


def _put(model: nn.Module, stack: Stack, values: Values, base: _Base | None) -> None:
    """Set the layers and what goes with them, and the memory of the base (None where these are the base's own)."""
    for name in _TO_ALL:  # a list that is out of use keeps nothing alive
        stack.layers.__dict__.pop(name, None)
    remap.write_state(stack, values)
    _captured(stack)
    stack.owner.__dict__.pop(locate.KEPT, None)
    beside = (module for _, module in model.named_modules({stack.layers}))  # a layer is nothing that one saves
    holders = [module for module in beside if hasattr(module, "save_pretrained")]
    for holder in holders:
        holder.__dict__.pop("save_pretrained", None)
    if base is not None:
        stack.owner.__dict__[locate.KEPT] = base
        for name in _TO_ALL:
            stack.layers.__dict__[name] = partial(_to_all, base.home, stack.layers, name)
        for holder in holders:
            holder.__dict__["save_pretrained"] = partial(_save_pretrained, holder)


def _to_all(home: nn.ModuleList, visits: nn.ModuleList, name: str, *args: Any, **kwargs: Any) -> Any:
    """What is done to all of a model is done to the layers that its sling leaves out too."""
    getattr(home, name)(*args, **kwargs)
    return getattr(nn.ModuleList, name)(visits, *args, **kwargs)


def _captured(stack: Stack) -> None:
    """Where transformers hooked the layers of the moment to capture hidden states, hook those of this moment too.

    It does so once, when first asked; so the owner is shown to it again, with nothing but the layers in it.
    """
    owner, hooked = stack.owner, "_output_capturing_hooks_installed"
    if not vars(owner).get(hooked) or any(_captures(module) for module in stack.layers.modules()):
        return
    modules = owner._modules
    owner._modules = {stack.name: stack.layers}
    try:
        delattr(owner, hooked)
        capturing.maybe_install_capturing_hooks(owner)
    finally:
        owner._modules = modules


def _captures(module: nn.Module) -> bool:
    return any(getattr(hook, "__module__", "") == capturing.__name__ for hook in module._forward_hooks.values())


def _save_pretrained(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What stands on the instance of a model that was slung."""
    if is_slung(model) and not _has_own_adapters(model):
        raise SlingError(
            "a slung model cannot be saved: its layers share their weights, and a checkpoint has no scales. Save the "
            "recipe (recipe.save), write it stacked (david export), or David.reset(model) first"
        )
    return type(model).save_pretrained(model, *args, **kwargs)


def _has_own_adapters(model: nn.Module) -> bool:
    """Whether adapters were put on a sling's own visits, and none on its base: `save_pretrained` then writes these."""
    stack = locate.find(model)
    return adapters.has_adapters(stack.layers) and not adapters.has_adapters(_base(stack).home)


def _wanted(
    n_layers: int,
    recipe: AnyRecipe | None,
    ratio_repeat: Ratios | None,
    repeat_map_raw: Sequence[int] | None,
    scales: Sequence[float] | None,
) -> Recipe:
    given = [x for x in (recipe, ratio_repeat, repeat_map_raw) if x is not None]
    if len(given) != 1:
        raise RecipeError(f"give exactly one of recipe, ratio_repeat and repeat_map_raw; got {len(given)}")
    if scales is not None and repeat_map_raw is None:
        raise RecipeError("scales go with repeat_map_raw, one for each visit; a recipe carries its own")
    if ratio_repeat is not None:
        return Recipe.from_ratios(n_layers, ratio_repeat)
    wanted = Recipe.of(recipe) if recipe is not None else Recipe(repeat_map_raw, scales)  # type: ignore[arg-type]
    wanted.check(n_layers)
    return wanted
