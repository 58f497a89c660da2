"""The commands that let a model write: `generate` and `chat`."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from david.cli.chat_repl import Session, lines, put, show_pieces, typed
from david.cli.inputs import check_recipe, load_with_recipe, recipe_of
from david.cli.options import Device, Dtype, Json, Model, Ratios, RecipesOption, Seed
from david.cli.output import print_found
from david.errors import DavidError
from david.support.text import plain, printable

if TYPE_CHECKING:
    from david.chat.generation import TextGenerator
    from david.recipe.recipe import Recipe

Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that have so much probability together.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
System = Annotated[str | None, typer.Option(help="A system text, before all else.")]


def generate(
    model: Model = "demo",
    prompt: Annotated[
        str, typer.Option(help="What the model is to go on from; - reads it from standard input.")
    ] = "The capital of France is",
    recipe: RecipesOption = None,
    ratios: Ratios = None,
    max_new_tokens: MaxNewTokens = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    system: System = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Let a model write on from a prompt, as its base or by recipes, each under its name where there are several.

    Example: david generate demo --recipe "0:12, 8:30" --prompt "Once upon a time"
    """
    _check(recipe)
    if system is not None and not chat:
        raise DavidError("--system is of a chat: add --chat")
    prompt = typed(sys.stdin.read) if prompt == "-" else prompt
    from david.chat.conversation import BASE, encodable, template_tokens
    from david.chat.generation import Sampling, TextGenerator
    from david.recipe.recipe import Recipe
    from david.sling.in_place import base_depth

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    n_layers = base_depth(loaded)
    wanted = _wanted(loaded, model, own, recipe)
    if ratios is not None:
        wanted.append((f"ratios {ratios}", recipe_of(None, ratios, n_layers)))
    prompt = encodable(prompt)
    if chat and not tokenizer.chat_template:
        raise DavidError(f"{model} has no chat template: leave --chat out")
    said = [{"role": "user", "content": prompt}]
    tokens = template_tokens(tokenizer, said, system=system) if chat else tokenizer(prompt).input_ids
    voices = [TextGenerator(name, one, loaded) for name, one in wanted or [(BASE, Recipe.identity(n_layers))]]
    found = []
    for voice in voices:
        pieces = voice.write(tokenizer, tokens, sampling, trim=chat)
        if as_json:
            found.append({"recipe": voice.name, "map": str(voice.recipe)} | _told(voice, "".join(pieces)))
        else:
            head = "" if len(voices) == 1 else f"{'' if voice is voices[0] else chr(10)}== {plain(voice.name)}\n"
            show_pieces(pieces, head + ("" if chat else printable(prompt)))
    if as_json:
        print_found(found, "", as_json)


def chat(
    model: Model = "demo",
    recipe: RecipesOption = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.3,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Talk to a model and to recipes on its weights, which answer in turn or side by side; /help tells the commands.

    Messages are read from the terminal, or from standard input, one a line: then nothing but answers is printed.

    Example: david chat demo --recipe "0:12, 8:12*0.3, 12:30"
    """
    _check(recipe)
    from david.chat.conversation import Chat
    from david.chat.generation import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    talk = Chat(loaded, tokenizer, system=system, sampling=sampling)
    for name, one in _wanted(loaded, model, own, recipe):
        talk.add(one, name=name)
    talk.use(min(1, len(talk.voices) - 1))
    session = Session(talk, loaded, sys.stdin.isatty() and sys.stdout.isatty())
    if session.seen:
        many = len(talk.voices) - 1
        beside = f", the base and {many} recipe{'s'[: many > 1]} on one set of weights" if many else ""
        put(f"{plain(model)}{beside}. /help tells the commands; Ctrl-D leaves.\n")
    failed = False
    for line in lines(session.seen):
        try:
            if not session.take(line):
                break
        except DavidError as error:
            failed = True
            sys.stderr.write(f"error: {plain(str(error))}\n")
    if failed and not session.seen:
        raise typer.Exit(1)


def _check(recipes: list[str] | None) -> None:
    """What is wrong with recipes by themselves, told before a model is loaded."""
    for recipe in recipes or ():
        if recipe != "base":
            check_recipe(recipe, None)


def _wanted(loaded: Any, model: str, own: "Recipe | None", recipes: list[str] | None) -> list[tuple[str, "Recipe"]]:
    """The recipes of a command line with their names: that which MODEL is, and those given beside it."""
    from david.chat.conversation import BASE, name_of
    from david.recipe.recipe import Recipe
    from david.sling.in_place import base_depth

    n_layers = base_depth(loaded)
    wanted = [] if own is None else [(model, own)]
    for text in recipes or ():
        recipe = Recipe.identity(n_layers) if text == BASE else recipe_of(text, None, n_layers, loaded)
        wanted.append((text if text == BASE else name_of(text, recipe), recipe))
    return wanted


def _told(voice: "TextGenerator", text: str) -> dict[str, Any]:
    assert voice.answer is not None
    told = asdict(voice.answer)
    return {"text": text, "tokens": told["tokens"], "seconds": round(told["seconds"], 3), "ended": told["ended"]}
