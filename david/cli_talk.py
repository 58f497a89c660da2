"""The commands that let a model write: `generate` and `chat`."""

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from david.errors import DavidError, plain, printable, reason
from david.inputs import check_recipe, load_with_recipe, recipe_of
from david.options import Device, Dtype, Json, Model, Ratios, RecipesOption, Seed
from david.printing import print_found

if TYPE_CHECKING:
    from david.chat import Chat
    from david.recipe import Recipe
    from david.writing import Voice

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
    prompt = _typed(sys.stdin.read) if prompt == "-" else prompt
    from david.chat import BASE, encodable, template_tokens
    from david.recipe import Recipe
    from david.sling import base_depth
    from david.writing import Sampling, Voice

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
    voices = [Voice(name, one, loaded) for name, one in wanted or [(BASE, Recipe.identity(n_layers))]]
    found = []
    for voice in voices:
        pieces = voice.write(tokenizer, tokens, sampling, trim=chat)
        if as_json:
            found.append({"recipe": voice.name, "map": str(voice.recipe)} | _told(voice, "".join(pieces)))
        else:
            head = "" if len(voices) == 1 else f"{'' if voice is voices[0] else chr(10)}== {plain(voice.name)}\n"
            _show(pieces, head + ("" if chat else printable(prompt)))
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
    from david.chat import Chat
    from david.writing import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
    loaded, tokenizer, own = load_with_recipe(model, dtype, device)
    talk = Chat(loaded, tokenizer, system=system, sampling=sampling)
    for name, one in _wanted(loaded, model, own, recipe):
        talk.add(one, name=name)
    talk.use(min(1, len(talk.voices) - 1))
    session = _Session(talk, loaded, sys.stdin.isatty() and sys.stdout.isatty())
    if session.seen:
        many = len(talk.voices) - 1
        beside = f", the base and {many} recipe{'s'[: many > 1]} on one set of weights" if many else ""
        _put(f"{plain(model)}{beside}. /help tells the commands; Ctrl-D leaves.\n")
    failed = False
    for line in _lines(session.seen):
        try:
            if not session.take(line):
                break
        except DavidError as error:
            failed = True
            sys.stderr.write(f"error: {plain(str(error))}\n")
    if failed and not session.seen:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Session:
    """A conversation at a terminal; `seen` is whether a person sits there, who sees prompts and labels."""

    talk: "Chat"
    loaded: Any
    seen: bool

    def take(self, line: str) -> bool:
        """Do what a line says; whether to go on."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self.answer(line.strip())
            return True
        word, _, rest = line.strip().partition(" ")
        command = _COMMANDS.get(word)
        if command is None:
            raise DavidError(f"no command is called {word}: /help tells them; a blank before it makes it a message")
        return command.run(self, rest.strip()) is not False

    def answer(self, text: str) -> None:
        """Show the answer of the recipe in use."""
        labelled = self.seen and len(self.talk.voices) > 1
        self.show(self.talk.stream(text), _label(self.talk.in_use) if labelled else "")

    def show(self, pieces: Iterator[str], label: str) -> bool:
        """Show an answer as it comes; whether it was left to end."""
        try:
            _show(pieces, label)
        except KeyboardInterrupt:
            if not self.seen:
                raise
            _put("\n(stopped)\n")
            return False
        return True

    def recipe(self, text: str) -> "Recipe":
        """What a recipe's text stands for, with a note where it was made on other weights."""
        return recipe_of(text, None, self.talk.voices[0].recipe.n_layers, self.loaded)


def _use(session: _Session, which: str) -> None:
    from david.chat import BASE, name_of

    talk = session.talk
    if not which:
        raise DavidError("/use takes the number of a recipe, base, or a recipe: /recipes lists them")
    if which.isascii() and which.isdigit():
        talk.use(int(which))
    elif which == BASE:
        talk.use(0)
    else:
        recipe = session.recipe(which)
        talk.use(talk.voices.index(talk.add(recipe, name=name_of(which, recipe))))
    _recipes(session, "")


def _add(session: _Session, which: str) -> None:
    from david.chat import name_of

    recipe = session.recipe(which)
    session.talk.add(recipe, name=name_of(which, recipe))
    _recipes(session, "")


def _recipes(session: _Session, _: str) -> None:
    for number, voice in enumerate(session.talk.voices):
        mark = "*" if voice is session.talk.in_use else " "
        notation = "" if voice.name == str(voice.recipe) else f"  {plain(str(voice.recipe), 60)}"
        _put(f"{mark} {number}  {plain(voice.name, 60)}{notation}  ({len(voice.recipe)} visits)\n")


def _compare(session: _Session, text: str) -> None:
    failure: DavidError | None = None
    with nullcontext(text) if text else _again(session.talk) as message:
        for voice, pieces in session.talk.comparing(message):
            try:
                if not session.show(pieces, _label(voice)):
                    break
            except DavidError as error:  # one that cannot answer does not silence the others
                failure = DavidError(f"{voice.name}: {error}")
    if failure is not None:
        raise failure


def _label(voice: "Voice") -> str:
    return f"[{plain(voice.name, 60)}] "


def _retry(session: _Session, _: str) -> None:
    with _again(session.talk) as message:
        session.answer(message)


@contextmanager
def _again(talk: "Chat") -> Iterator[str]:
    """The last message, to be answered again; where no answer comes in its answer's place, that one stays."""
    before = list(talk.messages)
    message = talk.take_back()
    left = len(talk.messages)
    try:
        yield message
    finally:
        if len(talk.messages) == left:
            talk.messages[:] = before


def _reset(session: _Session, _: str) -> None:
    session.talk.reset()
    _put("a new conversation\n")


def _system(session: _Session, text: str) -> None:
    session.talk.system = text
    _put("the system text is set\n" if text else "there is no system text any more\n")


def _save(session: _Session, path: str) -> None:
    if not path:
        raise DavidError("/save takes the name of a file that is new")
    found = {"system": session.talk.system, "messages": session.talk.messages}
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:
        raise DavidError(f"{path} cannot be written: {reason(error)}") from None
    _put(f"{plain(path)}: {len(session.talk.messages)} messages\n")


def _help(_: _Session, __: str) -> None:
    wide = max(len(command.usage) for command in _COMMANDS.values())
    _put("".join(f"{command.usage:<{wide}}  {command.what}\n" for command in _COMMANDS.values()))


def _quit(_: _Session, __: str) -> bool:
    return False


@dataclass(frozen=True)
class _Command:
    """A line that is no message: how it is written, what it does; False where it ends the session."""

    usage: str
    what: str
    run: Callable[[_Session, str], bool | None]


_COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        _Command("/use N|base|RECIPE", "let another recipe answer from now on", _use),
        _Command(
            "/compare [TEXT]", "the base and every recipe answer; without a text, the last message again", _compare
        ),
        _Command("/recipes", "list the recipes; the one with a star answers", _recipes),
        _Command("/add RECIPE", "add a recipe: a JSON file, or its notation", _add),
        _Command("/retry", "the last message again", _retry),
        _Command("/reset", "begin a new conversation", _reset),
        _Command("/system [TEXT]", "set a system text, or take it away", _system),
        _Command("/save FILE", "write the conversation as JSON", _save),
        _Command("/help", "this list", _help),
        _Command("/quit", "leave, as Ctrl-D does; Ctrl-C stops an answer", _quit),
    )
}


def _lines(seen: bool) -> Iterator[str]:
    """What is typed, line by line, to the end of the input; at a terminal, until Ctrl-D or two Ctrl-C."""
    if not seen:
        while line := _typed(sys.stdin.readline):
            yield line.rstrip("\r\n")
        return
    with suppress(ImportError):  # Python without it has no history
        import readline  # noqa: F401
    warned = False
    while True:
        try:
            line = _typed(lambda: input("you> "))
        except EOFError:
            _put("\n")
            return
        except KeyboardInterrupt:
            _put("\n")
            if warned:
                return
            warned = True
            _put("(Ctrl-C again, or Ctrl-D, leaves)\n")
        else:
            warned = False
            yield line


def _typed(read: Callable[[], str]) -> str:
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DavidError(f"what comes in is not text in {error.encoding}") from None


def _check(recipes: list[str] | None) -> None:
    """What is wrong with recipes by themselves, told before a model is loaded."""
    for recipe in recipes or ():
        if recipe != "base":
            check_recipe(recipe, None)


def _wanted(loaded: Any, model: str, own: "Recipe | None", recipes: list[str] | None) -> list[tuple[str, "Recipe"]]:
    """The recipes of a command line with their names: that which MODEL is, and those given beside it."""
    from david.chat import BASE, name_of
    from david.recipe import Recipe
    from david.sling import base_depth

    n_layers = base_depth(loaded)
    wanted = [] if own is None else [(model, own)]
    for text in recipes or ():
        recipe = Recipe.identity(n_layers) if text == BASE else recipe_of(text, None, n_layers, loaded)
        wanted.append((text if text == BASE else name_of(text, recipe), recipe))
    return wanted


def _told(voice: "Voice", text: str) -> dict[str, Any]:
    assert voice.answer is not None
    told = asdict(voice.answer)
    return {"text": text, "tokens": told["tokens"], "seconds": round(told["seconds"], 3), "ended": told["ended"]}


def _show(pieces: Iterator[str], before: str = "") -> None:
    """Print pieces of text as they come, and end the line; what goes before them comes with the first."""
    last = before
    try:
        for piece in pieces:
            _put(before + printable(piece))
            last, before = piece, ""
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    _put(before + ("" if last.endswith("\n") else "\n"))


def _put(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
