"""Several workers share a study: each recipe is scored once, and the recipes of dead workers are scored by another."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from david.candidates.spaces import Block
from david.engine.engine import score_recipes
from david.errors import SearchError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.storage import results
from david.storage.heartbeat import MACHINE, OWNER
from david.storage.trial_claims import TICKET
from david.study.create import open_study
from david.support import signals
from tests.helpers.searches import interrupt, recipes_of, run, scored, sqlite, visits

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_a_trial_that_another_worker_was_given_too_is_a_duplicate(tiny: Any, corpus: Corpus) -> None:
    study = open_study(None)

    def objective(model: Any, data: Corpus) -> Score:
        if len(study.trials) == 3:  # the other worker is faster
            study.tell(2, 5.0)
        return perplexity(model, data)

    run(tiny, corpus, study=study, objective=objective, n_trials=5)
    assert study.trials[2].value == 5.0
    assert len([trial for trial in study.trials if trial.state == TrialState.COMPLETE]) == 5


@pytest.fixture
def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def leave_running(study: Study, space: Block, start: int, worker: str) -> FrozenTrial:
    """A trial as a worker leaves it that was killed while it scored."""
    study.enqueue_trial({"start": start, "length": 2})
    trial = study.ask()
    trial.set_user_attr(OWNER, worker)
    trial.set_user_attr("recipe", str(space(trial, 6)))
    trial.set_user_attr(TICKET, 1)
    return study.trials[trial.number]


def test_the_trial_of_a_dead_worker_is_failed_and_its_recipe_scored(
    tiny: Any, corpus: Corpus, dead_process: int, tmp_path: Path
) -> None:
    space, study = Block(max_length=2), open_study(sqlite(tmp_path))
    run(tiny, corpus, space=space, study=study, n_trials=2)
    left = leave_running(study, space, 3, f"{MACHINE}:{dead_process}")
    run(tiny, corpus, space=space, study=study, n_trials=3)
    assert study.trials[left.number].state == TrialState.FAIL
    again = study.trials[left.number + 1]
    assert (again.params, again.state) == (left.params, TrialState.COMPLETE)
    assert again.value == score_recipes(tiny, [Recipe.parse("0:5, 3:6")], corpus)[0].nll
    assert len(scored(study)) == 3


@pytest.mark.parametrize("worker", ["elsewhere:1:ab", f"{MACHINE}:1:ab"], ids=["other machine", "alive"])
def test_what_a_live_worker_has_in_hand_is_waited_for_and_counts(
    worker: str, tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, study = Block(max_length=2), optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=2)
    left = leave_running(study, space, 1, worker)
    pauses = []

    def pause(seconds: float) -> None:  # until the other one is ready
        pauses.append(seconds)
        for name, its in {"window_nll": [8.0], "window_tokens": [1], "convention": "visits"}.items():
            study._storage.set_trial_user_attr(left._trial_id, name, its)
        study.tell(left.number, 8.0)

    monkeypatch.setattr(signals, "interruptible_sleep", pause)
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=4)
    assert len(pauses) == 1
    assert len(results.scored_trials(study)) == 4
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_a_recipe_that_another_worker_has_in_hand_is_left_to_it(
    tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, study = Block(max_length=2), optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, space=space, study=study, objective=visits, n_trials=2)
    left = leave_running(study, space, 1, "elsewhere:1:ab")
    study.enqueue_trial(left.params)
    monkeypatch.setattr(signals, "interruptible_sleep", lambda _seconds: interrupt())
    run(tiny, corpus, space=space, study=study, objective=visits, queue=[Recipe.parse("0:2, 1:6")], n_trials=4)
    assert recipes_of(scored(study))[2:] == ["0:2, 1:6"]
    other = study.trials[left.number + 1]
    assert (other.state, other.user_attrs["duplicate_of"]) == (TrialState.FAIL, left.number)


def test_what_another_worker_scored_meanwhile_counts_once(shallow: Any, corpus: Corpus, tmp_path: Path) -> None:
    study = open_study(sqlite(tmp_path))

    def objective(model: Any, corpus: Corpus) -> Score:
        other = optuna.load_study(study_name="david", storage=sqlite(tmp_path))
        running = other.get_trials(states=(TrialState.RUNNING,))[-1]
        scored = visits(model, corpus)
        kept = {"recipe": running.user_attrs["recipe"], "window_nll": [scored.nll], "window_tokens": [1]}
        if running.number == 2:
            other.add_trial(optuna.trial.create_trial(value=scored.nll, user_attrs={**kept, "convention": "visits"}))
        return scored

    run(shallow, corpus, study=study, space=Block(max_length=3), objective=objective, n_trials=4)
    recipes = recipes_of(results.scored_trials(study))
    assert len(recipes) == len(set(recipes)) == 4
    assert "duplicate_of" in study.trials[2].user_attrs


def test_a_study_with_trials_of_another_objective_is_refused_and_left_alone(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: -trial.suggest_float("x", 0, 1), n_trials=3)
    before = study.get_trials()
    with pytest.raises(SearchError, match=r"\(in all 3, first trial 0\).*give a new study"):
        run(tiny, corpus, study=study, n_trials=2)
    assert study.get_trials() == before
    assert study.user_attrs == {}


def test_a_study_that_a_search_has_begun_is_refused_once_a_strangers_trial_is_in_it(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study()
    study.enqueue_trial({"start": 1, "length": 2})  # waiting, failed and running trials are nobody's best
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    run(tiny, corpus, study=study, objective=visits, n_trials=2)
    study.tell(study.ask(), -5.0)
    with pytest.raises(SearchError, match="in all 1, first trial 4"):
        run(tiny, corpus, study=study, objective=visits, n_trials=3)


def test_a_space_that_returns_a_text_now_and_then_fails_those_trials_and_ends(tiny: Any, corpus: Corpus) -> None:
    def space(trial: optuna.Trial, n_layers: int) -> Any:
        layer = trial.suggest_int("layer", 0, n_layers)
        return Recipe.identity(n_layers) if layer == 0 else "0:6, 5" if layer % 2 else Recipe.parse(f"0:6, {layer - 1}")

    study = run(tiny, corpus, space=space, objective=visits, n_trials=3)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert len(scored(study)) == 3
    assert {trial.user_attrs["error"].split(";")[1] for trial in failed} <= {" got str '0:6, 5'"}
    with pytest.raises(SearchError, match="recipes in a row failed"):
        run(
            tiny,
            corpus,
            space=lambda trial, n: Recipe.identity(n) if trial.suggest_int("x", 0, 99) == 0 else "0:6",
            n_trials=3,
        )
