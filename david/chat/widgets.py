"""Sliders in a notebook: a block of layers, how often and how strongly it runs, and what that does to the model.

Needs ipywidgets, of the extra `notebooks`, which is imported when a panel is made.
"""

import asyncio
import math
from collections.abc import Iterator
from html import escape
from typing import Any

import torch
from torch import nn

from david.errors import DavidError, RecipeError, ScoreError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import check_fits, perplexity
from david.sling.forward import input_device
from david.sling.in_place import base_depth, check_recipe, running_base, slung
from david.support.arguments import check_tokenizer, check_type
from david.support.extras import install_hint
from david.support.text import brief, one_line, plain

MOST_TIMES, MOST_STRENGTH = 4, 2.0


class Slider:
    """A panel of sliders: see `slider`. Its state is in `recipe`, `score`, `sample` and `error`, None while unknown.

    `block`, `times`, `strength` and `prompt` are ipywidgets: to set their `value` is to move them. `base` is the base's
    score, `base_sample` what the base writes.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        corpus: Corpus,
        *,
        block: tuple[int, int],
        times: int,
        strength: float,
        prompt: str,
        tokens: int,
        wait: float,
    ) -> None:
        widgets = _ipywidgets()
        self._model, self._tokenizer, self._corpus = model, tokenizer, corpus
        self._tokens, self._wait = tokens, wait
        self._n_layers = base_depth(model)
        self._task: asyncio.Task[None] | None = None
        with running_base(model):
            self.base = perplexity(model, corpus)
        self.base_sample: str | None = None
        self._base_prompt: str | None = None  # the prompt that it continues
        self.recipe: Recipe | None = None
        self.score: Score | None = None
        self.sample: str | None = None
        self.error: Exception | None = None

        wide = widgets.Layout(width="30em")
        self.block = widgets.IntRangeSlider(
            value=block, min=0, max=self._n_layers, description="block (i, j)", layout=wide
        )
        self.times = widgets.IntSlider(value=times, min=0, max=MOST_TIMES, description="times", layout=wide)
        self.strength = widgets.FloatSlider(
            value=strength, min=0.0, max=MOST_STRENGTH, step=0.05, description="strength", layout=wide
        )
        self.prompt = widgets.Text(value=prompt, description="prompt", continuous_update=False, layout=wide)
        self._controls = (self.block, self.times, self.strength, self.prompt)
        self._picture, self._figures, self._samples, self._state = (widgets.HTML() for _ in range(4))
        for control in self._controls:
            control.observe(self._on_change, names="value")
        self.box = widgets.VBox([*self._controls, self._picture, self._figures, self._samples, self._state])
        self.box.add_class("david-slider")
        for _ in self._steps():
            pass

    def close(self) -> None:
        """End the panel: its figures stay, its sliders are disabled, and waiting work is dropped."""
        self._cancel()
        for control in self._controls:
            control.unobserve_all()
            control.disabled = True
        self._state.value = _note_html("closed; the model is as it was")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.box._repr_mimebundle_(**kwargs)
        if isinstance(bundle, dict) and "text/plain" in bundle:
            bundle["text/plain"] = repr(self)
        return bundle

    def __repr__(self) -> str:
        if self.recipe is None or self.score is None:
            return f"Slider({'no recipe' if self.recipe is None else self.recipe}: {self.error or 'not scored yet'})"
        return f"Slider({self.recipe}: perplexity {self.score.perplexity:.2f}, base {self.base.perplexity:.2f})"

    def _on_change(self, _change: Any) -> None:
        """Drop the work for the last position of the sliders, and work for this one."""
        self._cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook
            for _ in self._steps():
                pass
            return
        self._task = loop.create_task(self._run_when_still())

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run_when_still(self) -> None:
        """Wait until the sliders stand still, then work; between two steps the notebook handles other events."""
        await asyncio.sleep(self._wait)
        for _ in self._steps():
            await asyncio.sleep(0.02)

    def _steps(self) -> Iterator[None]:
        """Show the picture, the score and the sample of the chosen recipe. The model is slung only within a step."""
        self.recipe = self.score = self.sample = self.error = None
        self._picture.value = self._figures.value = self._samples.value = ""
        self.strength.disabled = self.times.value < 2
        try:
            recipe = self._chosen_recipe()
            self.recipe = recipe
            self._picture.value = recipe._repr_html_()
            self._state.value = _note_html("scoring …")
            yield
            with slung(self._model, recipe):
                self.score = perplexity(self._model, self._corpus)
            self._figures.value = self._figures_html(self.score)
            self._state.value = _note_html("writing …")
            yield
            with slung(self._model, recipe):
                self.sample = self._continuation()
            if self._base_prompt != self.prompt.value:
                with running_base(self._model):
                    self.base_sample = self._continuation()
                self._base_prompt = self.prompt.value
            assert self.base_sample is not None
            self._samples.value = _samples_html({"base": self.base_sample, "slung": self.sample})
            self._state.value = ""
        except Exception as error:  # raised in a callback nobody would see it
            self.error = error
            self._state.value = _error_html(error)

    def _chosen_recipe(self) -> Recipe:
        """Return the recipe of the sliders; raise `RecipeError` or `SlingError` if the model cannot run it."""
        (start, stop), times = self.block.value, self.times.value
        if times == 0:
            left = [*range(start), *range(stop, self._n_layers)]
            if not left:
                raise RecipeError("no layer would be left: make the block smaller, or run it once")
            recipe = Recipe(tuple(left), base=Recipe.identity(self._n_layers).base)
        else:
            blocks = [(start, stop, times, self.strength.value)] * (stop > start)
            recipe = Recipe.from_blocks(self._n_layers, blocks)
        check_recipe(self._model, recipe)
        return recipe

    def _continuation(self) -> str:
        """Return how the model as it is now continues the prompt, with the likeliest token each time."""
        inputs = self._tokenizer(self.prompt.value, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if not length:
            raise DavidError("the prompt is empty: give it some text")
        with torch.inference_mode():
            output = self._model.generate(  # type: ignore[operator]
                **inputs.to(input_device(self._model)), max_new_tokens=self._tokens, do_sample=False
            )
        return str(self._tokenizer.decode(output[0, length:], skip_special_tokens=True))

    def _figures_html(self, score: Score) -> str:
        change = score.nll - self.base.nll
        percent = f" ({math.expm1(change):+.1%})".replace("-", "−") if abs(change) < 5 else ""
        return (
            f'<div aria-live="polite">perplexity <b class="david-perplexity">{_number(score.perplexity)}</b>{percent}, '
            f"base {_number(self.base.perplexity)} "
            f'<span style="opacity: 0.7">on {score.tokens:,} tokens: a look, no verdict</span></div>'
        )


def slider(
    model: nn.Module,
    tokenizer: Any,
    corpus: Corpus,
    *,
    block: tuple[int, int] | None = None,
    times: int = 2,
    strength: float = 1.0,
    prompt: str = "The capital of France is",
    tokens: int = 16,
    wait: float = 0.2,
) -> Slider:
    """Return a panel of sliders for a notebook: it runs a recipe on the model as the sliders move.

    Put it in the last line of a cell. Layers i … j − 1 of the block `(i, j)` run `times` times in all (0 leaves them
    out; 1, or an empty block, is the base), each time after the first at `strength`. The panel shows the recipe, its
    perplexity on the corpus beside the base's, and what both write after `prompt`. If the sliders move on, work on
    the recipe before that has not begun is dropped.

    The model runs the recipe only while a score or a sample is made. At all other times, also for other cells, and
    after `close()`, it is what it was. To keep the recipe: `David.sling(model, panel.recipe)`. An error (a block that
    the model cannot repeat, an empty prompt) is shown in the panel and stands in `panel.error`.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        corpus: The windows to score. Take few: each move scores all of them.
        block: Where the sliders of the block begin; a block in the middle if left out.
        times: How often the block runs at the beginning.
        strength: Its strength at the beginning.
        prompt: The text that base and recipe continue.
        tokens: How many tokens they write.
        wait: Seconds for which the sliders must stand still before work begins.

    Returns:
        The panel. Its state is in `recipe`, `score`, `sample` and `error`.

    Raises:
        DavidError: ipywidgets is not installed.
        RecipeError: The sliders cannot begin at these values.
        ScoreError: The base cannot be scored on the corpus.

    Example:
        >>> panel = slider(model, tokenizer, windows, block=(8, 12), strength=0.3)
        >>> str(panel.recipe)
        '0:12, 8:12*0.3, 12:30'
        >>> panel.strength.value = 0.5  # what a hand does in the notebook
        >>> str(panel.recipe), panel.score == score_recipes(model, [panel.recipe], windows)[0]
        ('0:12, 8:12*0.5, 12:30', True)
    """
    n_layers = base_depth(model)
    check_tokenizer(tokenizer, DavidError)
    check_type("corpus", corpus, Corpus, ScoreError)
    block = block if block is not None else (n_layers // 3, n_layers // 3 + max(1, n_layers // 8))
    try:
        start, stop = block
        fits = all(type(bound) is int for bound in block) and 0 <= start <= stop <= n_layers
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise RecipeError(f"block must be (i, j) with 0 ≤ i ≤ j ≤ {n_layers}; got {brief(block)}")
    if type(times) is not int or not 0 <= times <= MOST_TIMES:
        raise RecipeError(f"times must be a whole number from 0 to {MOST_TIMES}; got {brief(times)}")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= MOST_STRENGTH:
        raise RecipeError(f"strength must be a number from 0 to {MOST_STRENGTH:g}; got {brief(strength)}")
    if type(tokens) is not int or tokens < 1:
        raise ScoreError(f"tokens must be a whole number from 1 on; got {brief(tokens)}")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        raise ScoreError(f"wait must be a number of seconds from 0 on; got {brief(wait)}")
    if not isinstance(prompt, str):
        raise ScoreError(f"prompt must be a text; got {brief(prompt)}")
    check_fits(model, corpus)
    return Slider(
        model,
        tokenizer,
        corpus,
        block=block,
        times=times,
        strength=float(strength),
        prompt=prompt,
        tokens=tokens,
        wait=wait,
    )


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError:
        raise DavidError(f"sliders need the package ipywidgets: {install_hint('notebooks')}") from None
    return ipywidgets


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e5 else f"{value:.3g}"


def _note_html(text: str) -> str:
    return f'<div class="david-state" style="opacity: 0.7">{escape(text)}</div>'


def _error_html(error: Exception) -> str:
    kind = "" if isinstance(error, DavidError) else f"{type(error).__name__}: "
    return (
        '<div class="david-state" role="alert" style="color: var(--jp-error-color1, #d32f2f)">'
        f"error: {escape(kind + one_line(error))}</div>"
    )


def _samples_html(texts: dict[str, str]) -> str:
    """Return a table of what models wrote. Their text is escaped: it is never read as HTML."""
    rows = "".join(
        f'<tr><td style="padding-right: 1em; opacity: 0.7; vertical-align: top">{escape(name)}</td>'
        f'<td style="white-space: pre-wrap; overflow-wrap: anywhere">{escape(_visible_lines(text))}</td></tr>'
        for name, text in texts.items()
    )
    return f'<table class="mathjax_ignore" style="line-height: 1.4">{rows}</table>'


def _visible_lines(text: str) -> str:
    """Return the lines of a text that are not empty, with control characters escaped."""
    return "\n".join(plain(line) for line in text.strip().splitlines() if line.strip())
