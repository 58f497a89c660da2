"""The stacked copy, which the proofs compare with: a deep copy, its own weights, the recipe's layers."""

import copy
import re
from typing import Any

import pytest
import torch

from david import David, Recipe
from david.errors import RecipeError, SlingError
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_named

RECIPE = Recipe.parse("0:4, 2:4*0.5, 1*-0.3, 4:6")
PLAIN = Recipe.parse("0:4, 5, 2:6, 1")
TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]

# Types of which transformers can build a model of any layers from a configuration: all that a layer is stands in lists.
BUILT = ["bloom", "cohere2", "falcon-40b", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "lfm2", "llama", "llama-tied"]
BUILT += ["mistral", "mixtral", "opt", "phi3", "qwen2", "qwen3_5_text", "smollm3", "stablelm"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def generated(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens read with a cache, and the logits that chose them, [new, B, V]."""
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(TOKENS, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences, torch.stack(out.logits)


def built(model: Any, recipe: Recipe) -> Any:
    """A model that transformers builds from a configuration of the map's layers, with the base's tensors loaded."""
    config = copy.deepcopy(model.config)
    for name in {"layer_types", "mlp_layer_types", "no_rope_layers"} & vars(config).keys():
        setattr(config, name, [getattr(config, name)[layer] for layer in recipe.repeat_map])
    config.num_hidden_layers = len(recipe)
    weights, loaded = model.state_dict(), {}
    for key, tensor in weights.items():
        path = re.fullmatch(r"(.*?\.)(\d+)(\..*)", key)
        if path is None:
            loaded[key] = tensor
        else:
            before, number, after = path.groups()
            visits = (visit for visit, layer in enumerate(recipe.repeat_map) if layer == int(number))
            loaded |= {f"{before}{visit}{after}": tensor for visit in visits}
    new = type(model)._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    new.load_state_dict(loaded)
    return new.eval()


@pytest.mark.parametrize("name", BUILT)
def test_stacked_is_what_transformers_builds_from_a_configuration_of_its_layers(name: str) -> None:
    model = tiny_named(name)
    base, copied, new = logits(model), stacked(model, PLAIN), built(model, PLAIN)
    assert type(copied) is type(new)
    assert [key for key, _ in copied.named_parameters()] == [key for key, _ in new.named_parameters()]
    assert torch.equal(logits(copied), logits(new))
    for mine, its in zip(generated(copied), generated(new), strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(logits(model), base)
    assert not torch.equal(logits(copied), base)


def test_a_scale_damps_what_a_visit_adds(tiny: Any) -> None:
    def after(model: Any) -> list[torch.Tensor]:
        told: list[torch.Tensor] = [model.model.embed_tokens(TOKENS)]
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _layer, _args, output: told.append(output))
        logits(model)
        return told

    whole = after(stacked(tiny, Recipe((3, 1))))
    damped = after(stacked(tiny, Recipe((3, 1), (-0.3, 1))))
    torch.testing.assert_close(damped[1], whole[0] - 0.3 * (whole[1] - whole[0]))
    none = after(stacked(tiny, Recipe((3, 1), (0, 1))))
    assert torch.equal(none[1], none[0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_stacked_is_the_sling(name: str) -> None:
    model = tiny_named(name)
    copied = stacked(model, RECIPE)
    with David.slung(model, RECIPE):
        assert torch.equal(logits(model), logits(copied))
        for mine, its in zip(generated(model), generated(copied), strict=True):
            assert torch.equal(mine, its)


def test_every_visit_has_its_own_weights(tiny: Any) -> None:
    copied = stacked(tiny, RECIPE)
    own = [p.data_ptr() for p in copied.parameters()]
    assert len(set(own)) == len(own)
    assert not set(own) & {p.data_ptr() for p in tiny.parameters()}
    layer = sum(p.numel() for p in tiny.model.layers[0].parameters())
    extra = sum(p.numel() for p in copied.parameters()) - sum(p.numel() for p in tiny.parameters())
    assert extra == (len(RECIPE) - 6) * layer
    base = logits(tiny)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(logits(tiny), base)


def test_tied_weights_stay_tied() -> None:
    copied = stacked(tiny_named("llama-tied"), RECIPE)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight


def test_the_copy_is_saved_and_loaded_as_an_ordinary_model(tiny: Any, tmp_path: Any) -> None:
    plain = Recipe.parse("0:4, 2:6")
    copied = stacked(tiny, plain)
    copied.save_pretrained(tmp_path)
    again = type(tiny).from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == len(plain)
    assert torch.equal(logits(again), logits(copied))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_mode_and_attention_are_the_model_s(tiny: Any, dtype: torch.dtype, tmp_path: Any) -> None:
    tiny.save_pretrained(tmp_path)
    tiny = type(tiny).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
    copied = stacked(tiny, RECIPE)
    assert {p.dtype for p in copied.parameters()} == {dtype}
    assert copied.config._attn_implementation == "eager"
    assert not copied.training
    assert copied.generation_config is not tiny.generation_config
    assert copied.generation_config.to_dict() == tiny.generation_config.to_dict()
    with David.slung(tiny, RECIPE):
        assert torch.equal(logits(copied), logits(tiny))


def test_the_model_s_configuration_is_left_alone() -> None:
    model = tiny_named("gemma3")
    before = model.config.to_dict()
    copied = stacked(model, RECIPE)
    assert model.config.to_dict() == before
    assert copied.config.text_config.num_hidden_layers == len(RECIPE)
    assert copied.config.vision_config.num_hidden_layers == model.config.vision_config.num_hidden_layers


def test_layers_that_the_model_lacks_are_refused(tiny: Any) -> None:
    with pytest.raises(RecipeError, match="layer 6 is out of range"):
        stacked(tiny, Recipe((0, 6)))


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    with pytest.raises(SlingError, match="one list of layers among the weights' names"):
        stacked(tiny_named("blt"), Recipe((0,)))


def test_a_slung_model_is_refused(tiny: Any) -> None:
    with pytest.raises(SlingError, match="reset it first"):
        stacked(David.sling(tiny, RECIPE), RECIPE)


def test_attention_scaled_by_the_layer_s_number_keeps_the_scale_of_its_layer() -> None:
    model = tiny_named("gpt2-layer-scaling")
    scales = [layer.attn.scaling for layer in model.transformer.h]
    assert len(set(scales)) == len(scales)
    copied = stacked(model, RECIPE)
    assert [visit.attn.scaling for visit in copied.transformer.h] == [scales[layer] for layer in RECIPE.repeat_map]
