"""The sliders, moved by hand and without a browser: experiments/jupyter moves them in one."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tqdm.notebook import tqdm as notebook_bar
from tqdm.std import tqdm as text_bar

from david.chat.widgets import Slider, slider
from david.engine.engine import score_recipes
from david.errors import DavidError, RecipeError, ScoreError, SlingError
from david.models.load import load_model
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.install import is_slung
from david.sling.namespace import David
from david.support.console import set_bar_total
from tests.helpers.demo_stand_in import furnish_cache

Make = Callable[..., Slider]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Corpus]:
    """A model of eight layers that reads every text, its tokenizer, and two windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAVID_CACHE", str(furnish_cache(tmp_path_factory.mktemp("cache"), layers=8)))
        model, tokenizer = load_model("demo", device="cpu")
    return model, tokenizer, Corpus.load(tokenizer=tokenizer, window=16).take(2)


@pytest.fixture
def make(loaded: tuple[Any, Any, Corpus]) -> Make:
    def panel(**options: Any) -> Slider:
        return slider(*loaded, **{"block": (2, 5), "tokens": 3, "wait": 0.01} | options)

    return panel


def said(panel: Slider) -> str:
    """All that a panel shows."""
    return "".join(child.value for child in panel.box.children[4:])


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# What it shows


def test_a_model_whose_weights_are_elsewhere_writes_the_same(make: Make, loaded: tuple[Any, Any, Corpus]) -> None:
    here = said(make(strength=0.5))
    model = cpu_offload(deepcopy(loaded[0]))
    assert next(model.parameters()).device.type == "meta"
    assert said(slider(model, *loaded[1:], block=(2, 5), strength=0.5, tokens=3, wait=0.01)) == here


def test_a_panel_shows_picture_score_and_sample_of_where_its_sliders_stand(
    make: Make, loaded: tuple[Any, Any, Corpus]
) -> None:
    model, tokenizer, corpus = loaded
    panel, recipe = make(strength=0.5), Recipe.from_blocks(8, [(2, 5, 2, 0.5)])
    assert panel.recipe == recipe
    assert panel.score == score_recipes(model, [recipe], corpus)[0]
    assert panel.base == perplexity(model, corpus)
    inputs = tokenizer(panel.prompt.value, return_tensors="pt")
    with David.slung(model, recipe):
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert panel.sample == tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert recipe._repr_html_() in said(panel)
    words = text(said(panel))
    assert f"perplexity {panel.score.perplexity:.2f}" in words
    assert f"base {panel.base.perplexity:.2f} on 30 tokens: a look, no verdict" in words
    assert repr(panel) == f"Slider({recipe}: perplexity {panel.score.perplexity:.2f}, base {panel.base.perplexity:.2f})"


@pytest.mark.parametrize(
    ("block", "times", "strength", "recipe"),
    [
        ((2, 5), 2, 1.0, "0:5, 2:8"),
        ((2, 5), 3, 0.25, "0:5, 2:5*0.25, 2:5*0.25, 5:8"),
        ((2, 5), 1, 0.25, "0:8"),
        ((2, 5), 0, 1.0, "0:2, 5:8"),
        ((0, 8), 2, 0.0, "0:8, 0:8*0.0"),
        ((5, 5), 3, 1.0, "0:8"),
        ((3, 3), 0, 1.0, "0:8"),
    ],
)
def test_each_place_of_the_sliders_is_a_recipe(
    make: Make, block: tuple[int, int], times: int, strength: float, recipe: str
) -> None:
    panel = make(block=block, times=times, strength=strength)
    assert str(panel.recipe) == recipe
    assert panel.error is None
    assert panel.recipe is not None
    assert panel.recipe.n_layers == 8


def test_a_moved_slider_shows_the_new_recipe_and_nothing_of_the_old(make: Make) -> None:
    panel = make()
    before = said(panel)
    for name, value in (("block", (1, 4)), ("times", 3), ("strength", 0.5), ("prompt", "Once upon")):
        getattr(panel, name).value = value
        assert said(panel) != before, name
        before = said(panel)
    assert panel.recipe == Recipe.from_blocks(8, [(1, 4, 3, 0.5)])
    assert panel.score is not None
    assert f"{panel.score.perplexity:.2f}" in said(panel)


def test_the_base_writes_again_for_another_prompt_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    panel, runs = make(), []
    generate = panel._model.generate
    monkeypatch.setattr(panel._model, "generate", lambda **its: runs.append(1) or generate(**its), raising=False)
    panel.times.value = 3
    assert len(runs) == 1
    panel.prompt.value = "Once"
    assert len(runs) == 3


def test_a_strength_that_does_nothing_cannot_be_moved(make: Make) -> None:
    panel = make(times=1)
    assert panel.strength.disabled
    panel.times.value = 2
    assert not panel.strength.disabled


def test_in_a_notebook_it_is_a_widget_and_elsewhere_a_line(make: Make) -> None:
    panel = make()
    bundle = panel._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.box.model_id
    assert bundle["text/plain"] == repr(panel)


def test_what_a_model_writes_is_never_read_as_html(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert(1)</script>\n\n\u202eabc"
    panel = make()
    monkeypatch.setattr(panel, "_continuation", lambda: hostile)
    panel.times.value = 3
    assert "<script" not in said(panel)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\n\\u202eabc" in said(panel)


# The model is what it was


@pytest.mark.parametrize("before", [None, "0:8, 2:8"], ids=["its base", "a sling"])
def test_the_model_is_what_it_was_also_after_an_error_and_after_close(
    make: Make, loaded: tuple[Any, Any, Corpus], before: str | None
) -> None:
    model, tokenizer, _ = loaded
    inputs = tokenizer("The capital", return_tensors="pt")
    if before:
        David.sling(model, before)
    try:
        layers, logits = list(model.model.layers), model(**inputs).logits
        panel = make()
        panel.strength.value = 0.25
        panel.block.value, panel.times.value = (0, 8), 0  # nothing would be left
        assert panel.error is not None
        panel.close()
        assert list(model.model.layers) == layers
        assert torch.equal(model(**inputs).logits, logits)
        assert is_slung(model) is (before is not None)
        assert panel.base == perplexity(David.reset(model), panel._corpus)  # of the base, whatever stood there
    finally:
        David.reset(model)


def test_a_closed_panel_does_nothing_any_more_and_says_so(make: Make) -> None:
    panel = make()
    recipe, figures = panel.recipe, panel._figures.value
    panel.close()
    panel.times.value = 4
    assert all(control.disabled for control in panel._controls)
    assert (panel.recipe, panel._figures.value) == (recipe, figures)
    assert "closed" in said(panel)


# Errors are shown, and gone when the sliders leave them


def test_a_recipe_that_cannot_be_is_told_in_the_panel_and_then_forgotten(make: Make) -> None:
    panel = make(block=(0, 8))
    panel.times.value = 0
    assert isinstance(panel.error, RecipeError)
    assert panel.recipe is panel.score is panel.sample is None
    assert "error: no layer would be left: make the block smaller, or run it once" in text(said(panel))
    assert "no layer would be left" in repr(panel)
    panel.times.value = 2
    assert panel.error is None
    assert "error" not in text(said(panel))


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (SlingError("layer 3 shares <b>another's</b> keys"), "error: layer 3 shares &lt;b&gt;another&#x27;s"),
        (RuntimeError("out of memory\nsomewhere"), "error: RuntimeError: out of memory somewhere"),
    ],
)
@pytest.mark.parametrize("step", ["perplexity", "check_recipe", "_continuation"])
def test_an_error_in_any_step_is_told_in_the_panel_and_the_figures_of_before_are_gone(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str, raised: Exception, told: str
) -> None:
    def fails(*_: Any) -> Any:
        raise raised

    panel = make()
    home = panel if step == "_continuation" else sys.modules["david.chat.widgets"]
    monkeypatch.setattr(home, step, fails)
    old = panel._figures.value
    panel.times.value = 3
    assert panel.error is raised
    assert told in said(panel)
    assert old not in said(panel)
    assert not is_slung(panel._model)


def test_an_empty_prompt_is_told_and_the_score_stands(make: Make) -> None:
    panel = make()
    panel.prompt.value = ""
    assert panel.score is not None
    assert "error: the prompt is empty: give it some text" in text(said(panel))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"block": (2, 9)}, RecipeError, r"block must be \(i, j\) with 0 ≤ i ≤ j ≤ 8; got \(2, 9\)"),
        ({"block": (5, 2)}, RecipeError, "block must be"),
        ({"block": (-1, 2)}, RecipeError, "block must be"),
        ({"block": 3}, RecipeError, "block must be"),
        ({"block": (1, 2, 3)}, RecipeError, "block must be"),
        ({"block": (1.0, 2.0)}, RecipeError, "block must be"),
        ({"block": "25"}, RecipeError, "block must be"),
        ({"times": 5}, RecipeError, "times must be a whole number from 0 to 4; got 5"),
        ({"times": True}, RecipeError, "times must be"),
        ({"strength": -0.5}, RecipeError, "strength must be a number from 0 to 2; got -0.5"),
        ({"strength": float("nan")}, RecipeError, "strength must be"),
        ({"strength": "1"}, RecipeError, "strength must be"),
        ({"tokens": 0}, ScoreError, "tokens must be a whole number from 1 on; got 0"),
        ({"wait": -1}, ScoreError, "wait must be a number of seconds from 0 on; got -1"),
        ({"prompt": 7}, ScoreError, "prompt must be a text; got 7"),
    ],
)
def test_sliders_that_cannot_stand_where_they_are_put_are_refused(
    make: Make, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(**options)


def test_without_ipywidgets_a_line_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(DavidError, match=r"^sliders need the package ipywidgets: run pip install .*'\.\[notebooks\]'"):
        make()


# As in a notebook: a loop runs, and moves come while something is under way


def test_of_many_moves_the_last_alone_is_scored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    async def drag() -> Slider:
        panel = make(wait=0.05)
        monkeypatch.setattr(
            "david.chat.widgets.perplexity", lambda model, corpus: scored.append(1) or perplexity(model, corpus)
        )
        for tenth in range(20):
            panel.strength.value = tenth / 10
        assert scored == []  # a move returns at once
        await panel._task  # type: ignore[misc]
        return panel

    panel = asyncio.run(drag())
    assert scored == [1]
    assert panel.recipe == Recipe.from_blocks(8, [(2, 5, 2, 1.9)])
    assert panel.sample is not None


def test_a_move_while_something_is_under_way_drops_what_is_not_yet_begun(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Recipe | None] = []

    async def move_between() -> Slider:
        panel = make(wait=0.0)
        own = panel._continuation
        monkeypatch.setattr(panel, "_continuation", lambda: written.append(panel.recipe) or own())
        panel.times.value = 3
        while panel.score is None or len(panel.recipe or ()) != 14:
            await asyncio.sleep(0.001)
        first = panel._task
        panel.times.value = 4  # its score is there, its sample is not begun
        assert not is_slung(panel._model)
        await panel._task  # type: ignore[misc]
        assert first is not None
        assert first.cancelled()
        return panel

    panel = asyncio.run(move_between())
    assert written == [panel.recipe]
    assert panel.times.value == 4


def test_while_new_figures_are_not_there_the_old_ones_are_not_shown(make: Make) -> None:
    async def look() -> None:
        panel = make(wait=0.0)
        old = panel._figures.value
        panel.times.value = 3
        while "scoring" not in said(panel):
            await asyncio.sleep(0)
        assert old not in said(panel)
        panel.close()
        await asyncio.sleep(0.1)
        assert panel.score is None
        assert "closed" in said(panel)

    asyncio.run(look())


# Progress bars in a kernel


def test_a_notebook_bar_ends_where_it_is_told_to_also_when_that_moves() -> None:
    bar = notebook_bar(unit="visit", display=False)
    widget = bar.container.children[1]
    assert (widget.value, widget.max, widget.layout.width) == (0, 1, "20px")  # of tqdm without an end
    set_bar_total(bar, 40)
    bar.update(10)
    bar.refresh()
    assert (bar.n, bar.total, widget.value, widget.max, widget.layout.width) == (10, 40, 10, 40, None)
    assert "25%" in bar.container.children[0].value
    set_bar_total(bar, 10)
    bar.close()
    assert (widget.max, widget.bar_style) == (10, "success")


def test_a_bar_of_text_ends_where_it_is_told_to() -> None:
    bar = text_bar(unit="visit", file=StringIO())
    set_bar_total(bar, 40)
    bar.update(10)
    assert "25%" in str(bar)
    bar.close()


KERNEL = """
import sys, types, warnings
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
class Shell: pass
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=Shell, display=None)
{without}
warnings.simplefilter("always")
{imports}
from tqdm.auto import tqdm
print(any("notebook" in kind.__module__ for kind in tqdm.__mro__))
"""


def test_without_ipywidgets_bars_in_a_kernel_are_text_and_nothing_is_said(tmp_path: Path) -> None:
    code = KERNEL.format(without='sys.modules["ipywidgets"] = None', imports="from david.study import search")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, "IProgress" in done.stderr) == ("False\n", False)
    said = subprocess.run(
        [sys.executable, "-c", KERNEL.format(without='sys.modules["ipywidgets"] = None', imports="")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "IProgress not found" in said.stderr  # what tqdm says by itself
