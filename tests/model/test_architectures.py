"""The sweep over causal-LM types: a sample in each run, every third one under `slow`; and that it can fail."""

import csv
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from david import David
from david.sling import architectures, remap, views
from experiments.architectures import sweep
from tests import tiny_models

TABLE = Path(__file__).parents[2] / "experiments" / "architectures" / "results.csv"
# One or two for each mechanism.
SAMPLE = (  # every third type is compared in a slow test, and all of them by the script of the experiment
    *("llama", "gpt2"),  # homes, depths and indices
    *("gemma3_text", "deepseek_v3"),  # kinds of a layer, dense and sparse
    *("jamba", "rwkv"),  # hybrids, states and caches of their own
    "mllama",  # shared, packed
    *("hrm_text", "rwkv-rescaled"),  # refused, and a base that fails
)


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    with TABLE.open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def told(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in ("name", "verdict", "reason", "text_type", "compared", "replayed"))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_the_types_is_what_the_table_says(name: str, table: dict[str, dict[str, str]]) -> None:
    assert told(asdict(sweep.run(name))) == told(table[name])


@pytest.mark.slow
def test_every_third_type_is_what_the_table_says(table: dict[str, dict[str, str]]) -> None:
    names = [*tiny_models.TYPES, *tiny_models.VARIANTS][::3]
    assert [told(asdict(row)) for row in sweep.swept(names, jobs=2)] == [told(table[name]) for name in names]


def test_the_table_keeps_the_promise(table: dict[str, dict[str, str]]) -> None:
    assert list(table) == [*tiny_models.TYPES, *tiny_models.VARIANTS]
    verdicts = [table[name]["verdict"] for name in tiny_models.TYPES]
    assert not {row["verdict"] for row in table.values()} - {"exact", "refused", "base fails", "not built"}
    assert verdicts.count("exact") >= 150
    assert verdicts.count("exact") >= 0.97 * (verdicts.count("exact") + verdicts.count("refused"))
    assert {name for name in tiny_models.TYPES if table[name]["verdict"] == "not built"} == set(tiny_models.NOT_BUILT)
    assert all(float(row["swap"]) > 0.1 for row in table.values() if row["verdict"] == "exact")


def test_a_type_is_slung_if_its_row_is_exact(table: dict[str, dict[str, str]]) -> None:
    assert {row["text_type"] for row in table.values() if row["verdict"] == "exact"} == architectures.PROVED


# Take away one mechanism after the other: the sweep must see it.


def without(name: str) -> Callable[..., bool]:
    """`layers._has_each`, blind to one list."""
    whole = remap._has_each
    return lambda key, value, n_layers: key != name and whole(key, value, n_layers)


def kept_depth(*args: Any) -> dict[str, Any]:
    return _MAPPED(*args) | {"num_hidden_layers": args[1]["num_hidden_layers"]}


def own_class(_config: Any, base: Any, *_: Any) -> Any:
    return base["__class__"]


_MAPPED = remap._mapped


@pytest.mark.parametrize(
    ("name", "place", "broken"),
    [
        pytest.param("llama", "_mapped", kept_depth, id="depth"),
        pytest.param("gemma3_text", "_has_each", without("layer_types"), id="kinds of attention"),
        pytest.param("granite_swa", "_has_each", without("layer_rope_theta"), id="rope of a layer"),
        pytest.param(
            "nemotron_h",
            "_has_each",
            without("layers_block_type"),
            id="kinds of mixer, and the depth",
            marks=pytest.mark.slow,
        ),
        pytest.param("jamba", "_with_lists", own_class, id="computed kinds", marks=pytest.mark.slow),
        pytest.param("gemma3n_text", "_with_lists", own_class, id="computed sharing", marks=pytest.mark.slow),
        pytest.param("prophetnet", "CACHE_DEPTHS", (), id="length of a cache", marks=pytest.mark.slow),
        pytest.param("longcat_flash", "SLOTS", {}, id="two places in the cache a layer", marks=pytest.mark.slow),
        pytest.param("llama", "INDICES", (), id="place in the cache"),
        pytest.param("mamba", "INDICES", (), id="place in a cache of states", marks=pytest.mark.slow),
        pytest.param(
            "gpt_neo", "INDICES", ("layer_idx",), id="place in the cache by another name", marks=pytest.mark.slow
        ),
        pytest.param("rwkv", "KEPT_INDICES", (), id="a number for arithmetic", marks=pytest.mark.slow),
        pytest.param("mllama", "LAYER_NUMBER_LISTS", (), id="numbers of layers", marks=pytest.mark.slow),
        pytest.param("gemma3n_text", "PACKED", (), id="embeddings of a layer", marks=pytest.mark.slow),
        pytest.param("gemma4_text", "SHARED_END", "-", id="where sharing ends", marks=pytest.mark.slow),
        pytest.param("llama", "damp", lambda *_: None, id="the hook of a scale"),
        pytest.param("gemma3n_text", "_sources", lambda *_: {}, id="the order of sharing", marks=pytest.mark.slow),
        pytest.param(
            "recurrent_gemma", "visit_view", lambda layer, *_: layer, id="a view of its own", marks=pytest.mark.slow
        ),
    ],
)
def test_the_sweep_sees_a_mechanism_that_is_taken_away(
    name: str, place: str, broken: Any, table: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remap, place, broken)
    row = sweep.attempt(name)
    if place in ("SLOTS", "_sources"):  # then it is a refusal that appears, or is missing
        assert row.reason != table[name]["reason"]
    else:
        assert row.verdict == "WRONG"


def test_the_sweep_sees_a_cache_that_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remap, "check_map", lambda *_: None)
    row = sweep.attempt("minimax")
    assert row.verdict == "WRONG"
    assert "cached and uncached differ" in row.reason


def test_what_a_configuration_overrides_for_single_layers_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.tiny_named("gemma4_text-unshared")  # full attention has wider heads
    visits = (0, 1, 2, 4, 3, 4, 5)
    wide = [model.model.layers[layer].self_attn.head_dim for layer in visits]
    assert len(set(wide)) == 2

    def told() -> list[int]:
        with David.slung(model, visits):
            return [config.head_dim for config in model.config.per_layer_config]

    assert told() == wide
    monkeypatch.setattr(remap, "OVERRIDES", "-")
    assert told() != wide


def test_the_sweep_sees_weights_that_a_sling_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = David.slung

    @contextmanager
    def careless(model: Any, recipe: Any) -> Any:
        with whole(model, recipe):
            yield
        next(model.parameters()).data.mul_(1.01)

    monkeypatch.setattr(David, "slung", careless)
    assert "the base is not what it was" in sweep.attempt("llama").reason


def test_the_sweep_sees_a_second_witness_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "layer_by_layer", lambda model, tokens, **_: sweep.whole(model, tokens) + 1)
    assert "calling the layers one by one is the same in 0 of 7 maps" in sweep.attempt("llama").reason


def test_the_sweep_sees_layers_that_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_models.tiny_named

    def faint(name: str) -> Any:
        model = whole(name)
        for layer in model.model.layers[1:3]:
            for weight in layer.parameters():
                weight.data.mul_(1e-3)
        return model

    monkeypatch.setattr(sweep, "tiny_named", faint)
    assert "can be swapped unseen" in sweep.attempt("llama").reason


@pytest.mark.parametrize("name", ["layer_idx", "hook"])
def test_views_have_module_objects_of_their_own(name: str) -> None:
    """What the mutations above rely on: nothing set on a view reaches the base."""
    model = tiny_models.tiny_named("llama")
    layer = model.model.layers[2]
    view = views.module_view(layer, {})
    if name == "hook":
        view.register_forward_hook(lambda *_: None)
        assert not layer._forward_hooks
    else:
        view.self_attn.layer_idx = 7
        assert layer.self_attn.layer_idx == 2
    assert [id(p) for p in view.parameters()] == [id(p) for p in layer.parameters()]
