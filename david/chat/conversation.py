"""Talking to recipes: one conversation, answered by a base and by any number of recipes on the same weights.

Each recipe is a view of the base, with a cache of its own that is kept from answer to answer: what it holds of the
conversation is not run again. No byte of weights is copied, and the model that was given is left alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from david.chat.generation import Sampling, TextGenerator
from david.errors import DavidError, RecipeError
from david.recipe.recipe import Recipe
from david.sling.forward import context_of
from david.sling.in_place import AnyRecipe, base_depth, check_recipe
from david.support.console import say
from david.support.files import expand_home
from david.support.text import one_line

__all__ = ["Chat"]

BASE = "base"
_PLAIN = {"user": "User", "assistant": "Assistant"}  # a conversation where a model has no template for one
_USERS_TURN = "\nUser:"


class Chat:
    """A conversation that a base and any number of recipes can answer, one of them in use at a time.

    There is one conversation, whoever answers: a recipe that comes into use reads what the others have said.
    `recipes` are what `David.sling` takes, each named by its notation or, where it was read from a file, by its path.
    The first is in use, or the base where there is none; the base is that of a slung model too. `note` is called with
    what a person should know, a line each.

    Raises `RecipeError` for a recipe that does not fit the model, and `SlingError` for a model that is refused.

    Example:
        >>> chat = Chat(model, tokenizer, recipes=["0:12, 8:30"], sampling=Sampling(max_new_tokens=8))
        >>> chat.say("What is a layer?") == chat.messages[-1]["content"]
        True
        >>> list(chat.compare("And a recipe?"))
        ['base', '0:12, 8:30']
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        recipes: Sequence[AnyRecipe] = (),
        system: str | None = None,
        sampling: Sampling | None = None,
        note: Callable[[str], None] = say,
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling or Sampling()
        self.messages: list[dict[str, str]] = []
        self.voices = [TextGenerator(BASE, Recipe.identity(base_depth(model)), model)]
        self.in_use = self.voices[0]
        self._model = model
        self._note = note
        self._asked = 0
        self._system: str | None = None
        for recipe in recipes:
            self.add(recipe)
        self.in_use = self.voices[min(1, len(self.voices) - 1)]
        if not tokenizer.chat_template:
            note("this model has no chat template: it goes on from a plain dialogue of User: and Assistant:")
        self.system = system

    @property
    def system(self) -> str | None:
        """What stands before the conversation; `DavidError` where the model's template takes no such thing."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        before, self._system = self._system, encodable(text) if text else None
        try:
            self._tokens([{"role": "user", "content": "?"}])
        except DavidError:
            self._system = before
            raise

    @property
    def context(self) -> int | None:
        """How many tokens the model takes; None where its configuration does not say."""
        return context_of(self._model)

    def add(self, recipe: AnyRecipe, *, name: str | None = None) -> TextGenerator:
        """A recipe that can be used from now on; the one that is there already, where it is the same."""
        wanted = Recipe.of(recipe)
        check_recipe(self._model, wanted)
        for voice in self.voices:
            if voice.recipe == wanted:
                return voice
        name = name or name_of(recipe, wanted)
        known = {voice.name for voice in self.voices}
        self.voices.append(TextGenerator(str(wanted) if name in known else name, wanted, self._model))
        return self.voices[-1]

    def use(self, which: int | AnyRecipe) -> TextGenerator:
        """Let another answer from now on: the number of one (0 is the base), or a recipe, which is added."""
        if not isinstance(which, int):
            self.in_use = self.add(which)
        elif 0 <= which < len(self.voices):
            self.in_use = self.voices[which]
        else:
            raise RecipeError(f"there is no recipe {which}: expected 0, the base, to {len(self.voices) - 1}")
        return self.in_use

    def say(self, text: str) -> str:
        """The whole answer to a message, of the recipe in use."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The answer to a message, of the recipe in use, in pieces as they come.

        Who stops reading stops it, and what came until then stays in the conversation. After an error, the conversation
        is as it was before.
        """
        for _, pieces in self._answers(text, [self.in_use]):
            yield from pieces

    def compare(self, text: str) -> dict[str, str]:
        """The answers of the base and of every recipe to the same message, by name; that of the one in use is kept."""
        return {voice.name: "".join(pieces) for voice, pieces in self.comparing(text)}

    def comparing(self, text: str) -> Iterator[tuple[TextGenerator, Iterator[str]]]:
        """What `compare` gives, in pieces as they come: each voice, and its answer to be read before the next."""
        return self._answers(text, self.voices)

    def take_back(self) -> str:
        """Take the last message and its answer back, and return the message; `DavidError` where there is none."""
        if not self.messages:
            raise DavidError("nothing has been said yet")
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        return text

    def reset(self) -> None:
        """Begin a new conversation: the recipes, the system text and the way of drawing stay."""
        self.messages.clear()
        self._asked = 0
        for voice in self.voices:
            voice.forget()

    def _answers(self, text: str, voices: Sequence[TextGenerator]) -> Iterator[tuple[TextGenerator, Iterator[str]]]:
        """What each voice answers to a message; the answer of the one in use is kept, as far as it was read."""
        question = {"role": "user", "content": encodable(text)}
        prompt, gone = self._fitted(question)
        drawn = replace(self.sampling, seed=(self.sampling.seed + self._asked) % 2**63)
        if self.context is not None:
            drawn = replace(drawn, max_new_tokens=max(1, min(drawn.max_new_tokens, self.context - len(prompt))))
        self._asked += 1
        end = "" if self.tokenizer.chat_template else _USERS_TURN
        for voice in voices:
            pieces = voice.write(self.tokenizer, prompt, drawn, trim=True, end=end)
            kept = voice is self.in_use
            yield voice, self._kept(question, gone, voice, pieces) if kept else pieces

    def _kept(self, question: dict[str, str], gone: int, voice: TextGenerator, pieces: Iterator[str]) -> Iterator[str]:
        """Pieces of an answer, kept when no more are read; so many messages of before are let go with that."""
        failed = False
        try:
            yield from pieces
        except DavidError:
            failed = True
            raise
        finally:
            if not failed and voice.answer is not None and (voice.answer.text or voice.answer.ended):
                answer = {"role": "assistant", "content": voice.answer.text.strip(), "recipe": voice.name}
                del self.messages[:gone]
                self.messages += [question, answer]

    def _fitted(self, question: dict[str, str]) -> tuple[list[int], int]:
        """The tokens of the conversation and a question, and how many of its first messages they leave out."""
        left = list(self.messages)
        tokens = self._tokens([*left, question])
        if self.context is None:
            return tokens, 0
        room = self.context - min(self.sampling.max_new_tokens, self.context // 4)  # beside an answer
        if len(tokens) <= room:
            return tokens, 0
        while left and len(tokens) > room * 3 // 4:  # some more than needed, so that not every turn lets one go
            del left[:2]
            tokens = self._tokens([*left, question])
        if len(tokens) > room:
            raise DavidError(
                f"the message comes to {len(tokens)} tokens, and the model takes {self.context}, of which "
                f"{self.context - room} are for the answer: say it in fewer words"
            )
        gone = len(self.messages) - len(left)
        self._note(
            f"the conversation is longer than the {self.context} tokens that the model takes: "
            f"the oldest {gone // 2} of its {len(self.messages) // 2} turns are forgotten"
        )
        return tokens, gone

    def _tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            said = [f"{_PLAIN[message['role']]}: {message['content']}" for message in messages]
            text = "\n".join([*([self._system, ""] if self._system else []), *said, "Assistant:"])
            return list(self.tokenizer(text).input_ids)
        return template_tokens(self.tokenizer, messages, system=self._system)


def template_tokens(tokenizer: Any, messages: Sequence[dict[str, str]], *, system: str | None = None) -> list[int]:
    """The tokens of a conversation in the model's chat template; `DavidError` where it does not take it."""
    said = [{"role": "system", "content": system}] if system else []
    said += [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of Jinja's kinds, or what a template raises
        about = "a system text" if system else "this conversation"
        raise DavidError(f"the model's chat template does not take {about}: {one_line(error)}") from error
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def encodable(text: str) -> str:
    """A text without the halves of characters that a terminal can leave in it, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def name_of(given: AnyRecipe, recipe: Recipe) -> str:
    """What a recipe is called: the path of its file, or its notation."""
    is_path = isinstance(given, os.PathLike) or (isinstance(given, str) and os.path.exists(expand_home(given)))
    return os.fspath(given) if is_path else str(recipe)  # type: ignore[arg-type]
