"""Gradients through a slung model are those of the stacked copy whose visits of one layer share one Parameter.

They are bit-equal for plain visits. For scaled ones they are equal to float rounding: the stacked copy clones the
hidden state that it damps, so that autograd adds the same terms in another order.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from david import David, Recipe
from david.sling.stacked_copy import stacked
from tests.tiny_models import N_LAYERS, tiny_named

# Rotary positions, sliding windows, linear attention, experts, state spaces.
NAMES = ["llama", "gemma3_text", "qwen3_5_text", "mixtral", "jamba"]
MAPS = {
    "repeats": "0:4, 2:6",
    "repeats and skips": "5, 0:3, 1:3, 1, 5",
    "scaled": "5, 0:3, 1:3*0.5, 2*0, 1*1.5, 5*-0.3",  # repeats and skips as well
}
OPTIMIZERS = {"SGD": (torch.optim.SGD, 0.1), "AdamW": (torch.optim.AdamW, 0.01)}
ROUNDING = 1e-5  # of a gradient's largest entry
TOKENS = torch.arange(28).view(2, 14) * 5 % 89 + 3  # [B, T], none of them special
Named = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more, which wait for one another where other work runs too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tied(model: Any, recipe: Recipe) -> Any:
    """The stacked copy, every later visit of a layer on the Parameters of the first; in the model's mode."""
    copied = stacked(model, recipe)
    visits = copied.model.layers
    for visit, layer in zip(visits, recipe.repeat_map, strict=True):
        first = visits[recipe.repeat_map.index(layer)]
        for one, other in zip(visit.modules(), first.modules(), strict=True):
            one._parameters = other._parameters
    return copied.train(model.training)


def by_base_name(reference: Any, recipe: Recipe) -> Named:
    """The Parameters of a reference under the names that they have in the base."""
    named = {}
    for name, parameter in reference.named_parameters():  # a shared one comes once, by its first visit
        head, is_layer, rest = name.partition("model.layers.")
        if is_layer:
            place, rest = rest.split(".", 1)
            name = f"{head}{is_layer}{recipe.repeat_map[int(place)]}.{rest}"
        assert name not in named
        named[name] = parameter
    return named


def loss(model: Any) -> torch.Tensor:
    return model(TOKENS, labels=TOKENS, use_cache=False).loss


def gradients(parameters: Named) -> Named:
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def values(parameters: Named) -> Named:
    return {name: p.detach().clone() for name, p in parameters.items()}


def in_layers(name: str, layers: set[int]) -> bool:
    return any(f"model.layers.{layer}." in name for layer in layers)


def assert_gradients(parameters: Named, reference: Any, recipe: Recipe) -> None:
    """The base's Parameters have the reference's gradients; all layers of the map have some, those left out none."""
    found, expected = gradients(parameters), gradients(by_base_name(reference, recipe))
    assert found.keys() == expected.keys()
    rounding = ROUNDING if set(recipe.scales) != {1} else 0
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= rounding * expected[name].abs().max(), name
    visited = set(recipe.repeat_map)
    assert not [name for name in found if in_layers(name, set(range(N_LAYERS)) - visited)]
    assert all(any(in_layers(name, {layer}) and grad.any() for name, grad in found.items()) for layer in visited)


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in MAPS.items()])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_tied_stack(name: str, text: str) -> None:
    model, recipe = tiny_named(name).train(), Recipe.parse(text)
    parameters, reference = dict(model.named_parameters()), tied(model, recipe)
    loss(reference).backward()
    with David.slung(model, recipe):
        loss(model).backward()
    assert_gradients(parameters, reference, recipe)


@pytest.mark.parametrize("name", NAMES)
def test_with_gradient_checkpointing_too(name: str) -> None:
    model, recipe, runs = tiny_named(name).train(), Recipe.parse(MAPS["scaled"]), []
    parameters, reference = dict(model.named_parameters()), tied(model, recipe)
    model.activation_checkpointing_enable()
    loss(reference).backward()
    with David.slung(model, recipe):
        for visit in model.model.layers:
            visit.input_layernorm.register_forward_pre_hook(lambda *_: runs.append(None))
        loss(model).backward()
    assert len(runs) == 2 * len(recipe)  # every visit was run again for its gradient
    assert_gradients(parameters, reference, recipe)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_works_when_the_sling_is_gone_already(checkpointing: bool) -> None:
    model, recipe = tiny_named("gemma3_text").train(), Recipe.parse(MAPS["scaled"])
    parameters, reference = dict(model.named_parameters()), tied(model, recipe)
    if checkpointing:
        model.activation_checkpointing_enable()
    loss(reference).backward()
    with David.slung(model, recipe):
        found = loss(model)
    found.backward()
    assert_gradients(parameters, reference, recipe)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_view_land_in_the_bases_own_parameters(name: str) -> None:
    model, recipe = tiny_named(name).train(), Recipe.parse(MAPS["scaled"])
    parameters, reference = dict(model.named_parameters()), tied(model, recipe)
    loss(reference).backward()
    loss(David.view(model, recipe)).backward()
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert_gradients(parameters, reference, recipe)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_gives_equal_weights_and_reset_a_base_that_has_them(name: str, optimizer: str) -> None:
    model, recipe = tiny_named(name).train(), Recipe.parse(MAPS["repeats and skips"])
    parameters, reference = dict(model.named_parameters()), tied(model, recipe)
    before, (kind, rate) = values(parameters), OPTIMIZERS[optimizer]
    David.sling(model, recipe)
    for trained in (model, reference):
        steps = kind(trained.parameters(), lr=rate)
        loss(trained).backward()
        steps.step()
    expected = before | values(by_base_name(reference, recipe))  # layers left out stay
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())
    moved = [name for name in before if not torch.equal(parameters[name], before[name])]
    assert all(any(in_layers(name, {layer}) for name in moved) for layer in recipe.repeat_map)

    David.reset(model)
    fresh = tiny_named(name)
    fresh.load_state_dict(fresh.state_dict() | expected)
    with torch.no_grad():
        assert torch.equal(model.eval()(TOKENS).logits, fresh(TOKENS).logits)
    model.zero_grad()
    loss(model.train()).backward()
    assert gradients(parameters).keys() == parameters.keys()  # every layer learns again


def test_visits_that_are_not_tied_split_the_gradient_among_them() -> None:
    """The comparison can fail: a reference whose visits share nothing has other gradients, which add up to ours."""
    model, recipe = tiny_named("llama").train(), Recipe.parse(MAPS["repeats"])
    parameters, untied = dict(model.named_parameters()), stacked(model, recipe).train()
    loss(untied).backward()
    with David.slung(model, recipe):
        loss(model).backward()
    for layer, own in enumerate(model.model.layers):
        places = [place for place, visited in enumerate(recipe.repeat_map) if visited == layer]
        for name, parameter in own.named_parameters():
            assert parameter is parameters[f"model.layers.{layer}.{name}"]
            parts = [untied.model.layers[place].get_parameter(name).grad for place in places]
            assert torch.equal(parameter.grad, parts[0]) == (len(parts) == 1)
            torch.testing.assert_close(parameter.grad, sum(parts))
