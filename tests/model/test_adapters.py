"""Models with PEFT adapters: loaded before a sling they belong to the layers, loaded after it to the visits."""

from typing import Any

import pytest
import torch

from david import David, Recipe
from david.errors import SlingError
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_named

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
RECIPE = Recipe.parse("0:4, 3*0.5, 2:6")
NAMES = ["llama", "gemma3_text", "qwen3_moe", "jamba"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def adapted(model: Any) -> Any:
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def generated(model: Any) -> torch.Tensor:
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=TOKENS, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_an_adapter_is_slung_by_every_handle(name: str) -> None:
    plain, model = logits(tiny_named(name)), tiny_named(name)
    wrapped = adapted(model)
    base, reference = logits(wrapped), stacked(model, RECIPE)
    right, right_text = logits(reference), generated(reference)
    assert not torch.equal(base, plain)
    for handle in (wrapped, model):
        assert David.sling(handle, RECIPE) is handle
        assert torch.equal(logits(wrapped), right)
        assert torch.equal(logits(model), right)
        assert torch.equal(generated(wrapped), right_text)
        assert torch.equal(logits(David.reset(wrapped)), base)
    beside = David.view(wrapped, RECIPE)
    assert type(beside) is type(wrapped)
    assert torch.equal(logits(beside), right)
    assert torch.equal(logits(wrapped), base)


def test_an_adapter_that_transformers_loaded_is_slung(tiny: Any) -> None:
    tiny.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tiny.eval()
    right = logits(stacked(tiny, RECIPE))
    with David.slung(tiny, RECIPE):
        assert torch.equal(logits(tiny), right)


def test_an_adapter_is_switched_off_and_on_while_slung(tiny: Any) -> None:
    without = logits(stacked(tiny, RECIPE))
    model = adapted(tiny)
    David.sling(model, RECIPE)
    right = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), without)
    assert torch.equal(logits(model), right)
    with model.disable_adapter():
        David.sling(model, RECIPE)
    assert torch.equal(logits(model), right)


def test_the_adapter_that_was_chosen_while_slung_is_the_one_in_use_afterwards(tiny: Any) -> None:
    model = adapted(tiny)
    model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    first = logits(model)
    model.set_adapter("other")
    second, right = logits(model), logits(stacked(tiny, RECIPE))
    model.set_adapter("default")
    for leave in (David.reset, lambda model: David.sling(model, RECIPE)):
        David.sling(model, [0, 1, 3]).set_adapter("other")
        leave(model)
        David.sling(model, RECIPE)
        assert torch.equal(logits(model), right)
        assert torch.equal(logits(David.reset(model)), second)
        model.set_adapter("default")
    with David.slung(model, RECIPE):
        model.set_adapter("other")
    assert torch.equal(logits(model), second)
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:Al")  # PEFT notes that a repeated layer was merged, or unmerged, at its first visit
def test_an_adapter_is_merged_once_into_a_layer_that_is_visited_twice(tiny: Any) -> None:
    model = adapted(tiny)
    base, right = logits(model), logits(stacked(tiny, RECIPE))
    David.sling(model, RECIPE).merge_adapter()
    torch.testing.assert_close(logits(model), right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(David.reset(model)), base, rtol=1e-4, atol=1e-4)
    David.sling(model, RECIPE).unmerge_adapter()
    torch.testing.assert_close(logits(model), right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(David.reset(model)), base, rtol=1e-4, atol=1e-4)


def test_adapters_of_the_base_are_not_saved_as_those_of_visits(tiny: Any, tmp_path: Any) -> None:
    model = adapted(tiny)
    for slung in (David.view(model, RECIPE), David.sling(model, RECIPE), tiny):
        with pytest.raises(SlingError, match="a slung model cannot be saved"):
            slung.save_pretrained(tmp_path / "adapter")
    David.reset(model).save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_named("llama"), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))


def test_adapters_made_on_visits_are_saved_for_the_same_sling_and_gone_after_a_reset(tiny: Any, tmp_path: Any) -> None:
    """How a recipe is healed: each visit learns its own adapter, the weights stay shared."""
    base, count = logits(tiny), sum(p.numel() for p in tiny.parameters())
    model = adapted(David.sling(tiny, RECIPE))
    right = logits(model)
    own = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(own) == 2 * 2 * len(RECIPE)
    assert sum(p.numel() for p in model.parameters()) == count + sum(p.numel() for p in own)
    model.save_pretrained(tmp_path / "healed")
    again = peft.PeftModel.from_pretrained(David.sling(tiny_named("llama"), RECIPE), tmp_path / "healed").eval()
    assert torch.equal(logits(again), right)
    with David.slung(model, [0, 1]):
        assert not torch.equal(logits(model), right)
    assert torch.equal(logits(model), right)
    with pytest.warns(UserWarning, match="are removed with it"):
        David.reset(model)
    assert torch.equal(logits(model), base)


def test_adapters_of_the_base_are_not_saved_beside_those_of_visits(tiny: Any, tmp_path: Any) -> None:
    model = David.sling(adapted(tiny), RECIPE)
    model.add_adapter("visits", peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(SlingError, match="a slung model cannot be saved"):
        model.save_pretrained(tmp_path / "adapter")


def test_an_adapter_of_the_base_is_not_saved_for_a_model_slung_by_a_handle_inside(tiny: Any, tmp_path: Any) -> None:
    model = adapted(tiny)
    David.sling(tiny.model, RECIPE)
    for part in (model, tiny):
        with pytest.raises(SlingError, match="a slung model cannot be saved"):
            part.save_pretrained(tmp_path / "adapter")
    with pytest.raises(SlingError, match="a slung model cannot be saved"):
        model.push_to_hub("somebody/adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_slung_model_with_adapters_on_visits_is_not_saved_whole(tiny: Any, tmp_path: Any) -> None:
    model = adapted(David.sling(tiny, RECIPE))
    with pytest.raises(SlingError, match="a slung model cannot be saved"):
        model.base_model.model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_adapters_that_transformers_put_on_visits_are_saved(tiny: Any, tmp_path: Any) -> None:
    David.sling(tiny, RECIPE).add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    right = logits(tiny.eval())
    tiny.save_pretrained(tmp_path / "adapter")
    again = David.sling(tiny_named("llama"), RECIPE)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again.eval()), right)


def test_adapters_that_are_unloaded_from_the_visits_alone_are_told_of(tiny: Any) -> None:
    model = David.sling(adapted(tiny), RECIPE)
    model.unload()
    with pytest.warns(UserWarning, match="unload them from the base"):
        David.reset(model)


def test_a_wrapper_with_more_than_a_model_in_it_is_refused(tiny: Any) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(SlingError, match=r"expected a transformers model .* got PeftModelForCausalLM"):
        David.sling(peft.get_peft_model(tiny, config), RECIPE)
