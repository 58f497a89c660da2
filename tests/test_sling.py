"""Every known type, slung, against a deep copy with its layers really stacked; what sling, view and reset promise."""

import copy
import gc
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from david import David, Recipe, layers
from david.errors import RecipeError, SlingError
from david.layers import KNOWN_TYPES
from david.sling import base_depth
from tests.tiny import VARIANTS, VOCABULARY, WINDOW, deep_copied, tiny_model, tiny_named

NAMES = [*sorted(KNOWN_TYPES), *VARIANTS, "gemma3"]
MAPS = {
    "repeats": "0:4, 2:6",
    "skips": "0, 2, 5",
    "reversed stretch": "0:2, 4, 3, 2, 1, 5",
    "single layer": "3",
    "twice the depth": "0:6, 0:6",
    "scaled": "0:2, 2:4*0.5, 3*0, 1*-0.3, 4:6*1.5",
}
NEW_TOKENS = WINDOW + 2
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


def assert_runs_as(model: Any, reference: Any) -> None:
    """Both run the same layers: bit-equal without and with a cache, and a cache changes nothing."""
    assert torch.equal(logits(model, use_cache=False), logits(reference, use_cache=False))
    assert torch.equal(logits(model), logits(reference))
    tokens, chosen_by = generated(model, use_cache=True)
    expected_tokens, expected_logits = generated(reference, use_cache=True)
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(chosen_by, expected_logits)
    tokens_uncached, logits_uncached = generated(model, use_cache=False)
    assert torch.equal(tokens, tokens_uncached)
    # one row of a matrix product at a time rounds otherwise than all rows at once
    torch.testing.assert_close(chosen_by, logits_uncached, atol=1e-3, rtol=0)


def state(model: Any) -> dict[str, Any]:
    """What a reset must bring back."""
    stack = layers.find(model)
    return {
        "list": id(stack.layers),
        "layers": [id(layer) for layer in stack.layers],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "layer_idx": [(name, vars(m)["layer_idx"]) for name, m in model.named_modules() if "layer_idx" in vars(m)],
        "storages": [(key, value.data_ptr()) for key, value in model.state_dict().items()],
        "config": copy.deepcopy(model.config.to_dict()),
        "attributes": set(vars(stack.owner)) - {"_output_capturing_hooks_installed"},
    }


@pytest.mark.parametrize("name", NAMES)
def test_slung_is_the_stacked_copy_and_reset_is_the_base(name: str) -> None:
    model = tiny_named(name)
    before, base = state(model), logits(model)
    for recipe in map(Recipe.parse, MAPS.values()):
        reference = deep_copied(model, recipe)
        assert David.sling(model, recipe) is model
        assert_runs_as(model, reference)
        assert David.reset(model) is model
        assert state(model) == before
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_models_tell_any_two_neighbouring_layers_apart(name: str) -> None:
    model = tiny_named(name)
    base = logits(model)
    for layer in range(5):
        swapped = [0, 1, 2, 3, 4, 5]
        swapped[layer : layer + 2] = layer + 1, layer
        with David.slung(model, swapped):
            assert (logits(model) - base).abs().max() > 0.1 * base.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_view_is_the_stacked_copy_beside_an_untouched_base(name: str) -> None:
    model = tiny_named(name)
    before, base = state(model), logits(model)
    recipe = Recipe.parse(MAPS["repeats"])
    franken = David.view(model, recipe)
    assert type(franken) is type(model)
    assert state(model) == before
    assert_runs_as(franken, deep_copied(model, recipe))
    assert state(model) == before
    assert torch.equal(logits(model), base)


def test_known_models_that_see_images_still_see_them_when_slung() -> None:
    model = tiny_named("gemma3")
    recipe = Recipe.parse(MAPS["repeats"])
    row = torch.tensor([[1, 5, 93, 95, 95, 95, 95, 94, 7, 9]])
    seen = {"input_ids": row, "token_type_ids": (row == 95).long(), "pixel_values": torch.randn(1, 3, 28, 28)}
    vision_depth = model.config.vision_config.num_hidden_layers
    with torch.no_grad():
        expected = deep_copied(model, recipe)(**seen).logits
        with David.slung(model, recipe):
            assert torch.equal(model(**seen).logits, expected)
            assert model.config.vision_config.num_hidden_layers == vision_depth
            seen["pixel_values"] = -seen["pixel_values"]
            assert not torch.equal(model(**seen).logits, expected)


# The comparison has teeth: break what sling must do, and it fails.


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3_text"])
def test_comparison_fails_where_layer_idx_does_not_follow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = tiny_named(name), Recipe.parse(MAPS["repeats"])
    whole = layers.layer_view

    def in_its_old_place(layer: nn.Module, index: int, slot: int, scale: float) -> nn.Module:
        return whole(layer, index, index, scale)

    monkeypatch.setattr(layers, "layer_view", in_its_old_place)
    slung = David.view(model, recipe)
    assert torch.equal(logits(slung, use_cache=False), logits(deep_copied(model, recipe), use_cache=False))
    with pytest.raises((AssertionError, RuntimeError)):  # wrong numbers, or a mask that no longer fits
        assert_runs_as(slung, deep_copied(model, recipe))


@pytest.mark.parametrize(("name", "kept"), [("llama", "num_hidden_layers"), ("gemma3_text", "layer_types")])
def test_comparison_fails_where_the_configuration_does_not_follow(
    name: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_named(name)
    recipe = Recipe.parse("0:6, 5" if kept == "num_hidden_layers" else "1, 0, 2:6")
    whole = layers.mapped
    monkeypatch.setattr(layers, "mapped", lambda values, visits: whole(values, visits) | {kept: values[kept]})
    with David.slung(model, recipe), pytest.raises(AssertionError):
        assert_runs_as(model, deep_copied(tiny_named(name), recipe))


# View, sling, reset and slung, one upon the other. All of these have a Llama's six layers.

REPEATS, SKIPS = Recipe.parse(MAPS["repeats"]), Recipe.parse(MAPS["skips"])


def expected(model: Any, recipe: Recipe) -> torch.Tensor:
    return logits(deep_copied(model, recipe))


def test_base_and_two_views_interleave(tiny: Any) -> None:
    recipes = [Recipe.identity(6), REPEATS, SKIPS]
    models = [tiny, David.view(tiny, REPEATS), David.view(tiny, SKIPS)]
    alone = [deep_copied(tiny, recipe).generate(TOKENS, max_new_tokens=8, do_sample=False) for recipe in recipes]
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


def test_view_of_a_slung_model_starts_from_the_base_and_leaves_the_sling(tiny: Any) -> None:
    repeats, skips = expected(tiny, REPEATS), expected(tiny, SKIPS)
    David.sling(tiny, REPEATS)
    franken = David.view(tiny, SKIPS)
    assert torch.equal(logits(franken), skips)
    assert torch.equal(logits(tiny), repeats)
    David.reset(tiny)
    assert torch.equal(logits(franken), skips)


def test_a_view_is_slung_and_reset_on_its_own(tiny: Any) -> None:
    base, repeats, skips = logits(tiny), expected(tiny, REPEATS), expected(tiny, SKIPS)
    franken = David.view(tiny, REPEATS)
    assert torch.equal(logits(David.sling(franken, SKIPS)), skips)
    assert torch.equal(logits(David.reset(franken)), base)
    assert torch.equal(logits(David.sling(franken, REPEATS)), repeats)
    David.sling(tiny, SKIPS)
    assert torch.equal(logits(franken), repeats)
    assert torch.equal(logits(tiny), skips)


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
        hidden = deep_copied(tiny, REPEATS).model(TOKENS).last_hidden_state
        David.sling(tiny, REPEATS)
        assert torch.equal(decoder(TOKENS).last_hidden_state, hidden)
    assert config.num_hidden_layers == 8
    David.reset(decoder)
    assert config.num_hidden_layers == 6


def test_slung_nests_and_each_level_is_restored(tiny: Any) -> None:
    base, repeats, skips = logits(tiny), expected(tiny, REPEATS), expected(tiny, SKIPS)
    with David.slung(tiny, REPEATS) as outer:
        assert outer is tiny
        with David.slung(tiny, SKIPS):
            assert torch.equal(logits(tiny), skips)
        assert torch.equal(logits(tiny), repeats)
        with David.slung(tiny, SKIPS):
            David.reset(tiny)
        assert torch.equal(logits(tiny), repeats)
    assert torch.equal(logits(tiny), base)


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
    home = list(layers.find(model).layers)
    everything = {value.data_ptr() for value in model.state_dict().values()}
    buffers = {buffer.data_ptr() for buffer in model.buffers()}
    slung = make(model, REPEATS)
    for visit, layer in zip(layers.find(slung).layers, REPEATS.repeat_map, strict=True):
        assert visit is not home[layer]
        assert [(n, id(p)) for n, p in visit.named_parameters()] == [
            (n, id(p)) for n, p in home[layer].named_parameters()
        ]
    assert {value.data_ptr() for value in slung.state_dict().values()} == everything
    assert {buffer.data_ptr() for buffer in slung.buffers()} == buffers
    assert sum(p.numel() for p in slung.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "qwen3_moe", "gemma3"])
def test_hidden_states_come_once_for_each_visit(name: str) -> None:
    model = tiny_named(name)

    def count(which: Any = model) -> int:
        with torch.no_grad():
            return len(which(TOKENS, output_hidden_states=True).hidden_states)

    franken = David.view(model, SKIPS)
    with David.slung(model, REPEATS):  # asked for the first time while slung
        assert count() == 9
        assert count(franken) == 4
    assert count() == 7
    with David.slung(model, REPEATS):
        assert count() == 9
    assert count() == 7


def test_hidden_states_are_those_of_the_stacked_copy(tiny: Any) -> None:
    recipe = Recipe.parse(MAPS["scaled"])
    with torch.no_grad():
        right = deep_copied(tiny, recipe)
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
        right = deep_copied(tiny, REPEATS)(TOKENS, output_attentions=True).attentions
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


# Refusals: an error that says why, before anything is touched.


def hooked(model: Any) -> None:
    add_hook_to_module(model.model.layers[1], ModelHook())


def replaced(model: Any) -> None:
    model.model.layers[1].self_attn.forward = model.model.layers[1].self_attn.forward


def compiled(model: Any) -> None:
    model.model.layers[1].compile(backend="eager")


def misnumbered(model: Any) -> None:
    model.model.layers[1].self_attn.layer_idx = 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(hooked, "accelerate"), (replaced, "forward"), (compiled, "compiled"), (misnumbered, "layer_idx 2")],
)
def test_layers_that_a_view_cannot_follow_are_refused(tiny: Any, spoil: Any, reason: str) -> None:
    spoil(tiny)
    before, base = state(tiny), logits(tiny) if spoil is not compiled else None
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


@pytest.mark.parametrize("model_type", ["mamba", "gemma3n_text", "jamba"])
def test_types_that_are_not_known_are_refused(model_type: str) -> None:
    assert model_type not in KNOWN_TYPES
    settings = {"mamba": {"state_size": 4}, "jamba": {"num_experts": 2, "use_mamba_kernels": False}}
    settings["gemma3n_text"] = {"vocab_size_per_layer_input": VOCABULARY, "layer_types": ["full_attention"] * 6}
    settings["gemma3n_text"] |= {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 6, "laurel_rank": 4}
    model = tiny_model(model_type, **settings[model_type])
    base, config = logits(model), model.config.to_dict()
    for refused in (David.sling, David.view):
        with pytest.raises(SlingError, match=f"model type '{model_type}' is refused"):
            refused(model, [0, 1])
    with pytest.raises(SlingError, match="is refused"):
        David.reset(model)
    assert model.config.to_dict() == config
    assert torch.equal(logits(model), base)


def test_encoder_decoders_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(SlingError, match="'t5' is refused"):
        David.sling(T5ForConditionalGeneration(config), [0])


def test_cross_attention_is_refused() -> None:
    with pytest.raises(SlingError, match="cross-attention"):
        David.sling(tiny_model("gpt2", add_cross_attention=True, is_decoder=True), [0])


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])], ids=["Linear", "ModuleList"])
def test_what_is_no_transformers_model_is_refused(thing: nn.Module) -> None:
    with pytest.raises(SlingError, match=f"expected a transformers model .* got {type(thing).__name__}"):
        David.sling(thing, [0])


def test_a_compiled_model_is_refused(tiny: Any) -> None:
    with pytest.raises(SlingError, match="OptimizedModule"):
        David.sling(torch.compile(tiny, backend="eager"), [0])


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
