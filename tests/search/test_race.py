"""Racing in a search: what is dropped, what it never drops, and what a race leaves in the study."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import optuna
import pytest
from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from tqdm import tqdm

from david.candidates.pruner import RacingPruner
from david.candidates.spaces import Block, Blocks
from david.engine.engine import Engine
from david.errors import SearchError
from david.metrics.score import Score
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import perplexity
from david.sling.in_place import slung
from david.storage import results, trial_claims
from david.storage.heartbeat import WorkerHeartbeat
from david.storage.results import StudyResults
from david.study.create import open_study
from david.study.rounds import run_step
from david.study.run import Run
from david.study.run_search import search
from david.study.tell import estimate_nll
from tests.helpers.searches import BASE, WINDOW, run, scored, visits, whole_corpus

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Recorded(tqdm):
    """A bar that remembers how far it was, and where it then took the end to be."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def update(self, n: float | None = 1) -> bool | None:
        """Go on, and remember."""
        shown = super().update(n)
        self.seen.append((self.n, self.total))
        return shown


@pytest.mark.parametrize(
    "options",
    [
        {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22},
        {"space": Block(max_length=6), "queue": all_blocks(6), "n_trials": 22, "batch": 5},
        {"space": "blocks", "n_trials": 30},
        {"space": "blocks", "n_trials": 30, "objective": visits},
    ],
    ids=["scan", "batches", "one by one", "objective"],
)
def test_what_is_left_is_known_within_a_factor_of_two_from_a_tenth_on(
    options: dict[str, Any], tiny: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("david.study.loop.tqdm", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    monkeypatch.setattr(Engine, "end_visits", property(lambda _: 9.0, lambda *_: None), raising=False)
    search(tiny, corpus, held_out=None, **options)
    end = Recorded.seen[-1][0]
    between = [(done, total) for done, total in Recorded.seen if 0.1 * end <= done <= 0.9 * end]
    assert len(between) > 5
    for done, total in between:
        assert 0.5 <= (total - done) / (end - done) <= 2


@pytest.mark.filterwarnings("ignore:WilcoxonPruner is experimental")
@pytest.mark.parametrize("pruner", ["race", "wilcoxon"])
def test_recipes_race_and_whoever_is_best_has_seen_every_window(pruner: str, tiny: Any) -> None:
    windows, others = whole_corpus().split(16, 4)
    if pruner == "race":  # at a level at which chance drops some of a random model's recipes
        given: Any = RacingPruner(finalists=3, level=0.4)
    else:
        given = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    found = run(tiny, windows, n_trials=30, held_out=others, space=Blocks(), pruner=given, batch=3, top=2)
    scored = results.scored_trials(found)
    dropped = [trial for trial in scored if "partial" in trial.user_attrs]
    assert 0 < len(dropped) < len(scored) == 30
    best = StudyResults.read(found).best_of_search(5)
    assert {len(trial.user_attrs["window_nll"]) for trial in [*best, found.best_trial]} == {16}
    [base] = [trial for trial in scored if trial.user_attrs["recipe"] == BASE]
    for trial in dropped:
        seen = trial.user_attrs["partial"]
        assert seen in (2, 4, 8)  # the rungs
        with slung(tiny, trial.user_attrs["recipe"]):
            nll = perplexity(tiny, windows.take(seen)).window_nll
        assert trial.user_attrs["window_nll"] == pytest.approx(nll, rel=1e-5)
        apart = (sum(nll) - sum(base.user_attrs["window_nll"][:seen])) / (seen * (WINDOW - 1))
        assert trial.value == pytest.approx(max(base.value + apart, found.best_value), abs=0.05)
        assert trial.value >= found.best_value


def rounds_of(tiny: Any, study: Study, racing: Any, recipes: list[Recipe]) -> None:
    """One raced round of these recipes, as a worker of a search plays it."""
    windows, _ = whole_corpus().split(8, 4)
    study.pruner = racing
    engine, left = Engine(tiny, windows, rung=2), iter(recipes)
    run = Run(
        tiny,
        Engine,
        engine,
        lambda *_: next(left),
        None,
        0,
        len(recipes),
        racing=True,
        external_study=False,
        heartbeat=WorkerHeartbeat(study),
    )
    run_step(study, run, len(recipes), expect=lambda _: None, done=lambda _: None)


class After(optuna.pruners.BasePruner):
    """Gives up every recipe once it has called something."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def prune(self, study: Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        self.call()
        return True


def test_what_a_race_writes_can_be_read_at_any_moment_by_another_worker(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, set_user_attr = RacingPruner(finalists=1), Trial.set_user_attr

    def write_and_let_another_judge(trial: Trial, name: str, value: Any) -> None:
        set_user_attr(trial, name, value)
        for each in trial.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            read.prune(trial.study, each)

    monkeypatch.setattr(Trial, "set_user_attr", write_and_let_another_judge)
    study = run(tiny, whole_corpus().split(8, 4)[0], n_trials=6, pruner="race", batch=3)
    assert len(scored(study)) == 6


def test_where_the_base_is_infinite_what_is_dropped_is_still_not_the_best() -> None:
    base = create_trial(value=math.inf, user_attrs={"window_nll": [math.inf, 30.0], "window_tokens": [10, 10]})
    dropped = Score((math.inf, 10.0), (10, 10), (0, 1), "window")
    assert estimate_nll(dropped, base, best=2.0) > 2.0
    assert estimate_nll(Score((5.0,), (10,), (0,), "window"), base, best=2.0) > 2.0


def test_a_race_drops_nothing_before_the_base_is_known(tiny: Any) -> None:
    study = open_study(None)
    run(tiny, whole_corpus().split(8, 4)[0], n_trials=1, study=study)  # signs it
    other = open_study(None)
    for name, value in study.user_attrs.items():
        other.set_user_attr(name, value)
    rounds_of(tiny, other, After(lambda: None), [Recipe((0, 1)), Recipe((2,))])
    assert [len(trial.user_attrs["window_nll"]) for trial in other.trials] == [8, 8]
    assert StudyResults.read(other).base_trial is None


@pytest.mark.parametrize("whole", [True, False])
def test_of_two_workers_that_race_one_recipe_the_whole_score_counts(
    whole: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_claims, "_rivals", lambda *_: {})  # one of them was taken for dead
    study = open_study(None)
    run(tiny, whole_corpus().split(8, 4)[0], n_trials=1, study=study)
    wanted, done = Recipe((0, 1, 1, 2, 3, 4, 5)), []

    def other_worker() -> None:
        if not done:
            done.append(0)
            pruner = RacingPruner(finalists=50) if whole else After(lambda: None)
            rounds_of(tiny, study, pruner, [wanted])

    rounds_of(tiny, study, After(other_worker), [wanted])
    scored = [trial for trial in results.scored_trials(study) if trial.user_attrs["recipe"] == str(wanted)]
    assert [len(trial.user_attrs["window_nll"]) for trial in scored] == [8 if whole else 2]
    assert all(trial.state.is_finished() for trial in study.trials)


def test_a_pruner_of_ones_own_decides(tiny: Any) -> None:
    class Never(optuna.pruners.BasePruner):
        def prune(self, study: Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
            asked.append(len(trial.intermediate_values))
            return False

    asked: list[int] = []
    windows, _ = whole_corpus().split(8, 4)
    found = run(tiny, windows, n_trials=3, space=Blocks(), pruner=Never())
    assert asked == [2, 4] * 2  # not about the base, nor where every window is seen
    assert not any("partial" in trial.user_attrs for trial in found.trials)
    assert [len(trial.intermediate_values) for trial in results.scored_trials(found)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pruner": "fastest"}, "unknown pruner 'fastest': expected race or wilcoxon"),
        ({"pruner": "wilcoxon", "objective": visits}, "racing requires perplexity"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
    ],
)
def test_a_race_that_cannot_be_is_refused(options: dict[str, Any], told: str, tiny: Any, corpus: Corpus) -> None:
    with pytest.raises(SearchError, match=told):
        run(tiny, corpus, n_trials=2, **options)
