"""Small searches: a corpus, a run of a few trials, and what a study holds afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from david.metrics.score import Score
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.locate import find
from david.study.run_search import search
from tests.tiny_models import VOCABULARY

WINDOW = 16


def whole_corpus(source: str = "random", seed: int = 1) -> Corpus:
    windows = torch.randint(3, VOCABULARY, (24, WINDOW), generator=torch.Generator().manual_seed(seed))
    return Corpus(windows, tuple(range(24)), source=source, slice=None, sha256=f"{seed:064x}", bos=False)


def visits(model: Any, _corpus: Corpus) -> Score:
    """Return the number of visits as a score: it needs no forward pass."""
    return Score((float(len(find(model).layers)),), (1,), (0,), "visits")


def run(model: Any, corpus: Corpus, *, n_trials: int, held_out: Corpus | None = None, **options: Any) -> Study:
    return search(model, corpus, held_out=held_out, n_trials=n_trials, progress=False, **options)


def recipes_of(trials: list[FrozenTrial]) -> list[str]:
    return [trial.user_attrs["recipe"] for trial in trials]


def scored(study: Study) -> list[FrozenTrial]:
    """Return the completed trials that are not duplicates, found without David."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [trial for trial in complete if "duplicate_of" not in trial.user_attrs]


PLOTS = {"path.png", "history.png", "depth.png"}
RUN_FILES = {"study.db", "trials.csv", "leaderboard.csv", "front.csv", "best.json", "report.html"} | PLOTS
BASE = "0:6"


class Counting:
    """Perplexity that records the windows of each call, and calls `instead` first at call number `at`."""

    def __init__(self, at: int = 0, instead: Callable[[], Any] | None = None) -> None:
        self.spans: list[tuple[int, int]] = []
        self.at, self.instead = at, instead
        self.__name__ = "perplexity"

    def __call__(self, model: Any, corpus: Corpus) -> Score:
        self.spans.append((corpus.numbers[0], corpus.numbers[-1] + 1))
        if self.instead is not None and len(self.spans) == self.at:
            self.instead()
        return perplexity(model, corpus)


def lines_of(study: Study) -> list[tuple[Any, ...]]:
    """Return the attributes of each trial in which two equal studies agree."""
    return [
        (t.number, t.state, t.params, t.value, t.user_attrs.get("recipe"), t.user_attrs.get("duplicate_of"))
        for t in study.trials
    ]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 20)[None], use_cache=False).logits


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'own.db'}"


def interrupt() -> None:
    raise KeyboardInterrupt
