"""The stacked copy, which the proofs compare with: plain transformers, its own weights, the recipe's layers."""

from typing import Any

import pytest
import torch

from david import David, Recipe
from david.errors import RecipeError, SlingError
from david.layers import KNOWN_TYPES
from david.stack import stacked
from tests.tiny import VARIANTS, deep_copied, tiny_named

RECIPE = Recipe.parse("0:4, 2:4*0.5, 1*-0.3, 4:6")
TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


STACKABLE = [name for name in [*sorted(KNOWN_TYPES), *VARIANTS, "gemma3"] if name != "gpt2-layer-scaling"]


@pytest.mark.parametrize("name", STACKABLE)
def test_stacked_is_the_deep_copy_and_the_sling(name: str) -> None:
    model = tiny_named(name)
    base = logits(model)
    copied = stacked(model, RECIPE)
    assert torch.equal(logits(copied), logits(deep_copied(model, RECIPE)))
    with David.slung(model, RECIPE):
        assert torch.equal(logits(model), logits(copied))
        options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(TOKENS, **options), copied.generate(TOKENS, **options))
    assert torch.equal(logits(model), base)


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


def test_a_model_without_one_list_of_layers_is_refused(tiny: Any) -> None:
    tiny.model.config.num_hidden_layers = 5
    with pytest.raises(SlingError, match="one list of 5 layers"):
        stacked(tiny, Recipe((0,)))


def test_attention_scaled_by_the_layer_s_number_is_refused() -> None:
    with pytest.raises(SlingError, match="layer's number"):
        stacked(tiny_named("gpt2-layer-scaling"), Recipe.identity(6))
