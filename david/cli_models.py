"""The commands about a model as a whole: `check` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from david.inputs import load, load_with_recipe, named_base, tell_other_weights
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
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint goes: a folder that is new or empty.")],
    model: Annotated[str | None, typer.Option(help="The base; left out, the one that the recipe file names.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="The largest file of weights.")] = "5GB",
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Write a recipe as an ordinary checkpoint, its layers really stacked, for engines that cannot sling.

    Example: david export "0:12, 8:30" stacked --model demo
    """
    from david.recipe import Recipe

    wanted = Recipe.of(recipe)
    source = model or named_base(wanted)

    from david import checkpoint

    checkpoint.check_target(folder)
    checkpoint.check_recipe(wanted)
    loaded, tokenizer = load(source, dtype, device)
    tell_other_weights(wanted, loaded)
    checkpoint.export(loaded, wanted, folder, tokenizer=tokenizer, max_shard_size=max_shard_size, progress=True)
    typer.echo(f"{folder}: {len(wanted)} layers, {checkpoint.folder_size(folder)}")
