"""Self-check: compare the engine with one-by-one scoring on a few windows, and measure it.

`checked_runner` returns the runner of a model, or the reason why recipes of that model must be scored one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from david.engine.meter import Meter
from david.engine.prefix_tree import PrefixTree
from david.engine.runner import Runner
from david.errors import DavidError
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import windows_score
from david.sling.in_place import base_depth, check_recipe, running_base, slung
from david.support.memory import lacks_memory
from david.support.text import one_line

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}  # nats a token: the order of sums may change this much
_ROUNDING_HALF = 5e-3


@dataclass(frozen=True)
class CheckedRunner:
    """A runner that passed the self-check.

    Attributes:
        runner: The runner.
        window_bytes: Bytes of the hidden state of one window.
        end_visits: What an end costs, in visits.
    """

    runner: Runner
    window_bytes: int
    end_visits: float


def checked_runner(model: nn.Module, corpus: Corpus, first: int, options: Mapping[str, Any]) -> CheckedRunner | str:
    """Return a runner whose scores of the base and of a recipe with two seams are those of slinging.

    Args:
        model: A loaded model, slung or not; afterwards it is what it was.
        corpus: The corpus to score; its first two windows are scored, or one if memory runs out.
        first: The first scored position of a window.
        options: Options of `windows_score`.

    Returns:
        The runner, or the reason why there is none.
    """
    try:
        with running_base(model), torch.inference_mode():
            runner = Runner.of(model, corpus.windows, first)
        if isinstance(runner, str):
            return runner
        try:
            return _compared(model, runner, options, corpus.part(0, min(2, len(corpus))))
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
        return _compared(model, runner, options, corpus.part(0, 1))
    except Exception as error:  # any kind: the code of any model
        return f"{type(error).__name__}: {one_line(error)}"


def _compared(model: nn.Module, runner: Runner, options: Mapping[str, Any], few: Corpus) -> CheckedRunner | str:
    """Return the runner and its measures, or by how much its NLL differs, if that is more than rounding."""
    n_layers = base_depth(model)
    recipes = [Recipe.identity(n_layers), _two_seams(model, n_layers)]
    tree, meter = PrefixTree.of(recipes, n_layers), Meter(exact=True)
    with running_base(model), torch.inference_mode():
        order = tree.layer_sweep_order() if runner.streamed else tree.depth_first_order()
        nll = runner.nll(tree, order, few, meter=meter)
    for recipe, end in zip(recipes, tree.ends, strict=True):
        with slung(model, recipe):
            score = windows_score(model, few, **{**options, "batch": len(few)})
        difference = abs(sum(nll[end]) / score.tokens - score.nll)
        tolerance = _ROUNDING.get(next(model.parameters()).dtype, _ROUNDING_HALF)
        if not difference <= tolerance:  # NaN too
            return f"its NLL of the recipe {recipe} differs by {difference:.1e} nats a token"
    return CheckedRunner(
        runner=runner,
        window_bytes=meter.largest // len(few),
        end_visits=(meter.end_seconds / meter.ends) / (meter.visit_seconds / meter.visits),
    )


def _two_seams(model: nn.Module, n_layers: int) -> Recipe:
    """Return a recipe that goes back twice, with one damped visit if the model can run it."""
    low, high = n_layers // 3, 2 * n_layers // 3
    visits = [*range(low + 1), *range(max(low - 1, 0), high + 1), *range(max(high - 1, 0), n_layers)]
    damped = Recipe(tuple(visits), tuple(0.5 if place == low + 1 else 1.0 for place in range(len(visits))))
    try:
        check_recipe(model, damped)
    except DavidError:
        return Recipe(damped.repeat_map)
    return damped
