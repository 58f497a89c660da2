"""The commands that read, check and write recipes: `explain`, `convert`, `check` and `export`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from david.cli.inputs import (
    load_base_model,
    load_recipe_base,
    parse_recipe,
    preview_base,
    preview_recipe,
    require_one,
)
from david.cli.option_groups import Omit
from david.cli.options import OUTPUT, Json, ModelOptions, Ratios
from david.cli.output import print_result
from david.errors import RecipeError
from david.notation.formats import FORMATS, WRITABLE, format_named, read, write
from david.support.console import say
from david.support.text import join_or

if TYPE_CHECKING:
    from david.recipe.base_model import Base
    from david.recipe.recipe import Recipe


_RECIPE = typer.Argument(metavar="RECIPE", help="A recipe JSON, or a recipe's notation: '0:12, 8:30'.")


def explain(
    recipe: Annotated[str | None, _RECIPE] = None,
    ratios: Ratios = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base: adds costs in bytes and weights. Its weights are not loaded."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain what a recipe does and what it costs, without loading weights.

    Example: david explain "0:12, 8:30" --model demo
    """
    from david.recipe.explain import explain as explain_recipe

    require_one(recipe, ratios)
    if ratios is not None and model is None:
        raise RecipeError("--ratios requires --model, which gives the depth")
    costs = None
    if model is not None:
        from david.models.without_weights import read_costs

        costs = read_costs(model)
    n_layers = None if costs is None else len(costs.layer_parameters)
    parsed = parse_recipe(recipe, ratios, n_layers)
    if model is not None:
        from david.models.without_weights import note_other_stored_weights

        note_other_stored_weights(parsed, model)
    explanation = explain_recipe(parsed, costs)
    print_result(explanation.to_dict(), str(explanation), as_json)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe JSON, a recipe's notation, or a file or text in another tool's format."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(metavar="FORMAT", help=f"{join_or(WRITABLE)}."),
    ] = "david",
    source_format: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"The format of RECIPE: {join_or(FORMATS)}. Default: detected.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base: its name, depth and architecture. Its weights are not loaded."),
    ] = None,
    to_layers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Transfer the recipe to a sibling of N layers, by fractions of depth."),
    ] = None,
    rank: Annotated[
        int, typer.Option(min=1, metavar="N", help="Which recipe of a file with several (layer-scan, polar) to read.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=OUTPUT, help="The file to write. Default: print the text."),
    ] = None,
) -> None:
    """Translate a recipe into another tool's format, or from it. What a format cannot express is refused.

    Example: david convert "0:12, 8:30" --to mergekit --model demo
    """
    from david.notation import rescale

    if out is not None and not out.name:
        raise RecipeError(f"--out must be the name of a file; got {str(out)!r}")
    target = format_named(to, WRITABLE)
    base = place = None
    unchanged_lists: tuple[str, ...] = ()
    if model is not None:
        from david.models.without_weights import note_other_stored_weights, read_base, tool_path

        base, unchanged_lists = read_base(model)
        place = tool_path(model) if target.names_base else None
    n_layers, architecture = (base.num_layers, base.architecture) if base else (None, None)
    recipe = read(source, source_format, n_layers=n_layers, architecture=architecture, rank=rank)
    if base is not None and model is not None:
        if recipe.base is not None and recipe.base.architecture in (None, base.architecture):
            note_other_stored_weights(recipe, model)
        recipe = _with_base(recipe, base)
    if to_layers is not None and target.names_base:
        raise RecipeError(f"{to} names the base, here a sibling: write david first, then convert that with --model")
    if to_layers is not None:
        recipe, place = rescale.moved(recipe, to_layers), None
    text = write(recipe, to, model=place).rstrip("\n") + "\n"
    if unchanged_lists and to_layers is None and target.keeps_layer_settings:
        say(
            f"note: {to} leaves {', '.join(unchanged_lists)} as in the base, which does not follow the recipe: its "
            "model fails or is another one; david export writes a correct one"
        )
    if out is None:
        typer.echo(text, nl=False)
        return
    from david.support.files import write_atomically

    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))
    typer.echo(f"{out}: {len(recipe)} visits, as {to}")


def _with_base(recipe: "Recipe", base: "Base") -> "Recipe":
    """Return a recipe with the base that `--model` names.

    If `--model` is a folder, a name that others can follow stays. What was measured on a base of another architecture
    is left out. For the same architecture, the fingerprint stays: it tells on which weights the recipe was measured.
    """
    former = recipe.base
    if former is None:
        return replace(recipe, base=base)
    if former.architecture not in (None, base.architecture):
        say(
            f"note: the recipe was made for {former.architecture}: it is written for {base.model}, without fingerprint "
            "and scores"
        )
        return replace(recipe, base=base, scores=(), search=None)
    update = {"architecture": base.architecture}
    if former.model in (None, base.model) or not os.path.exists(base.model or ""):
        is_same = former.model == base.model
        update |= {"model": base.model, "revision": base.revision or (former.revision if is_same else None)}
        if former.model is not None and not is_same:
            say(
                f"note: the recipe was made for {former.model}: it is written for {base.model}, with the fingerprint "
                f"of {former.model}"
            )
    return replace(recipe, base=former.model_copy(update=update))


def check(model: ModelOptions = ModelOptions(), as_json: Json = False) -> None:
    """Check that a model slings exactly, on recipes that stress it and on MODEL's own; exit 1 if it does not.

    Example: david check demo
    """
    loaded, _, recipe = model.load_with_recipe(prove_new=False)
    from david.sling.verify import check_model

    certificate = check_model(loaded, recipe=recipe)
    print_result(certificate.to_dict(), str(certificate), as_json)
    if not certificate.passed:
        raise typer.Exit(1)


def export(
    recipe: Annotated[str, _RECIPE],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write: a folder that is new or empty.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base. Default: the base that the recipe file names.")
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(help="Write weights. --no-weights: only the recipe, a model card and a picture, for the Hub."),
    ] = True,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The largest file of weights.")] = "5GB",
    loading: Annotated[ModelOptions, Omit(("model",))] = ModelOptions(),
) -> None:
    """Write a recipe as an ordinary checkpoint, its layers copied, for engines that cannot sling.

    With --no-weights, write only the recipe, a model card and a picture: a folder for the Hub.

    Example: david export "0:12, 8:30" stacked --model demo
    """
    from david.recipe.base_model import named_base
    from david.recipe.recipe import Recipe

    parsed = Recipe.of(recipe)
    if weights and model is None:
        named_base(parsed.base, "--model")  # refuses a recipe without a base before anything heavy is imported
    elif model is None and (parsed.base is None or parsed.base.fingerprint is None):
        raise RecipeError("the recipe does not say which weights are its base: name them with --model")

    from david.checkpoint import export_stacked as checkpoints

    checkpoints.check_target(folder)
    if weights:
        checkpoints.check_exportable(parsed)
    if model is not None or weights:
        preview_recipe(preview_base(parsed if model is None else model, loading.load_options(), "--model"), recipe)
    loaded = tokenizer = None
    if model is not None:
        from david.models.load import note_other_weights

        loaded, tokenizer = load_base_model(model, loading.load_options())
        note_other_weights(parsed, loaded)
    elif weights:
        loaded, tokenizer = load_recipe_base(parsed, loading.load_options())
    if weights:
        checkpoints.export(loaded, parsed, folder, tokenizer=tokenizer, max_shard_size=max_shard_size, progress=True)
        typer.echo(f"{folder}: {len(parsed)} layers, {checkpoints.folder_size(folder)}")
    else:
        checkpoints.write_hub_folder(parsed, folder, model=loaded)
        typer.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
