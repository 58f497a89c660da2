"""A model that writes: tokens drawn one by one, and a cache that is kept, so that what it holds is not run again."""

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
from david.sling.forward import context_of, input_device
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
# Types that read several tokens as if nothing had come before them, or refuse to.
_FORGETFUL = {"jamba", "prophetnet", "recurrent_gemma", "zamba"}
_TAIL = 8  # tokens before the written ones that are decoded with them
_HALF = "\N{REPLACEMENT CHARACTER}"  # what half a character is decoded to


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: at temperature 0 the likeliest token each time.

    `top_p` leaves out what is less likely than the first tokens that have so much of the probability together. The
    rest is as the model's own generation configuration has it.
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
    """What a recipe wrote, and what it took.

    `tokens` were written behind `prompt_tokens`, of which `run_tokens` were run, since the cache had the others.
    `seconds` are from the question to the last token. `ended` is whether it came to an end by itself.
    """

    recipe: str
    text: str
    tokens: int
    prompt_tokens: int
    run_tokens: int
    seconds: float
    ended: bool


class TextGenerator:
    """A recipe that writes: a view on the base's weights, and the cache of what it has read and written last.

    Example:
        >>> voice = TextGenerator("skips", Recipe.parse("0:12, 14:30"), model)
        >>> pieces = list(voice.write(tokenizer, tokenizer("Once upon").input_ids, Sampling(max_new_tokens=4)))
        >>> voice.answer.text == "".join(pieces)
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
        """Let the cache go."""
        self._cache, self._held = None, []

    def write(
        self, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, *, trim: bool = False, end: str = ""
    ) -> Iterator[str]:
        """Go on from the tokens of a prompt: pieces of text as they come, and afterwards `answer`.

        Who stops reading stops the writing, and `answer` is what came until then. Text from `end` on is left out, and
        ends it; with `trim`, so are the blanks that it begins with. `DavidError` where the model cannot go on.
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
        cache = self._cache_of(prompt)
        held = 0 if cache is None else cache.get_seq_length()
        self.forget()  # until it is known what it holds
        written: list[int] = []
        text, shown, ended = "", 0, False
        writing = _Writing(self.model, tokenizer, prompt, sampling, cache)
        try:
            for token in writing:
                written.append(token)
                text = _behind(tokenizer, prompt[-_TAIL:], written)
                text = text.lstrip() if trim else text
                text, found, _ = text.partition(end) if end else (text, "", "")
                ended = bool(found) or token in writing.ends
                ready = len(text) if found else _ready(text, end)
                if ready > shown:
                    yield text[shown:ready]
                    shown = ready
                if found:
                    break
            if shown < len(text):
                yield text[shown:]
        finally:
            writing.close()
            self._keep(writing)
            spent = time.perf_counter() - start
            self.answer = Answer(self.name, text, len(written), len(prompt), len(prompt) - held, spent, ended)

    def _cache_of(self, prompt: list[int]) -> DynamicCache | None:
        """The cache, cut back to what it has in common with a prompt; None where nothing of it can be used."""
        cache = self._cache
        if cache is None:
            return None
        most = min(len(self._held), len(prompt) - 1)  # the last token is run: what comes next is read from it
        common = next((i for i in range(most) if self._held[i] != prompt[i]), most)
        over = len(self._held) - common
        if common == 0 or (over and not all(map(_can_go_back, cache.layers))):
            return None
        if over:
            cache.crop(-over)
        return cache

    def _keep(self, writing: "_Writing") -> None:
        """Keep the cache of what was written, where it is known to go on rightly from there."""
        cache, tokens = writing.cache, writing.tokens
        if type(cache) is not DynamicCache or cache.offloading or not _goes_on(self.model, cache):
            return
        if cache.get_seq_length() == len(tokens) - 1:  # the last token was drawn, and not run
            self._cache, self._held = cache, tokens[:-1]


def _goes_on(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether a cache can be given several tokens: by the kinds of its layers, and the types that were tried."""
    kind = model.config.get_text_config(decoder=True).model_type
    kinds = {type(part) for part in cache.layers}
    if kind in _FORGETFUL or kinds <= {DummyLayer, LinearAttentionLayer}:  # without a length
        return False
    return kinds <= {*_KEYS} or (kind in architectures.PROVED and kinds <= {*_KEYS, *_STATES})


def _can_go_back(layer: Any) -> bool:
    """Whether a layer's cache can be cut; what has left a window, or went into a state, does not come back."""
    if type(layer) is DynamicSlidingWindowLayer:
        return bool(layer.get_seq_length() < layer.sliding_window)
    return type(layer) is DynamicLayer


def _behind(tokenizer: Any, before: list[int], written: list[int]) -> str:
    """The text of tokens behind others, with the blank that it may begin with there and would not by itself."""
    plain = partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    known, text = plain(before), plain([*before, *written])
    return str(text.removeprefix(known) if text.startswith(known) else plain(written))


def _ready(text: str, end: str) -> int:
    """How much of a text is sure: not half a character, and not what could become its end."""
    if text.endswith(_HALF):
        return len(text.rstrip(_HALF))
    return next((len(text) - size for size in range(len(end) - 1, 0, -1) if text.endswith(end[:size])), len(text))


class _Writing:
    """`generate` in a thread of its own, its tokens one by one; closed, it has stopped behind a whole token.

    So an interruption never leaves a cache in which some layers have read a token and others have not.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, prompt: list[int], sampling: Sampling, cache: DynamicCache | None
    ) -> None:
        own = model.generation_config
        known = (own.eos_token_id, tokenizer.eos_token_id)
        self.ends = {end for ends in known if ends is not None for end in (ends if isinstance(ends, list) else [ends])}
        self.cache: Any = None
        self.tokens: list[int] = []
        self._new: SimpleQueue[int | None] = SimpleQueue()
        self._prompted = False
        self._stop = Event()
        self._error: Exception | None = None
        self._sampling = sampling
        pad = own.pad_token_id if own.pad_token_id is not None else min(self.ends, default=0)
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if cache is not None:
            options["past_key_values"] = cache
        options |= {"eos_token_id": sorted(self.ends) or None, "pad_token_id": pad}
        tokens = torch.tensor([prompt], device=input_device(model))  # [1, T]
        self._thread = Thread(target=self._run, args=(model, tokens, options), daemon=True)
        self._thread.start()

    def _run(self, model: PreTrainedModel, tokens: torch.Tensor, options: dict[str, Any]) -> None:
        try:
            with torch.random.fork_rng([tokens.device] if tokens.device.type == "cuda" else []):
                torch.manual_seed(self._sampling.seed)
                made = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=self._sampling.max_new_tokens,
                    num_beams=1,
                    return_dict_in_generate=True,
                    streamer=self,
                    stopping_criteria=[self._stopped],
                    **options,
                )
            self.tokens = made.sequences[0].tolist()
            if model.generation_config.cache_implementation is None:  # which goes with no cache that is given
                self.cache = made.get("past_key_values")
        except Exception as error:  # any kind: the code of any model
            self._error = error
        finally:
            self._new.put(None)

    def _stopped(self, tokens: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.full((len(tokens),), self._stop.is_set(), device=tokens.device)

    def put(self, tokens: torch.Tensor) -> None:
        """What `generate` calls with the prompt, then with each token."""
        if self._prompted:
            self._new.put(int(tokens[-1]))
        self._prompted = True

    def end(self) -> None:
        """What `generate` calls behind the last token."""

    def __iter__(self) -> Iterator[int]:
        while (token := self._new.get()) is not None:
            yield token
        if self._error is not None:
            at = f" at temperature {self._sampling.temperature:g}" if self._sampling.temperature else ""
            raise DavidError(f"no token can be drawn{at}: {one_line(self._error)}") from self._error

    def close(self) -> None:
        """Stop it, and wait until it has."""
        self._stop.set()
        self._thread.join()
