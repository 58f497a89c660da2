"""Chat with recipes (`Chat`): one conversation, answered by a base and any number of recipes on the same weights.

Each recipe is a view of the base with its own KV cache, which is kept between answers. No weights are copied, and the
model is not changed.
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
from david.support.arguments import check_tokenizer, check_type, checked_list
from david.support.console import say
from david.support.files import expand_home
from david.support.text import one_line

__all__ = ["Chat"]

BASE = "base"
_PLAIN_ROLES = {"user": "User", "assistant": "Assistant"}  # a conversation where a model has no template for one
_USERS_TURN = "\nUser:"


class Chat:
    """A conversation that a base and any number of recipes can answer, one of them in use at a time.

    There is one conversation, whoever answers: a recipe that comes into use reads the answers of the others. The first
    recipe is in use at the beginning, or the base if there is none.

    Args:
        model: The model, slung or not; its base is the base of the conversation.
        tokenizer: Its tokenizer.
        recipes: Recipes as `David.sling` takes them. Each is named by its notation, or its path if it is a file.
        system: A text that stands before the conversation; None for none.
        sampling: How tokens are drawn; None for the defaults.
        note: Called with each line that a person should know.

    Attributes:
        messages: The conversation, as `{"role": …, "content": …}`; answers have the `recipe` too.
        voices: The generators, the base first.
        in_use: The generator that answers.

    Raises:
        RecipeError: If a recipe does not fit the model.
        SlingError: If the model is refused.
        DavidError: If the model's chat template takes no system text.

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
        base = TextGenerator(BASE, Recipe.identity(base_depth(model)), model)
        check_tokenizer(tokenizer, DavidError)
        recipes = checked_list("recipes", recipes, object, RecipeError)
        if system is not None:
            check_type("system", system, str, DavidError)
        self.tokenizer = tokenizer
        self.sampling = sampling or Sampling()
        self.messages: list[dict[str, str]] = []
        self.voices = [base]
        self.in_use = self.voices[0]
        self._model = model
        self._note = note
        self._n_questions = 0
        self._system: str | None = None
        for recipe in recipes:
            self.add(recipe)
        self.in_use = self.voices[min(1, len(self.voices) - 1)]
        if not tokenizer.chat_template:
            note("this model has no chat template: a plain dialogue of User: and Assistant: is used")
        self.system = system

    @property
    def system(self) -> str | None:
        """The system text before the conversation. Setting it raises `DavidError` if the chat template takes none."""
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
        """Maximum number of tokens of the model; None if its configuration does not say."""
        return context_of(self._model)

    def add(self, recipe: AnyRecipe, *, name: str | None = None) -> TextGenerator:
        """Add a recipe, and return its generator; the present one if the recipe is there already.

        Args:
            recipe: A recipe as `David.sling` takes it.
            name: Its name; None for its path or notation.

        Raises:
            RecipeError: If the recipe does not fit the model.
        """
        parsed = Recipe.of(recipe)
        check_recipe(self._model, parsed)
        for generator in self.voices:
            if generator.recipe == parsed:
                return generator
        name = name or recipe_name(recipe, parsed)
        names = {generator.name for generator in self.voices}
        self.voices.append(TextGenerator(str(parsed) if name in names else name, parsed, self._model))
        return self.voices[-1]

    def use(self, which: int | AnyRecipe) -> TextGenerator:
        """Choose who answers from now on.

        Args:
            which: The number of a recipe (0 is the base), or a recipe, which is added.

        Raises:
            RecipeError: If there is no such recipe, or it does not fit the model.
        """
        if not isinstance(which, int):
            self.in_use = self.add(which)
        elif 0 <= which < len(self.voices):
            self.in_use = self.voices[which]
        else:
            raise RecipeError(f"there is no recipe {which}: expected 0, the base, to {len(self.voices) - 1}")
        return self.in_use

    def say(self, text: str) -> str:
        """Return the whole answer of the recipe in use to a message.

        Raises:
            DavidError: If the message is too long, or the model fails.
        """
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer of the recipe in use to a message, in pieces as they are generated.

        Closing the iterator stops the answer; what was generated until then stays in the conversation. After an error
        the conversation is as it was before.

        Raises:
            DavidError: If the message is too long, or the model fails.
        """
        for _, pieces in self._answers(text, [self.in_use]):
            yield from pieces

    def compare(self, text: str) -> dict[str, str]:
        """Return the answers of the base and each recipe by name; the conversation keeps that of the one in use."""
        return {generator.name: "".join(pieces) for generator, pieces in self.comparing(text)}

    def comparing(self, text: str) -> Iterator[tuple[TextGenerator, Iterator[str]]]:
        """Yield each generator with the pieces of its answer, which have to be read before the next; as `compare`."""
        return self._answers(text, self.voices)

    def take_back(self) -> str:
        """Remove the last message and its answer, and return the message.

        Raises:
            DavidError: If there is none.
        """
        if not self.messages:
            raise DavidError("nothing has been said yet")
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        return text

    def reset(self) -> None:
        """Begin a new conversation; the recipes, the system text and the sampling stay."""
        self.messages.clear()
        self._n_questions = 0
        for generator in self.voices:
            generator.forget()

    def _answers(self, text: str, voices: Sequence[TextGenerator]) -> Iterator[tuple[TextGenerator, Iterator[str]]]:
        """Yield each generator and its answer; the conversation keeps what is read of the answer of the one in use."""
        question = {"role": "user", "content": encodable(text)}
        prompt, gone = self._fit(question)
        drawn = replace(self.sampling, seed=(self.sampling.seed + self._n_questions) % 2**63)
        if self.context is not None:
            drawn = replace(drawn, max_new_tokens=max(1, min(drawn.max_new_tokens, self.context - len(prompt))))
        self._n_questions += 1
        end = "" if self.tokenizer.chat_template else _USERS_TURN
        for generator in voices:
            pieces = generator.write(self.tokenizer, prompt, drawn, trim=True, end=end)
            yield generator, self._record(question, gone, generator, pieces) if generator is self.in_use else pieces

    def _record(
        self, question: dict[str, str], gone: int, generator: TextGenerator, pieces: Iterator[str]
    ) -> Iterator[str]:
        """Yield the pieces of an answer; then add it to the conversation, and forget its first `gone` messages."""
        failed = False
        try:
            yield from pieces
        except DavidError:
            failed = True
            raise
        finally:
            if not failed and generator.answer is not None and (generator.answer.text or generator.answer.ended):
                answer = {"role": "assistant", "content": generator.answer.text.strip(), "recipe": generator.name}
                del self.messages[:gone]
                self.messages += [question, answer]

    def _fit(self, question: dict[str, str]) -> tuple[list[int], int]:
        """Return the tokens of the conversation and a question, and how many of the first messages they leave out."""
        left = list(self.messages)
        tokens = self._tokens([*left, question])
        if self.context is None:
            return tokens, 0
        room = self.context - min(self.sampling.max_new_tokens, self.context // 4)  # beside the answer
        if len(tokens) <= room:
            return tokens, 0
        while left and len(tokens) > room * 3 // 4:  # more than needed, so that not every turn has to forget
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
        """Return the tokens of a conversation, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            lines = [f"{_PLAIN_ROLES[message['role']]}: {message['content']}" for message in messages]
            text = "\n".join([*([self._system, ""] if self._system else []), *lines, "Assistant:"])
            return list(self.tokenizer(text).input_ids)
        return template_tokens(self.tokenizer, messages, system=self._system)


def template_tokens(tokenizer: Any, messages: Sequence[dict[str, str]], *, system: str | None = None) -> list[int]:
    """Return the tokens of a conversation in the model's chat template.

    Raises:
        DavidError: If the template does not take the conversation, or a system text.
    """
    all_messages = [{"role": "system", "content": system}] if system else []
    all_messages += [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(all_messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of Jinja's kinds, or what a template raises
        about = "a system text" if system else "this conversation"
        raise DavidError(f"the model's chat template does not take {about}: {one_line(error)}") from error
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def encodable(text: str) -> str:
    """Replace the lone surrogates that a terminal can leave in a text; no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode()


def recipe_name(source: AnyRecipe, recipe: Recipe) -> str:
    """Return the name of a recipe: the path of its file, or its notation."""
    is_path = isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.exists(expand_home(source)))
    return os.fspath(source) if is_path else str(recipe)  # type: ignore[arg-type]
