"""The command `david`: parses, calls, prints; no logic of its own.

Heavy modules are imported in the commands that need them, so that help and results open in a blink.
"""

import math
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer

from david.cli_studies import profile, report, scan, search
from david.errors import DavidError, RecipeError, one_line, plain
from david.inputs import (
    bytes_of,
    check_recipe,
    corpus_of,
    load,
    named_base,
    objective_of,
    one_of,
    recipe_of,
    tell_other_weights,
)
from david.messages import Unfailing
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
    Seed,
    Slice,
    Stride,
    Window,
    Windows,
)
from david.printing import figures, figures_text, print_found

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rearrange the layers of a language model by reference, score it, search for better ones.",
)


for _command in (search, scan, profile, report):
    app.command()(_command)


@app.command()
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
    loaded, tokenizer = load(model, dtype, device)
    corpus = corpus_of(
        tokenizer, data, slice, window, bos, column, prompt_column, gold_column, convention, stride
    ).take(windows)
    from david.engine import score_recipes
    from david.recipe import Recipe
    from david.sling import base_depth
    from david.store import data_of
    from david.verdict import paired_difference

    n_layers = base_depth(loaded)
    wanted = [] if recipe is None and ratios is None else [recipe_of(recipe, ratios, n_layers, loaded)]
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


@app.command()
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


@app.command()
def check(
    model: Model = "demo",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prove that a model slings exactly, on a few maps that stress it; exit 1 where anything fails.

    Example: david check demo
    """
    loaded, _ = load(model, dtype, device, proved=False)
    from david.check import check as certify

    certificate = certify(loaded)
    print_found(certificate.to_dict(), str(certificate), as_json)
    if not certificate.passed:
        raise typer.Exit(1)


@app.command()
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


@app.command()
def generate(
    model: Model = "demo",
    prompt: Annotated[str, typer.Option(help="What the model is to go on from.")] = "The capital of France is",
    recipe: RecipeOption = None,
    ratios: Ratios = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Let a model write on from a prompt, as its base or slung to a recipe.

    Example: david generate demo --recipe "0:12, 8:30" --prompt "Once upon a time"
    """
    if not math.isfinite(temperature):
        raise DavidError(f"--temperature must be a number from 0 on; got {temperature}")
    check_recipe(recipe, ratios)
    loaded, tokenizer = load(model, dtype, device)
    import torch
    from transformers import TextStreamer

    from david.sling import base_depth, sling

    if recipe is not None or ratios is not None:
        sling(loaded, recipe_of(recipe, ratios, base_depth(loaded), loaded))
    if chat:
        if not tokenizer.chat_template:
            raise DavidError(f"{model} has no chat template: leave --chat out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).to(loaded.device)
    if inputs["input_ids"].shape[1] == 0:
        raise DavidError("the prompt is empty: give --prompt some text")
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True)
    try:
        loaded.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **sampling)
    except RuntimeError as error:  # probabilities that are no numbers
        raise DavidError(f"no token can be drawn at temperature {temperature:g}: {one_line(error)}") from error


def main() -> None:
    """Run the command; what David raises on purpose is one line and exit code 1."""
    with redirect_stderr(cast(TextIO, Unfailing(sys.stderr))):
        try:
            app()
        except DavidError as error:
            sys.stderr.write(f"error: {plain(str(error))}\n")
            sys.exit(1)
