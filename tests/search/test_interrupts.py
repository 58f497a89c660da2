"""Ctrl-C keeps what is scored, leaves the model as it was, and the same call goes on."""

import copy
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from optuna.samplers import RandomSampler, TPESampler

from david.candidates.spaces import Block
from david.recipe.blocks import all_blocks
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.sling.in_place import sling
from tests.helpers.searches import (
    BASE,
    RUN_FILES,
    Counting,
    interrupt,
    lines_of,
    logits,
    recipes_of,
    run,
    scored,
    visits,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_ctrl_c_keeps_what_is_scored_writes_the_run_and_the_same_call_goes_on(
    tiny: Any, corpus: Corpus, held_out: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, options = logits(tiny), {"space": Block(max_length=3), "held_out": held_out, "out": tmp_path}
    study = run(tiny, corpus, objective=Counting(at=4, instead=interrupt), n_trials=6, **options)
    assert "interrupted: 3 recipes scored" in capsys.readouterr().err
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3 + ["FAIL", "WAITING"]  # it comes again
    assert torch.equal(logits(tiny), before)
    assert {path.name for path in tmp_path.iterdir()} - {"blocks.png"} == RUN_FILES
    kept = lines_of(study)[:3]
    assert pd.read_csv(tmp_path / "trials.csv")["nll"].head(3).tolist() == [line[3] for line in kept]
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["trial"]) == {0, 1, 2}

    study = run(tiny, corpus, objective=Counting(), n_trials=6, **options)
    assert lines_of(study)[:3] == kept
    assert len(scored(study)) == 6
    assert len(set(recipes_of(scored(study)))) == 6
    assert pd.read_csv(tmp_path / "leaderboard.csv")["held_out_nll"].notna().all()


def test_ctrl_c_in_the_base_leaves_a_study_that_scores_it_at_the_next_call(tiny: Any, corpus: Corpus) -> None:
    study = optuna.create_study(sampler=TPESampler(seed=0))
    run(tiny, corpus, study=study, objective=Counting(at=1, instead=interrupt), n_trials=5)
    run(tiny, corpus, study=study, objective=Counting(), n_trials=5)
    assert BASE in recipes_of(scored(study))


def test_ctrl_c_in_the_base_before_a_queue_does_not_put_it_last(tiny: Any, corpus: Corpus) -> None:
    queue, study = all_blocks(6, 2), optuna.create_study(sampler=RandomSampler(seed=0))
    for objective in (Counting(at=1, instead=interrupt), Counting()):
        run(tiny, corpus, study=study, space=Block(max_length=2), queue=queue, objective=objective, n_trials=5)
    assert set(recipes_of(scored(study))) == {BASE, *map(str, queue[:4])}


def test_ctrl_c_in_a_queue_leaves_a_study_that_takes_it_up_at_the_next_call(tiny: Any, corpus: Corpus) -> None:
    queue, space = all_blocks(6, 2), Block(max_length=2)
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for objective in (Counting(at=4, instead=interrupt), Counting()):
        run(tiny, corpus, study=study, space=space, queue=queue, objective=objective, n_trials=12)
    assert set(recipes_of(scored(study))) == {BASE, *map(str, queue)}
    assert not [trial for trial in study.trials if "duplicate_of" in trial.user_attrs]


class Interrupted(RandomSampler):
    """Ctrl-C while the sampler thinks."""

    def sample_relative(self, *args: Any) -> Any:
        if len(args[0].trials) == 4:
            raise KeyboardInterrupt
        return super().sample_relative(*args)


def test_ctrl_c_while_the_sampler_thinks_ends_cleanly_too(
    tiny: Any, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run(tiny, corpus, sampler=Interrupted(seed=0), objective=visits, n_trials=6)
    assert "interrupted: 3 recipes scored" in capsys.readouterr().err
    run(tiny, corpus, study=study, objective=visits, n_trials=6)
    assert len(scored(study)) == 6


@pytest.mark.parametrize("before", [None, Recipe((3, 1, 1), (1, 0.5, 1))], ids=["base", "slung"])
def test_the_model_is_afterwards_what_it_was(
    before: Recipe | None, tiny: Any, corpus: Corpus, held_out: Corpus
) -> None:
    plain = run(copy.deepcopy(tiny), corpus, held_out=held_out, n_trials=4)
    if before is not None:
        sling(tiny, before)
    was, configuration = logits(tiny), tiny.config.to_dict()
    study = run(tiny, corpus, held_out=held_out, n_trials=4)
    assert torch.equal(logits(tiny), was)
    assert tiny.config.to_dict() == configuration
    assert lines_of(study) == lines_of(plain)  # and a slung model is searched from its base
