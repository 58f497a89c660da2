"""The commands that generate text: `generate` and `chat`."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from david.cli.chat_repl import Session, print_now, read_lines, read_text, show_pieces
from david.cli.inputs import check_recipe_options, parse_recipe, preview_recipe
from david.cli.options import SAMPLING, Json, ModelOptions, Ratios, RecipesOption, Seed
from david.cli.output import print_result
from david.errors import DavidError
from david.support.text import plain, printable

if TYPE_CHECKING:
    from david.chat.generation import Sampling, TextGenerator
    from david.models.without_weights import Preview
    from david.recipe.recipe import Recipe

System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system message, before the conversation.")]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens of an answer are drawn."""

    panel: ClassVar[str] = SAMPLING
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens in the longest answer.")] = 64
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="T", help="0 takes the most likely token each time.")
    ] = 0.0
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the most likely tokens whose probabilities add up to P.")
    ] = 1.0
    seed: Seed = 0

    def make(self) -> "Sampling":
        """Return the `Sampling`; `DavidError` if a value is out of range."""
        from david.chat.generation import Sampling

        return Sampling(
            temperature=self.temperature, top_p=self.top_p, seed=self.seed, max_new_tokens=self.max_new_tokens
        )


def generate(
    model: ModelOptions = ModelOptions(),
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The text to continue; - reads it from standard input.")
    ] = "The capital of France is",
    recipe: RecipesOption = None,
    ratios: Ratios = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    system: System = None,
    sampling: SamplingOptions = SamplingOptions(),
    as_json: Json = False,
) -> None:
    """Let a model continue a prompt, as its base or by recipes. With several recipes, each text is named.

    Example: david generate demo --recipe "0:12, 8:30" --prompt "Once upon a time"
    """
    _check_recipes(recipe)
    if system is not None and not as_chat:
        raise DavidError("--system requires --chat")
    prompt = read_text(sys.stdin.read) if prompt == "-" else prompt
    from david.chat.conversation import BASE, encodable, template_tokens
    from david.chat.generation import TextGenerator
    from david.recipe.recipe import Recipe
    from david.sling.in_place import base_depth

    draw = sampling.make()
    preview = model.preview()
    _preview_recipes(preview, recipe, ratios)
    prompt = encodable(prompt)
    if as_chat and not preview.tokenizer.chat_template:
        raise DavidError(f"{model.model} has no chat template: leave --chat out")

    loaded, tokenizer, own_recipe = model.load_with_recipe()
    n_layers = base_depth(loaded)
    named = _named_recipes(loaded, model.model, own_recipe, recipe)
    if ratios is not None:
        named.append((f"ratios {ratios}", parse_recipe(None, ratios, n_layers)))
    messages = [{"role": "user", "content": prompt}]
    tokens = template_tokens(tokenizer, messages, system=system) if as_chat else tokenizer(prompt).input_ids
    generators = [TextGenerator(name, one, loaded) for name, one in named or [(BASE, Recipe.identity(n_layers))]]
    answers = []
    for number, generator in enumerate(generators):
        pieces = generator.write(tokenizer, tokens, draw, trim=as_chat)
        if as_json:
            answer = _answer_as_json(generator, "".join(pieces))
            answers.append({"recipe": generator.name, "map": str(generator.recipe)} | answer)
        else:
            blank_line = "\n" if number else ""
            head = f"{blank_line}== {plain(generator.name)}\n" if len(generators) > 1 else ""
            show_pieces(pieces, head + ("" if as_chat else printable(prompt)))
    if as_json:
        print_result(answers, "", as_json)


def chat(
    model: ModelOptions = ModelOptions(),
    recipe: RecipesOption = None,
    system: System = None,
    sampling: SamplingOptions = SamplingOptions(max_new_tokens=512, temperature=0.3, top_p=0.9),
) -> None:
    """Chat with a model and with recipes on its weights, in turn or side by side. /help lists the commands.

    Messages come from the terminal, or from standard input, one per line; then only answers are printed.

    Example: david chat demo --recipe "0:12, 8:12*0.3, 12:30"
    """
    _check_recipes(recipe)
    from david.chat.conversation import Chat

    draw = sampling.make()
    _preview_recipes(model.preview(), recipe)

    loaded, tokenizer, own_recipe = model.load_with_recipe()
    conversation = Chat(loaded, tokenizer, system=system, sampling=draw)
    for name, one in _named_recipes(loaded, model.model, own_recipe, recipe):
        conversation.add(one, name=name)
    conversation.use(min(1, len(conversation.voices) - 1))
    session = Session(conversation, loaded, sys.stdin.isatty() and sys.stdout.isatty())
    if session.interactive:
        n_recipes = len(conversation.voices) - 1
        recipes = f", the base and {n_recipes} recipe{'s'[: n_recipes > 1]} on one set of weights" if n_recipes else ""
        print_now(f"{plain(model.model)}{recipes}. /help lists the commands; Ctrl-D leaves.\n")
    failed = False
    for line in read_lines(session.interactive):
        try:
            if not session.take(line):
                break
        except DavidError as error:
            failed = True
            sys.stderr.write(f"error: {plain(str(error))}\n")
    if failed and not session.interactive:
        raise typer.Exit(1)


def _check_recipes(recipes: list[str] | None) -> None:
    """Check recipes as far as possible without a model; raise `RecipeError` for the first that cannot be one."""
    for recipe in recipes or ():
        if recipe != "base":
            check_recipe_options(recipe, None)


def _preview_recipes(preview: "Preview", recipes: list[str] | None, ratios: str | None = None) -> None:
    """Check recipes with a model that has no weights yet."""
    from david.chat.conversation import BASE

    for recipe in recipes or ():
        if recipe != BASE:
            preview_recipe(preview, recipe)
    if ratios is not None:
        preview_recipe(preview, None, ratios)


def _named_recipes(
    loaded: Any, model: str, own_recipe: "Recipe | None", recipes: list[str] | None
) -> list[tuple[str, "Recipe"]]:
    """Return the recipes of a command line with their names: MODEL if it is one, then the values of `--recipe`."""
    from david.chat.conversation import BASE, recipe_name
    from david.recipe.recipe import Recipe
    from david.recipe.verdict import note_verdict
    from david.sling.in_place import base_depth

    n_layers = base_depth(loaded)
    named = [] if own_recipe is None else [(model, own_recipe)]
    for text in recipes or ():
        recipe = Recipe.identity(n_layers) if text == BASE else parse_recipe(text, None, n_layers, loaded)
        named.append((text if text == BASE else recipe_name(text, recipe), recipe))
    for name, recipe in named:
        note_verdict(recipe, name)
    return named


def _answer_as_json(generator: "TextGenerator", text: str) -> dict[str, Any]:
    assert generator.answer is not None
    answer = asdict(generator.answer)
    return {
        "text": text,
        "tokens": answer["tokens"],
        "seconds": round(answer["seconds"], 3),
        "ended": answer["ended"],
    }
