"""Generate text: `TextGenerator` draws tokens one by one, and keeps its cache to run a shared prefix once."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from david.errors import DavidError
from david.recipe.recipe import Recipe
from david.sling import architectures
from david.sling.forward import CACHE, context_of, input_device
from david.sling.in_place import view
from david.support.text import brief, one_line

# Kinds of cache that take several tokens behind those they hold: some can also be cut back, some cannot.
_KEYS = (DynamicLayer, DynamicSlidingWindowLayer)
_STATES = (
    DummyLayer,
    DynamicIndexedLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)
# Model types that ignore their cache when they read several tokens, or refuse to.
_WITHOUT_PREFIX_CACHE = {"jamba", "prophetnet", "recurrent_gemma", "zamba"}
_CONTEXT_TOKENS = 8  # tokens before the written ones that are decoded with them
_INCOMPLETE_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what half a character is decoded to


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. All other settings are those of the model's generation configuration.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: Draw from the likeliest tokens that together have so much of the probability.
        seed: The seed of the draws.
        max_new_tokens: At most so many tokens are generated.

    Raises:
        DavidError: If a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise DavidError(f"the temperature must be a number from 0 on; got {brief(self.temperature)}")
        if not 0 < self.top_p <= 1:
            raise DavidError(f"top_p must be over 0 and at most 1; got {brief(self.top_p)}")
        if self.max_new_tokens < 1:
            raise DavidError(f"max_new_tokens must be at least 1; got {brief(self.max_new_tokens)}")


@dataclass(frozen=True)
class Answer:
    """What a recipe generated, and what it took.

    Attributes:
        recipe: The name of the generator.
        text: The generated text.
        tokens: Number of generated tokens.
        prompt_tokens: Number of tokens of the prompt.
        run_tokens: Number of tokens of the prompt that were run; the cache had the others.
        seconds: From the question to the last token.
        ended: Whether the model ended the text by itself.
    """

    recipe: str
    text: str
    tokens: int
    prompt_tokens: int
    run_tokens: int
    seconds: float
    ended: bool


class TextGenerator:
    """Generates text with a recipe: a view on the base's weights, and the cache of the last tokens read and written.

    Args:
        name: The name that answers bear.
        recipe: The recipe.
        model: The model whose weights the view shares.

    Attributes:
        model: The view.
        answer: The last answer; None before there is one.

    Example:
        >>> generator = TextGenerator("skips", Recipe.parse("0:12, 14:30"), model)
        >>> pieces = list(generator.write(tokenizer, tokenizer("Once upon").input_ids, Sampling(max_new_tokens=4)))
        >>> generator.answer.text == "".join(pieces)
        True
    """

    def __init__(self, name: str, recipe: Recipe, model: PreTrainedModel) -> None:
        self.name = name
        self.recipe = recipe
        self.model = view(model, recipe)
        self.answer: Answer | None = None
        self._cache: DynamicCache | None = None
        self._held: list[int] = []  # the tokens that the cache holds

    def forget(self) -> None:
        """Delete the cache."""
        self._cache, self._held = None, []

    def write(
        self, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, *, trim: bool = False, end: str = ""
    ) -> Iterator[str]:
        """Generate text behind a prompt, and set `answer` at the end.

        Closing the iterator stops the generation; `answer` is then what was generated until that moment.

        Args:
            tokenizer: The model's tokenizer.
            prompt: The tokens of the prompt.
            sampling: How tokens are drawn.
            trim: Whether to leave out blanks at the beginning.
            end: A text that ends the answer, and is left out; empty for none.

        Yields:
            Pieces of text as they are generated.

        Raises:
            DavidError: If the prompt is empty or too long, or the model fails.
        """
        start = time.perf_counter()
        self.answer, prompt = None, list(prompt)
        if not prompt:
            raise DavidError("the prompt is empty: give some text")
        context = context_of(self.model)
        if context is not None and len(prompt) >= context:
            raise DavidError(f"the prompt comes to {len(prompt)} tokens, and the model takes {context}: shorten it")
        if context is not None:
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, context - len(prompt)))
        cache = self._usable_cache(prompt)
        held = 0 if cache is None else cache.get_seq_length()
        self.forget()  # until it is known what it holds
        written: list[int] = []
        text, shown, ended = "", 0, False
        thread = _GenerationThread(self.model, tokenizer, prompt, sampling, cache)
        try:
            for token in thread:
                written.append(token)
                text = _decode_behind(tokenizer, prompt[-_CONTEXT_TOKENS:], written)
                text = text.lstrip() if trim else text
                text, end_text, _ = text.partition(end) if end else (text, "", "")
                ended = bool(end_text) or token in thread.ends
                ready = len(text) if end_text else _safe_length(text, end)
                if ready > shown:
                    yield text[shown:ready]
                    shown = ready
                if end_text:
                    break
            if shown < len(text):
                yield text[shown:]
        finally:
            thread.close()
            self._keep_cache(thread)
            spent = time.perf_counter() - start
            self.answer = Answer(self.name, text, len(written), len(prompt), len(prompt) - held, spent, ended)

    def _usable_cache(self, prompt: list[int]) -> DynamicCache | None:
        """Return the cache, cut to the prefix that it shares with a prompt; None if nothing of it can be used."""
        cache = self._cache
        if cache is None:
            return None
        most = min(len(self._held), len(prompt) - 1)  # the last token has to be run: its output predicts the next
        common = next((i for i in range(most) if self._held[i] != prompt[i]), most)
        over = len(self._held) - common
        if common == 0 or (over and not all(map(_can_be_cut, cache.layers))):
            return None
        if over:
            cache.crop(-over)
        return cache

    def _keep_cache(self, thread: "_GenerationThread") -> None:
        """Keep the cache if it is known that the model continues from it correctly."""
        cache, tokens = thread.cache, thread.tokens
        if type(cache) is not DynamicCache or cache.offloading or not _can_continue(self.model, cache):
            return
        if cache.get_seq_length() == len(tokens) - 1:  # the last token was drawn, and not run
            self._cache, self._held = cache, tokens[:-1]


def _can_continue(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Return whether a model can run several tokens on a cache: by its layers' kinds, and the tested model types."""
    kind = model.config.get_text_config(decoder=True).model_type
    kinds = {type(part) for part in cache.layers}
    if kind in _WITHOUT_PREFIX_CACHE or kinds <= {DummyLayer, LinearAttentionLayer}:  # without a length
        return False
    return kinds <= {*_KEYS} or (kind in architectures.PROVED and kinds <= {*_KEYS, *_STATES})


def _can_be_cut(layer: Any) -> bool:
    """Return whether a layer's cache can be cut; what has left a sliding window, or went into a state, is lost."""
    if type(layer) is DynamicSlidingWindowLayer:
        return bool(layer.get_seq_length() < layer.sliding_window)
    return type(layer) is DynamicLayer


def _decode_behind(tokenizer: Any, before: list[int], written: list[int]) -> str:
    """Decode tokens behind others: they may begin with a blank there, which decoding them alone would lose."""
    plain = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    prefix, text = plain(before), plain([*before, *written])
    return str(text.removeprefix(prefix) if text.startswith(prefix) else plain(written))


def _safe_length(text: str, end: str) -> int:
    """Return how much of a text can be shown: no half character, and nothing that could become `end`."""
    if text.endswith(_INCOMPLETE_CHARACTER):
        return len(text.rstrip(_INCOMPLETE_CHARACTER))
    return next((len(text) - size for size in range(len(end) - 1, 0, -1) if text.endswith(end[:size])), len(text))


class _GenerationThread:
    """Runs `generate` in a thread, and iterates over its tokens; `close` stops it behind a whole token.

    So an interruption never leaves a cache in which some layers have read a token and others have not.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, prompt: list[int], sampling: Sampling, cache: DynamicCache | None
    ) -> None:
        own = model.generation_config
        eos_ids = (own.eos_token_id, tokenizer.eos_token_id)
        self.ends = {
            end for ends in eos_ids if ends is not None for end in (ends if isinstance(ends, list) else [ends])
        }
        self.cache: Any = None
        self.tokens: list[int] = []
        self._new_tokens: SimpleQueue[int | None] = SimpleQueue()
        self._has_prompt = False
        self._stop = Event()
        self._error: Exception | None = None
        self._sampling = sampling
        pad = own.pad_token_id if own.pad_token_id is not None else min(self.ends, default=0)
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if cache is not None:
            options[CACHE] = cache
        options |= {"eos_token_id": sorted(self.ends) or None, "pad_token_id": pad}
        tokens = torch.tensor([prompt], device=input_device(model))  # [1, T]
        self._thread = Thread(target=self._run, args=(model, tokens, options), daemon=True)
        self._thread.start()

    def _run(self, model: PreTrainedModel, tokens: torch.Tensor, options: dict[str, Any]) -> None:
        try:
            with torch.random.fork_rng([tokens.device] if tokens.device.type == "cuda" else []):
                torch.manual_seed(self._sampling.seed)
                output = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=self._sampling.max_new_tokens,
                    num_beams=1,
                    return_dict_in_generate=True,
                    streamer=self,
                    stopping_criteria=[self._stopped],
                    **options,
                )
            self.tokens = output.sequences[0].tolist()
            if model.generation_config.cache_implementation is None:  # otherwise no cache can be passed in
                self.cache = output.get(CACHE)
        except Exception as error:  # any kind: the code of any model
            self._error = error
        finally:
            self._new_tokens.put(None)

    def _stopped(self, tokens: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.full((len(tokens),), self._stop.is_set(), device=tokens.device)

    def put(self, tokens: torch.Tensor) -> None:
        """Take the prompt, then each token; called by `generate`."""
        if self._has_prompt:
            self._new_tokens.put(int(tokens[-1]))
        self._has_prompt = True

    def end(self) -> None:
        """Do nothing; called by `generate` behind the last token."""

    def __iter__(self) -> Iterator[int]:
        while (token := self._new_tokens.get()) is not None:
            yield token
        if self._error is not None:
            at = f" at temperature {self._sampling.temperature:g}" if self._sampling.temperature else ""
            raise DavidError(f"no token can be drawn{at}: {one_line(self._error)}") from self._error

    def close(self) -> None:
        """Stop the generation, and wait until the thread has ended."""
        self._stop.set()
        self._thread.join()
