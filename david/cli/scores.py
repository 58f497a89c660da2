"""The commands that score recipes: `score` and `compare`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from david.cli.inputs import bytes_of, check_recipe, check_tasks, corpus_of, load_with_recipe, objective_of, recipe_of
from david.cli.options import (
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
    Limit,
    MemoryBudget,
    Model,
    PromptColumn,
    Ratios,
    RecipeOption,
    Slice,
    Stride,
    TasksOption,
    Window,
    Windows,
)
from david.cli.output import figures, figures_text, print_found
from david.errors import CorpusError
from david.metrics import units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from david.metrics.paired_test import Difference
    from david.metrics.score import Score
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus


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
    tasks: TasksOption = None,
    limit: Limit = None,
    memory_budget: MemoryBudget = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Perplexity of a model (of questions its accuracy), and of a recipe on it beside its base; tasks beside it.

    Example: david score demo --recipe "0:12, 8:30" --windows 4
    """
    check_recipe(recipe, ratios)
    check_tasks(tasks, limit)
    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    corpus = corpus_of(
        tokenizer, data, slice, window, bos, column, prompt_column, gold_column, convention, stride
    ).take(windows)
    from david.engine.engine import score_recipes
    from david.recipe.recipe import Recipe
    from david.scoring.tasks import load as load_tasks
    from david.sling.in_place import base_depth
    from david.study.signature import data_of

    n_layers = base_depth(loaded)
    if recipe is not None or ratios is not None:
        own = recipe_of(recipe, ratios, n_layers, loaded)
    wanted = [] if own is None else [own]
    asked = None if tasks is None else load_tasks(tasks, loaded, tokenizer, limit=limit)
    both = [Recipe.identity(n_layers), *wanted]
    scores = score_recipes(
        loaded,
        both,
        corpus,
        objective=objective_of(convention, gold_column),
        memory_budget=bytes_of(memory_budget),
    )
    base = scores[0]
    found: dict[str, Any] = {
        "model": model,
        "data": data_of(corpus),
        "convention": {"name": base.convention, "window": corpus.window, "bos": corpus.bos},
        "tokens": base.tokens,
        **_beside(scores, wanted),
    }
    unit = "question" if base.right else "token"
    lines = [f"{corpus}, {base.tokens} {unit}s scored by convention {base.convention}", *_lines(scores, wanted)]
    lines += _of_one_document([corpus])
    if asked is not None:
        found["tasks"] = {}
        for name, documents in asked.each.items():
            scores = score_recipes(loaded, both, documents, objective=asked, progress=True)
            its = {"documents": len(documents), "measured": scores[0].convention, "unit": scores[0].unit}
            found["tasks"][name] = {**its, "data": data_of(documents), **_beside(scores, wanted)}
            lines += ["", f"{documents}, measured by {scores[0].convention}", *_lines(scores, wanted)]
    print_found(found, "\n".join(lines), as_json)


def compare(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder, a .gguf file, demo, or a recipe: the first, then.")],
    recipes: Annotated[list[str], typer.Argument(help="Recipe JSONs, or notations: '0:12, 8:30'.", metavar="RECIPE…")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="A text, JSON lines, parquet or CSV file, or a Hub dataset; may come several times."
        ),
    ] = None,
    slice: Slice = None,  # noqa: A002
    column: Column = "text",
    prompt_column: PromptColumn = None,
    gold_column: GoldColumn = None,
    window: Window = 512,
    windows: Windows = 8,
    tasks: TasksOption = None,
    limit: Limit = None,
    decode: Annotated[int, typer.Option(min=0, help="New tokens of a timing; 0 times nothing.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each recipe, in turn; the median is told.")] = 5,
    memory_budget: MemoryBudget = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Several recipes and their base, side by side: on texts and tasks, what they cost, and how fast they decode.

    Slice and columns are of the data that have columns: a text file beside them is read as it is.

    Example: david compare demo "0:12, 8:30" "0:12, 8:12*0.3, 12:30" --windows 4
    """
    for recipe in recipes:
        check_recipe(recipe, None)
    check_tasks(tasks, limit)
    sources = data or [DEFAULT_DATA]

    from david.analysis.compare import compare as side_by_side
    from david.analysis.compare import comparison_text
    from david.scoring.sources import is_text
    from david.sling.in_place import base_depth
    from david.study.signature import data_of

    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    wanted = [recipe_of(recipe, None, base_depth(loaded), loaded) for recipe in recipes]
    wanted = wanted if own is None else [own, *wanted]
    has_table = not all(map(is_text, sources))
    corpora: dict[str, Any] = {}
    for source in sources:
        if has_table and is_text(source):
            corpus = corpus_of(tokenizer, source, None, window, None, "text", None, None)
        else:
            corpus = corpus_of(tokenizer, source, slice, window, None, column, prompt_column, gold_column)
        objective = objective_of(Convention.window, gold_column if corpus.choices else None)
        _add(corpora, corpus.source, (objective, corpus.take(windows)))
    if tasks is not None:
        from david.scoring.tasks import load as load_tasks

        asked = load_tasks(tasks, loaded, tokenizer, limit=limit)
        for name, documents in asked.each.items():
            _add(corpora, name, (asked, documents))
    budget = bytes_of(memory_budget)
    table = side_by_side(loaded, wanted, corpora, decode=decode, rounds=rounds, memory_budget=budget, progress=True)
    its = table.to_dict("records")
    on = {name: {"unit": table.attrs["units"][name], "data": data_of(corpus)} for name, (_, corpus) in corpora.items()}
    found = {"model": model, "corrected_for": len(its) - 1, "on": on, "recipes": its}
    n = len(its) - 1
    note = f"differences are recipe minus base, below 0 is better; ± is half a 95% interval, corrected for {n} recipe"
    notes = [f"{note}{'s' * (n != 1)}", *_of_one_document([corpus for _, corpus in corpora.values()])]
    print_found(found, "\n".join([comparison_text(table), "", *notes]), as_json)


def _of_one_document(corpora: "Sequence[Corpus]") -> list[str]:
    """What to know of intervals where a corpus has windows of one document alone."""
    few = [corpus for corpus in corpora if len(set(corpus.documents)) == 1 and len(corpus.items()) > 1]
    return [
        f"note: {corpus} is of one document: its windows were taken as independent, which they are not; take more"
        for corpus in few
    ]


def _add(corpora: dict[str, Any], name: str, what: Any) -> None:
    if name in corpora:
        raise CorpusError(f"{name} is there twice: give each of the data and tasks once, under a name of its own")
    corpora[name] = what


def _beside(scores: "Sequence[Score]", wanted: "Sequence[Recipe]") -> dict[str, Any]:
    """The base's score, and that of the recipe beside it where there is one, for a machine."""
    base, *others = scores
    found: dict[str, Any] = {"base": figures(base)}
    for given, its in zip(wanted, others, strict=True):
        difference = _difference(its, base)
        interval = [difference.low, difference.high]
        mean = "nll_difference" if units.is_nll(base.unit) else "difference"
        found["recipe"] = {"map": str(given)} | figures(its)
        found["recipe"] |= {mean: difference.mean, "interval95": interval, "verdict": difference.word}
    return found


def _lines(scores: "Sequence[Score]", wanted: "Sequence[Recipe]") -> list[str]:
    """The same for a person."""
    base, *others = scores
    lines = [f"base    {figures_text(base)}"]
    for given, its in zip(wanted, others, strict=True):
        difference = _difference(its, base)
        lines.append(f"recipe  {figures_text(its)}  {given}")
        lines.append(
            f"        {difference.mean:+.6f} {units.behind(base.unit)}, paired 95% interval "
            f"{difference.low:+.6f} to {difference.high:+.6f}: {difference.word}"
        )
    return lines


def _difference(its: "Score", base: "Score") -> "Difference":
    from david.metrics.paired_test import paired_difference

    return paired_difference(its.window_nll, base.window_nll, base.window_tokens, documents=base.documents)
