"""Copies, files, moves and casts of a slung model: right, or refused in words; never a checkpoint of something else."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from david import David
from david.errors import SlingError
from david.sling import locate
from tests.tiny_models import tiny_named

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
RECIPE = "0:4, 3*0.5, 2:6"
SHORT = "0, 1, 3"  # leaves layers out
# Gemma 3: a list of kinds in the configuration; Jamba: lists that its class computes; Gemma 4: packed embeddings.
NAMES = ["llama", "gemma3_text", "jamba", "gemma4_text", "gemma3"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def torch_saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [David.sling, David.view])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, torch_saved])
def test_a_copy_runs_the_recipe_and_is_reset_on_its_own(copied: Any, make: Any, name: str) -> None:
    model = tiny_named(name)
    base, weights = logits(model), sum(p.numel() for p in model.parameters())
    slung = make(model, RECIPE)
    right = logits(slung)
    again = copied(slung)
    assert torch.equal(logits(again), right)
    assert sum(p.numel() for p in again.parameters()) == weights  # repeats share their weights in the copy too
    assert torch.equal(logits(David.reset(again)), base)
    assert torch.equal(logits(David.sling(again, RECIPE)), right)
    with torch.no_grad():
        for weight in again.parameters():
            weight.zero_()
    assert torch.equal(logits(slung), right)


def test_a_base_can_be_pickled_after_a_reset(tiny: Any) -> None:
    base = logits(tiny)
    David.reset(David.sling(tiny, RECIPE))
    assert torch.equal(logits(pickled(tiny)), base)


def test_a_slung_model_is_not_saved_as_another(tiny: Any, tmp_path: Any) -> None:
    for slung in (David.view(tiny, [0, 1]), David.sling(tiny, [0, 1])):
        with pytest.raises(SlingError, match=r"cannot be saved.*david export"):
            slung.save_pretrained(tmp_path / "model")
        with pytest.raises(SlingError, match="cannot be saved"):
            copy.deepcopy(slung).save_pretrained(tmp_path / "model")
        with pytest.raises(SlingError, match="cannot be saved"):
            pickled(slung).save_pretrained(tmp_path / "model")
    with pytest.raises(SlingError, match="cannot be saved"):
        tiny.model.save_pretrained(
            tmp_path / "model"
        )  # no weight of it comes twice, so that safetensors would write it
    with David.slung(tiny, [2]):
        pass
    with pytest.raises(SlingError, match="cannot be saved"):
        tiny.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    David.reset(tiny.model)  # the same layers by another handle
    tiny.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(type(tiny).from_pretrained(tmp_path / "model")), logits(tiny))


def test_a_model_that_was_slung_is_freed_as_soon_as_nothing_holds_it(tiny: Any) -> None:
    model = copy.deepcopy(tiny)
    with David.slung(model, RECIPE):
        pass
    David.reset(David.sling(model, RECIPE))
    weights = [weakref.ref(weight) for weight in model.parameters()]
    gc.collect()
    gc.disable()
    try:
        del model
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [David.sling, David.view])
@pytest.mark.parametrize("name", NAMES)
def test_a_cast_reaches_the_layers_that_are_left_out(make: Any, name: str) -> None:
    model = tiny_named(name)
    slung = make(model, "0:4" if name == "gemma4_text" else SHORT)
    slung.to(torch.bfloat16).half()
    assert {weight.dtype for weight in slung.parameters()} == {torch.float16}
    assert {weight.dtype for weight in David.reset(model).parameters()} == {torch.float16}
    expected = tiny_named(name).to(torch.bfloat16).half()
    assert torch.equal(logits(model), logits(expected))
    assert torch.equal(logits(David.sling(model, RECIPE)), logits(David.sling(expected, RECIPE)))


@pytest.mark.parametrize("make", [David.sling, David.view])
def test_a_move_reaches_the_layers_that_are_left_out(make: Callable[..., Any], tiny: Any) -> None:
    slung = make(tiny, SHORT)
    slung.to("meta")
    assert {weight.device.type for weight in David.reset(tiny).parameters()} == {"meta"}
    assert {weight.device.type for weight in David.view(tiny, RECIPE).parameters()} == {"meta"}


def test_what_is_cast_inside_a_nested_sling_stays_cast(tiny: Any) -> None:
    David.sling(tiny, RECIPE)
    with David.slung(tiny, SHORT):
        tiny.double()
    assert {weight.dtype for weight in tiny.parameters()} == {torch.float64}
    assert {weight.dtype for weight in David.reset(tiny).parameters()} == {torch.float64}


@pytest.mark.parametrize("end", ["sling", "slung", "view", "reset"])
def test_a_mode_set_while_slung_holds_for_every_layer(end: str, tiny: Any) -> None:
    def modes(model: Any) -> set[bool]:
        return {module.training for module in model.modules()}

    if end == "slung":
        with David.slung(tiny, [0, 1]):
            tiny.train()
        assert modes(tiny) == {True}
        return
    David.sling(tiny, [0, 1]).train()
    if end == "view":
        assert modes(David.view(tiny, [4, 5])) == {True}
        return
    David.reset(tiny) if end == "reset" else David.sling(tiny, [4, 5])
    assert modes(tiny) == {True}
    tiny.eval()
    assert modes(David.reset(tiny)) == {False}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma4_text", "qwen3_moe"])
@pytest.mark.parametrize("recipe", [RECIPE, "0:4, 4*0.5, 5"])  # with repeats; with nothing but a strength
def test_a_model_slung_by_a_handle_inside_it_is_not_saved(name: str, recipe: str, tmp_path: Any) -> None:
    model = tiny_named(name)
    base, inner = logits(model), locate.find(model).owner
    for handle in {id(part): part for part in (inner, model.model)}.values():
        David.sling(handle, recipe)
        assert not torch.equal(logits(model), base)
        for part in (model, model.model, inner):
            with pytest.raises(SlingError, match=r"cannot be saved.*david export"):
                part.save_pretrained(tmp_path / "model")
        David.reset(handle)
    assert not (tmp_path / "model").exists()
    David.reset(David.view(inner, recipe))  # a view beside it changes nothing
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "model")), base)


def test_a_slung_model_makes_no_repository(tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def create_repo(_api: Any, repo_id: str, **_options: Any) -> Any:
        made.append(repo_id)
        raise ConnectionError("no hub here")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    for slung in (David.view(tiny, RECIPE), David.sling(tiny, RECIPE), tiny.model):
        with pytest.raises(SlingError, match="cannot be saved"):
            slung.push_to_hub("somebody/model")
        with pytest.raises(SlingError, match="cannot be saved"):
            slung.save_pretrained(tmp_path / "model", push_to_hub=True)
    David.sling(David.reset(tiny).model, RECIPE)
    with pytest.raises(SlingError, match="cannot be saved"):
        tiny.push_to_hub("somebody/model")
    assert not made
    with pytest.raises(ConnectionError):
        David.reset(tiny).push_to_hub("somebody/model")
    assert made == ["somebody/model"]
