"""Compiled models and layers: a sling follows them, and costs no compilation from one recipe to the next."""

import copy
import logging
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from david import David, Recipe
from david.errors import SlingError
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_model, tiny_named

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
MAPS = ["0:4, 2:6", "0, 3, 2, 1, 4:6", "0:6, 0:6", "3", "0:6, 0:6, 0:6"]
DAMPED = ["0:4, 3*0.5, 4:6", "0:4, 3*0.25, 2*0.7, 4:6", "1*-0.3, 0:6", "0:6, 2:5*0.1, 5*0"]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # with a cache it tells of its limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False, **options).logits


def layers_compiled(model: Any, backend: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend=backend)
    return model


def layers_wrapped(model: Any, backend: Any) -> Any:
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(layer, backend=backend)
    return model


def forwards_compiled(model: Any, backend: Any) -> Any:
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, backend=backend)
    return model


def model_compiled(model: Any, backend: Any) -> Any:
    model.compile(backend=backend)
    return model


def model_wrapped(model: Any, backend: Any) -> Any:
    return torch.compile(model, backend=backend)


PER_LAYER = [layers_compiled, layers_wrapped, forwards_compiled]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("compiled", PER_LAYER)
def test_a_recipe_costs_no_compilation_where_layers_are_compiled_one_by_one(compiled: Any, name: str) -> None:
    model, counter = tiny_named(name), CompileCounter()
    right = {text: logits(stacked(model, Recipe.parse(text))) for text in [*MAPS, *DAMPED]}
    compiled(model, counter)
    logits(model)
    kinds = 2 if name == "gemma3_text" else 1  # sliding and full attention are two graphs
    assert counter.frame_count == kinds
    for text in MAPS:
        with David.slung(model, text):
            assert torch.equal(logits(model), right[text])
        assert torch.equal(logits(David.view(model, text)), right[text])
    assert counter.frame_count == kinds
    counts = []
    for text in DAMPED:
        with David.slung(model, text):
            assert torch.equal(logits(model), right[text])
        counts.append(counter.frame_count)
    assert counts[0] <= 2 * kinds  # a damped visit is another computation
    assert counts[1] <= 3 * kinds  # which torch compiles for any scale as soon as it sees a second one
    assert counts[1:] == [counts[1]] * len(counts[1:])


def test_the_base_is_compiled_as_before_after_a_reset(tiny: Any) -> None:
    counter = CompileCounter()
    layers_compiled(tiny, counter)
    before = [layer._compiled_call_impl for layer in tiny.model.layers]
    base = logits(tiny)
    David.reset(David.sling(tiny, MAPS[0]))
    assert [layer._compiled_call_impl for layer in tiny.model.layers] == before
    assert torch.equal(logits(tiny), base)
    assert counter.frame_count == 1


@pytest.mark.parametrize("compiled", [model_compiled, model_wrapped])
@pytest.mark.slow
def test_a_model_compiled_whole_runs_each_recipe(compiled: Any, tiny: Any) -> None:
    right = {text: logits(stacked(tiny, Recipe.parse(text))) for text in MAPS[:3]}
    base, counter = logits(tiny), CompileCounter()
    model = compiled(tiny, counter)
    assert torch.equal(logits(model), base)
    for text, wanted in right.items():
        assert David.sling(model, text) is model
        assert torch.equal(logits(model), wanted)
        assert torch.equal(logits(David.view(model, text)), wanted)
    assert counter.frame_count > 1
    assert torch.equal(logits(David.reset(model)), base)


# After one another on one map of two layers: strengths that come, change, move and go.
STRENGTHS = ["0, 1*0.5", "0, 1*0.25", "0*0.5, 1", "0:2", "0, 1*0"]


@pytest.mark.parametrize(
    ("compiled", "name"),
    [
        (model_compiled, "llama"),
        pytest.param(model_wrapped, "llama", marks=pytest.mark.slow),
        pytest.param(model_compiled, "qwen3_5_text", marks=pytest.mark.slow),
    ],
)
def test_a_model_compiled_whole_follows_the_strengths_of_one_map(compiled: Any, name: str) -> None:
    base = tiny_model(name, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    right = {text: logits(stacked(base, Recipe.parse(text))) for text in STRENGTHS}
    before = logits(base)
    model = compiled(base, "eager")
    assert torch.equal(logits(model), before)  # compiled without a strength
    for text in [*STRENGTHS, STRENGTHS[0]]:
        David.sling(model, text)
        assert torch.equal(logits(model), right[text])
    assert torch.equal(logits(David.reset(model)), before)


@pytest.mark.slow
def test_fifty_strengths_cost_a_model_compiled_whole_three_compilations() -> None:
    tiny = tiny_model("llama", num_hidden_layers=2)
    recipes = [Recipe((0, 1, 1), ((i + 1) / 64, 1, (i + 1) / 100)) for i in range(50)]
    right, counter = [logits(stacked(tiny, recipe)) for recipe in recipes], CompileCounter()
    tiny.compile(backend=counter)
    logits(tiny)
    for recipe, expected in zip(recipes, right, strict=True):
        David.sling(tiny, recipe)
        assert torch.equal(logits(tiny), expected)
    assert counter.frame_count == 3  # the base, the first strengths, any strengths


@pytest.mark.slow
def test_fifty_recipes_of_a_model_compiled_whole_are_right_beyond_torchs_limit() -> None:
    tiny, draw = tiny_model("llama", num_hidden_layers=2), random.Random(0)
    recipes = [Recipe(draw.choices(range(2), k=draw.randint(1, 12))) for _ in range(50)]
    right, counter = [logits(stacked(tiny, recipe)) for recipe in recipes], CompileCounter()
    tiny.compile(backend=counter)
    for recipe, expected in zip(recipes, right, strict=True):
        David.sling(tiny, recipe)
        assert torch.equal(logits(tiny), expected)
    assert counter.frame_count == torch._dynamo.config.recompile_limit


@pytest.mark.slow
def test_strengths_survive_a_deep_copy_and_a_pickle() -> None:
    tiny = tiny_model("llama", num_hidden_layers=2)
    right = {text: logits(stacked(tiny, Recipe.parse(text))) for text in STRENGTHS[:2]}
    slung = David.sling(tiny, STRENGTHS[0])
    for copied in (copy.deepcopy(slung), pickle.loads(pickle.dumps(slung))):
        assert torch.equal(logits(copied), right[STRENGTHS[0]])
        copied.compile(backend="eager")
        for text in STRENGTHS[:2]:
            assert torch.equal(logits(David.sling(copied, text)), right[text])


@pytest.mark.parametrize("cache", ["dynamic", pytest.param("static", marks=pytest.mark.slow)])
def test_compiled_layers_have_their_own_places_in_the_cache(tiny: Any, cache: str) -> None:
    def generated(model: Any) -> torch.Tensor:
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = model.generate(
            TOKENS, cache_implementation=cache, output_logits=True, return_dict_in_generate=True, **options
        )
        return torch.stack(out.logits)

    right = [generated(stacked(tiny, Recipe.parse(text))) for text in MAPS[:3]]
    layers_compiled(tiny, CompileCounter())
    for text, wanted in zip(MAPS, right, strict=False):
        with David.slung(tiny, text):
            assert torch.equal(generated(tiny), wanted)


def test_what_was_compiled_of_another_function_is_refused(tiny: Any) -> None:
    layer = tiny.model.layers[1]
    layer.forward = torch.compile(lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs), backend="eager")
    with pytest.raises(SlingError, match="LlamaDecoderLayer is refused: its forward was replaced on the instance"):
        David.sling(tiny, [0, 1])


@pytest.fixture
def compiler() -> None:
    """Skip a test where torch cannot compile to machine code."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler: install g++")


@pytest.mark.slow
def test_layers_compiled_to_machine_code_run_the_recipe(compiler: None) -> None:
    model = tiny_model("llama")
    right = {text: logits(stacked(model, Recipe.parse(text))) for text in (MAPS[0], DAMPED[0])}
    layers_compiled(model, "inductor")
    for text, wanted in right.items():
        with David.slung(model, text):
            torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5)
