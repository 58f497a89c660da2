"""Whether the engine fits a model: held against the plain way before it is used, and measured while it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from david.engine.meter import Meter
from david.engine.prefix_tree import Plan
from david.engine.runner import Runner
from david.errors import DavidError
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import windows_score
from david.sling.in_place import base_depth, check_recipe, running_base, slung
from david.support.memory import lacks_memory
from david.support.text import one_line

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}  # nats a token: what the order of sums may change
_ROUNDING_HALF = 5e-3


@dataclass(frozen=True)
class CheckedRunner:
    """A runner that gives the plain way's scores: the bytes of its state of a window, and the visits an end costs."""

    runner: Runner
    window_bytes: int
    end_visits: float


def checked_runner(model: nn.Module, corpus: Corpus, first: int, options: Mapping[str, Any]) -> CheckedRunner | str:
    """A runner for a model, checked on the base and a recipe of two seams; or why there is none.

    `first` is the first scored position of a window, `options` are those of the plain score.
    """
    try:
        with running_base(model), torch.inference_mode():
            runner = Runner.of(model, corpus.windows, first)
        if isinstance(runner, str):
            return runner
        try:
            return _held_against(model, runner, options, corpus.part(0, min(2, len(corpus))))
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
        return _held_against(model, runner, options, corpus.part(0, 1))
    except Exception as error:  # any kind: the code of any model
        return f"{type(error).__name__}: {one_line(error)}"


def _held_against(model: nn.Module, runner: Runner, options: Mapping[str, Any], few: Corpus) -> CheckedRunner | str:
    """The fit on a few windows; or how far the runner leads from the plain way, where that is more than rounding."""
    n_layers = base_depth(model)
    recipes = [Recipe.identity(n_layers), _two_seams(model, n_layers)]
    plan, meter = Plan.of(recipes, n_layers), Meter(exact=True)
    with running_base(model), torch.inference_mode():
        order = plan.elevator() if runner.streamed else plan.depth_first()
        found = runner.nll(plan, order, few, meter=meter)
    for recipe, end in zip(recipes, plan.ends, strict=True):
        with slung(model, recipe):
            plain = windows_score(model, few, **{**options, "batch": len(few)})
        apart = abs(sum(found[end]) / plain.tokens - plain.nll)
        allowed = _ROUNDING.get(next(model.parameters()).dtype, _ROUNDING_HALF)
        if not apart <= allowed:
            return f"it gives the recipe {recipe} another NLL, by {apart:.1e} nats a token"
    return CheckedRunner(
        runner=runner,
        window_bytes=meter.largest // len(few),
        end_visits=(meter.end_seconds / meter.ends) / (meter.visit_seconds / meter.visits),
    )


def _two_seams(model: nn.Module, n_layers: int) -> Recipe:
    """A recipe that goes back twice, with one visit damped where the model has a hidden state to damp."""
    low, high = n_layers // 3, 2 * n_layers // 3
    visits = [*range(low + 1), *range(max(low - 1, 0), high + 1), *range(max(high - 1, 0), n_layers)]
    damped = Recipe(tuple(visits), tuple(0.5 if place == low + 1 else 1.0 for place in range(len(visits))))
    try:
        check_recipe(model, damped)
    except DavidError:
        return Recipe(damped.repeat_map)
    return damped
