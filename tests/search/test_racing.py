"""Racing: the hopeless are given up, the best are not, and a study's pruner tells the same as the rule."""

from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import pytest
from optuna import Study

from david.candidates.pruner import RacingPruner, hopeless
from david.engine.engine import Engine
from david.study.run_search import FIRST_RUNG
from experiments.engine import racing as experiment
from tests.helpers.corpora import STATE, windows

optuna.logging.set_verbosity(optuna.logging.WARNING)


def drawn(means: list[float], windows: int, seed: int = 0, spread: float = 0.05) -> Any:
    """NLL of recipes of some means: windows differ much, recipes on the same window little."""
    noise = np.random.default_rng(seed)
    hardness = 3 + noise.normal(size=windows)
    return np.array(means)[:, None] + hardness + spread * noise.normal(size=(len(means), windows))


def test_what_is_far_behind_is_given_up_on_two_windows_and_the_best_never() -> None:
    nll = drawn([0.0, 0.01, 0.02] + [2.0] * 20, windows=2)
    assert hopeless(nll, 3).tolist() == [False] * 3 + [True] * 20


@pytest.mark.parametrize("windows", [2, 4, 16])
def test_what_is_as_good_as_the_best_is_rarely_given_up(windows: int) -> None:
    given_up = [hopeless(drawn([0.0, 0.0, *[1.0] * 20], windows, seed), 1)[:2].any() for seed in range(1000)]
    assert np.mean(given_up) < 0.02  # 0.005 each, two of them


def test_more_windows_tell_smaller_differences() -> None:
    found = [hopeless(drawn([0.0] * 3 + [0.08] * 30, windows), 3).mean() for windows in (2, 8, 64)]
    assert found[0] < found[1] < found[2]


def test_at_most_so_many_recipes_or_one_window_give_nothing_up() -> None:
    assert not hopeless(drawn([0.0, 5.0, 9.0], 8), 3).any()
    assert not hopeless(drawn([0.0] * 3 + [9.0] * 5, 1), 3).any()


def test_an_infinite_nll_is_hopeless_and_no_number_is_not_judged() -> None:
    nll = drawn([0.0, 0.0, 0.01, 0.02, 1.0], 4)
    nll[1, 2] = np.inf
    assert hopeless(nll, 2).tolist() == [False, True, False, False, True]
    nll[0, 0] = np.nan  # ranked last, and left to whoever finds out why
    assert not hopeless(nll, 2)[0]
    assert not hopeless(np.full((5, 4), np.inf), 2).any()
    assert hopeless(np.array([[1.0, 2.0], [np.inf, 3.0]]), 1).tolist() == [False, True]


def test_a_script_of_ones_own_races_a_trial_at_a_time() -> None:
    means = [0.0, 0.3, 0.01, 3.0, 0.02, 2.0, -0.5]
    nll = drawn(means, 16)
    study = optuna.create_study(pruner=RacingPruner(finalists=2))
    seen = []
    for row in nll:
        trial = study.ask()
        for window, value in enumerate(row):
            trial.report(value, window)
            if trial.should_prune():
                break
        seen.append(window + 1)
        study.tell(trial, float(row[: window + 1].mean()))
    assert seen[:3] == [16, 16, 16]  # two finalists, and one that is as good
    assert seen[3] < 4
    assert seen[5] < 4
    assert seen[6] == 16


def test_a_batch_races_with_its_own_and_the_verdict_is_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    nll = drawn([0.03 * i for i in range(12)], 4)
    study = optuna.create_study(pruner=RacingPruner(finalists=3))
    trials = [study.ask() for _ in nll]
    for trial, row in zip(trials, nll, strict=True):
        for window, value in enumerate(row):
            trial.report(value, window)
    read: list[int] = []
    get_trials = Study.get_trials
    monkeypatch.setattr(Study, "get_trials", lambda *args, **kw: read.append(1) or get_trials(*args, **kw))
    assert [trial.should_prune() for trial in trials] == hopeless(nll, 3).tolist()
    assert 0 < hopeless(nll, 3).sum() < 9
    assert len(read) == 1  # a study in a database is read once for all of them


def test_each_study_has_verdicts_of_its_own() -> None:
    pruner = RacingPruner(finalists=2)
    for means in ([0.0, 0.0, 5.0, 0.0], [5.0, 0.0, 0.0, 0.0]):
        study = optuna.create_study(pruner=pruner)  # Optuna gives both the same name and numbers
        trials = [study.ask() for _ in means]
        for trial, row in zip(trials, drawn(means, 4), strict=True):
            for window, value in enumerate(row):
                trial.report(value, window)
        assert [trial.should_prune() for trial in trials] == [mean > 1 for mean in means]


def test_what_a_search_keeps_and_what_a_script_reports_are_compared_in_one_unit() -> None:
    study = optuna.create_study(pruner=RacingPruner(finalists=2))
    nll = drawn([0.0, 0.0, 0.0, 5.0, 5.0], 4)
    trials = [study.ask() for _ in nll]
    for number, (trial, row) in enumerate(zip(trials, nll, strict=True)):
        if number % 2:
            trial.set_user_attr("window_nll", (127 * row).tolist())
            trial.set_user_attr("window_tokens", [127] * 32)
        else:
            for window, value in enumerate(row):
                trial.report(value, window)
    assert [trial.should_prune() for trial in trials] == [False, False, False, True, True]


def test_a_study_that_maximises_is_refused() -> None:
    study = optuna.create_study(direction="maximize", pruner=RacingPruner())
    trial = study.ask()
    trial.report(1.0, 0)
    with pytest.raises(ValueError, match="studies that minimise"):
        trial.should_prune()
    with pytest.raises(ValueError, match="at least 1; got 0"):
        RacingPruner(finalists=0)
    with pytest.raises(ValueError, match="between 0 and 1; got 5"):
        RacingPruner(level=5)


@pytest.mark.slow
def test_the_raced_winner_of_the_recorded_landscape_is_the_true_one(tiny: Any) -> None:
    land = experiment.Landscape.read()
    assert land.nll.shape == (466, 32)  # the base, and the 465 blocks of 30 layers
    batches = Engine(tiny, windows(32), rung=FIRST_RUNG, memory_budget=2 * 8 * STATE).batches  # 8 at once
    assert [range(*ends) for ends in pairwise(experiment.RUNGS)] == batches
    found = list(experiment.races(land, lambda nll: hopeless(nll, experiment.TOP + 1), orders=200))
    assert np.mean([its["apart"] <= experiment.CLOSE for its in found]) >= 0.99
    assert np.mean([its["visits"] for its in found]) >= 3
    assert np.mean([its["plain"] for its in found]) >= 4
