"""What the options of a command stand for: a model, a corpus, a recipe. Heavy modules load where they are needed."""

import logging
from typing import TYPE_CHECKING, Any

import typer

from david.cli.options import Convention
from david.errors import CorpusError, ModelError, RecipeError, ScoreError
from david.recipe import base_model
from david.support.console import say
from david.support.text import brief

if TYPE_CHECKING:
    from collections.abc import Mapping

    from david.candidates.strategies import Strategy
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus


def load(model: str, dtype: str | None, device: str | None, *, proved: bool = True) -> tuple[Any, Any]:
    """A model as its base, and its tokenizer; a type that no proof was made for is proved first.

    Of a MODEL that is a recipe this is the base alone, which is said: for the commands that look at a base.
    """
    loaded, tokenizer, recipe = load_with_recipe(model, dtype, device, proved=proved)
    if recipe is not None:
        say(f"note: {model} is a recipe: it is its base that this looks at")
    return loaded, tokenizer


def load_with_recipe(
    model: str, dtype: str | None, device: str | None, *, proved: bool = True
) -> tuple[Any, Any, "Recipe | None"]:
    """A model as its base, its tokenizer, and the recipe that MODEL is, where it is one.

    A command that takes one recipe puts `--recipe` in its place; one that takes several begins with it.
    """
    from david.models.load import load_weights, recipe_at

    _settle(device)
    recipe = recipe_at(model)
    if recipe is None:
        loaded, tokenizer = _proved(load_weights(model, dtype=dtype, device=device), proved)
    else:
        instead = "MODEL, and the recipe beside it where the command takes one"
        loaded, tokenizer = load_base_of(recipe, dtype, device, instead, proved=proved)
    return loaded, tokenizer, recipe


def load_base_of(
    recipe: "Recipe", dtype: str | None, device: str | None, instead: str = "--model", *, proved: bool = True
) -> tuple[Any, Any]:
    """The model that a recipe names as its base, in the revision that it names, and its tokenizer.

    `instead` is the way to name another that an error tells.
    """
    from david.models.load import load_base

    _settle(device)
    return _proved(load_base(recipe, dtype=dtype, device=device, instead=instead), proved)


def _settle(device: str | None) -> None:
    """Have the libraries say only what is for a person at a command; `ModelError` for a device without values."""
    import optuna
    import transformers

    if device is not None and device.startswith("meta"):
        raise ModelError("on the device meta weights have no values: give cpu, or an accelerator")
    transformers.logging.set_verbosity_error()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _proved(model: tuple[Any, Any], wanted: bool) -> tuple[Any, Any]:
    """A model and its tokenizer, where it is wanted and not done yet after a proof that it slings exactly."""
    from david.sling.locate import is_proved
    from david.sling.verify import prove

    if wanted and not is_proved(model[0]):
        typer.echo(f"david: {type(model[0]).__name__} is new here: proving first that it slings exactly", err=True)
        prove(model[0])
    return model


def corpus_of(
    tokenizer: Any,
    data: str,
    rows: str | None,
    window: int,
    bos: bool | None,
    column: str,
    prompt: str | None,
    gold: str | None,
    convention: Convention = Convention.window,
    stride: int | None = None,
) -> "Corpus":
    """The windows that `--data` and the options beside it stand for."""
    from david.scoring.corpus import Corpus

    if convention is Convention.strided:
        stride = stride or window // 2
    elif stride is not None:
        raise CorpusError("--stride is of strided windows: add --convention strided")
    return Corpus.load(
        data,
        tokenizer,
        slice=rows,
        window=window,
        bos=bos,
        column=column,
        prompt=prompt,
        gold=gold,
        stride=stride,
        rolling=convention is Convention.rolling,
    )


def objective_of(convention: Convention, gold: str | None) -> Any:
    """Perplexity by a convention; of questions with right answers, multiple choice."""
    from functools import partial

    from david.scoring.objectives import multiple_choice, perplexity

    if gold is not None:
        if convention is not Convention.window:
            raise ScoreError(f"questions are scored whole: leave --convention {convention} out")
        return multiple_choice
    return partial(perplexity, convention="llamacpp") if convention is Convention.llamacpp else perplexity


def check_tasks(tasks: str | None, limit: int | None = None, others: "Mapping[str, bool] | None" = None) -> None:
    """What is wrong with `--tasks` by themselves, told before a model is loaded.

    `others` are options that do not go with them, and whether they are given.
    """
    if tasks is None:
        if limit is not None:
            raise CorpusError("--limit is of the documents of tasks: name these with --tasks")
        return
    if given := [option for option, is_given in (others or {}).items() if is_given]:
        raise CorpusError(f"tasks bring their own documents and measures: leave {', '.join(given)} out")
    from david.scoring.tasks import check_names

    check_names(tasks)


def bytes_of(size: str | None) -> int | None:
    """The bytes of a `--memory-budget`."""
    from david.support.memory import as_bytes

    return None if size is None else as_bytes(size, "--memory-budget")


def recipe_of(recipe: str | None, ratios: str | None, n_layers: int | None, loaded: Any = None) -> "Recipe":
    """The recipe that `--recipe` or `--ratios` stand for, checked against a depth where one is given."""
    from david.recipe.recipe import Recipe

    one_of(recipe, ratios)
    if ratios is not None:
        return Recipe.from_ratios(n_layers or 0, _ratios(ratios))
    wanted = Recipe.of(recipe or "")
    if n_layers is not None:
        wanted.check(n_layers)
    if loaded is not None:
        tell_other_weights(wanted, loaded)
    return wanted


def _ratios(text: str) -> list[tuple[float, float]]:
    return [as_range(part, "--ratios") for part in text.split(",")]


def check_recipe(recipe: str | None, ratios: str | None) -> None:
    """What is wrong with a recipe by itself, where one is given, told before a model is loaded."""
    if recipe is not None:
        recipe_of(recipe, ratios, None)
    elif ratios is not None:
        _ratios(ratios)


def strategy_of(
    name: str | None, start: str | None, max_length: int | None, max_visits: int | None, loaded: Any
) -> "Strategy | None":
    """What `--strategy` and the options beside it stand for, for the model that is loaded."""
    from david.candidates.strategies import strategy_named
    from david.sling.in_place import base_depth

    if name is None:
        if start is not None:
            raise RecipeError("--start says where refine begins: add --strategy refine")
        return None
    begin = None if start is None else recipe_of(start, None, base_depth(loaded), loaded)
    return strategy_named(name, max_length=max_length, max_visits=max_visits, start=begin)


def named_base(wanted: "Recipe") -> str:
    """The base that a recipe names, on the Hub or demo: what a recipe says of this machine's files is not followed."""
    return base_model.named_base(wanted.base, "--model")


def tell_other_weights(wanted: "Recipe", loaded: Any) -> None:
    """A note where a recipe was made on other weights than those that are loaded."""
    from david.models.load import tell_other_weights as tell

    tell(wanted, loaded)


def one_of(recipe: str | None, ratios: str | None) -> None:
    """`RecipeError` unless exactly one of the two is given."""
    if (recipe is None) == (ratios is None):
        raise RecipeError("give a recipe or --ratios, one of the two")


def as_range(text: str, option: str) -> tuple[float, float]:
    """What `low:high` stands for; `RecipeError` where it is something else."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise RecipeError(f"cannot read {option} {brief(text)}: expected low:high, such as 0.1:1") from None
    return low, high
