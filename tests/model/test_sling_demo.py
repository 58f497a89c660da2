"""Slinging a real model: SmolLM2-135M against a deep copy with its layers really stacked."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from david import David, Recipe
from david.sling.stacked_copy import stacked

MEMORY = Path(__file__).parents[2] / "experiments" / "memory" / "memory.py"
NEW_TOKENS, UNCACHED_TOKENS = 64, 12  # without a cache each token reads the whole text again
MAPS = {
    "repeats": "0:12, 8:30",
    "skips": "0:5, 8:20, 21:30",
    "reversed stretch": "0:10, 14, 13, 12, 11, 10, 15:30",
    "single layer": "7",
    "twice the depth": "0:30, 0:30",
}
QUICK = {"single layer"}


def greedy(model: Any, tokens: torch.Tensor, *, use_cache: bool = True, n_new: int = NEW_TOKENS) -> torch.Tensor:
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=use_cache,
    )
    assert out.shape[1] == tokens.shape[1] + n_new
    return out


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture
def prompt(demo: tuple[Any, Any]) -> torch.Tensor:
    return demo[1]("The history of Paris begins", return_tensors="pt").input_ids  # [1, T]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(text, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, text in MAPS.items()],
)
def test_slung_generates_what_the_stacked_copy_does_and_reset_is_the_base(
    demo: tuple[Any, Any], prompt: torch.Tensor, recipe: str
) -> None:
    model = demo[0]
    before, base = model.config.to_dict(), logits(model, prompt)
    wanted = Recipe.parse(recipe)
    copied = stacked(model, wanted)
    right, right_logits = greedy(copied, prompt), logits(copied, prompt)
    del copied
    with David.slung(model, wanted):
        assert torch.equal(logits(model, prompt), right_logits)
        assert torch.equal(greedy(model, prompt), right)
        uncached = greedy(model, prompt, use_cache=False, n_new=UNCACHED_TOKENS)
        assert torch.equal(uncached, right[:, : uncached.shape[1]])
    assert torch.equal(logits(model, prompt), base)
    assert not torch.equal(right_logits, base)
    assert model.config.to_dict() == before


@pytest.mark.slow
def test_two_views_and_the_base_answer_in_turn_each_its_own(demo: tuple[Any, Any], prompt: torch.Tensor) -> None:
    model = demo[0]
    recipes = [Recipe.parse(MAPS[name]) for name in ("repeats", "skips")]
    models = [model, *(David.view(model, recipe) for recipe in recipes)]
    alone = [greedy(model, prompt, n_new=16)]
    for recipe in recipes:
        with David.slung(model, recipe):
            alone.append(greedy(model, prompt, n_new=16))
    rows, caches = [prompt] * 3, [None] * 3
    with torch.no_grad():
        for _ in range(16):  # a token from each in turn
            for i, each in enumerate(models):
                new = rows[i] if caches[i] is None else rows[i][:, -1:]
                out = each(new, past_key_values=caches[i], use_cache=True)
                caches[i] = out.past_key_values
                rows[i] = torch.cat([rows[i], out.logits[:, -1:].argmax(-1)], dim=1)
    for row, right in zip(rows, alone, strict=True):
        assert torch.equal(row, right)
    assert len({tuple(row[0].tolist()) for row in rows}) == 3


def test_nested_slung_restores_the_outer_recipe(demo: tuple[Any, Any], prompt: torch.Tensor) -> None:
    model = demo[0]
    base = logits(model, prompt)
    with David.slung(model, MAPS["repeats"]):
        outer = logits(model, prompt)
        with David.slung(model, MAPS["skips"]):
            inner = logits(model, prompt)
        assert torch.equal(logits(model, prompt), outer)
    assert torch.equal(logits(model, prompt), base)
    assert not torch.equal(outer, inner)
    assert not torch.equal(outer, base)


def test_a_goliath_shaped_sling_adds_visits_and_cache_but_no_weights(demo: tuple[Any, Any]) -> None:
    model = demo[0]
    spec = importlib.util.spec_from_file_location("memory", MEMORY)
    memory: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    recipe = memory.goliath(30)
    assert str(recipe) == "0:17, 7:24, 13:30"
    weights, cache = memory.weight_bytes(model), memory.cache_bytes(model, 32)
    layers = memory.weight_bytes(model.model.layers)
    assert weights == 4 * sum(p.numel() for p in model.parameters())
    # keys and values, 30 layers, 32 tokens, 3 key-value heads of width 64, 4 bytes
    assert cache == 2 * 30 * 32 * 3 * 64 * 4
    with David.slung(model, recipe):
        assert len(model.model.layers) == 51
        assert sum(p.numel() for p in model.parameters()) == weights // 4
        assert memory.weight_bytes(model) == weights
        assert memory.weight_bytes(model.model.layers) == layers
        assert memory.cache_bytes(model, 32) == cache * 51 // 30
    copied = stacked(model, recipe)
    assert memory.weight_bytes(copied.model.layers) == layers * 51 // 30
    assert layers < 0.6 * memory.weight_bytes(copied.model.layers)
    assert memory.weight_bytes(copied) - weights == layers * 21 // 30
