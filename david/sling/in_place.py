"""Make a loaded model run a recipe by reference: in place, for the length of a `with`, or as a second model.

`namespace.David` has these functions under one name. `install` does the work.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from david.errors import RecipeError, SlingError
from david.recipe.recipe import Recipe
from david.sling import adapters, locate, remap
from david.sling.install import (
    CHANGING,
    Model,
    base_record,
    build_visits,
    current_state,
    install,
    install_recipe,
    note_thread,
    refuse_other_threads,
    reserved,
    warn_of_adapters,
    warn_of_other_thread,
)
from david.sling.locate import Stack
from david.sling.views import module_view
from david.support.arguments import check_type

AnyRecipe = Recipe | str | os.PathLike[str] | Sequence[int]
Ratios = Sequence[tuple[float, float]]


def sling(
    model: Model,
    recipe: AnyRecipe | None = None,
    *,
    ratio_repeat: Ratios | None = None,
    repeat_map_raw: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
) -> Model:
    """Make a model run a recipe in place, without copying a byte of weights.

    Give exactly one of `recipe`, `ratio_repeat` and `repeat_map_raw`. A map always names the base's layers, also if the
    model runs another recipe already.

    Do before slinging what changes layers: freezing, compiling, offloading, loading, switching and deleting adapters,
    gradient checkpointing. On a slung model these change the visits only, and are lost with them. Pruning, quantising
    and merging the adapters of visits are refused there. `.to()`, `.half()` and `.train()` reach layers that the recipe
    leaves out, too. Two models that share one configuration object both see the
    recipe's depth in it.

    Args:
        model: A transformers causal language model, or a module that wraps one.
        recipe: A `Recipe`, the path of its JSON file, its notation (`"0:12, 8:30"`), or a list of layers.
        ratio_repeat: Slices of the depth, as for `Recipe.from_ratios`.
        repeat_map_raw: The base layer of each visit.
        scales: The strength of each visit of `repeat_map_raw`; 1 each if left out.

    Returns:
        The same model.

    Raises:
        RecipeError: The recipe does not fit the model. The model is unchanged.
        SlingError: The model cannot run the recipe exactly, or another thread is within `slung`, scores the model or
            serves batches with it. The model is unchanged.

    Example:
        >>> David.sling(model, "0:12, 8:30").config.num_hidden_layers
        34
        >>> David.reset(model).config.num_hidden_layers
        30
    """
    with CHANGING:
        stack = locate.find(model)
        refuse_other_threads(stack)
        base = base_record(stack)
        target = _recipe_of(len(base.layers), recipe, ratio_repeat, repeat_map_raw, scales)
        warn_of_adapters(stack, base)
        warn_of_other_thread(stack)
        install_recipe(model, stack, base, target)
        note_thread(stack)
        return model


def reset(model: Model) -> Model:
    """Make a slung model its base again, exactly. A model that runs no recipe is left alone.

    Args:
        model: The model.

    Returns:
        The same model.

    Raises:
        SlingError: Another thread is within `slung` or scores the model.

    Example:
        >>> David.reset(David.sling(model, repeat_map_raw=[0, 1, 2, 1])) is model
        True
    """
    with CHANGING:
        stack = locate.find(model)
        refuse_other_threads(stack)
        base = base_record(stack)
        if base.layers is not stack.layers:
            warn_of_adapters(stack, base)
            warn_of_other_thread(stack)
            install(model, stack, base.values, None)
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
    """Run a recipe for the length of a `with`. It may be nested.

    Afterwards the model is what it was on entry, whatever happened inside: its base, or an outer recipe.

    A model runs one recipe at a time. Within the `with`, other threads cannot sling, reset or score it. Give each
    thread a `view`: under Optuna's `n_jobs`, an objective returns `perplexity(David.view(model, recipe), corpus).nll`.

    Args:
        model: As for `sling`.
        recipe: As for `sling`.
        ratio_repeat: As for `sling`.
        repeat_map_raw: As for `sling`.
        scales: As for `sling`.

    Yields:
        The same model.

    Raises:
        RecipeError: The recipe does not fit the model.
        SlingError: The model cannot run the recipe exactly, or another thread is within `slung` or scores the model.

    Example:
        >>> with David.slung(model, recipe):
        ...     slung = perplexity(model, corpus).nll
        >>> slung == score_recipes(model, [recipe], corpus)[0].nll
        True
    """
    with reserved(model) as stack:
        before, training = current_state(stack), stack.owner.training
        try:
            with CHANGING:
                base = base_record(stack)
                target = _recipe_of(len(base.layers), recipe, ratio_repeat, repeat_map_raw, scales)
                install_recipe(model, stack, base, target)
            yield model
        finally:
            with CHANGING:
                layers = base_record(stack).layers
                install(model, stack, *before)
                adapters.carry_adapters(layers, stack.layers)
                if stack.owner.training != training:
                    stack.layers.train(stack.owner.training)


@contextmanager
def running_base(model: nn.Module) -> Iterator[None]:
    """Run the base for the length of a `with`. Afterwards the model is what it was on entry."""
    with reserved(model) as stack:
        before = current_state(stack)
        try:
            reset(model)
            yield
        finally:
            with CHANGING:
                install(model, stack, *before)


def check_recipe(model: nn.Module, recipe: Recipe) -> None:
    """Refuse a recipe that a model cannot run. Nothing is changed.

    Raises:
        RecipeError: The recipe does not fit the model.
        SlingError: The model cannot run the recipe exactly.
    """
    check_type("recipe", recipe, Recipe, RecipeError)
    with CHANGING:
        stack = locate.find(model)
        base = base_record(stack)
        recipe.check(len(base.layers))
        remap.check_map(stack, base.values, recipe)


def can_run(model: nn.Module, recipe: Recipe) -> bool:
    """Return whether a model can run a recipe. Nothing is changed."""
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
    """Return a second model that runs a recipe on the same weights. The first one is unchanged.

    The view has module objects and a configuration of its own. It can be slung again; its maps name the base's layers,
    too. Views of one model run side by side in threads, also while the model itself is slung.

    Args:
        model: As for `sling`.
        recipe: As for `sling`.
        ratio_repeat: As for `sling`.
        repeat_map_raw: As for `sling`.
        scales: As for `sling`.

    Returns:
        The view, of the same class as the model.

    Raises:
        RecipeError: The recipe does not fit the model.
        SlingError: The model cannot run the recipe exactly.

    Example:
        >>> franken = David.view(model, [0, 1, 2, 1, 2, 3])
        >>> len(franken.model.layers), len(model.model.layers)
        (6, 30)
        >>> franken.model.layers[3].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
        True
    """
    with CHANGING:
        stack = locate.find(model)
        base = base_record(stack)
        target = _recipe_of(len(base.layers), recipe, ratio_repeat, repeat_map_raw, scales)
        build_visits(base, target)  # refusals come before anything is touched
        copies = remap.config_copies(model)
        configs = tuple(copies[id(config)] for config in stack.configs)
        packed = {}
        for name, value in base.values[0].items():
            if isinstance(value, nn.Module):  # the view of the base's module replaces what a recipe put there
                copies[id(getattr(stack.owner, name))] = packed[name] = module_view(value, copies)
        second = module_view(model, copies)
        second_stack = Stack(copies[id(stack.owner)], stack.name, configs)
        install(second, second_stack, [base.values[0] | packed, *base.values[1:]], None)
        return install_recipe(second, second_stack, base_record(second_stack), target)


def base_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of a model's base, whether it runs a recipe or not."""
    with CHANGING:
        return base_record(locate.find(model)).layers


def base_depth(model: nn.Module) -> int:
    """Return the number of layers of a model's base, whether it runs a recipe or not."""
    return len(base_layers(model))


def _recipe_of(
    n_layers: int,
    recipe: AnyRecipe | None,
    ratio_repeat: Ratios | None,
    repeat_map_raw: Sequence[int] | None,
    scales: Sequence[float] | None,
) -> Recipe:
    """Return the recipe that one of the three arguments stands for, checked against the depth of the base."""
    arguments = [x for x in (recipe, ratio_repeat, repeat_map_raw) if x is not None]
    if len(arguments) != 1:
        raise RecipeError(f"give exactly one of recipe, ratio_repeat and repeat_map_raw; got {len(arguments)}")
    if scales is not None and repeat_map_raw is None:
        raise RecipeError("scales go with repeat_map_raw, one for each visit; a recipe carries its own")
    if ratio_repeat is not None:
        return Recipe.from_ratios(n_layers, ratio_repeat)
    target = Recipe.of(recipe) if recipe is not None else Recipe(repeat_map_raw, scales)  # type: ignore[arg-type]
    target.check(n_layers)
    return target
