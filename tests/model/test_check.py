"""The certificate: what it proves, what it fails on, and that it leaves the base behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from david import David, Recipe
from david.errors import SlingError
from david.sling import locate, remap, verify, views
from david.sling.locate import is_coupled
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_model, tiny_named

TOKENS = torch.arange(12)[None] * 5 + 3


def failed(certificate: Any) -> set[str]:
    return {finding.claim for finding in certificate.findings if finding.passed is False}


def claims(certificate: Any, recipe: str) -> list[str]:
    return [finding.claim for finding in certificate.findings if finding.recipe == recipe]


def test_a_certificate_holds_every_proof() -> None:
    certificate = David.check(tiny_named("llama"))
    assert certificate.passed
    assert claims(certificate, "the identity") == ["uncached = the base", "cached = the base"]
    for name in verify.maps(6):
        assert claims(certificate, name) == [
            "uncached = stacked",
            "cached = stacked",
            "cached = uncached",
            "a view = the sling",
            "the base beside the view",
        ]
    assert len(claims(certificate, "after reset")) == 3
    assert all(finding.passed for finding in certificate.findings)


def test_it_prints_a_page_and_json() -> None:
    certificate = David.check(tiny_named("llama"))
    page = str(certificate)
    assert page.startswith("PASSED: slinging LlamaForCausalLM (llama), 6 layers, float32 on cpu, on text\nwith david ")
    assert f"torch {torch.__version__}" in page
    assert f"every layer twice: {verify.maps(6)['every layer twice']}" in page
    told = json.loads(json.dumps(certificate.to_dict()))
    assert (told["passed"], told["model_type"], told["num_layers"]) == (True, "llama", 6)
    assert len(told["findings"]) == len(certificate.findings)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5_text", "mamba", "zaya", "bart", "recurrent_gemma", "musicgen"])
def test_it_passes_on_very_different_models(name: str) -> None:
    certificate = David.check(tiny_named(name))
    assert certificate.passed, str(certificate)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_passes_on_the_shallowest(depth: int) -> None:
    assert David.check(tiny_model("llama", num_hidden_layers=depth)).passed


@pytest.mark.parametrize("room", [True, False])
def test_a_comparison_that_cannot_be_made_is_no_pass(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_named("llama")
    whole = type(model).forward

    def shallow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(self.model.layers) > self.config.vocab_size:
            raise IndexError("list index out of range")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", shallow)
    monkeypatch.setattr(verify, "_room_for", lambda *_: room)
    recipe = Recipe([*range(6)] * 20)  # of more visits than the vocabulary has tokens: neither it nor its copy runs
    certificate = David.check(model, recipe=recipe)
    reasons = [finding.reason for finding in certificate.findings if finding.passed is False]
    assert not certificate.passed
    assert any(reason.startswith("neither runs: IndexError") for reason in reasons)
    assert {finding.recipe for finding in certificate.findings if finding.passed is False} == {"the recipe"}


SHALLOWER = ("gemma3_text", "qwen3_next", "gemma2", "llama4_text", "afmoe", "glm_moe_dsa")


@pytest.mark.parametrize("name", SHALLOWER)
def test_a_model_of_fewer_layers_than_its_lists_is_slung_exactly(name: str, tmp_path: Path) -> None:
    deep = tiny_named(name)
    deep.save_pretrained(tmp_path)
    model = type(deep).from_pretrained(tmp_path, num_hidden_layers=4).eval()
    before = model.config.to_dict()
    for visits in ([0, 1, 1, 2, 3], [3, 2, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3], [0, 2, 3]):
        try:
            with David.slung(model, visits):
                slung = verify.full_logits(model, TOKENS)
        except SlingError:
            assert name == "glm_moe_dsa"  # a layer that reads another's comes before it
            continue
        if not is_coupled(model):
            assert torch.equal(slung, verify.layer_by_layer(model, Recipe(visits), TOKENS))
        assert torch.allclose(slung, verify.full_logits(stacked(model, Recipe(visits)), TOKENS), atol=1e-4)
    assert model.config.to_dict() == before
    # One layer of linear attention cannot decode in plain transformers either, which is no pass.
    assert failed(David.check(model)) <= ({"cached = stacked", "cached = uncached"} if name == "qwen3_next" else set())


def test_a_map_that_is_refused_is_told_and_is_no_failure() -> None:
    certificate = David.check(tiny_named("gemma3n_text"))
    assert certificate.passed
    [told] = [finding.reason for finding in certificate.findings if finding.claim == "refused"]
    assert "shares the keys and values of layer" in told


def test_a_base_whose_cache_changes_its_logits_is_told_and_is_no_failure() -> None:
    certificate = David.check(tiny_named("cpmant"))
    assert certificate.passed
    assert certificate.findings[0].passed is None
    assert "not of the base itself" in str(certificate)


@pytest.mark.parametrize(
    ("place", "broken", "name", "seen"),
    [
        ("INDICES", (), "llama", {"cached = stacked", "cached = uncached"}),
        ("_has_each", lambda *_: False, "gemma3_text", {"uncached = stacked"}),
        ("damp", lambda *_: None, "llama", {"uncached = stacked", "cached = stacked"}),
        ("PACKED", (), "gemma3n_text", {"uncached = stacked"}),
    ],
)
def test_it_fails_where_a_mechanism_is_missing(
    place: str, broken: Any, name: str, seen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_named(name)
    base = verify.full_logits(model, TOKENS)
    monkeypatch.setattr(remap, place, broken)
    certificate = David.check(model)
    assert not certificate.passed
    assert seen <= failed(certificate)
    assert str(certificate).startswith("FAILED")
    assert torch.equal(verify.full_logits(model, TOKENS), base)


def test_it_fails_where_a_sling_writes_into_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = views.module_view

    def careless(module: nn.Module, replace: Any) -> Any:
        view = whole(module, replace)
        for weight in list(module.parameters())[:1]:
            weight.data += 1e-3
        return view

    monkeypatch.setattr(remap, "module_view", careless)
    assert {"the base beside the view", "uncached = the base"} <= failed(David.check(tiny_named("llama")))


# Layer by layer, where memory does not hold a copy.


def test_without_room_for_a_copy_the_layers_are_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_room_for", lambda *_: False)
    certificate = David.check(tiny_named("gemma3_text"))
    assert certificate.passed
    assert "uncached = layer by layer" in claims(certificate, "every layer twice")
    monkeypatch.setattr(remap, "_has_each", lambda *_: False)
    assert failed(David.check(tiny_named("gemma3_text"))) >= {"uncached = layer by layer"}


def test_layers_that_hand_on_more_are_not_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_room_for", lambda *_: False)
    certificate = David.check(tiny_named("zaya"))
    assert not certificate.passed  # nothing was compared with a reference
    assert failed(certificate) == {"uncached = stacked"}
    assert "its layers hand on more than a hidden state" in str(certificate)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma4_text", "falcon_h1", "qwen3_next"])
def test_layer_by_layer_is_the_sling(name: str) -> None:
    model = tiny_named(name)
    recipe = Recipe.parse("0:4, 2*0.5, 3:6")
    called = verify.layer_by_layer(model, recipe, TOKENS)
    with David.slung(model, recipe):
        torch.testing.assert_close(verify.full_logits(model, TOKENS), called, atol=1e-5, rtol=0)


def test_a_model_of_two_devices_has_no_room_for_a_copy() -> None:
    model = tiny_named("llama")
    assert verify._room_for(model, Recipe.identity(6))
    model.model.layers[3].to("meta")
    assert not verify._room_for(model, Recipe.identity(6))


# What is refused, and a type that no proof was made for.


def test_a_slung_model_and_a_training_one_are_refused() -> None:
    model = David.sling(tiny_named("llama"), [0, 1])
    with pytest.raises(SlingError, match="reset it first"):
        David.check(model)
    with pytest.raises(SlingError, match="training mode"):
        David.check(David.reset(model).train())


def test_a_type_that_cannot_be_slung_is_refused() -> None:
    with pytest.raises(SlingError, match="'hrm_text' is refused: it runs two lists"):
        David.check(tiny_named("hrm_text"))


def test_an_unproved_type_is_slung_once_its_check_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "PROVED", frozenset())
    model, other = tiny_named("llama"), tiny_named("llama")
    with pytest.raises(SlingError, match=r"David\.check\(model\)"):
        David.sling(model, [0, 1])
    assert David.check(model).passed
    assert David.check(model).passed  # and a second proof takes nothing away
    David.sling(model, [0, 1])
    David.reset(model)
    David.view(model, [0, 1])
    with pytest.raises(SlingError, match="no proof"):
        David.sling(other, [0, 1])


def test_an_unproved_type_whose_check_fails_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "PROVED", frozenset())
    monkeypatch.setattr(remap, "INDICES", ())
    model = tiny_named("llama")
    assert not David.check(model).passed
    with pytest.raises(SlingError, match="no proof"):
        David.sling(model, [0, 1])


def test_what_its_user_has_set_for_generation_is_not_in_the_way() -> None:
    model = tiny_named("llama")
    model.generation_config.num_return_sequences = 2
    model.generation_config.do_sample = True
    kept = model.generation_config
    certificate = David.check(model)
    assert certificate.passed
    assert "cached = stacked" in claims(certificate, "a block again")
    assert model.generation_config is kept


def test_a_base_that_is_random_is_refused() -> None:
    with pytest.raises(SlingError, match="other logits each time"):
        David.check(tiny_model("reformer", hash_seed=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_raises_no_alarm(dtype: torch.dtype) -> None:
    for name in ("llama", "bamba"):
        certificate = David.check(tiny_named(name).to(dtype))
        assert certificate.passed, str(certificate)


def test_scales_that_are_a_little_wrong_are_seen_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = remap.damp
    monkeypatch.setattr(remap, "damp", lambda view, scale: whole(view, scale if scale == 1 else scale + 0.05))
    assert "uncached = stacked" in failed(David.check(tiny_named("llama").to(torch.bfloat16)))


def test_a_check_of_a_proved_type_leaves_no_mark() -> None:
    model = tiny_named("llama")
    before = set(vars(model))
    David.check(model)
    assert set(vars(model)) == before
