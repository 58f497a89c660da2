"""What sling, view, slung and reset promise, on models that differ in mechanism; experiments/architectures has all."""

import copy
import functools
import gc
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from david import David, Recipe
from david.errors import RecipeError, SlingError
from david.sling import architectures, locate
from david.sling.in_place import base_depth
from david.sling.stacked_copy import stacked
from tests.tiny_models import N_LAYERS, VOCABULARY, tiny_config, tiny_model, tiny_named, tiny_options

# Rotary and ALiBi positions, sliding windows, linear attention, state spaces, experts, shared keys, packed embeddings,
# lists that a configuration computes, a composite that sees.
NAMES = ["llama", "gemma3_text", "bloom", "qwen3_5_text", "gemma4_text", "jamba", "falcon-40b", "gemma3"]
MAPS = {  # layers 4 and 5 of Gemma 4 share the keys of 2 and 3; a cache needs a layer that attends
    "repeats": "0:4, 2:6",
    "skips": "0, 2, 3, 5",
    "reversed stretch": "0, 3, 2, 1, 4:6",
    "single layer": "1",
    "twice the depth": "0:6, 0:6",
    "scaled": "0:2, 2:4*0.5, 3*0, 1*-0.3, 4:6*1.5",
}
ROUNDING = {"gemma4_text": 1e-5, "gemma3n_text": 1e-5}  # the copy cuts a packed projection: a product of another shape
NEW_TOKENS = 8  # more than a tiny model's window
TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T], none of them special
PADDED = torch.stack([TOKENS[0] + 1, torch.cat([torch.zeros(5, dtype=torch.long), TOKENS[0, :9]])])
MASK = torch.stack([torch.ones(14, dtype=torch.long), torch.arange(14).ge(5).long()])


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, **options).logits  # [1, T, V]


def generated(model: Any, *, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens of a left-padded batch of two, and the logits that chose them, [new, B, V]."""
    out = model.generate(
        PADDED,
        attention_mask=MASK,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape == (2, PADDED.shape[1] + NEW_TOKENS)
    return out.sequences, torch.stack(out.logits)


def same(one: torch.Tensor, other: torch.Tensor, rounding: float = 0) -> bool:
    """Bit-equal, or as near as `rounding` of the logits' spread."""
    return bool((one - other).abs().max() <= rounding * other.std())


def assert_runs_as(model: Any, reference: Any, rounding: float = 0) -> None:
    """Both run the same layers, without and with a cache, and a cache changes nothing."""
    assert same(logits(model, use_cache=False), logits(reference, use_cache=False), rounding)
    assert same(logits(model), logits(reference), rounding)
    tokens, chosen_by = generated(model, use_cache=True)
    expected_tokens, expected_logits = generated(reference, use_cache=True)
    assert torch.equal(tokens, expected_tokens)
    assert same(chosen_by, expected_logits, rounding)
    tokens_uncached, logits_uncached = generated(model, use_cache=False)
    assert torch.equal(tokens, tokens_uncached)
    # one row of a matrix product at a time rounds otherwise than all rows at once
    assert same(chosen_by, logits_uncached, 1e-3)


def state(model: Any) -> dict[str, Any]:
    """What a reset must bring back."""
    stack = locate.find(model)
    return {
        "list": id(stack.layers),
        "layers": [id(layer) for layer in stack.layers],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "layer_idx": [(name, vars(m)["layer_idx"]) for name, m in model.named_modules() if "layer_idx" in vars(m)],
        "storages": [(key, value.data_ptr()) for key, value in model.state_dict().items()],
        "config": copy.deepcopy(model.config.to_dict()),
        "configs": [(name, type(vars(m)["config"])) for name, m in model.named_modules() if "config" in vars(m)],
        "attributes": set(vars(stack.owner)) - {"_output_capturing_hooks_installed"},
    }


@pytest.mark.parametrize("name", NAMES)
def test_slung_is_the_stacked_copy_and_reset_is_the_base(name: str) -> None:
    model = tiny_named(name)
    before, base = state(model), logits(model)
    for recipe in map(Recipe.parse, MAPS.values()):
        reference = stacked(model, recipe)
        assert David.sling(model, recipe) is model
        assert_runs_as(model, reference, ROUNDING.get(name, 0))
        assert David.reset(model) is model
        assert state(model) == before
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", NAMES)
def test_view_is_the_stacked_copy_beside_an_untouched_base(name: str) -> None:
    model = tiny_named(name)
    before, base = state(model), logits(model)
    recipe = Recipe.parse(MAPS["repeats"])
    franken = David.view(model, recipe)
    assert type(franken) is type(model)
    assert state(model) == before
    assert_runs_as(franken, stacked(model, recipe), ROUNDING.get(name, 0))
    assert state(model) == before
    assert torch.equal(logits(model), base)


def test_models_that_see_images_still_see_them_when_slung() -> None:
    model = tiny_model("gemma3", mm_tokens_per_image=4)
    recipe = Recipe.parse(MAPS["repeats"])
    image = model.config.image_token_id
    row = torch.tensor([[1, 5, 93, image, image, image, image, 94, 7, 9]])
    seen = {"input_ids": row, "token_type_ids": (row == image).long(), "pixel_values": torch.randn(1, 3, 28, 28)}
    assert model.config.vision_config.num_hidden_layers == N_LAYERS  # as deep as the text: two lists to choose from
    with torch.no_grad():
        expected = stacked(model, recipe)(**seen).logits
        with David.slung(model, recipe):
            assert torch.equal(model(**seen).logits, expected)
            assert model.config.vision_config.num_hidden_layers == N_LAYERS
            seen["pixel_values"] = -seen["pixel_values"]
            assert not torch.equal(model(**seen).logits, expected)


def test_lists_that_a_configuration_computes_follow_the_map() -> None:
    model = tiny_named("jamba")
    kind, kinds = type(model.config), model.config.layers_block_type
    assert set(kinds) == {"attention", "mamba"}
    for slung in (David.view(model, REPEATS), David.sling(model, REPEATS)):
        assert slung.config.layers_block_type == [kinds[layer] for layer in REPEATS.repeat_map]
        assert isinstance(slung.config, kind)
    David.reset(model)
    assert type(model.config) is kind
    assert model.config.layers_block_type == kinds


# View, sling, reset and slung, one upon the other.

REPEATS, SKIPS = Recipe.parse(MAPS["repeats"]), Recipe.parse(MAPS["skips"])
MIXED = ["llama", "jamba", "gemma4_text"]


def expected(model: Any, recipe: Recipe) -> torch.Tensor:
    return logits(stacked(model, recipe))


def test_base_and_two_views_interleave(tiny: Any) -> None:
    recipes = [Recipe.identity(6), REPEATS, SKIPS]
    models = [tiny, David.view(tiny, REPEATS), David.view(tiny, SKIPS)]
    alone = [stacked(tiny, recipe).generate(TOKENS, max_new_tokens=8, do_sample=False) for recipe in recipes]
    caches: list[Any] = [None, None, None]
    rows = [TOKENS, TOKENS, TOKENS]
    with torch.no_grad():
        for _ in range(8):  # a token from each in turn
            for i, model in enumerate(models):
                out = model(rows[i] if caches[i] is None else rows[i][:, -1:], past_key_values=caches[i])
                caches[i] = out.past_key_values
                rows[i] = torch.cat([rows[i], out.logits[:, -1:].argmax(-1)], dim=1)
    for row, right in zip(rows, alone, strict=True):
        assert torch.equal(row[:, : right.shape[1]], right)


@pytest.mark.parametrize("name", MIXED)
def test_view_of_a_slung_model_starts_from_the_base_and_leaves_the_sling(name: str) -> None:
    model, rounding = tiny_named(name), ROUNDING.get(name, 0)
    repeats, skips = expected(model, REPEATS), expected(model, SKIPS)
    David.sling(model, REPEATS)
    franken = David.view(model, SKIPS)
    assert same(logits(franken), skips, rounding)
    assert same(logits(model), repeats, rounding)
    David.reset(model)
    assert same(logits(franken), skips, rounding)


@pytest.mark.parametrize("name", MIXED)
def test_a_view_is_slung_and_reset_on_its_own(name: str) -> None:
    model, rounding = tiny_named(name), ROUNDING.get(name, 0)
    base, repeats, skips = logits(model), expected(model, REPEATS), expected(model, SKIPS)
    franken = David.view(model, REPEATS)
    assert same(logits(David.sling(franken, SKIPS)), skips, rounding)
    assert torch.equal(logits(David.reset(franken)), base)
    assert same(logits(David.sling(franken, REPEATS)), repeats, rounding)
    David.sling(model, SKIPS)
    assert same(logits(franken), repeats, rounding)
    assert same(logits(model), skips, rounding)


def test_a_map_speaks_of_the_base_also_when_slung_already(tiny: Any) -> None:
    skips = expected(tiny, SKIPS)
    David.sling(tiny, REPEATS)
    assert base_depth(tiny) == 6
    David.sling(tiny, SKIPS)
    assert torch.equal(logits(tiny), skips)
    with pytest.raises(RecipeError, match="layer 6 is out of range"):
        David.sling(tiny, [6])
    assert torch.equal(logits(tiny), skips)


def test_every_reference_a_user_holds_sees_the_sling(tiny: Any) -> None:
    decoder, config = tiny.model, tiny.config
    with torch.no_grad():
        hidden = stacked(tiny, REPEATS).model(TOKENS).last_hidden_state
        David.sling(tiny, REPEATS)
        assert torch.equal(decoder(TOKENS).last_hidden_state, hidden)
    assert config.num_hidden_layers == 8
    David.reset(decoder)
    assert config.num_hidden_layers == 6


@pytest.mark.parametrize("name", MIXED)
def test_slung_nests_and_each_level_is_restored(name: str) -> None:
    model, rounding = tiny_named(name), ROUNDING.get(name, 0)
    before, base = state(model), logits(model)
    repeats, skips = expected(model, REPEATS), expected(model, SKIPS)
    with David.slung(model, REPEATS) as outer:
        assert outer is model
        with David.slung(model, SKIPS):
            assert same(logits(model), skips, rounding)
        assert same(logits(model), repeats, rounding)
        with David.slung(model, SKIPS):
            David.reset(model)
        assert same(logits(model), repeats, rounding)
    assert state(model) == before
    assert torch.equal(logits(model), base)


def test_slung_restores_after_an_exception_in_the_block(tiny: Any) -> None:
    before, base = state(tiny), logits(tiny)
    with pytest.raises(KeyError, match="mine"), David.slung(tiny, REPEATS), David.slung(tiny, SKIPS):
        raise KeyError("mine")
    assert state(tiny) == before
    assert torch.equal(logits(tiny), base)


def test_slung_restores_after_a_layer_that_raises(tiny: Any) -> None:
    before, base = state(tiny), logits(tiny)

    def fail(*_: Any) -> None:
        raise FloatingPointError("in layer 3")

    hook = tiny.model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(FloatingPointError, match="in layer 3"), David.slung(tiny, REPEATS):
        logits(tiny)
    hook.remove()
    assert state(tiny) == before
    assert torch.equal(logits(tiny), base)


def test_a_hook_on_a_base_layer_runs_at_each_of_its_visits(tiny: Any) -> None:
    calls = []
    tiny.model.layers[2].register_forward_hook(lambda *_: calls.append(2))
    with David.slung(tiny, "2, 0, 2, 2"):
        logits(tiny)
    assert len(calls) == 3


def test_slings_again_and_again_keep_no_module(tiny: Any) -> None:
    def modules_alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), nn.Module) for thing in gc.get_objects())

    before = state(tiny)
    David.reset(David.sling(tiny, REPEATS))
    alive = modules_alive()
    for _ in range(100):
        David.sling(tiny, REPEATS)
        David.sling(tiny, SKIPS)
    David.reset(tiny)
    assert modules_alive() == alive
    assert state(tiny) == before


@pytest.mark.parametrize("make", [David.sling, David.view])
def test_slung_parameters_and_buffers_are_the_base_s_own_storages(make: Any) -> None:
    model = tiny_named("falcon")
    home = list(locate.find(model).layers)
    everything = {value.data_ptr() for value in model.state_dict().values()}
    buffers = {buffer.data_ptr() for buffer in model.buffers()}
    slung = make(model, REPEATS)
    for visit, layer in zip(locate.find(slung).layers, REPEATS.repeat_map, strict=True):
        assert visit is not home[layer]
        assert [(n, id(p)) for n, p in visit.named_parameters()] == [
            (n, id(p)) for n, p in home[layer].named_parameters()
        ]
    assert {value.data_ptr() for value in slung.state_dict().values()} == everything
    assert {buffer.data_ptr() for buffer in slung.buffers()} == buffers
    assert sum(p.numel() for p in slung.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("order", ["repeats", "scaled"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sling_and_a_reset_ask_nothing_of_torch(name: str, order: str) -> None:
    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(function)
            return function(*args, **(kwargs or {}))

    asked: list[Any] = []
    model = tiny_named(name)
    with Asked():
        for _ in range(2):  # of the base, and of a sling
            David.sling(model, MAPS[order])
        David.reset(model)
    assert not asked
    with Asked():
        logits(model)
    assert asked


@pytest.mark.parametrize("enabled", [True, False])
def test_a_sling_leaves_the_garbage_collector_as_it_was(tiny: Any, enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        David.reset(David.sling(tiny, REPEATS))
        assert gc.isenabled() is enabled
        misnumbered(tiny)
        with pytest.raises(SlingError):
            David.sling(tiny, REPEATS)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "qwen3_moe", "gemma3"])
def test_hidden_states_come_once_for_each_visit(name: str) -> None:
    model = tiny_named(name)

    def count(which: Any = model) -> int:
        with torch.no_grad():
            return len(which(TOKENS, output_hidden_states=True).hidden_states)

    franken = David.view(model, SKIPS)
    with David.slung(model, REPEATS):  # asked for the first time while slung
        assert count() == 9
        assert count(franken) == 5
    assert count() == 7
    with David.slung(model, REPEATS):
        assert count() == 9
    assert count() == 7


def test_hidden_states_are_those_of_the_stacked_copy(tiny: Any) -> None:
    recipe = Recipe.parse(MAPS["scaled"])
    with torch.no_grad():
        right = stacked(tiny, recipe)
        visits: list[torch.Tensor] = []
        for layer in right.model.layers:  # plain hooks: the copy's own capture misses its damped forwards' outputs
            layer.register_forward_hook(lambda _module, _args, output: visits.append(output))
        logits(right)
        with David.slung(tiny, recipe):
            slung = tiny(TOKENS, output_hidden_states=True).hidden_states
    assert len(slung) == 9
    assert torch.equal(slung[0], tiny.model.embed_tokens(TOKENS))
    for mine, its in zip(slung[1:-1], visits[:-1], strict=True):  # the last one has the final norm behind it
        assert torch.equal(mine, its)
    assert torch.equal(slung[-1], tiny.model.norm(visits[-1]))


def test_hidden_states_asked_of_the_base_first_still_come_once(tiny: Any) -> None:
    with torch.no_grad():
        assert len(tiny(TOKENS, output_hidden_states=True).hidden_states) == 7
        with David.slung(tiny, REPEATS):
            assert len(tiny(TOKENS, output_hidden_states=True).hidden_states) == 9
        assert len(tiny(TOKENS, output_hidden_states=True).hidden_states) == 7


def test_attentions_come_once_for_each_visit(tiny: Any) -> None:
    tiny.set_attn_implementation("eager")
    with torch.no_grad():
        right = stacked(tiny, REPEATS)(TOKENS, output_attentions=True).attentions
        with David.slung(tiny, REPEATS):
            slung = tiny(TOKENS, output_attentions=True).attentions
        assert len(tiny(TOKENS, output_attentions=True).attentions) == 6
    assert len(slung) == len(right) == 8
    assert all(torch.equal(mine, its) for mine, its in zip(slung, right, strict=True))


def test_a_deep_copy_of_a_slung_model_is_reset_on_its_own(tiny: Any) -> None:
    base, repeats = logits(tiny), expected(tiny, REPEATS)
    copied = copy.deepcopy(David.sling(tiny, REPEATS))
    assert torch.equal(logits(copied), repeats)
    David.reset(copied)
    assert copied.config.num_hidden_layers == 6
    assert torch.equal(logits(copied), base)
    assert torch.equal(logits(tiny), repeats)
    with torch.no_grad():
        copied.model.layers[0].mlp.down_proj.weight.zero_()
    David.reset(tiny)
    assert torch.equal(logits(tiny), base)


@pytest.mark.parametrize(
    ("arguments", "repeat_map", "scales"),
    [
        ({"recipe": "0:2, 5*0.5"}, (0, 1, 5), (1, 1, 0.5)),
        ({"recipe": [0, 1, 1]}, (0, 1, 1), (1, 1, 1)),
        ({"ratio_repeat": [(0, 0.5), (0.2, 1)]}, (0, 1, 2, 3, 1, 2, 3, 4, 5), (1,) * 9),
        ({"repeat_map_raw": [3, 3]}, (3, 3), (1, 1)),
        ({"repeat_map_raw": [3, 4], "scales": [1, -0.5]}, (3, 4), (1, -0.5)),
    ],
)
def test_every_way_of_naming_a_recipe(tiny: Any, arguments: Any, repeat_map: Any, scales: Any) -> None:
    right = expected(tiny, Recipe(repeat_map, scales))
    assert torch.equal(logits(David.view(tiny, **arguments)), right)
    with David.slung(tiny, **arguments):
        assert torch.equal(logits(tiny), right)
    assert torch.equal(logits(David.sling(tiny, **arguments)), right)


def test_a_recipe_file_is_slung_by_its_path(tiny: Any, tmp_path: Any) -> None:
    REPEATS.save(tmp_path / "recipe.json")
    right = expected(tiny, REPEATS)
    assert torch.equal(logits(David.sling(tiny, str(tmp_path / "recipe.json"))), right)
    assert torch.equal(logits(David.sling(tiny, tmp_path / "recipe.json")), right)


def test_reset_of_a_model_that_is_not_slung_changes_nothing(tiny: Any) -> None:
    before = state(tiny)
    David.reset(tiny)
    assert state(tiny) == before


# Hooks of accelerate, which replace a module's forward on the instance.


def test_layers_with_hooks_of_accelerate_are_slung_exactly(tiny: Any) -> None:
    class Telling(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            places.append(module.layer_idx)
            return args, kwargs

    places: list[Any] = []
    base, reference = logits(tiny), stacked(tiny, REPEATS)
    for layer in tiny.model.layers:
        add_hook_to_module(layer, ModelHook())
        add_hook_to_module(layer.self_attn, Telling())
    before = state(tiny)
    for slung in (David.view(tiny, REPEATS), David.sling(tiny, REPEATS)):
        assert_runs_as(slung, reference)
        places.clear()
        logits(slung)
        assert places == list(range(len(REPEATS)))  # a hook is given the visit, not the base's layer
    David.reset(tiny)
    assert state(tiny) == before
    assert torch.equal(logits(tiny), base)
    places.clear()
    logits(tiny)
    assert places == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", MIXED)
def test_offloaded_weights_come_and_go_at_each_visit(name: str) -> None:
    model = tiny_named(name)
    base, reference = logits(model), stacked(model, REPEATS)
    cpu_offload(model, execution_device="cpu")
    franken = David.view(model, REPEATS)
    David.sling(model, REPEATS)
    for slung in (model, franken):
        assert_runs_as(slung, reference, 1e-4)  # offloading rounds Jamba's own base otherwise too
        assert {weight.device.type for weight in slung.parameters()} == {"meta"}  # between calls
    David.reset(model)
    assert same(logits(model), base, 1e-4)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


# Refusals: an error that says why, before anything is touched.


def replaced(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.forward = lambda *args, **kwargs: type(attention).forward(attention, *args, **kwargs)


def hooked_and_replaced(model: Any) -> None:
    add_hook_to_module(model.model.layers[1], ModelHook())
    replaced(model)


def replaced_and_hooked(model: Any) -> None:
    layer = model.model.layers[1]
    layer.forward = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    add_hook_to_module(layer, ModelHook())


def misnumbered(model: Any) -> None:
    model.model.layers[1].self_attn.layer_idx = 2


def test_methods_bound_to_the_base_are_the_views_own(tiny: Any) -> None:
    """Each kept on the instance, where a shallow copy would go on running the base."""
    reversal = [5, 4, 3, 2, 1, 0]
    options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    right = stacked(tiny, Recipe(reversal)).generate(TOKENS, do_sample=False, **options)
    attention = tiny.model.layers[1].self_attn
    attention.forward = attention.forward  # bound, as a method
    tiny.generate = functools.partial(tiny.generate, do_sample=False)
    assert not torch.equal(tiny.generate(TOKENS, **options), right)
    view = David.view(tiny, reversal)
    assert torch.equal(view.generate(TOKENS, **options), right)
    with David.slung(tiny, reversal):
        assert torch.equal(tiny.generate(TOKENS, **options), right)


def test_what_generate_compiled_of_the_base_runs_the_view_in_a_view(tiny: Any) -> None:
    tiny._compiled_call = torch.compile(tiny.__call__, backend="eager")  # as it does for a static cache on a GPU
    recipe = [2, 1, 0]
    with torch.no_grad():
        view = David.view(tiny, recipe)._compiled_call(TOKENS).logits
    assert torch.equal(view, logits(stacked(tiny, Recipe(recipe))))
    assert "_compiled_call" not in vars(stacked(tiny, Recipe(recipe)))


def test_a_view_does_not_remember_its_bases_longest_text() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16)
    view = David.view(model, REPEATS)
    before = logits(model)
    with torch.no_grad():
        view(torch.arange(60)[None] + 3)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(David.view(model, list(range(6)))), before)


def test_a_refused_layer_leaves_no_hooks_behind(tiny: Any) -> None:
    replaced(tiny)
    with pytest.raises(SlingError):
        David.sling(tiny, [0, 1])
    assert not any(module._forward_hooks for module in tiny.modules())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (replaced, "LlamaAttention is refused: its forward was replaced on the instance"),
        (hooked_and_replaced, "its forward was replaced on the instance"),
        (replaced_and_hooked, "LlamaDecoderLayer is refused: its forward was replaced on the instance"),
        (misnumbered, "layer 1 is refused: its LlamaAttention carries layer_idx 2"),
    ],
)
def test_layers_that_a_view_cannot_follow_are_refused(tiny: Any, spoil: Any, reason: str) -> None:
    spoil(tiny)
    before, base = state(tiny), logits(tiny)
    for make in (David.sling, David.view, David.slung(tiny, REPEATS).__enter__):
        with pytest.raises(SlingError, match=reason):
            make(*([] if make.__name__ == "__enter__" else [tiny, REPEATS]))
    assert state(tiny) == before
    if base is not None:
        assert torch.equal(logits(tiny), base)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"recipe": [0, 6]}, "layer 6 is out of range: the base has 6 layers"),
        ({"repeat_map_raw": [0, 1, 60]}, "layer 60 is out of range"),
        ({"repeat_map_raw": [-1]}, "whole number"),
        ({"recipe": []}, "at least one visit"),
        ({"repeat_map_raw": []}, "at least one visit"),
        ({"recipe": Recipe.identity(8)}, "layer 7 is out of range"),
        ({"recipe": Recipe.from_blocks(7, [(0, 2, 2)])}, "layer 6 is out of range"),
        ({"recipe": Recipe((0, 1), base=Recipe.identity(7).base)}, "made for a base of 7 layers"),
        ({"ratio_repeat": [(0, 1)], "repeat_map_raw": [0]}, "exactly one of .* got 2"),
        ({"recipe": [0], "repeat_map_raw": [0]}, "exactly one of .* got 2"),
        ({}, "exactly one of .* got 0"),
        ({"recipe": [0], "scales": [1]}, "scales go with repeat_map_raw"),
        ({"ratio_repeat": [(0, 1)], "scales": [1] * 6}, "scales go with repeat_map_raw"),
        ({"scales": [1] * 6}, "exactly one of .* got 0"),
        ({"repeat_map_raw": [0, 1], "scales": [1]}, "2 visits, 1 scales"),
        ({"repeat_map_raw": [0], "scales": [float("nan")]}, "finite"),
        ({"ratio_repeat": [(0.5, 0.2)]}, "0 ≤ start ≤ end ≤ 1"),
        ({"ratio_repeat": []}, "at least one"),
        ({"recipe": "no/such/recipe.json"}, "cannot read recipe"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_and_the_model_is_left_as_it_was(
    tiny: Any, arguments: Any, reason: str
) -> None:
    before, base = state(tiny), logits(tiny)
    for make in (David.sling, David.view, lambda *a, **b: David.slung(*a, **b).__enter__()):
        with pytest.raises(RecipeError, match=reason):
            make(tiny, **arguments)
    assert state(tiny) == before
    assert torch.equal(logits(tiny), base)


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=6, num_heads=4)
    )


def distilbert() -> Any:
    return DistilBertForMaskedLM(DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=6, n_heads=4))


REFUSED = {
    "blt": (lambda: tiny_named("blt"), "model type 'blt' is refused: it has four lists of layers"),
    "hrm_text": (lambda: tiny_named("hrm_text"), "model type 'hrm_text' is refused: it runs two lists"),
    "xlm": (lambda: tiny_named("xlm"), "model type 'xlm' is refused: it keeps the parts of its layers"),
    "t5": (t5, r"T5ForConditionalGeneration is refused: it is an encoder-decoder \('t5'\)"),
    "bart": (
        lambda: BartForConditionalGeneration(tiny_config("bart")),
        r"BartForConditionalGeneration is refused: it is an encoder-decoder \('bart'\)",
    ),
    "cross-attention": (
        lambda: tiny_model("bert", add_cross_attention=True, is_decoder=True),
        r"BertLMHeadModel is refused: .*\('bert'\), whose layers read the encoder",
    ),
    "not proved": (distilbert, r"model type 'distilbert' is refused: no proof .*`David\.check\(model\)`"),
    "big_bird": (
        lambda: tiny_named("big_bird-sparse"),
        "model type 'big_bird' is refused with attention_type='block_sp",
    ),
    "mvp": (
        lambda: tiny_model("mvp", use_prompt=True),
        "model type 'mvp' is refused with use_prompt=True: its prompts",
    ),
    "rwkv": (lambda: tiny_named("rwkv-rescaled"), "model type 'rwkv' is refused with rescale_every=2: it divides"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_slung_exactly_are_refused_and_left_as_they_were(name: str) -> None:
    build, reason = REFUSED[name]
    model = build().eval()

    def run() -> torch.Tensor:
        both = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return model(input_ids=TOKENS, **both).logits

    def everything() -> Any:
        return model.config.to_dict(), [(id(m), list(vars(m))) for m in model.modules()], list(model._modules)

    base, before = run(), everything()
    for refuse in (David.sling, David.view, lambda *these: David.slung(*these).__enter__()):
        with pytest.raises(SlingError, match=reason):
            refuse(model, [0, 1])
    with pytest.raises(SlingError, match=reason):
        David.reset(model)
    assert everything() == before
    assert torch.equal(run(), base)


@pytest.mark.parametrize("kind", ["gemma4_assistant", "gemma4_unified_assistant"])
def test_models_that_draft_for_another_are_refused_by_name(kind: str, tiny: Any) -> None:
    before, base = state(tiny), logits(tiny)
    tiny.config.model_type = kind  # transformers 5.23 cannot build the first, and the second does not run alone
    with pytest.raises(SlingError, match=f"model type '{kind}' is refused: it drafts on the keys and values of anoth"):
        David.sling(tiny, REPEATS)
    del tiny.config.model_type
    assert state(tiny) == before
    assert torch.equal(logits(tiny), base)


def test_a_proved_type_is_refused_as_soon_as_its_proof_is_gone(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "PROVED", architectures.PROVED - {"llama"})
    with pytest.raises(SlingError, match=r"model type 'llama' is refused: no proof .*`David\.check\(model\)`"):
        David.sling(tiny, REPEATS)


SHARED = "shares the {} of layer {}: a map must visit layer {} before it"
KEYS, CHOICE = "keys and values", "choice of tokens"


@pytest.mark.parametrize(
    ("name", "order", "layer", "source", "what"),
    [
        ("gemma3n_text", "0, 4, 2", 4, 2, KEYS),
        ("gemma3n_text", "2, 4, 5, 3", 5, 3, KEYS),
        ("gemma4_text", "0, 4, 2", 4, 2, KEYS),
        ("gemma4_text", "5", 5, 3, KEYS),
        ("glm_moe_dsa", "1, 0", 1, 0, CHOICE),
        ("glm_moe_dsa", "0:3, 4", 4, 3, CHOICE),
    ],
)
def test_a_layer_before_the_one_it_shares_with_is_refused(
    name: str, order: str, layer: int, source: int, what: str
) -> None:
    model = tiny_named(name)
    before, base = state(model), logits(model)
    reason = f"layer {layer} of this '{name}' model {SHARED.format(what, source, source)}"
    for refuse in (David.sling, David.view, lambda *these: David.slung(*these).__enter__()):
        with pytest.raises(SlingError, match=reason):
            refuse(model, order)
    assert state(model) == before
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("gemma3n_text", "2, 4"),
        ("gemma3n_text", "3, 2, 5, 1, 4, 0"),
        ("gemma4_text", "3, 5"),
        ("gemma4_text", "3, 2, 5, 1, 4, 0, 2, 4"),
        ("glm_moe_dsa", "3, 4, 0, 2, 1, 5"),
    ],
)
def test_a_layer_may_come_anywhere_after_the_one_it_shares_with(name: str, order: str) -> None:
    model, recipe = tiny_named(name), Recipe.parse(order)
    with David.slung(model, recipe):
        slung = logits(model, use_cache=False), generated(model, use_cache=True)
    reference = stacked(model, recipe)
    tokens, chosen_by = generated(reference, use_cache=True)
    assert same(slung[0], logits(reference, use_cache=False), ROUNDING.get(name, 0))
    assert torch.equal(slung[1][0], tokens)
    assert same(slung[1][1], chosen_by, ROUNDING.get(name, 0))


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [("minimax", "1, 0, 2:6", "3, 0:6"), ("mllama", "4, 0:4", "2, 1, 0, 3:6")],
)
def test_where_the_first_visit_tells_the_length_of_the_text_it_must_attend_to_it(
    name: str, wrong: str, right: str
) -> None:
    model, recipe = tiny_named(name), Recipe.parse(right)
    before, options = state(model), tiny_options(name)
    with pytest.raises(SlingError, match=f"layer {wrong[0]} cannot be the first visit of a '{name}.* self-attention"):
        David.sling(model, wrong)
    assert state(model) == before
    reference = logits(stacked(model, recipe), **options)
    with David.slung(model, recipe):
        assert torch.equal(logits(model, **options), reference)


@pytest.mark.parametrize("name", ["xlnet", "reformer"])
def test_scales_are_refused_where_layers_pass_on_two_streams(name: str) -> None:
    model, plain = tiny_named(name), Recipe.parse("0:4, 2:6")
    before, base = state(model), logits(model)
    for refuse in (David.sling, David.view):
        with pytest.raises(SlingError, match=f"scales are refused for model type '{name}': .* two streams"):
            refuse(model, "0:3, 3*0.5, 4:6")
    assert state(model) == before
    assert torch.equal(logits(model), base)
    reference = logits(stacked(model, plain))
    with David.slung(model, plain):
        assert torch.equal(logits(model), reference)


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])], ids=["Linear", "ModuleList"])
def test_what_is_no_transformers_model_is_refused(thing: nn.Module) -> None:
    with pytest.raises(SlingError, match=f"expected a transformers model .* got {type(thing).__name__}"):
        David.sling(thing, [0])


def test_a_loop_that_is_not_transformers_own_is_refused(tiny: Any) -> None:
    class Mine(type(tiny.model)):  # type: ignore[misc]
        pass

    tiny.model.__class__ = Mine
    with pytest.raises(SlingError, match="Mine is refused"):
        David.sling(tiny, [0])


def test_the_mode_set_while_slung_reaches_the_base_s_layers() -> None:
    model = tiny_named("gpt2").train()
    David.sling(model, "0:6, 2:6")
    model.eval()
    David.reset(model)
    assert not any(module.training for module in model.modules())
