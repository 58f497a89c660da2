"""Writers into the weights that visits share: kept to the visit, or refused before a weight is touched.

Each case is held against deep copies: after a reset the base has the weights and the logits that it had.
"""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from david import David, Recipe
from david.errors import SlingError
from david.sling.stacked_copy import stacked
from tests.tiny_models import tiny_named

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
RECIPE = Recipe.parse("0:4, 3*0.5, 2:6")
NAMES = ["llama", "gemma3_text", "gemma4_text", "jamba", "qwen3_moe", "gemma3"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks transformers
    pytest.mark.filterwarnings("ignore:adapters on the visits of this recipe are removed"),
    pytest.mark.filterwarnings("ignore:adapters were unloaded from the visits"),
]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def digest(model: Any) -> str:
    """A hash of every name and value of a model's state."""
    told = hashlib.sha256()
    for name, value in model.state_dict().items():
        told.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        told.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes() if value.dim() else b"")
    return told.hexdigest()


def assert_is(model: Any, before: Any) -> None:
    """A model is, after a reset, what the deep copy of before is."""
    David.reset(model)
    assert digest(model) == digest(before)
    assert torch.equal(logits(model), logits(before))


# Adapters


def lora(**settings: Any) -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    return peft.LoraConfig(**{"target_modules": ["q_proj"], "init_lora_weights": False} | settings)


def put_on(model: Any, **settings: Any) -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    return peft.get_peft_model(model, lora(**settings)).eval()


MERGES: dict[str, Callable[[Any], Any]] = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "merge_and_unload, safe": lambda model: model.merge_and_unload(safe_merge=True),
    "merge_adapter": lambda model: model.merge_adapter(),
    "a layer's own merge": lambda model: model.base_model.model.model.layers[4].self_attn.q_proj.merge(),
}


@pytest.mark.parametrize("make", [David.sling, David.view])
@pytest.mark.parametrize("merge", MERGES)
def test_adapters_on_visits_are_not_merged(merge: str, make: Any, tiny: Any) -> None:
    before = copy.deepcopy(tiny)
    slung = make(tiny, RECIPE)
    for model in (put_on(slung, target_modules=["embed_tokens", "q_proj"]), None):
        model = model or copy.deepcopy(put_on(slung))  # a copy refuses as well
        right = logits(model)
        with pytest.raises(SlingError, match=r"adapters on visits cannot be merged.*david export"):
            MERGES[merge](model)
        assert torch.equal(logits(model), right)
        David.reset(slung)
        if make is David.sling:
            model.unload()
            assert_is(slung, before)
        slung = make(tiny, RECIPE)
    assert_is(tiny, before)


def test_an_adapter_that_a_visit_has_beside_one_of_the_base_is_not_merged(tiny: Any) -> None:
    model = put_on(tiny)
    before = copy.deepcopy(tiny)
    David.sling(model, RECIPE)
    model.add_adapter("visits", lora())
    model.set_adapter("visits")
    with pytest.raises(SlingError, match="adapters on visits cannot be merged"):
        model.merge_adapter()
    David.sling(model, RECIPE).set_adapter("default")
    model.delete_adapter("visits")
    assert_is(tiny, before)


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "OFTConfig", "VeraConfig"])
def test_other_kinds_of_adapters_are_not_merged_either(kind: str, tiny: Any) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    settings: dict[str, Any] = {"target_modules": ["q_proj"]}
    settings |= {"feedforward_modules": []} if kind == "IA3Config" else {}
    settings |= {"oft_block_size": 4, "r": 0} if kind == "OFTConfig" else {}
    before = copy.deepcopy(tiny)
    model = peft.get_peft_model(David.sling(tiny, RECIPE), getattr(peft, kind)(**settings)).eval()
    with pytest.raises(SlingError, match="adapters on visits cannot be merged"):
        model.merge_and_unload()
    assert_is(tiny, before)


@pytest.mark.parametrize("begin", ["pissa", "olora", "pissa_niter_2", "kasa"])
def test_an_adapter_does_not_begin_by_changing_the_weight_below_a_visit(begin: str, tiny: Any) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    before = copy.deepcopy(tiny)
    settings = {"kasa_config": peft.KasaConfig()} if begin == "kasa" else {"init_lora_weights": begin}
    with pytest.raises(SlingError, match="cannot begin by changing the weight below it"):
        put_on(David.sling(tiny, RECIPE), **settings)
    assert_is(tiny, before)


@pytest.mark.parametrize("begin", [True, "gaussian", "orthogonal", "mica"])
def test_an_adapter_that_only_reads_the_weight_below_is_put_on_visits(begin: Any, tiny: Any) -> None:
    before, copied = copy.deepcopy(tiny), stacked(tiny, RECIPE)
    for model in (tiny, copied):
        torch.manual_seed(0)
        put_on(David.sling(model, RECIPE) if model is tiny else model, init_lora_weights=begin, r=2)
    assert torch.equal(logits(tiny), logits(copied))
    assert_is(tiny, before) if begin is True else None


@pytest.mark.parametrize("undo", ["unload", "delete_adapter"])
def test_adapters_are_taken_off_visits_and_leave_the_weights(undo: str, tiny: Any) -> None:
    before = copy.deepcopy(tiny)
    model = put_on(David.sling(tiny, RECIPE))
    getattr(model, undo)(*(["default"] if undo == "delete_adapter" else []))
    assert torch.equal(logits(tiny), logits(stacked(before, RECIPE)))
    assert_is(tiny, before)


def test_a_step_on_the_adapters_of_some_visits_changes_these_alone(tiny: Any) -> None:
    before, copied = copy.deepcopy(tiny), stacked(tiny, RECIPE)
    for model in (tiny, copied):
        torch.manual_seed(0)
        adapted = put_on(David.sling(model, RECIPE) if model is tiny else model)
        some = [p for name, p in adapted.named_parameters() if ".layers.4." in name and "lora_" in name]
        optimizer = torch.optim.SGD(some, lr=0.5)
        adapted(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    assert torch.equal(logits(tiny), logits(copied))
    assert_is(tiny, before)


# Tools that put other tensors in the place of weights


@pytest.mark.parametrize("make", [David.sling, David.view])
@pytest.mark.parametrize("name", NAMES)
def test_functional_call_runs_the_weights_that_it_is_given_and_gives_the_base_its_own_back(
    name: str, make: Any
) -> None:
    model = tiny_named(name)
    before = copy.deepcopy(model)
    slung = make(model, "0:4, 2:6")
    right = logits(slung)
    given = {name: weight.detach() * 1.25 for name, weight in slung.named_parameters()}
    called = functional_call(slung, given, (TOKENS,)).logits
    changed = copy.deepcopy(before)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.25)
        assert torch.equal(called, David.sling(changed, "0:4, 2:6")(TOKENS).logits)
    assert torch.equal(logits(slung), right)
    buffers = dict(slung.named_buffers())
    assert torch.equal(functional_call(slung, given | buffers, (TOKENS,)).logits, called)
    assert_is(model, before)


@pytest.mark.parametrize("make", [David.sling, David.view])
def test_pruning_a_visit_is_refused(make: Any, tiny: Any) -> None:
    before = copy.deepcopy(tiny)
    slung = make(tiny, RECIPE)
    right = logits(slung)
    projection = slung.model.layers[4].mlp.up_proj
    for pruned in (prune.l1_unstructured, prune.random_unstructured):
        with pytest.raises(SlingError, match=r"cannot be replaced in a visit.*David\.reset\(model\)"):
            pruned(projection, "weight", amount=0.5)
    with pytest.raises(SlingError, match="cannot be replaced in a visit"):
        projection.weight = torch.nn.Parameter(projection.weight.detach().clone())
    del projection.weight
    with pytest.raises(SlingError, match="cannot be replaced in a visit"):
        projection.register_parameter("weight_g", torch.nn.Parameter(torch.ones(1)))
    assert torch.equal(logits(slung), right)
    projection.gate = torch.nn.Parameter(torch.ones(1))  # the visit's own
    gates = [name for name, _ in slung.named_parameters() if name.endswith(".gate")]
    assert gates == ["model.layers.4.mlp.up_proj.gate"]
    assert_is(tiny, before)
    pruned = tiny.model.layers[2].mlp.up_proj
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    right = logits(David.sling(tiny, RECIPE))
    prune.remove(pruned, "weight")
    assert torch.equal(right, logits(stacked(David.reset(tiny), RECIPE)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_slung_model_is_offloaded_and_its_base_is_whole_after_a_reset(name: str, place: str, tmp_path: Path) -> None:
    model = tiny_named(name)
    before = copy.deepcopy(model)
    right = logits(David.sling(copy.deepcopy(model), RECIPE))
    David.sling(model, RECIPE)
    if place == "cpu":
        cpu_offload(model, execution_device="cpu")
    else:
        disk_offload(model, tmp_path, execution_device="cpu")
    far = 1e-4 * right.std()  # offloading rounds Jamba otherwise
    assert (logits(model) - right).abs().max() <= far
    David.reset(model)
    layers = model.get_decoder().layers
    assert not any(weight.is_meta for weight in layers.parameters())
    assert digest(layers) == digest(before.get_decoder().layers)
    assert (logits(model) - logits(before)).abs().max() <= far
    assert (logits(David.sling(model, RECIPE)) - right).abs().max() <= far


class _Halved(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


PARAMETRIZATIONS: dict[str, Callable[[Any], Any]] = {
    "halved": lambda part: parametrize.register_parametrization(part, "weight", _Halved()),
    "orthogonal": parametrizations.orthogonal,  # would write into the weight at once
    "weight_norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("make", [David.sling, David.view])
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_parametrizing_a_visit_is_refused(kind: str, make: Any, tiny: Any) -> None:
    before = copy.deepcopy(tiny)
    slung = make(tiny, RECIPE)
    right = logits(slung)
    with pytest.raises(SlingError, match=r"a Linear of a visit cannot be parametrized.*David\.reset\(model\)"):
        PARAMETRIZATIONS[kind](slung.model.layers[4].mlp.up_proj)
    assert torch.equal(logits(slung), right)
    assert_is(tiny, before)
    part = tiny.model.layers[3].mlp.up_proj
    PARAMETRIZATIONS[kind](part)  # of the base: as ever
    copied, slung = logits(stacked(tiny, RECIPE)), make(tiny, RECIPE)
    assert torch.equal(logits(slung), copied)
    with pytest.raises(SlingError, match="of a visit cannot be parametrized"):  # it would write the base's weight
        parametrize.remove_parametrizations(slung.model.layers[4].mlp.up_proj, "weight")
    parametrize.remove_parametrizations(David.reset(tiny).model.layers[3].mlp.up_proj, "weight")
    assert not parametrize.is_parametrized(part)


def test_quantising_a_slung_model_is_refused(tiny: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    before = copy.deepcopy(tiny)
    David.sling(tiny, RECIPE)
    with pytest.raises(SlingError, match=r"LlamaMLP|Linear.weight cannot be replaced .* quantise the base, then sling"):
        quantization.quantize_(tiny, quantization.Int8WeightOnlyConfig(version=2))
    assert_is(tiny, before)


def test_weights_that_differ_between_visits_of_one_layer_are_not_loaded(tiny: Any) -> None:
    before, copied = copy.deepcopy(tiny), stacked(tiny, Recipe.parse("0:4, 2:6"))
    David.sling(tiny, "0:4, 2:6")
    tiny.load_state_dict(copied.state_dict())
    assert_is(tiny, before)
    with torch.no_grad():
        copied.model.layers[5].mlp.up_proj.weight.add_(1)
    David.sling(tiny, "0:4, 2:6")
    with pytest.raises(
        SlingError, match=r"differ between visits of one layer \(model\.layers\.5\.mlp\.up_proj\.weight"
    ):
        tiny.load_state_dict(copied.state_dict())
    with pytest.raises(SlingError, match="assign=True"):
        tiny.load_state_dict(copy.deepcopy(tiny.state_dict()), assign=True)
    tiny.load_state_dict(copy.deepcopy(tiny.state_dict()))
    assert_is(tiny, before)


# What is not slung


def test_models_that_are_not_slung_are_merged_and_pruned_as_ever() -> None:
    model = tiny_named("llama")
    adapted = put_on(model, target_modules=["embed_tokens", "q_proj"])
    right = logits(adapted)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), right, rtol=1e-3, atol=1e-3)
    assert merged is model
    put_on(model, init_lora_weights="pissa").unload()
    prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", amount=0.5)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
