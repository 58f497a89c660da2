"""The commands that read and write recipes: `explain` and `convert`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from david.errors import RecipeError
from david.inputs import one_of, recipe_of
from david.messages import say
from david.options import Json, Ratios
from david.printing import print_found

if TYPE_CHECKING:
    from david.origin import Base
    from david.recipe import Recipe


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
    from david.explain import explain as tell

    one_of(recipe, ratios)
    if ratios is not None and model is None:
        raise RecipeError("--ratios need --model, whose depth they are of")
    costs = None
    if model is not None:
        from david.models import read_costs

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
        typer.Option(help="david, notation, mergekit, rys, rys_relayer, exllamav3, exllamav2, peft or drllm."),
    ] = "david",
    source_format: Annotated[
        str | None, typer.Option("--from", help="What RECIPE is written in, layer-scan too; left out, its looks tell.")
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
    from david import notation

    if out is not None and not out.name:
        raise RecipeError(f"--out must be the name of a file; got {str(out)!r}")
    base = place = None
    lists: tuple[str, ...] = ()
    if model is not None:
        from david.models import place_of, read_base

        base, lists = read_base(model)
        place = place_of(model) if to in ("mergekit", "rys_relayer") else None
    n_layers, architecture = (base.num_layers, base.architecture) if base else (None, None)
    found = notation.read(recipe, source_format, n_layers=n_layers, architecture=architecture, rank=rank)
    if base is not None:
        found = _of(found, base)
    if to_layers is not None and to in ("mergekit", "rys_relayer"):
        raise RecipeError(f"{to} names the base, here a sibling: write david first, then convert that with --model")
    if to_layers is not None:
        found, place = notation.moved(found, to_layers), None
    text = notation.write(found, to, model=place).rstrip("\n") + "\n"
    if lists and to_layers is None and to in ("mergekit", "peft"):
        typer.echo(
            f"note: {to} leaves {', '.join(lists)} as the base has it, which does not follow the recipe: its "
            "model fails or is another one; david export writes one that is right",
            err=True,
        )
    if out is None:
        typer.echo(text, nl=False)
        return
    from david.report import put

    put(out, lambda path: path.write_text(text, encoding="utf-8"))
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
