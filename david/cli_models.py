"""The commands about a model as a whole: `check` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from david.errors import RecipeError
from david.inputs import load, load_base_of, load_with_recipe, named_base, tell_other_weights
from david.options import Device, Dtype, Json, Model
from david.printing import print_found


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
    from david.check import check as certify

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
    from david.recipe import Recipe

    wanted = Recipe.of(recipe)
    if weights and model is None:
        named_base(wanted)  # that there is none is told before anything heavy is imported
    elif model is None and (wanted.base is None or wanted.base.fingerprint is None):
        raise RecipeError("the recipe does not say which weights are its base: name them with --model")

    from david import checkpoint

    checkpoint.check_target(folder)
    if weights:
        checkpoint.check_recipe(wanted)
    loaded = tokenizer = None
    if model is not None:
        loaded, tokenizer = load(model, dtype, device)
        tell_other_weights(wanted, loaded)
    elif weights:
        loaded, tokenizer = load_base_of(wanted, dtype, device)
    if weights:
        checkpoint.export(loaded, wanted, folder, tokenizer=tokenizer, max_shard_size=max_shard_size, progress=True)
        typer.echo(f"{folder}: {len(wanted)} layers, {checkpoint.folder_size(folder)}")
    else:
        checkpoint.hand_on(wanted, folder, model=loaded)
        typer.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
