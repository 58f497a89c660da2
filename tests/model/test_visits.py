"""Each distinct visit once, by the layers of many kinds of models: counted by hooks, compared with slinging by hand."""

import csv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from david import David
from david.engine import runner, state_cache
from david.engine.engine import Engine, make_schedule, score_recipes
from david.engine.prefix_tree import PrefixTree
from david.errors import ScoreError, SlingError
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling import forward
from david.sling.in_place import check_recipe
from david.sling.locate import find
from david.sling.views import hidden
from tests import tiny_models
from tests.helpers.layer_calls import counted
from tests.tiny_models import VOCABULARY, tiny_model, tiny_named

WINDOW = 16
STATE = 32 * 4  # bytes of one token's hidden state
# One for each mechanism: plain, fused, sliding, packed, shared keys, experts, latent, hybrids, states of their own.
TYPES = (
    *("llama", "gpt2", "gemma3_text", "gemma3n_text", "gemma4_text", "mixtral", "qwen2_moe", "deepseek_v3"),
    *("jamba", "mamba", "lfm2", "qwen3_next", "rwkv", "falcon_h1", "minimax", "bloom", "zamba2", "llama4_text"),
)
RECIPES = [
    Recipe.parse("0:6"),
    Recipe.parse("0:3, 1:3*0.5, 1:6"),
    Recipe.parse("0:3, 1:3*0.5, 2, 4:6"),
    Recipe.parse("0, 2:6"),
    Recipe.parse("0:5, 4*-0.25, 4:6, 5"),
    Recipe.parse("0, 4, 3, 2, 1, 5"),
]


def corpus_of(n_windows: int, window: int = WINDOW) -> Corpus:
    windows = torch.randint(3, VOCABULARY - 7, (n_windows, window), generator=torch.Generator().manual_seed(1))
    return Corpus(windows, (0,) * n_windows, source="random", slice=None, sha256="", bos=False)


def scan(n_layers: int) -> list[Recipe]:
    return [Recipe.identity(n_layers), *all_blocks(n_layers)]


def recipes_of(model: Any) -> list[Recipe]:
    """Those that a model can run: shared keys must have been made before they are read."""
    found = []
    for recipe in RECIPES:
        with suppress(SlingError):
            check_recipe(model, recipe)
            found.append(recipe)
    assert len(found) >= 3
    assert len({recipe.repeat_map for recipe in found}) >= 3
    return found


def slung_by_hand(model: Any, recipe: Recipe, corpus: Corpus) -> tuple[float, ...]:
    with David.slung(model, recipe):
        return perplexity(model, corpus).window_nll


# ---- each distinct visit once


@pytest.mark.parametrize(("n_layers", "budget", "batches"), [(8, None, 1), (8, 2 * STATE * WINDOW, 3), (5, None, 1)])
def test_a_scan_makes_each_distinct_visit_once_for_each_batch(n_layers: int, budget: int | None, batches: int) -> None:
    model, corpus, every = tiny_model("llama", num_hidden_layers=n_layers), corpus_of(3), scan(n_layers)
    distinct = sum((n_layers - i) ** 2 for i in range(n_layers)) + n_layers
    with counted(model) as calls:
        engine = Engine(model, corpus, memory_budget=budget)
        attached = sum(calls)
        assert len(engine.batches) == batches
        engine.outcomes(every)
        assert sum(calls) - attached == distinct * batches
        before = sum(calls)
        score_recipes(model, every, corpus, memory_budget=budget)
        assert sum(calls) - before == attached + distinct * batches


def test_each_layer_is_called_as_often_as_the_plan_has_it() -> None:
    model = tiny_model("llama")
    tree = PrefixTree.of(RECIPES, 6)
    engine = Engine(model, corpus_of(3))
    with counted(model) as calls:
        engine.outcomes(RECIPES)
    assert calls == [tree.layers.count(layer) for layer in range(6)]


def test_a_recipe_that_shares_nothing_is_scored_without_a_self_check() -> None:
    model = tiny_model("llama")
    with counted(model) as calls:
        score_recipes(model, [Recipe((3, 1, 1))], corpus_of(2))
    assert calls == [0, 4, 0, 2, 0, 0]


# ---- the numbers are those of slinging by hand


@pytest.mark.parametrize("name", TYPES)
def test_scores_are_those_of_slinging_by_hand(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, corpus = tiny_named(name), corpus_of(3)
    capsys.readouterr()
    recipes = recipes_of(model)
    scores = Engine(model, corpus).outcomes(recipes)
    assert "one by one" not in capsys.readouterr().err
    for recipe, score in zip(recipes, scores, strict=True):
        close = pytest.approx(slung_by_hand(model, recipe, corpus), abs=1e-5 * (WINDOW - 1))
        assert score.window_nll == close, recipe
    assert len({round(score.nll, 3) for score in scores}) == len(recipes)


def test_batches_of_one_window_give_the_very_numbers_of_slinging_by_hand() -> None:
    model, corpus = tiny_model("llama"), corpus_of(3)
    every = [*RECIPES, *scan(6)]
    scores = Engine(model, corpus, memory_budget=2 * STATE * WINDOW).outcomes(every)
    assert [score.window_nll for score in scores] == [slung_by_hand(model, recipe, corpus) for recipe in every]


def test_layers_that_hand_on_more_go_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    model, corpus = tiny_model("glm_moe_dsa"), corpus_of(2)
    recipes = recipes_of(model)
    scores = Engine(model, corpus).outcomes(recipes)
    (line,) = capsys.readouterr().err.splitlines()
    assert "its layers hand on more than a hidden state" in line
    assert [score.window_nll for score in scores] == [slung_by_hand(model, recipe, corpus) for recipe in recipes]


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n_text"])
def test_the_self_check_notices_states_without_the_keys_they_share(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "_empty_mappings", lambda _told: {})
    model, corpus = tiny_model(name), corpus_of(2)
    capsys.readouterr()
    recipes = recipes_of(model)
    scores = Engine(model, corpus).outcomes(recipes)
    (line,) = capsys.readouterr().err.splitlines()
    assert "without the engine" in line
    assert [score.window_nll for score in scores] == [slung_by_hand(model, recipe, corpus) for recipe in recipes]


def test_the_self_check_notices_a_visit_that_is_a_little_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = runner.Runner._visit

    def off(self: Any, told: Any, layer: int, scale: float, state: state_cache.State) -> state_cache.State:
        after = exact(self, told, layer, scale, state)
        return state_cache.State(after.hidden * 1.01 if layer == 3 else after.hidden, after.carried)

    monkeypatch.setattr(runner.Runner, "_visit", off)
    model, corpus = tiny_model("llama"), corpus_of(2)
    scores = Engine(model, corpus).outcomes(RECIPES)
    (line,) = capsys.readouterr().err.splitlines()
    assert "its NLL of the recipe" in line
    assert [score.window_nll for score in scores] == [slung_by_hand(model, recipe, corpus) for recipe in RECIPES]


# ---- a forward pass in two parts


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3n_text", "gemma4_text", "jamba", "opt", "cohere"])
def test_the_end_of_all_states_is_the_models_own_forward(name: str) -> None:
    model, tokens = tiny_model(name), corpus_of(2).windows
    with torch.inference_mode():
        handed, logits = forward.layer_outputs(model, tokens)
        with counted(model) as calls:
            again = forward.run_end(model, handed[-1], hidden(handed[-1]), tokens)
        assert torch.equal(again, logits)
        assert torch.equal(logits, model(tokens, use_cache=False).logits)
    assert calls == [0] * 6


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3n_text", "gemma4_text", "jamba"])
def test_what_a_model_gives_its_layers_is_told_without_running_one(name: str) -> None:
    model, tokens = tiny_model(name), corpus_of(2).windows
    home = find(model).layers
    first: list[Any] = []
    home[0].register_forward_pre_hook(
        lambda _layer, args, kwargs: first.append((*args, *kwargs.values())[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.inference_mode():
        forms, _ = forward.layer_outputs(model, tokens[:1, :4])
        with counted(model) as calls:
            told = forward.record_layer_calls(model, tokens, forms)
        assert calls == [0] * len(home)
        assert len(told.calls) == len(home)
        assert list(find(model).layers) == list(home)
        model(tokens, use_cache=False)
    assert torch.equal(told.state, first[-1])


# ---- weights that are loaded for each call


def to_cpu(model: Any, _folder: Path) -> None:
    cpu_offload(model, execution_device="cpu")


def to_disk(model: Any, folder: Path) -> None:
    disk_offload(model, folder, execution_device="cpu")


def hooks_of(model: Any) -> dict[str, Any]:
    """The hook of each module that loads weights."""
    hooks = {name: module._hf_hook for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    return {name: hook for name, hook in hooks.items() if getattr(hook, "weights_map", None) is not None}


def loads_of(model: Any) -> dict[str, int]:
    """How often each module loads its weights, from now on."""
    loads = dict.fromkeys((name for name, hook in hooks_of(model).items() if hook.offload), 0)

    def count(name: str, hook: Any) -> None:
        load = hook.pre_forward

        def counting(module: Any, *args: Any, **kwargs: Any) -> Any:
            loads[name] += hook.offload
            return load(module, *args, **kwargs)

        hook.pre_forward = counting

    for name in loads:
        count(name, hooks_of(model)[name])
    return loads


def assert_offloaded(model: Any) -> None:
    assert all(hook.offload for hook in hooks_of(model).values())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("offload", [to_cpu, to_disk])
@pytest.mark.parametrize(("budget", "rung"), [(None, None), (None, 1), (40 * STATE * WINDOW, None)])
def test_a_scan_loads_each_layer_twice_for_each_batch_and_group(
    budget: int | None, rung: int | None, offload: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    corpus, every = corpus_of(3), scan(6)
    plain = Engine(tiny_model("llama"), corpus, memory_budget=budget, rung=rung)
    model = tiny_model("llama")
    offload(model, tmp_path)
    engine = Engine(model, corpus, memory_budget=budget, rung=rung)
    assert engine.streamed
    engine.batches = plain.batches = engine.batches  # of as many windows, so that sums have one order
    runs = sum(len(engine._scorer.groups(make_schedule(model, every), batch)) for batch in engine.batches)
    loads = loads_of(model)
    scores = engine.outcomes(every)
    assert scores == plain.outcomes(every)
    of_layers = [number for name, number in loads.items() if ".layers." in name]
    assert len(of_layers) == 6 * 9  # seven linear modules and two norms
    if budget is None:
        assert runs == len(engine.batches)
        assert set(of_layers) == {2 * runs}
        ends = {name: number for name, number in loads.items() if ".layers." not in name}
        # the embedding once more, for what the first layer is given
        assert (ends["model.norm"], ends["lm_head"], ends["model.embed_tokens"]) == (2 * runs, 2 * runs, 3 * runs)
    else:
        assert runs > len(engine.batches)
        assert max(of_layers) <= 2 * runs
    assert_offloaded(model)


@pytest.mark.parametrize("offload", [to_cpu, to_disk])
def test_weights_go_back_when_a_layer_raises(offload: Callable[[Any, Path], None], tmp_path: Path) -> None:
    corpus = corpus_of(2)
    expected = score_recipes(tiny_model("llama"), RECIPES, corpus)
    model = tiny_model("llama")
    offload(model, tmp_path)
    engine = Engine(model, corpus)

    def fail(*_: Any) -> None:
        raise ArithmeticError("a layer that fails")

    handle = find(model).layers[4].mlp.register_forward_pre_hook(fail)
    outcomes = engine.outcomes(RECIPES)
    assert all(
        isinstance(its, ScoreError) for its, recipe in zip(outcomes, RECIPES, strict=True) if 4 in recipe.repeat_map
    )
    handle.remove()
    assert_offloaded(model)
    assert engine.meter.held == 0
    assert engine.outcomes(RECIPES) == expected


def test_the_committed_table_of_types_keeps_the_promise() -> None:
    place = Path(__file__).parents[2] / "experiments" / "engine" / "architectures.csv"
    with place.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [*tiny_models.TYPES, *tiny_models.VARIANTS]
    kinds = [row["outcome"].partition(":")[0] for row in rows]
    assert set(kinds) == {"engine", "one by one", "refused"}
    assert kinds.count("engine") >= 190
    assert max(float(row["difference"]) for row in rows if row["difference"]) < 1e-5
