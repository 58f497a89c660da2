"""A conversation at a terminal, or line by line from standard input: its commands, and answers shown as they come."""

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from david.cli.inputs import parse_recipe
from david.errors import DavidError
from david.support.files import expand_home, reason
from david.support.text import plain, printable

if TYPE_CHECKING:
    from david.chat.conversation import Chat
    from david.chat.generation import TextGenerator
    from david.recipe.recipe import Recipe


@dataclass(frozen=True)
class Session:
    """A conversation at a terminal; `seen` is whether a person sits there, who sees prompts and labels."""

    talk: "Chat"
    loaded: Any
    interactive: bool

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
        labelled = self.interactive and len(self.talk.voices) > 1
        self.show(self.talk.stream(text), _label(self.talk.in_use) if labelled else "")

    def show(self, pieces: Iterator[str], label: str) -> bool:
        """Show an answer as it comes; whether it was left to end."""
        try:
            show_pieces(pieces, label)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            put("\n(stopped)\n")
            return False
        return True

    def recipe(self, text: str) -> "Recipe":
        """What a recipe's text stands for, with a note where it was made on other weights."""
        return parse_recipe(text, None, self.talk.voices[0].recipe.n_layers, self.loaded)


def _use(session: Session, which: str) -> None:
    from david.chat.conversation import BASE, name_of

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


def _add(session: Session, which: str) -> None:
    from david.chat.conversation import name_of

    recipe = session.recipe(which)
    session.talk.add(recipe, name=name_of(which, recipe))
    _recipes(session, "")


def _recipes(session: Session, _: str) -> None:
    for number, voice in enumerate(session.talk.voices):
        mark = "*" if voice is session.talk.in_use else " "
        notation = "" if voice.name == str(voice.recipe) else f"  {plain(str(voice.recipe), 60)}"
        put(f"{mark} {number}  {plain(voice.name, 60)}{notation}  ({len(voice.recipe)} visits)\n")


def _compare(session: Session, text: str) -> None:
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


def _label(voice: "TextGenerator") -> str:
    return f"[{plain(voice.name, 60)}] "


def _retry(session: Session, _: str) -> None:
    with _again(session.talk) as message:
        session.answer(message)


@contextmanager
def _again(talk: "Chat") -> Iterator[str]:
    """The last message, to be answered again; where no answer comes in its answer's place, that one stays."""
    before = list(talk.messages)
    message = talk.take_back()
    last = talk.messages[-1:]
    try:
        yield message
    finally:
        if [*map(id, talk.messages[-1:])] == [*map(id, last)]:
            talk.messages[:] = before


def _reset(session: Session, _: str) -> None:
    session.talk.reset()
    put("a new conversation\n")


def _system(session: Session, text: str) -> None:
    session.talk.system = text
    put("the system text is set\n" if text else "there is no system text any more\n")


def _save(session: Session, path: str) -> None:
    if not path:
        raise DavidError("/save takes the name of a file that is new")
    found = {"system": session.talk.system, "messages": session.talk.messages}
    try:
        with open(expand_home(path), "x", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:
        raise DavidError(f"{path} cannot be written: {reason(error)}") from None
    put(f"{plain(path)}: {len(session.talk.messages)} messages\n")


def _help(_: Session, __: str) -> None:
    wide = max(len(command.usage) for command in _COMMANDS.values())
    put("".join(f"{command.usage:<{wide}}  {command.what}\n" for command in _COMMANDS.values()))


def _quit(_: Session, __: str) -> bool:
    return False


@dataclass(frozen=True)
class _Command:
    """A line that is no message: how it is written, what it does; False where it ends the session."""

    usage: str
    what: str
    run: Callable[[Session, str], bool | None]


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


def lines(seen: bool) -> Iterator[str]:
    """What is typed, line by line, to the end of the input; at a terminal, until Ctrl-D or two Ctrl-C."""
    if not seen:
        while line := typed(sys.stdin.readline):
            yield line.rstrip("\r\n")
        return
    with suppress(ImportError):  # Python without it has no history
        import readline  # noqa: F401
    warned = False
    while True:
        try:
            line = typed(lambda: input("you> "))
        except EOFError:
            put("\n")
            return
        except KeyboardInterrupt:
            put("\n")
            if warned:
                return
            warned = True
            put("(Ctrl-C again, or Ctrl-D, leaves)\n")
        else:
            warned = False
            yield line


def typed(read: Callable[[], str]) -> str:
    """What `read` reads from standard input; `DavidError` where it is not text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DavidError(f"what comes in is not text in {error.encoding}") from None


def show_pieces(pieces: Iterator[str], before: str = "") -> None:
    """Print pieces of text as they come, and end the line; what goes before them comes with the first."""
    last = before
    try:
        for piece in pieces:
            put(before + printable(piece))
            last, before = piece, ""
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    put(before + ("" if last.endswith("\n") else "\n"))


def put(text: str) -> None:
    """Print text at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
