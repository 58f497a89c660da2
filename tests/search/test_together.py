"""What a search makes of other workers' doings, of recipes that kill, and of a caller's code that raises."""

import itertools
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState, create_trial

from david.candidates.spaces import Block
from david.engine.engine import Engine
from david.errors import ModelError, ScoreError, SearchError, StorageError
from david.metrics.score import Score
from david.models.load import load_model
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.sling.locate import find
from david.storage import results
from david.storage.heartbeat import MACHINE, OWNER, WorkerHeartbeat
from david.storage.queue import QueuedTrial, enqueue, first_queued, queued, requeue_orphaned
from david.storage.results import StudyResults
from david.storage.trial_claims import TICKET
from david.study import rounds
from david.study.run import Run
from david.support import signals
from tests.helpers.searches import recipes_of, run, scored, visits, whole_corpus

FAIL, RUNNING = TrialState.FAIL, TrialState.RUNNING
LIVE, DEAD = "elsewhere:1:ab", f"{MACHINE}:999999999:ab"
SPACE = Block(max_length=2)
WANTED = Recipe.parse("0:5, 3:6")


@pytest.fixture
def corpus() -> Corpus:
    return whole_corpus().split(3, 9)[0]


@pytest.fixture
def study() -> Study:
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))


def pretend(study: Study, recipe: Recipe, worker: str, **told: Any) -> int:
    """Let a worker of this name have a recipe in hand; the trial's number."""
    enqueue(study, [QueuedTrial({}, str(recipe))])
    trial = study.ask()
    for name, its in {OWNER: worker, "recipe": str(recipe), TICKET: 1, **told}.items():
        trial.set_user_attr(name, its)
    return trial.number


# ---- the queue


def test_what_another_takes_from_the_queue_is_not_made_up_for_by_the_sampler(
    tiny: Any, corpus: Corpus, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked, other = study.ask, itertools.count(), []

    def two_ask() -> Trial:
        trial = ask()
        if next(asked) == 1:  # in the middle of a round, another worker takes all that waits
            other.extend(ask() for _ in study.get_trials(states=(TrialState.WAITING,)))
            for its in other:
                its.set_user_attr(OWNER, LIVE)
        return trial

    monkeypatch.setattr(study, "ask", two_ask)
    monkeypatch.setattr(signals, "interruptible_sleep", lambda _seconds: [study.tell(its, state=FAIL) for its in other])
    queue = [Recipe((*range(6), layer)) for layer in range(5)]
    run(tiny, corpus, space=SPACE, study=study, objective=visits, strategy=lambda *_: (), queue=queue, n_trials=6)
    assert len(other) == 4
    assert recipes_of(scored(study)) == ["0:6", str(queue[0])]
    assert not [trial for trial in study.trials[1:] if trial.params]


def test_a_strategy_does_not_wait_for_a_trial_of_the_callers_own(tiny: Any, corpus: Corpus, study: Study) -> None:
    study.ask()  # and nothing comes of it
    run(tiny, corpus, space=SPACE, study=study, objective=visits, strategy=lambda *_: (), n_trials=6)
    assert recipes_of(scored(study)) == ["0:6"]


def test_a_base_that_another_worker_scores_is_not_scored_beside_it(
    tiny: Any, corpus: Corpus, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def objective(model: Any, corpus: Corpus) -> Score:
        calls.append(len(find(model).layers))
        return visits(model, corpus)

    objective.__name__ = "visits"
    number = pretend(study, Recipe.identity(6), LIVE)
    enqueue(study, [QueuedTrial({}, str(WANTED))])

    def pause(_seconds: float) -> None:
        its = study.trials[number]
        if its.state == RUNNING:
            for name, value in {"window_nll": [6.0], "window_tokens": [1], "convention": "visits"}.items():
                study._storage.set_trial_user_attr(its._trial_id, name, value)
            study.tell(number, 6.0)

    monkeypatch.setattr(signals, "interruptible_sleep", pause)
    run(tiny, corpus, space=SPACE, study=study, objective=objective, n_trials=2)
    assert calls == [8]


# ---- workers that die, or are taken for dead


def lose(study: Study, recipe: Recipe, times: int) -> None:
    """Let so many workers die, one after the other, that have the first of the queue in hand."""
    with WorkerHeartbeat(study) as heart:
        for _ in range(times):
            trial = study.ask()
            trial.set_user_attr(OWNER, DEAD)
            trial.set_user_attr("recipe", str(recipe))
            requeue_orphaned(study, heart, unsigned=True)


def test_a_recipe_that_was_in_the_hands_of_three_workers_that_died_fails(
    tiny: Any, corpus: Corpus, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny, corpus, space=SPACE, study=study, objective=visits, n_trials=1)
    enqueue(study, [QueuedTrial({}, str(WANTED))])
    alone = []
    for _ in range(2):
        lose(study, WANTED, 1)
        first = first_queued(study)
        assert first is not None
        alone.append(first.runs_isolated)
    assert alone == [False, True]
    assert capsys.readouterr().err == ""
    lose(study, WANTED, 1)
    assert first_queued(study) is None
    assert study.trials[-1].user_attrs["error"] == "3 workers ended while they scored it"
    assert capsys.readouterr().err == f"trial {study.trials[-1].number} failed: 3 workers ended while they scored it\n"
    assert list(StudyResults.read(study).refused) == [str(WANTED)]
    run(tiny, corpus, space=SPACE, study=study, objective=visits, queue=[WANTED], n_trials=3)
    assert str(WANTED) not in recipes_of(scored(study))
    assert len(scored(study)) == 3


def test_the_base_is_never_given_up(tiny: Any, corpus: Corpus, study: Study) -> None:
    run(tiny, corpus, space=SPACE, study=study, objective=visits, n_trials=1)
    enqueue(study, [QueuedTrial({}, "0:6")])
    lose(study, Recipe.identity(6), 5)
    assert first_queued(study) is not None
    assert StudyResults.read(study).refused == {}


def test_what_may_have_killed_workers_is_scored_alone(tiny: Any, corpus: Corpus, study: Study) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)
    enqueue(study, [QueuedTrial({}, str(WANTED))])
    lose(study, WANTED, 2)
    enqueue(study, [QueuedTrial({}, str(recipe)) for recipe in all_blocks(6, 1)])
    rounds_: list[int] = []
    original = Engine.outcomes

    def outcomes(self: Engine, recipes: Sequence[Recipe], **options: Any) -> Any:
        rounds_.append(len(recipes))
        return original(self, recipes, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "outcomes", outcomes)
        run(tiny, corpus, space=SPACE, study=study, n_trials=8)
    assert rounds_ == [6, 1] or rounds_[:2] == [1, 6]


def test_of_a_queue_only_what_kills_is_given_up(tiny: Any, corpus: Corpus, study: Study) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)
    killer, *innocent = [Recipe((*range(6), first, second)) for first in range(6) for second in range(6)][:20]
    enqueue(study, [QueuedTrial({}, str(recipe)) for recipe in (*innocent[:12], killer, *innocent[12:])])
    with WorkerHeartbeat(study) as heart:
        for _ in range(40):  # rounds of workers, who die where the killer is among theirs
            todo = run_of(study, tiny, corpus, heart)
            trials = [study.ask() for _ in range(min(8, todo.batch_size(study), len(queued(study))))]
            for trial in trials:
                trial.set_user_attr(OWNER, DEAD)
                trial.set_user_attr("recipe", trial.user_attrs["wanted"])
            if str(killer) not in [trial.user_attrs["recipe"] for trial in trials]:
                for trial in trials:
                    study.tell(trial, 1.0)
            requeue_orphaned(study, heart, unsigned=True)
    assert queued(study) == []
    assert list(StudyResults.read(study).refused) == [str(killer)]


def run_of(study: Study, model: Any, corpus: Corpus, heart: WorkerHeartbeat) -> Run:
    return Run(
        model, Engine, Engine(model, corpus), SPACE, None, 0, None, racing=False, external_study=False, heartbeat=heart
    )


def test_what_comes_alone_does_so_also_where_others_have_taken_what_stood_before_it(
    tiny: Any, corpus: Corpus, study: Study
) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)
    enqueue(study, [QueuedTrial({}, str(WANTED))])
    lose(study, WANTED, 2)
    enqueue(study, [QueuedTrial({}, "0:5")])
    scored_together: list[int] = []
    original = rounds._score_recipes

    def scores(run: Run, recipes: Sequence[Recipe], race: Any, done: Any) -> Any:
        scored_together.append(len(recipes))
        return original(run, recipes, race, done)

    with WorkerHeartbeat(study) as heart, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_score_recipes", scores)
        rounds.run_step(study, run_of(study, tiny, corpus, heart), 2, expect=lambda _: None, done=lambda _: None)
        assert [asked.recipe for asked in queued(study)] == ["0:5"]
        lose(study, Recipe.parse("0:5"), 2)
        enqueue(study, [QueuedTrial({}, "0:4")])
        first = queued(study)[0]
        assert (first.recipe, first.lost) == ("0:5", 2)
    assert scored_together == [1]


def test_a_batch_ends_at_the_target_where_others_ask_meanwhile(tiny: Any, corpus: Corpus, study: Study) -> None:
    drawn = iter([Recipe.identity(6), *all_blocks(6, 3)])

    def space(trial: BaseTrial, _n_layers: int) -> Recipe:
        if trial.number == 2:  # another worker is faster
            for recipe in all_blocks(6, 1):
                kept = {"recipe": str(recipe), "window_nll": [7.0], "window_tokens": [1], "convention": "visits"}
                study.add_trial(create_trial(value=7.0, user_attrs=kept))
        return next(drawn) if isinstance(trial, Trial) else Recipe.identity(6)

    run(tiny, corpus, space=space, study=study, objective=visits, batch=8, n_trials=9)
    assert 9 <= len(results.scored_trials(study)) <= 10


def test_a_trial_that_two_workers_got_is_run_by_the_one_that_signed_last(
    tiny: Any, corpus: Corpus, study: Study
) -> None:
    def space(trial: BaseTrial, _n_layers: int) -> Recipe:
        if isinstance(trial, Trial) and trial.number == 2:
            trial.set_user_attr(OWNER, LIVE)  # as SQLite may let it happen
            theirs.append(trial)
        return Recipe((0, 1 + trial.number % 5)) if isinstance(trial, Trial) and trial.number else Recipe.identity(6)

    theirs: list[Trial] = []

    def objective(model: Any, corpus: Corpus) -> Score:
        if theirs and study.trials[2].state == RUNNING:
            for name, its in {"window_nll": [2.0], "window_tokens": [1], "convention": "visits"}.items():
                theirs[0].set_user_attr(name, its)
            theirs[0].set_user_attr("recipe", "0, 3")
            study.tell(theirs[0], 2.0)
        return visits(model, corpus)

    objective.__name__ = "visits"
    run(tiny, corpus, space=space, study=study, objective=objective, batch=3, n_trials=5)
    assert study.trials[2].user_attrs[OWNER] == LIVE
    assert study.trials[2].state == TrialState.COMPLETE
    assert len(recipes_of(scored(study))) == len(set(recipes_of(scored(study)))) == 5


def test_an_error_that_ends_a_search_loses_nothing_of_the_queue(
    tiny: Any, corpus: Corpus, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)
    queue = all_blocks(6, 1)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_score_recipes", lambda *_: raise_(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            run(tiny, corpus, space=SPACE, study=study, queue=queue, n_trials=7)
    assert not study.get_trials(states=(RUNNING,))
    run(tiny, corpus, space=SPACE, study=study, n_trials=7)
    assert recipes_of(scored(study)) == ["0:6", *map(str, queue)]


@pytest.mark.parametrize(
    ("error", "times"),
    [(StorageError("gone"), 0), (ModelError("changed"), 0), (KeyboardInterrupt(), 0), (OSError(), 1)],
)
def test_only_what_a_recipe_may_be_the_cause_of_counts_against_it(
    error: BaseException, times: int, tiny: Any, corpus: Corpus, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)
    monkeypatch.setattr(rounds, "_score_recipes", lambda *_: raise_(error))
    with suppress(type(error)):
        run(tiny, corpus, space=SPACE, study=study, queue=[WANTED], n_trials=2)
    first = first_queued(study)
    assert first is not None
    assert first.lost == times


def give_up_all(study: Study) -> None:
    """What another worker does that takes this one for dead."""
    for trial in study.get_trials(states=(RUNNING,)):
        enqueue(study, [QueuedTrial({}, trial.user_attrs.get("recipe"))])
        study.tell(trial.number, state=FAIL)


def test_a_worker_that_was_taken_for_dead_goes_on(tiny: Any, corpus: Corpus, study: Study) -> None:
    taken: list[int] = []

    def objective(model: Any, corpus: Corpus) -> Score:
        if len(taken) < 3 and len(find(model).layers) > 6:
            taken.append(0)
            give_up_all(study)
        return visits(model, corpus)

    objective.__name__ = "visits"
    drawn = itertools.cycle([WANTED, WANTED, *all_blocks(6, 2)])
    run(tiny, corpus, space=lambda *_: next(drawn), study=study, objective=objective, batch=3, n_trials=8)
    assert len(taken) == 3
    recipes = recipes_of(scored(study))
    assert len(recipes) == len(set(recipes)) >= 8
    assert not study.get_trials(states=(RUNNING,))


def test_one_that_races_and_was_taken_for_dead_goes_on(tiny: Any, study: Study) -> None:
    class GivesUp(optuna.pruners.BasePruner):
        def prune(self, study: Study, trial: FrozenTrial) -> bool:
            if len(taken) < 3:
                taken.append(trial.number)
                give_up_all(study)
            return True

    taken: list[int] = []

    run(tiny, whole_corpus().split(8, 4)[0], space=SPACE, study=study, pruner=GivesUp(), batch=2, n_trials=6)
    assert len(results.scored_trials(study)) >= 6
    assert not study.get_trials(states=(RUNNING,))


# ---- code that raises


def raise_(error: BaseException) -> Any:
    raise error


def test_a_space_that_raises_fails_its_trial(
    tiny: Any, corpus: Corpus, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    def space(trial: BaseTrial, _n_layers: int) -> Recipe:
        return raise_(ZeroDivisionError("by nought")) if trial.number == 2 else Recipe((0, trial.number))

    run(tiny, corpus, space=space, study=study, objective=visits, batch=4, n_trials=5)
    [failed] = study.get_trials(states=(FAIL,))
    assert failed.user_attrs["error"] == "asking for a recipe raised ZeroDivisionError: by nought"
    assert f"trial {failed.number} failed: asking for a recipe raised ZeroDivisionError" in capsys.readouterr().err
    assert len(scored(study)) == 5


def test_a_cost_that_raises_fails_its_trial(tiny: Any, corpus: Corpus) -> None:
    def cost(recipe: Recipe) -> float:
        return 1 / (len(recipe) - 7)

    study = optuna.create_study(directions=["minimize"] * 2)
    run(tiny, corpus, space=SPACE, study=study, also={"cost": cost}, batch=4, n_trials=5)
    told = {trial.user_attrs["error"] for trial in study.get_trials(states=(FAIL,)) if "error" in trial.user_attrs}
    assert told == {"also['cost'] raised ZeroDivisionError: division by zero"}
    assert len(scored(study)) == 5


def test_what_lacked_memory_is_tried_once_more(tiny: Any, corpus: Corpus, study: Study) -> None:
    calls: list[int] = []

    def objective(model: Any, corpus: Corpus) -> Score:
        if len(find(model).layers) == 8:
            calls.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return visits(model, corpus)

    objective.__name__ = "visits"
    space = Block(max_length=1)
    run(tiny, corpus, space=space, study=study, objective=objective, queue=[WANTED], n_trials=3)
    assert len(calls) == 1
    run(tiny, corpus, space=space, study=study, objective=objective, queue=[WANTED], n_trials=4)
    assert len(calls) == 2
    run(tiny, corpus, space=space, study=study, objective=objective, queue=[WANTED], n_trials=5)
    assert len(calls) == 2
    assert len(scored(study)) == 5


def test_a_device_that_fails_ends_the_search_and_its_recipes_come_again(
    tiny: Any, corpus: Corpus, study: Study
) -> None:
    run(tiny, corpus, space=SPACE, study=study, n_trials=1)

    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    handle = find(tiny).layers[5].register_forward_pre_hook(fail)
    with pytest.raises(ScoreError, match="the device failed: CUDA error: device-side"):
        run(tiny, corpus, space=SPACE, study=study, queue=[WANTED], n_trials=3)
    handle.remove()
    assert not study.get_trials(states=(RUNNING,))
    run(tiny, corpus, space=SPACE, study=study, n_trials=2)
    assert recipes_of(scored(study)) == ["0:6", str(WANTED)]


def test_an_end_before_anything_is_begun_is_told_as_one(
    tiny: Any, corpus: Corpus, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("david.study.signature.sign", lambda *_: raise_(KeyboardInterrupt()))
    run(tiny, corpus, space=SPACE, study=study, n_trials=2, out=tmp_path / "run")
    assert capsys.readouterr().err.startswith("interrupted: ")
    assert list((tmp_path / "run").iterdir()) == []


# ---- a model whose files change


def test_weights_that_are_written_over_end_the_search_before_a_wrong_score_is_told(
    place: Path, bad: Path, study: Study
) -> None:
    shutil.copytree(place / "model", bad)
    model, _ = load_model(bad, device="cpu")
    weights, calls = bad / "model.safetensors", itertools.count()

    def objective(model: Any, corpus: Corpus) -> Score:
        if next(calls) == 2:
            with weights.open("r+b") as file:
                file.seek(-1000, 2)
                file.write(bytes(1000))
        return visits(model, corpus)

    objective.__name__ = "visits"
    data = Corpus(torch.ones(3, 16, dtype=torch.long), (0, 1, 2), source="ones", slice=None, sha256="0" * 64, bos=False)
    with pytest.raises(ModelError, match=r"model\.safetensors was written over while the search ran"):
        run(model, data, space=SPACE, study=study, objective=objective, n_trials=9)
    assert len(scored(study)) == 2
    assert not study.get_trials(states=(RUNNING,))
    changed, _ = load_model(bad, device="cpu")
    with pytest.raises(SearchError, match="another base"):
        run(changed, data, space=SPACE, study=study, objective=visits, n_trials=9)


def test_files_that_were_replaced_by_others_are_told_of_and_the_search_goes_by_what_was_loaded(
    place: Path, bad: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "model", bad)
    model, _ = load_model(bad, device="cpu")
    shutil.copy(bad / "model.safetensors", bad / "beside")
    (bad / "beside").replace(bad / "model.safetensors")
    tokens = torch.arange(96).reshape(6, 16) % 50
    data = Corpus(tokens, tuple(range(6)), source="some", slice=None, sha256="0" * 64, bos=False)
    seen, unseen = data.split(3, 3)
    run(model, seen, held_out=unseen, space=SPACE, study=study, objective=visits, n_trials=3)
    assert len(scored(study)) == 3
    assert "model.safetensors is another file of the same size" in capsys.readouterr().err
