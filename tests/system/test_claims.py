"""Of several workers that ask for the same recipe exactly one runs it, in whatever order they ask and look."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna import Study
from optuna.trial import Trial, TrialState

from david.storage.backend import open_storage
from david.storage.heartbeat import MACHINE, OWNER, WorkerHeartbeat
from david.storage.trial_claims import TICKET, claim_recipes
from david.support import signals

RECIPE = "0:2, 1:3"
LIVE, DEAD = "elsewhere:1:ab", f"{MACHINE}:999999999:ab"


@pytest.fixture
def study() -> Study:
    return optuna.create_study()


@pytest.fixture
def heart(study: Study) -> Iterator[WorkerHeartbeat]:
    with WorkerHeartbeat(study) as beating:
        yield beating


def asked(study: Study, owner: str, **told: object) -> Trial:
    trial = study.ask()
    for name, its in {OWNER: owner, **told}.items():
        trial.set_user_attr(name, its)
    return trial


def test_what_nobody_else_runs_is_taken(study: Study, heart: WorkerHeartbeat) -> None:
    trial = asked(study, heart.name)
    asked(study, LIVE, recipe="0:2", ticket=1)
    assert claim_recipes(study, heart, {RECIPE: trial}) == {}
    assert (study.trials[0].user_attrs["recipe"], study.trials[0].user_attrs[TICKET]) == (RECIPE, 1)


@pytest.mark.parametrize("is_first", [True, False], ids=["asked before", "asked behind"])
def test_what_another_runs_is_left_to_it_also_where_it_was_asked_for_later(
    is_first: bool, study: Study, heart: WorkerHeartbeat
) -> None:
    if is_first:
        trial, other = asked(study, heart.name), asked(study, LIVE, recipe=RECIPE, ticket=1)
    else:
        other, trial = asked(study, LIVE, recipe=RECIPE, ticket=1), asked(study, heart.name)
    assert claim_recipes(study, heart, {RECIPE: trial, "0:1": asked(study, heart.name)}) == {RECIPE: other.number}


@pytest.mark.parametrize("told", [{"recipe": RECIPE, "ticket": 1}, {"recipe": RECIPE}])
def test_what_a_dead_worker_had_in_hand_is_taken(told: dict[str, object], study: Study, heart: WorkerHeartbeat) -> None:
    asked(study, DEAD, **told)
    assert claim_recipes(study, heart, {RECIPE: asked(study, heart.name)}) == {}


def test_what_is_left_to_another_is_no_rival(study: Study, heart: WorkerHeartbeat) -> None:
    asked(study, LIVE, duplicate_of=7, recipe=RECIPE)
    assert claim_recipes(study, heart, {RECIPE: asked(study, heart.name)}) == {}


@pytest.mark.parametrize(("its", "theirs"), [(1, True), (2, False)])
def test_one_that_is_still_choosing_is_waited_for(
    its: int, theirs: bool, study: Study, heart: WorkerHeartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = asked(study, LIVE, recipe=RECIPE)
    monkeypatch.setattr(signals, "interruptible_sleep", lambda _seconds: other.set_user_attr(TICKET, its))
    taken = claim_recipes(study, heart, {RECIPE: asked(study, heart.name)})
    assert taken == ({RECIPE: other.number} if theirs else {})


def test_a_trial_that_another_has_ended_is_no_error(study: Study, heart: WorkerHeartbeat) -> None:
    trial = asked(study, heart.name)
    study.tell(trial, state=TrialState.FAIL)
    assert claim_recipes(study, heart, {RECIPE: trial}) == {}


def test_of_many_that_look_at_once_one_runs_each_recipe(tmp_path: Path) -> None:
    url, n_workers, rounds = f"sqlite:///{tmp_path / 'study.db'}", 4, 5
    optuna.create_study(storage=open_storage(url), study_name="david")
    ready, runs, lock = threading.Barrier(n_workers), Counter[str](), threading.Lock()

    def work() -> None:
        study = optuna.load_study(study_name="david", storage=open_storage(url))
        with WorkerHeartbeat(study) as heart:
            for round_ in range(rounds):
                recipes = [f"{round_}:{stop}" for stop in range(round_ + 1, round_ + 3)]
                ready.wait(60)
                trials = {recipe: asked(study, heart.name) for recipe in recipes}
                taken = claim_recipes(study, heart, trials)
                with lock:
                    runs.update(recipe for recipe in recipes if recipe not in taken)
                ready.wait(60)
                for trial in trials.values():
                    study.tell(trial, state=TrialState.FAIL)

    threads = [threading.Thread(target=work) for _ in range(n_workers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    assert len(runs) == 2 * rounds
    assert set(runs.values()) == {1}
