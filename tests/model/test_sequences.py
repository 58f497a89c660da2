"""Random sequences of what people do to a model, and that they can fail: experiments/sequences."""

from typing import Any

import pytest
import transformers
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from david.sling import adapters, in_place, install, remap
from experiments.sequences.sequences import STEPS, TYPES, sequence

pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")

QUICK = ("llama", "gemma4_text")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in TYPES]
)
def test_after_random_sequences_a_model_is_what_its_deep_copy_is(name: str) -> None:
    steps = {step for step in STEPS if step != "compile"}  # takes seconds
    outcomes = [sequence(name, 1000 + seed, among=steps) for seed in range(8)]
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert sum(len(outcome.steps) for outcome in outcomes) > 30
    assert len({step.split()[0] for outcome in outcomes for step in outcome.steps}) > 12


def no_work(*_: Any) -> None:
    """What a mechanism that is taken away does."""


def only_layers(stack: Any, values: Any) -> None:
    """`write_state` without what follows a map."""
    setattr(stack.owner, stack.name, values[0][stack.name])


# Steps; then what is taken away: an attribute of a module or a class, and what stands there instead.
MUTATIONS: list[tuple[str, Any, str, Any]] = [
    ("sling, functional_call", remap, "own_tables", no_work),
    ("sling, offload", remap, "own_tables", no_work),
    ("sling, prune", install, "SHARED", "no such attribute"),
    ("sling, parametrize", parametrize, "register_parametrization", parametrize.register_parametrization.__wrapped__),
    ("sling, adapter on, merge", adapters, "_guard", no_work),
    ("sling, move", install, "share_again", no_work),
    ("sling, save", PreTrainedModel, "save_pretrained", PreTrainedModel.save_pretrained.__wrapped__),
    ("slung", in_place, "refuse_other_threads", no_work),
    ("sling", remap, "damp", no_work),
    ("sling, reset", remap, "write_state", only_layers),
]


@pytest.mark.parametrize(("steps", "where", "mechanism", "instead"), MUTATIONS)
def test_a_sequence_is_wrong_without_a_mechanism(
    steps: str, where: Any, mechanism: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [sequence("llama", seed, steps.split(", ")) for seed in range(4)]
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    monkeypatch.setattr(where, mechanism, instead)
    assert any(sequence("llama", seed, steps.split(", ")).wrong for seed in range(4))
