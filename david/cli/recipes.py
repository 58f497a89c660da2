"""The commands that read and write recipes: `explain` and `convert`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from david.cli.inputs import load, load_base_of, load_with_recipe, named_base, one_of, recipe_of, tell_other_weights
from david.cli.options import Device, Dtype, Json, Model, Ratios
from david.cli.output import print_found
from david.errors import RecipeError
from david.notation.formats import FORMATS, WRITABLE, format_named, read, write
from david.support.console import say
from david.support.text import join_or

if TYPE_CHECKING:
    from david.recipe.base_model import Base
    from david.recipe.recipe import Recipe


def explain(
    recipe: Annotated[str | None, typer.Argument(help="A recipe JSON, or its notation: '0:12, 8:30'.")] = None,
    ratios: Ratios = None,
    model: Annotated[
        str | None, typer.Option(help="The base, for costs in bytes and weights; none are loaded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a recipe does and what it costs, without loading weights.

    Example: david explain "0:12, 8:30" --model demo
    """
    from david.recipe.explain import explain as tell

    one_of(recipe, ratios)
    if ratios is not None and model is None:
        raise RecipeError("--ratios need --model, whose depth they are of")
    costs = None
    if model is not None:
        from david.models.load import read_costs

        costs = read_costs(model)
    n_layers = None if costs is None else len(costs.layer_parameters)
    explanation = tell(recipe_of(recipe, ratios, n_layers), costs)
    print_found(explanation.to_dict(), str(explanation), as_json)


def convert(
    recipe: Annotated[
        str, typer.Argument(help="A recipe JSON, its notation, or a file or text in another tool's language.")
    ],
    to: Annotated[
        str,
        typer.Option(help=f"{join_or(WRITABLE)}."),
    ] = "david",
    source_format: Annotated[
        str | None, typer.Option("--from", help=f"RECIPE's format: {join_or(FORMATS)}; left out, it is recognised.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base, for its name, depth and architecture; no weights are loaded.")
    ] = None,
    to_layers: Annotated[
        int | None, typer.Option(min=1, help="Move the recipe to a sibling of so many layers, by fractions of depth.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Which of the best of a layer-scan file.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The file to write; left out, it is printed.")] = None,
) -> None:
    """Translate a recipe into another tool's language, or from one; what it cannot say is refused with the reason.

    Example: david convert "0:12, 8:30" --to mergekit --model demo
    """
    from david.notation import rescale

    if out is not None and not out.name:
        raise RecipeError(f"--out must be the name of a file; got {str(out)!r}")
    target = format_named(to, WRITABLE)
    base = place = None
    lists: tuple[str, ...] = ()
    if model is not None:
        from david.models.load import place_of, read_base

        base, lists = read_base(model)
        place = place_of(model) if target.names_base else None
    n_layers, architecture = (base.num_layers, base.architecture) if base else (None, None)
    found = read(recipe, source_format, n_layers=n_layers, architecture=architecture, rank=rank)
    if base is not None:
        found = _of(found, base)
    if to_layers is not None and target.names_base:
        raise RecipeError(f"{to} names the base, here a sibling: write david first, then convert that with --model")
    if to_layers is not None:
        found, place = rescale.moved(found, to_layers), None
    text = write(found, to, model=place).rstrip("\n") + "\n"
    if lists and to_layers is None and target.keeps_layer_settings:
        typer.echo(
            f"note: {to} leaves {', '.join(lists)} as the base has it, which does not follow the recipe: its "
            "model fails or is another one; david export writes one that is right",
            err=True,
        )
    if out is None:
        typer.echo(text, nl=False)
        return
    from david.support.files import write_atomically

    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))
    typer.echo(f"{out}: {len(found)} visits, as {to}")


def _of(recipe: "Recipe", base: "Base") -> "Recipe":
    """The recipe with the base that `--model` names; a name that others can follow stays, where that is a folder.

    What was measured on a base of another architecture is left out. Of the same, the fingerprint still tells on which
    weights it was.
    """
    its = recipe.base
    if its is None:
        return replace(recipe, base=base)
    if its.architecture not in (None, base.architecture):
        say(f"note: the recipe is of {its.architecture}: it is written for {base.model} without fingerprint and scores")
        return replace(recipe, base=base, scores=(), search=None)
    now = {"architecture": base.architecture}
    if its.model in (None, base.model) or not os.path.exists(base.model or ""):
        same = its.model == base.model
        now |= {"model": base.model, "revision": base.revision or (its.revision if same else None)}
        if its.model is not None and not same:
            say(f"note: the recipe is of {its.model}: it is written for {base.model}, with the former's fingerprint")
    return replace(recipe, base=its.model_copy(update=now))


def check(
    model: Model = "demo",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prove that a model slings exactly, on a few maps that stress it and on a recipe's own; exit 1 if anything fails.

    Example: david check demo
    """
    loaded, _, recipe = load_with_recipe(model, dtype, device, proved=False)
    from david.sling.verify import check_model as certify

    certificate = certify(loaded, recipe=recipe)
    print_found(certificate.to_dict(), str(certificate), as_json)
    if not certificate.passed:
        raise typer.Exit(1)


def export(
    recipe: Annotated[str, typer.Argument(help="A recipe JSON, or its notation: '0:12, 8:30'.")],
    folder: Annotated[Path, typer.Argument(help="Where it goes: a folder that is new or empty.")],
    model: Annotated[str | None, typer.Option(help="The base; left out, the one that the recipe file names.")] = None,
    weights: Annotated[
        bool, typer.Option(help="Without: the recipe alone, with a model card and its picture, ready for the Hub.")
    ] = True,
    max_shard_size: Annotated[str, typer.Option(help="The largest file of weights.")] = "5GB",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Write a recipe as an ordinary checkpoint, its layers really stacked, for engines that cannot sling.

    With --no-weights it is the recipe alone, with a model card and its picture: a folder to be put on the Hub.

    Example: david export "0:12, 8:30" stacked --model demo
    """
    from david.recipe.recipe import Recipe

    wanted = Recipe.of(recipe)
    if weights and model is None:
        named_base(wanted)  # that there is none is told before anything heavy is imported
    elif model is None and (wanted.base is None or wanted.base.fingerprint is None):
        raise RecipeError("the recipe does not say which weights are its base: name them with --model")

    from david.checkpoint import export as checkpoints

    checkpoints.check_target(folder)
    if weights:
        checkpoints.check_recipe(wanted)
    loaded = tokenizer = None
    if model is not None:
        loaded, tokenizer = load(model, dtype, device)
        tell_other_weights(wanted, loaded)
    elif weights:
        loaded, tokenizer = load_base_of(wanted, dtype, device)
    if weights:
        checkpoints.export(loaded, wanted, folder, tokenizer=tokenizer, max_shard_size=max_shard_size, progress=True)
        typer.echo(f"{folder}: {len(wanted)} layers, {checkpoints.folder_size(folder)}")
    else:
        checkpoints.write_hub_folder(wanted, folder, model=loaded)
        typer.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
