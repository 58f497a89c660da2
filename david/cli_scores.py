"""The commands that score recipes: `score`."""

from typing import Any

from david.inputs import bytes_of, check_recipe, corpus_of, load_with_recipe, objective_of, recipe_of
from david.options import (
    DEFAULT_DATA,
    Bos,
    Column,
    Convention,
    ConventionOption,
    DataOption,
    Device,
    Dtype,
    GoldColumn,
    Json,
    MemoryBudget,
    Model,
    PromptColumn,
    Ratios,
    RecipeOption,
    Slice,
    Stride,
    Window,
    Windows,
)
from david.printing import figures, figures_text, print_found


def score(
    model: Model = "demo",
    recipe: RecipeOption = None,
    ratios: Ratios = None,
    data: DataOption = DEFAULT_DATA,
    slice: Slice = None,  # noqa: A002
    column: Column = "text",
    prompt_column: PromptColumn = None,
    gold_column: GoldColumn = None,
    window: Window = 512,
    windows: Windows = 8,
    convention: ConventionOption = Convention.window,
    stride: Stride = None,
    bos: Bos = None,
    memory_budget: MemoryBudget = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Perplexity of a model (of questions its accuracy), and of a recipe on it beside its base.

    Example: david score demo --recipe "0:12, 8:30" --windows 4
    """
    check_recipe(recipe, ratios)
    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    corpus = corpus_of(
        tokenizer, data, slice, window, bos, column, prompt_column, gold_column, convention, stride
    ).take(windows)
    from david.engine import score_recipes
    from david.recipe import Recipe
    from david.sling import base_depth
    from david.store import data_of
    from david.verdict import paired_difference

    n_layers = base_depth(loaded)
    if recipe is not None or ratios is not None:
        own = recipe_of(recipe, ratios, n_layers, loaded)
    wanted = [] if own is None else [own]
    base, *others = score_recipes(
        loaded,
        [Recipe.identity(n_layers), *wanted],
        corpus,
        objective=objective_of(convention, gold_column),
        memory_budget=bytes_of(memory_budget),
    )
    found: dict[str, Any] = {
        "model": model,
        "data": data_of(corpus),
        "convention": {"name": base.convention, "window": corpus.window, "bos": corpus.bos},
        "tokens": base.tokens,
        "base": figures(base),
    }
    unit = "question" if base.right else "token"
    lines = [f"{corpus}, {base.tokens} {unit}s scored by convention {base.convention}", f"base    {figures_text(base)}"]
    for given, its in zip(wanted, others, strict=True):
        difference = paired_difference(its.window_nll, base.window_nll, base.window_tokens, documents=base.documents)
        interval = [difference.low, difference.high]
        found["recipe"] = {"map": str(given)} | figures(its)
        found["recipe"] |= {"nll_difference": difference.mean, "interval95": interval, "verdict": difference.word}
        lines.append(f"recipe  {figures_text(its)}  {given}")
        lines.append(
            f"        {difference.mean:+.6f} nats a {unit}, paired 95% interval "
            f"{difference.low:+.6f} to {difference.high:+.6f}: {difference.word}"
        )
    print_found(found, "\n".join(lines), as_json)
