"""The commands that score recipes: `score` and `compare`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from david.cli.inputs import (
    check_recipe_options,
    load_with_recipe,
    memory_bytes,
    parse_recipe,
    preview_base,
    preview_corpus,
    preview_recipe,
)
from david.cli.option_groups import Omit
from david.cli.options import (
    DATA,
    DataOptions,
    Json,
    MemoryBudget,
    ModelOptions,
    Ratios,
    RecipeOption,
    TaskOptions,
)
from david.cli.output import cut_notes, figures, figures_text, print_result
from david.errors import CorpusError
from david.metrics import units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from david.metrics.paired_test import Difference
    from david.metrics.score import Score
    from david.models.without_weights import Preview
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus

_SCORE_DATA = DataOptions(window=512, windows=8)


def score(
    model: ModelOptions = ModelOptions(),
    recipe: RecipeOption = None,
    ratios: Ratios = None,
    data: DataOptions = _SCORE_DATA,
    tasks: TaskOptions = TaskOptions(),
    memory_budget: MemoryBudget = None,
    as_json: Json = False,
) -> None:
    """Score a model, and a recipe on it: perplexity of a text, accuracy on questions, and results of tasks.

    Example: david score demo --recipe "0:12, 8:30" --windows 12
    """
    check_recipe_options(recipe, ratios)
    tasks.check()
    budget = memory_bytes(memory_budget)
    preview = model.preview()
    if recipe is not None or ratios is not None:
        preview_recipe(preview, recipe, ratios)
    corpus = preview_corpus(preview, _for_source(data, data.data, tasks))
    objective = data.objective()

    loaded, tokenizer, own_recipe = model.load_with_recipe()
    from david.engine.engine import score_recipes
    from david.recipe.recipe import Recipe
    from david.sling.in_place import base_depth
    from david.study.signature import describe_data

    n_layers = base_depth(loaded)
    if recipe is not None or ratios is not None:
        own_recipe = parse_recipe(recipe, ratios, n_layers, loaded)
    recipes = [] if own_recipe is None else [own_recipe]
    loaded_tasks = tasks.load(loaded, tokenizer, data.group_column)
    base_and_recipes = [Recipe.identity(n_layers), *recipes]
    scores = score_recipes(loaded, base_and_recipes, corpus, objective=objective, memory_budget=budget)
    base = scores[0]
    result: dict[str, Any] = {
        "model": model.model,
        "data": describe_data(corpus),
        "convention": {"name": base.convention, "window": corpus.window, "bos": corpus.bos},
        "tokens": base.tokens,
        **_scores_as_json(scores, recipes),
    }
    unit = "question" if base.right else "token"
    lines = [f"{corpus}, {base.tokens} {unit}s scored by convention {base.convention}", *_score_lines(scores, recipes)]
    scored = [corpus]
    if loaded_tasks is not None:
        result["tasks"] = {}
        for name, documents in loaded_tasks.each.items():
            scores = score_recipes(loaded, base_and_recipes, documents, objective=loaded_tasks, progress=True)
            measure = {"documents": len(documents), "measured": scores[0].convention, "unit": scores[0].unit}
            result["tasks"][name] = {**measure, "data": describe_data(documents), **_scores_as_json(scores, recipes)}
            lines += ["", f"{documents}, measured by {scores[0].convention}", *_score_lines(scores, recipes)]
            lines += cut_notes(score.cut_share for score in scores)
            scored.append(documents)
    result["notes"] = _document_notes(scored) if recipes else []  # without a recipe there is no interval
    print_result(result, "\n".join([*lines, *(f"note: {note}" for note in result["notes"])]), as_json)


def compare(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hub id, a folder, a .gguf file, demo, or a recipe JSON, which is compared first."
        ),
    ],
    recipes: Annotated[list[str], typer.Argument(help="Recipe JSONs, or notations: '0:12, 8:30'.", metavar="RECIPE…")],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="DATA",
            rich_help_panel=DATA,
            help="A text, JSON lines, parquet or CSV file, or a Hub dataset. Repeatable. Default: python-topics.",
        ),
    ] = None,
    data: Annotated[DataOptions, Omit(("data", "convention", "stride", "bos"))] = _SCORE_DATA,
    tasks: TaskOptions = TaskOptions(),
    decode: Annotated[
        int, typer.Option(min=0, metavar="N", help="Tokens to generate in a timing; 0: no timings.")
    ] = 16,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timings of each recipe, in turn; their median is shown.")
    ] = 5,
    memory_budget: MemoryBudget = None,
    loading: Annotated[ModelOptions, Omit(("model",))] = ModelOptions(),
    as_json: Json = False,
) -> None:
    """Compare several recipes and their base: scores on texts and tasks, costs, and decoding speed.

    --slice and the column options apply to data with columns; a text file given with such data is read whole.

    Example: david compare demo "0:12, 8:30" "0:12, 8:12*0.3, 12:30" --windows 12
    """
    for recipe in recipes:
        check_recipe_options(recipe, None)
    tasks.check()
    budget = memory_bytes(memory_budget)
    preview = preview_base(model, loading.load_options())
    for recipe in recipes:
        preview_recipe(preview, recipe)
    corpora = _corpora_to_compare(sources or [data.data], data, tasks, preview)

    from david.analysis.compare import compare as compare_recipes
    from david.analysis.compare import comparison_text
    from david.sling.in_place import base_depth
    from david.study.signature import describe_data

    loaded, tokenizer, own_recipe = load_with_recipe(model, loading.load_options())
    compared = [parse_recipe(recipe, None, base_depth(loaded), loaded) for recipe in recipes]
    compared = compared if own_recipe is None else [own_recipe, *compared]
    loaded_tasks = tasks.load(loaded, tokenizer, data.group_column)
    if loaded_tasks is not None:
        for name, documents in loaded_tasks.each.items():
            _add_corpus(corpora, name, (loaded_tasks, documents))
    table = compare_recipes(
        loaded,
        compared,
        corpora,
        decode=decode,
        rounds=rounds,
        memory_budget=budget,
        progress=True,
    )
    rows = table.to_dict("records")
    n_recipes = len(rows) - 1
    on = {
        name: {"unit": table.attrs["units"][name], "data": describe_data(corpus)}
        for name, (_, corpus) in corpora.items()
    }
    few = _document_notes([corpus for _, corpus in corpora.values()])
    result = {"model": model, "corrected_for": n_recipes, "on": on, "recipes": rows, "notes": few}
    note = f"differences: recipe − base, below 0 is better; ± half of a 95% interval, corrected for {n_recipes} recipe"
    notes = [f"{note}{'s' * (n_recipes != 1)}", *(f"note: {line}" for line in few)]
    notes += cut_notes(row[f"{name}_cut"] for row in rows for name in on if f"{name}_cut" in row)
    print_result(result, "\n".join([comparison_text(table), "", *notes]), as_json)


def _corpora_to_compare(
    sources: "Sequence[str]", data: DataOptions, tasks: TaskOptions, preview: "Preview"
) -> dict[str, Any]:
    """Return pairs of an objective and its corpus, by the name of each source."""
    from david.scoring.sources import is_text

    corpora: dict[str, Any] = {}
    has_table = not all(map(is_text, sources))
    for source in sources:
        options = data.without_columns() if has_table and is_text(source) else data
        corpus = preview_corpus(preview, _for_source(options, source, tasks), source)
        options = data if corpus.choices else data.without_columns()
        _add_corpus(corpora, corpus.source, (options.objective(), corpus))
    return corpora


def _for_source(data: DataOptions, source: str, tasks: TaskOptions) -> DataOptions:
    """Return the options for a source: beside tasks, `--group-column` is of the tasks alone if the source is text."""
    from david.scoring.sources import is_text

    return replace(data, group_column=None) if tasks.tasks is not None and is_text(source) else data


def _document_notes(corpora: "Sequence[Corpus]") -> list[str]:
    """Return a sentence for each corpus whose windows come from too few documents for an interval."""
    from david.report.sentences import few_documents

    notes = [few_documents(str(corpus), corpus.clusters) for corpus in corpora]
    return [note for note in notes if note]


def _add_corpus(corpora: dict[str, Any], name: str, corpus: Any) -> None:
    if name in corpora:
        raise CorpusError(f"{name} occurs twice: name each of the data and tasks once, by a name of its own")
    corpora[name] = corpus


def _scores_as_json(scores: "Sequence[Score]", recipes: "Sequence[Recipe]") -> dict[str, Any]:
    """Return the base's score, and that of a recipe if there is one, for a machine."""
    base, *others = scores
    result: dict[str, Any] = {"base": figures(base)}
    for recipe, score in zip(recipes, others, strict=True):
        difference = _difference(score, base)
        interval = [difference.low, difference.high]
        mean = "nll_difference" if units.is_nll(base.unit) else "difference"
        result["recipe"] = {"map": str(recipe)} | figures(score)
        result["recipe"] |= {mean: difference.mean, "interval95": interval, "verdict": difference.word}
    return result


def _score_lines(scores: "Sequence[Score]", recipes: "Sequence[Recipe]") -> list[str]:
    """Return the base's score, and that of a recipe if there is one, as lines of text."""
    from david.report.formatting import verdict_text

    base, *others = scores
    lines = [f"base    {figures_text(base)}"]
    for recipe, score in zip(recipes, others, strict=True):
        difference = _difference(score, base)
        lines.append(f"recipe  {figures_text(score)}  {recipe}")
        lines.append(
            f"        {difference.mean:+.6f} {units.difference_unit(base.unit)}, paired 95% interval "
            f"{difference.low:+.6f} to {difference.high:+.6f}: {verdict_text(difference.word)}"
        )
    return lines


def _difference(score: "Score", base: "Score") -> "Difference":
    from david.metrics.paired_test import paired_difference

    return paired_difference(score.window_nll, base.window_nll, base.window_tokens, documents=base.documents)
