"""From the texts of options to a model, a recipe, a range or a size. Heavy modules are imported where they are needed.

`load_base_model` and `load_with_recipe` read MODEL; `parse_recipe` reads `--recipe` and `--ratios`.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from david.errors import ModelError, RecipeError
from david.support.console import say
from david.support.text import brief

if TYPE_CHECKING:
    from collections.abc import Mapping

    from david.cli.options import DataOptions
    from david.models.load_options import LoadOptions
    from david.models.without_weights import Preview
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus


_INSTEAD = "MODEL, and the recipe beside it where the command takes one"


def preview_base(model: "str | Recipe", options: "LoadOptions", instead: str = _INSTEAD) -> "Preview":
    """Return what is known of MODEL before its weights are read, or of the base of a recipe.

    Args:
        model: A Hub id, a folder, a `.gguf` file, `demo`, or a recipe.
        options: How to hold it.
        instead: How to name another base than the recipe's, for an error.

    Raises:
        DavidError: The model cannot be loaded, for a reason that shows without its weights.
    """
    from david.models.sources import recipe_at, recipe_base
    from david.models.without_weights import preview_model
    from david.sling.in_place import check_recipe

    _prepare_libraries(options)
    recipe = recipe_at(model) if isinstance(model, str) else model
    if recipe is None:
        return preview_model(str(model))
    preview = replace(preview_model(*recipe_base(recipe, instead)), recipe=recipe)
    check_recipe(preview.model, recipe)
    return preview


def preview_recipe(preview: "Preview", recipe: str | None, ratios: str | None = None) -> "Recipe":
    """Return the recipe of `--recipe` or `--ratios`, checked with a model that has no weights yet."""
    from david.sling.in_place import check_recipe

    parsed = parse_recipe(recipe, ratios, preview.depth)
    check_recipe(preview.model, parsed)
    return parsed


def preview_corpus(preview: "Preview", data: "DataOptions", source: str | None = None) -> "Corpus":
    """Return the first windows of data, checked with a model that has no weights yet."""
    from david.scoring.objectives import check_fits

    corpus = data.first_windows(preview.tokenizer, source)
    check_fits(preview.model, corpus)
    return corpus


def preview_parts(
    preview: "Preview", data: "DataOptions", held_out: int, settings: "Mapping[str, Any]"
) -> "tuple[Corpus, Corpus]":
    """Return windows to search on and held-out ones, with the settings of a search checked before weights are read."""
    from david.study.run_search import check_search

    parts = data.hold_out(preview.tokenizer, held_out)
    names = ("space", "objective", "also", "n_trials", "queue", "strategy")
    check_search(preview.model, *parts, **{name: settings[name] for name in names if name in settings})
    return parts


def load_base_model(model: str, options: "LoadOptions") -> tuple[Any, Any]:
    """Return a base model and its tokenizer, for the commands that take no recipe from MODEL.

    If MODEL is a recipe, only its base model is loaded, and a note is printed. A model of a type that no proof was made
    for is proved first.
    """
    loaded, tokenizer, recipe = load_with_recipe(model, options)
    if recipe is not None:
        say(f"note: {model} is a recipe: only its base model is loaded")
    return loaded, tokenizer


def load_with_recipe(model: str, options: "LoadOptions", *, prove_new: bool = True) -> tuple[Any, Any, "Recipe | None"]:
    """Return a base model, its tokenizer, and the recipe if MODEL is one.

    A command that takes one recipe prefers `--recipe` to it; a command that takes several puts it first.

    Args:
        model: A Hub id, a folder, a `.gguf` file, `demo`, or a recipe.
        options: How to hold it.
        prove_new: Whether a model of a type that no proof was made for is proved first.
    """
    from david.models.load import load_weights
    from david.models.sources import recipe_at

    _prepare_libraries(options)
    recipe = recipe_at(model)
    if recipe is None:
        loaded, tokenizer = load_weights(model, options=options)
        if prove_new:
            _prove_new_type(loaded)
    else:
        loaded, tokenizer = load_recipe_base(recipe, options, _INSTEAD, prove_new=prove_new)
    return loaded, tokenizer, recipe


def load_recipe_base(
    recipe: "Recipe", options: "LoadOptions", instead: str = "--model", *, prove_new: bool = True
) -> tuple[Any, Any]:
    """Return the model that a recipe names as its base, in the revision that it names, and its tokenizer.

    Args:
        recipe: The recipe.
        options: How to hold it.
        instead: How to name another base, for an error.
        prove_new: Whether a model of a type that no proof was made for is proved first.
    """
    from david.models.load import load_base

    _prepare_libraries(options)
    loaded, tokenizer = load_base(recipe, options=options, instead=instead)
    if prove_new:
        _prove_new_type(loaded)
    return loaded, tokenizer


def _prepare_libraries(options: "LoadOptions") -> None:
    """Silence what libraries log for developers; `ModelError` for options that cannot be met."""
    import optuna
    import transformers

    options.check()
    if options.device is not None and options.device.startswith("meta"):
        raise ModelError("on the device meta weights have no values: give cpu, or an accelerator")
    transformers.logging.set_verbosity_error()
    for library in ("bitsandbytes", "datasets"):  # bitsandbytes tells of a cast at each product
        logging.getLogger(library).setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _prove_new_type(loaded: Any) -> None:
    """Prove that a model slings exactly, unless its type is known to."""
    from david.sling.locate import is_proved
    from david.sling.verify import prove

    if not is_proved(loaded):
        say(f"{type(loaded).__name__} is new here: proving first that it slings exactly")
        prove(loaded)


def memory_bytes(size: str | None) -> int | None:
    """Return a `--memory-budget` in bytes; `DavidError` if it is not a size."""
    from david.support.memory import as_bytes

    return None if size is None else as_bytes(size, "--memory-budget")


def parse_recipe(recipe: str | None, ratios: str | None, n_layers: int | None, loaded: Any = None) -> "Recipe":
    """Return the recipe of `--recipe` or `--ratios`.

    Args:
        recipe: A recipe file, or a recipe's notation.
        ratios: Slices of the depth, such as `"0:0.3, 0.2:1"`.
        n_layers: The depth of the base. `ratios` need it; a recipe is checked against it.
        loaded: The base model. A note is printed if the recipe was made on other weights.

    Raises:
        RecipeError: Not exactly one of the two is given, or it cannot be read, or it does not fit the depth.
    """
    from david.recipe.recipe import Recipe

    require_one(recipe, ratios)
    if ratios is not None:
        return Recipe.from_ratios(n_layers or 0, _parse_ratios(ratios))
    parsed = Recipe.of(recipe or "")
    if n_layers is not None:
        parsed.check(n_layers)
    if loaded is not None:
        from david.models.load import note_other_weights

        note_other_weights(parsed, loaded)
    return parsed


def check_recipe_options(recipe: str | None, ratios: str | None) -> None:
    """Check `--recipe` and `--ratios`, if one is given, before a model is loaded; raise as `parse_recipe` does."""
    if recipe is not None:
        parse_recipe(recipe, ratios, None)
    elif ratios is not None:
        _parse_ratios(ratios)


def require_one(recipe: str | None, ratios: str | None) -> None:
    """Raise `RecipeError` unless exactly one of the two is given."""
    if (recipe is None) == (ratios is None):
        raise RecipeError("give a recipe or --ratios, one of the two")


def _parse_ratios(text: str) -> list[tuple[float, float]]:
    return [parse_range(part, "--ratios") for part in text.split(",")]


def parse_range(text: str, option: str) -> tuple[float, float]:
    """Return the two numbers of `low:high`; `RecipeError`, which names the option, for any other text."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise RecipeError(f"cannot read {option} {brief(text)}: expected low:high, such as 0.1:1") from None
    return low, high
