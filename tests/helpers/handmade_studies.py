"""Studies built by hand, with the attributes that `david.study` writes: no model, no torch."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from david.recipe.recipe import Recipe
from david.storage.heartbeat import OWNER

VERSIONS = {"david": "0.1.0", "torch": "2.13", "transformers": "5.23"}
BASE_OF_SIX = {"model": "six", "revision": None, "architecture": "LlamaForCausalLM", "fingerprint": "sha256:0f"}


def data(first: int, stop: int) -> dict[str, Any]:
    """What a study keeps of a corpus, as JSON brings it back."""
    return {"source": "words", "slice": None, "sha256": "ab", "windows": f"{first}:{stop}"}


def new_study(n_layers: int = 6, *, storage: str | None = None, name: str = "david", **about: Any) -> Study:
    """A study that a search has signed and not begun."""
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    signed = {
        "base": BASE_OF_SIX | {"num_layers": n_layers},
        "dtype": "float32",
        "space": "Block(max_length=None, max_times=2, scales=None)",
        "space_name": "block",
        "objective": "perplexity",
        "window": 8,
        "bos": False,
        "search_data": data(0, 2),
        "held_out_data": data(2, 5),
        "sampler": "TPESampler",
        "seed": 0,
        "made_with": VERSIONS,
    }
    study.set_user_attr("david", signed | about)
    return study


def add(
    study: Study, recipe: Recipe | str | None, nll: float | None, *, state: str = "COMPLETE", **attrs: Any
) -> FrozenTrial:
    """Add a trial with its score: four windows of five tokens, each with the same mean NLL. Returns it."""
    kept: dict[str, Any] = {OWNER: "here:1"} | ({} if recipe is None else {"recipe": str(recipe)})
    if state == "COMPLETE" and "duplicate_of" not in attrs and nll is not None:
        kept |= {"window_nll": [5 * nll] * 4, "window_tokens": [5] * 4, "convention": "window"}
    study.add_trial(create_trial(state=TrialState[state], value=nll, user_attrs=kept | attrs))
    return study.get_trials(deepcopy=False)[-1]


def judge(study: Study, number: int, window_nll: Sequence[float], window_tokens: Sequence[int]) -> None:
    """Keep the held-out score of a trial."""
    kept = {"window_nll": list(window_nll), "window_tokens": list(window_tokens), "documents": [0] * len(window_nll)}
    study.set_user_attr(f"held_out:{number}", kept)
