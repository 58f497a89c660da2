"""Small searches: a corpus, a run of a few trials, and what a study holds afterwards."""

from typing import Any

import torch
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.metrics.score import Score
from david.scoring.corpus import Corpus
from david.sling.locate import find
from david.study.search import search
from tests.tiny_models import VOCABULARY

WINDOW = 16


def whole_corpus(source: str = "random", seed: int = 1) -> Corpus:
    windows = torch.randint(3, VOCABULARY, (24, WINDOW), generator=torch.Generator().manual_seed(seed))
    return Corpus(windows, tuple(range(24)), source=source, slice=None, sha256=f"{seed:064x}", bos=False)


def visits(model: Any, _corpus: Corpus) -> Score:
    """A score that is known without a forward pass."""
    return Score((float(len(find(model).layers)),), (1,), (0,), "visits")


def run(model: Any, corpus: Corpus, *, n_trials: int, held_out: Corpus | None = None, **options: Any) -> Study:
    return search(model, corpus, held_out=held_out, n_trials=n_trials, progress=False, **options)


def recipes_of(trials: list[FrozenTrial]) -> list[str]:
    return [trial.user_attrs["recipe"] for trial in trials]


def scored(study: Study) -> list[FrozenTrial]:
    """The finished trials that are not duplicates, counted without David."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [trial for trial in complete if "duplicate_of" not in trial.user_attrs]
