"""A profile says of each layer what one finds by hand, and leaves the model as it was."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from david.analysis.profile import profile
from david.engine.engine import Engine
from david.recipe.recipe import Recipe
from david.scoring.objectives import perplexity
from david.sling.in_place import sling, slung
from tests.helpers.corpora import standing, windows
from tests.tiny_models import tiny_model


def states_of(model: Any, tokens: torch.Tensor) -> list[np.ndarray]:
    """The hidden states before each layer, as transformers itself tells them: `[N, T, D]`."""
    with torch.no_grad():
        found = model(tokens[None], output_hidden_states=True, use_cache=False).hidden_states
    return [state[0].double().numpy() for state in found[:-1]]  # the last one is behind the norm


def angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each token, the angle between two states, in half turns."""
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return np.arccos(np.clip(cosine, -1, 1)) / math.pi


def test_influence_and_distances_are_those_of_the_hidden_states(tiny: Any) -> None:
    corpus = windows(3)
    found = profile(tiny, corpus)
    states = [states_of(tiny, window) for window in corpus]
    for i in range(5):
        cosines = np.cos(math.pi * np.concatenate([angle(each[i], each[i + 1]) for each in states]))
        assert found.layers["influence"][i] == pytest.approx(1 - cosines.mean(), abs=1e-6)
        for j in range(i + 1, 6):
            angles = np.concatenate([angle(each[i], each[j]) for each in states])
            assert found.distances.loc[i, j] == pytest.approx(angles.mean(), abs=1e-5)
    assert found.distances.isna().to_numpy().sum() == 15  # j ≤ i: no block
    assert list(found.distances.columns) == [1, 2, 3, 4, 5, 6]
    assert found.distances[6].notna().all()  # behind the last layer, before the norm


def test_repeat_and_skip_are_what_scoring_by_hand_gives(tiny: Any) -> None:
    corpus = windows(2)
    table, base = profile(tiny, corpus).layers, perplexity(tiny, corpus).nll
    for layer in range(6):
        visits = list(range(6))
        for column, recipe in (
            ("repeat", Recipe([*visits[: layer + 1], *visits[layer:]])),
            ("skip", Recipe([*visits[:layer], *visits[layer + 1 :]])),
        ):
            with slung(tiny, recipe):
                assert table[column][layer] == pytest.approx(perplexity(tiny, corpus).nll - base, abs=1e-5)


def test_the_profile_is_of_the_base_and_the_model_stays_what_it_was(tiny: Any) -> None:
    expected = profile(tiny, windows(2)).layers
    sling(tiny, [3, 1, 1])
    was = standing(tiny)
    assert profile(tiny, windows(2)).layers.equals(expected)
    assert standing(tiny) == was


def test_what_a_model_cannot_run_is_not_a_number() -> None:
    table = profile(tiny_model("gemma3n_text"), windows(1)).layers
    assert table["repeat"].notna().all()
    assert 0 < table["skip"].isna().sum() < len(table)  # a layer whose keys others share cannot be left out


def test_a_score_that_is_not_a_number_is_not_one_in_the_profile_either(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = profile(tiny, windows(1)).layers
    score_of = Engine.score_of
    told: list[int] = []

    def spoiled(engine: Engine, nll: Any) -> Any:
        told.append(0)
        return score_of(engine, [math.nan] if len(told) == 4 else nll)

    monkeypatch.setattr(Engine, "score_of", spoiled)
    found = profile(tiny, windows(1)).layers
    assert math.isnan(found["repeat"][2])
    assert found["repeat"].drop(2).equals(expected["repeat"].drop(2))


def test_a_single_layer_can_only_be_repeated() -> None:
    table = profile(tiny_model("llama", num_hidden_layers=1), windows(1)).layers
    assert table["repeat"].notna().all()
    assert table["skip"].isna().all()
