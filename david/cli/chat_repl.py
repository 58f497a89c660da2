"""The chat session of `david chat`: input lines, slash commands, and answers printed as they are generated.

`Session.take` runs one line; `read_lines` reads lines from a terminal or from standard input.
"""

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
    """A conversation and the commands that act on it.

    Attributes:
        chat: The conversation.
        loaded: The base model.
        interactive: Whether a person types at a terminal: then prompts and labels are printed.
    """

    chat: "Chat"
    loaded: Any
    interactive: bool

    def take(self, line: str) -> bool:
        """Run one line: a message or a slash command.

        Returns:
            Whether the session goes on.

        Raises:
            DavidError: The command is unknown or cannot be run, or the model cannot answer.
        """
        if not line.strip():
            return True
        if not line.startswith("/"):
            self.answer(line.strip())
            return True
        word, _, rest = line.strip().partition(" ")
        command = _COMMANDS.get(word)
        if command is None:
            raise DavidError(
                f"unknown command {word}: /help lists the commands; to send it as a message, put a space first"
            )
        return command.run(self, rest.strip()) is not False

    def answer(self, text: str) -> None:
        """Print the answer of the recipe in use to a message."""
        labelled = self.interactive and len(self.chat.voices) > 1
        self.show(self.chat.stream(text), _label(self.chat.in_use) if labelled else "")

    def show(self, pieces: Iterator[str], label: str) -> bool:
        """Print an answer as it is generated, after a label; return False if Ctrl-C stopped it."""
        try:
            show_pieces(pieces, label)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print_now("\n(stopped)\n")
            return False
        return True

    def recipe(self, text: str) -> "Recipe":
        """Return the recipe of a text; a note is printed if it was made on other weights."""
        return parse_recipe(text, None, self.chat.voices[0].recipe.n_layers, self.loaded)


def _use(session: Session, which: str) -> None:
    from david.chat.conversation import BASE, recipe_name

    chat = session.chat
    if not which:
        raise DavidError("/use requires the number of a recipe, base, or a recipe: /recipes lists them")
    if which.isascii() and which.isdigit():
        chat.use(int(which))
    elif which == BASE:
        chat.use(0)
    else:
        recipe = session.recipe(which)
        chat.use(chat.voices.index(chat.add(recipe, name=recipe_name(which, recipe))))
    _recipes(session, "")


def _add(session: Session, which: str) -> None:
    from david.chat.conversation import recipe_name
    from david.recipe.verdict import note_verdict

    recipe = session.recipe(which)
    name = recipe_name(which, recipe)
    note_verdict(recipe, name)
    session.chat.add(recipe, name=name)
    _recipes(session, "")


def _recipes(session: Session, _: str) -> None:
    for number, generator in enumerate(session.chat.voices):
        mark = "*" if generator is session.chat.in_use else " "
        notation = "" if generator.name == str(generator.recipe) else f"  {plain(str(generator.recipe), 60)}"
        print_now(f"{mark} {number}  {plain(generator.name, 60)}{notation}  ({len(generator.recipe)} visits)\n")


def _compare(session: Session, text: str) -> None:
    failure: DavidError | None = None
    with nullcontext(text) if text else _last_message(session.chat) as message:
        for generator, pieces in session.chat.comparing(message):
            try:
                if not session.show(pieces, _label(generator)):
                    break
            except DavidError as error:  # one that cannot answer does not silence the others
                failure = DavidError(f"{generator.name}: {error}")
    if failure is not None:
        raise failure


def _label(generator: "TextGenerator") -> str:
    return f"[{plain(generator.name, 60)}] "


def _retry(session: Session, _: str) -> None:
    with _last_message(session.chat) as message:
        session.answer(message)


@contextmanager
def _last_message(chat: "Chat") -> Iterator[str]:
    """Take the last message back, to answer it again; if it gets no new answer, restore the former one."""
    before = list(chat.messages)
    message = chat.take_back()
    last = chat.messages[-1:]
    try:
        yield message
    finally:
        if [*map(id, chat.messages[-1:])] == [*map(id, last)]:
            chat.messages[:] = before


def _reset(session: Session, _: str) -> None:
    session.chat.reset()
    print_now("new conversation\n")


def _system(session: Session, text: str) -> None:
    session.chat.system = text
    print_now("system message set\n" if text else "system message removed\n")


def _save(session: Session, path: str) -> None:
    if not path:
        raise DavidError("/save requires the name of a new file")
    conversation = {"system": session.chat.system, "messages": session.chat.messages}
    try:
        with open(expand_home(path), "x", encoding="utf-8") as file:
            file.write(json.dumps(conversation, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError) as error:
        raise DavidError(f"{path} cannot be written: {reason(error)}") from None
    print_now(f"{plain(path)}: {len(session.chat.messages)} messages\n")


def _help(_: Session, __: str) -> None:
    width = max(len(command.usage) for command in _COMMANDS.values())
    print_now("".join(f"{command.usage:<{width}}  {command.help}\n" for command in _COMMANDS.values()))


def _quit(_: Session, __: str) -> bool:
    return False


@dataclass(frozen=True)
class _Command:
    """A slash command: its usage, its line in `/help`, and its function, which returns False to end the session."""

    usage: str
    help: str
    run: Callable[[Session, str], bool | None]


_COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        _Command("/use N|base|RECIPE", "select the recipe that answers from now on", _use),
        _Command("/compare [TEXT]", "let the base and every recipe answer TEXT, or the last message again", _compare),
        _Command("/recipes", "list the recipes; * marks the one that answers", _recipes),
        _Command("/add RECIPE", "add a recipe: a JSON file, or a notation", _add),
        _Command("/retry", "answer the last message again", _retry),
        _Command("/reset", "start a new conversation", _reset),
        _Command("/system [TEXT]", "set the system message, or remove it", _system),
        _Command("/save FILE", "write the conversation as JSON", _save),
        _Command("/help", "show this list", _help),
        _Command("/quit", "leave, as Ctrl-D does; Ctrl-C stops an answer", _quit),
    )
}


def read_lines(interactive: bool) -> Iterator[str]:
    """Yield input lines to the end of the input; at a terminal, until Ctrl-D or two Ctrl-C in a row."""
    if not interactive:
        while line := read_text(sys.stdin.readline):
            yield line.rstrip("\r\n")
        return
    with suppress(ImportError):  # Python without it has no history
        import readline  # noqa: F401
    warned = False
    while True:
        try:
            line = read_text(lambda: input("you> "))
        except EOFError:
            print_now("\n")
            return
        except KeyboardInterrupt:
            print_now("\n")
            if warned:
                return
            warned = True
            print_now("(press Ctrl-C again, or Ctrl-D, to leave)\n")
        else:
            warned = False
            yield line


def read_text(read: Callable[[], str]) -> str:
    """Return what `read` reads from standard input; `DavidError` if it is not text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DavidError(f"standard input is not text in {error.encoding}") from None


def show_pieces(pieces: Iterator[str], prefix: str = "") -> None:
    """Print pieces of text as they come, the prefix with the first of them, and end the line."""
    last = prefix
    try:
        for piece in pieces:
            print_now(prefix + printable(piece))
            last, prefix = piece, ""
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    print_now(prefix + ("" if last.endswith("\n") else "\n"))


def print_now(text: str) -> None:
    """Print text to standard output without delay."""
    sys.stdout.write(text)
    sys.stdout.flush()
