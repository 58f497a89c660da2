"""Profile a base (`profile`): how each layer changes the hidden state, and what repeating or skipping it costs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from david.candidates.strategies import singles
from david.engine.engine import Engine
from david.errors import DavidError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import check_fits
from david.sling.forward import forward, input_device
from david.sling.in_place import base_depth, base_layers, running_base
from david.sling.views import hidden


@dataclass(frozen=True)
class Profile:
    """What each layer of a base does.

    Attributes:
        layers: A row for each layer. `influence` is 1 − cos of the hidden state before and behind the layer (Block
            Influence; Men et al., ShortGPT, 2024). `repeat` and `skip` are the NLL minus the base's, in nats a token,
            if the layer runs twice, and if it is left out; NaN where the model cannot run that.
        distances: Rows i, columns j: the angle between the states before layer i and before layer j, in half turns
            (angular distance; Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024). Where it is
            small, leaving out the block (i, j) changes little.

    Influence and distances are means over all tokens.
    """

    layers: pd.DataFrame
    distances: pd.DataFrame


def profile(model: nn.Module, corpus: Corpus, *, memory_budget: int | None = None, progress: bool = False) -> Profile:
    """Profile a model's base on a corpus: one pass over it, then one score for each layer repeated and each skipped.

    Args:
        model: The model, slung or not; its base is profiled.
        corpus: The windows to run.
        memory_budget: How many bytes of hidden states may be held (see `score_recipes`).
        progress: Whether to show a progress bar.

    Returns:
        The profile.

    Raises:
        ScoreError: If the windows do not fit the model, or the base cannot be scored.
        SlingError: If the model is refused.

    Example:
        >>> found = profile(model, windows)
        >>> found.layers.columns.tolist(), found.distances.shape
        (['layer', 'influence', 'repeat', 'skip'], (30, 30))
    """
    check_fits(model, corpus)
    n_layers = base_depth(model)
    cosines, angles = _cosines_and_angles(model, corpus)
    recipes = [Recipe.identity(n_layers), *singles(n_layers)]
    engine = Engine(model, corpus, memory_budget=memory_budget)
    total = engine.work(recipes)
    with tqdm(total=total, unit="visit", unit_scale=True, disable=not progress) as bar:
        outcomes = engine.outcomes(recipes, done=lambda work: bar.update(min(work, total - bar.n)))
    if isinstance(outcomes[0], DavidError):
        raise outcomes[0]
    nll = {r: score.nll for r, score in zip(recipes, outcomes, strict=True) if isinstance(score, Score)}
    changes = [nll.get(recipe, math.nan) - nll[recipes[0]] for recipe in recipes[1:]]
    table = pd.DataFrame(
        {"layer": range(n_layers), "influence": [1 - cosines[i, i + 1].item() for i in range(n_layers)]}
    )
    table["repeat"] = changes[:n_layers]
    table["skip"] = changes[n_layers:] or math.nan
    index = pd.RangeIndex(n_layers, name="i")
    distances = pd.DataFrame(angles[:-1, 1:].tolist(), index=index, columns=pd.RangeIndex(1, n_layers + 1, name="j"))
    return Profile(table, distances.where(distances.columns.to_numpy() > index.to_numpy()[:, None]))


def _cosines_and_angles(model: nn.Module, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Return mean cosines and angles (half turns), `[N + 1, N + 1]`, of the layers' inputs and the last output."""
    n_states = base_depth(model) + 1
    cosines, angles = torch.zeros(2, n_states, n_states, dtype=torch.float64)
    tokens = 0
    with running_base(model), torch.inference_mode():
        for window in corpus:
            with _captured_states(model) as states:
                forward(model, window[None].to(input_device(model)))
            units = torch.stack([functional.normalize(state.flatten(0, -2).float().cpu(), dim=-1) for state in states])
            for i in range(n_states):
                each = (units[i] * units[i:]).sum(dim=-1).clamp(-1, 1).double()  # [N + 1 − i, tokens]
                cosines[i, i:] += each.sum(dim=1)
                angles[i, i:] += each.arccos().sum(dim=1) / math.pi
            tokens += units.shape[1]
    return cosines / tokens, angles / tokens


@contextmanager
def _captured_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Capture the input state of each layer and the output of the last one, as the base's forward runs."""
    states: list[Tensor] = []

    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not states:
            states.append(args[0] if args else kwargs["hidden_states"])
        states.append(hidden(output))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in base_layers(model)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
