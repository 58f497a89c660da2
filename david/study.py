"""The study loop: ask, run, tell; resume; judge the best on windows that the search has not seen."""

import importlib.util
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import optuna
import psutil
import torch
import transformers
from optuna import Study, Trial
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import nn
from tqdm.auto import tqdm

import david
from david import report, table
from david.corpus import Corpus
from david.engine import score_recipes
from david.errors import DavidError, ScoreError, SearchError
from david.models import describe
from david.origin import Data
from david.recipe import Recipe
from david.score import Objective, Score, check_fits, perplexity
from david.sling import base_depth
from david.space import Space, named, params_of

_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
}
_REPEATS_BEFORE_RANDOM = 5  # duplicates in a row, before a recipe is drawn at random instead of by the sampler
_REPEATS_BEFORE_END = 200  # … and before the space counts as used up
_FAILURES_BEFORE_END = 20


def search(
    model: nn.Module,
    corpus: Corpus,
    *,
    space: Space | str = "blocks",
    held_out: Corpus | None,
    objective: Objective = perplexity,
    study: Study | None = None,
    n_trials: int,
    out: str | os.PathLike[str] | None = None,
    queue: Sequence[Recipe] = (),
    storage: str | None = None,
    study_name: str = "david",
    sampler: str | BaseSampler = "tpe",
    seed: int = 0,
    top: int = 5,
    progress: bool = True,
) -> Study:
    """Search for recipes with a lower NLL than the base's, until `n_trials` distinct ones (the base counts) are scored.

    Each trial asks the study's sampler for a recipe of the `space`, scores it on `corpus` (see `score_recipes`) and
    tells the study the mean NLL, to be minimised. The base is the first trial, the recipes of `queue` come next. A
    recipe that comes again is told the score it has, marked `duplicate_of`, and does not count; when nothing new
    comes any more the study ends with a word. At the end the `top` best and the base are scored on the `held_out`
    windows, once. With `out`, that folder gets tables, plots and `best.json` (see `report.write`).

    The study lives in `out`'s `study.db`, in an Optuna `storage` under `study_name`, or is a `study` given by hand
    (which keeps its own sampler); the same call again goes on where it stopped. One worker and one `seed` give the same
    study each time. Ctrl-C ends cleanly: what is scored is kept, and tables and plots are written.

    Raises `SearchError` for a study made on another model, corpus or space, or a folder that cannot be written.

    Example:
        >>> study = search(model, windows, space="block", held_out=others, n_trials=40, out="run")  # doctest: +SKIP
        >>> study.best_trial.user_attrs["recipe"]  # doctest: +SKIP
    """
    if n_trials < 1:
        raise SearchError(f"n_trials must be at least 1; got {n_trials}")
    space = named(space) if isinstance(space, str) else space
    check_fits(model, corpus)
    if held_out is not None:
        check_fits(model, held_out)
        _check_disjoint(corpus, held_out)
    if study is None:
        study = _open_for(out, storage, study_name, sampler, seed)
    if out is not None:
        report.ready_folder(out)
    if len(study.directions) != 1 or study.direction != optuna.study.StudyDirection.MINIMIZE:
        raise SearchError("the study must minimise one value, the NLL: optuna.create_study(direction='minimize')")
    _sign(study, model, corpus, held_out, space, objective, seed)
    run = _Run(model, corpus, space, objective, base_depth(model), seed)
    try:
        _begin(study, run, queue)
        _loop(study, run, n_trials, progress)
        if held_out is not None:
            judge(study, model, held_out, objective=objective, top=top, progress=progress)
    except KeyboardInterrupt:
        _say(f"interrupted: {len(table.complete(study))} recipes are scored; the same call goes on from here")
    finally:
        if out is not None:
            report.write(study, out, top=top)
    return study


def open_study(storage: str | None, name: str = "david", *, sampler: str | BaseSampler = "tpe", seed: int = 0) -> Study:
    """Open or make a study in an Optuna storage (None keeps it in memory).

    The sampler's seed is drawn from (`seed`, trials so far), so that a resumed study does not draw its beginning again.
    """
    _check_sampler(sampler)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
    except Exception as error:  # SQLAlchemy, drivers and Optuna each have their own kinds
        raise SearchError(f"the storage {storage} cannot be used: {_first_line(error)}") from error
    study.sampler = sampler if isinstance(sampler, BaseSampler) else _sampler(sampler, seed, len(study.trials))
    return study


def _open_for(
    out: str | os.PathLike[str] | None, storage: str | None, name: str, sampler: str | BaseSampler, seed: int
) -> Study:
    """The study of a search, in its storage, its folder or memory; the folder is made only when nothing else fails."""
    if out is not None:
        report.check_folder(out)
    if storage is None and out is not None:
        _check_sampler(sampler)
        report.ready_folder(out)
        storage = report.storage_in(out)
    return open_study(storage, name, sampler=sampler, seed=seed)


def judge(
    study: Study,
    model: nn.Module,
    held_out: Corpus,
    *,
    objective: Objective = perplexity,
    top: int = 5,
    progress: bool = True,
) -> None:
    """Score the base and the `top` best of a search on held-out windows, and keep that in the study.

    What has been scored there before is not scored again.
    """
    about = table.about(study)
    if about["held_out_data"] is None:
        study.set_user_attr("david", {**about, "held_out_data": _data(held_out)})
    base = table.base_trial(study)
    picked = [*([base] if base is not None else []), *table.best_of_search(study, top)]
    wanted = [trial for trial in picked if table.held_out(study, trial) is None]
    with tqdm(total=len(wanted), desc="held-out", unit="recipe", disable=not progress or not wanted) as bar:
        for trial in wanted:
            recipe = Recipe.parse(trial.user_attrs["recipe"])
            [score] = score_recipes(model, [recipe], held_out, objective=objective)
            table.keep_held_out(study, trial, score.window_nll, score.window_tokens)
            bar.update()


@dataclass(frozen=True)
class _Run:
    """What a trial needs."""

    model: nn.Module
    corpus: Corpus
    space: Space
    objective: Objective
    n_layers: int
    seed: int


def _loop(study: Study, run: _Run, n_trials: int, progress: bool) -> None:
    repeats = failures = 0
    scored = len(table.complete(study))
    with tqdm(total=n_trials, initial=min(scored, n_trials), desc="search", unit="recipe", disable=not progress) as bar:
        while scored < n_trials:
            if repeats >= _REPEATS_BEFORE_END:
                _say(f"the space is used up: nothing new in {repeats} proposals, {scored} recipes scored")
                return
            _reclaim(study)
            outcome = _trial(study, run, at_random=repeats >= _REPEATS_BEFORE_RANDOM)
            repeats = repeats + 1 if outcome == "duplicate" else 0
            failures = failures + 1 if outcome == "failed" else 0
            if failures >= _FAILURES_BEFORE_END:
                raise SearchError(f"{failures} trials in a row failed; the last one's reason stands above")
            if outcome == "scored":
                bar.update()
                bar.set_postfix_str(_standing(study), refresh=False)
            scored = len(table.complete(study))


def _trial(study: Study, run: _Run, *, at_random: bool) -> str:
    """Ask, run and tell one trial; whether it was scored, a duplicate, or failed."""
    own = study.sampler
    try:
        if at_random:
            study.sampler = _sampler("random", run.seed, len(study.get_trials(deepcopy=False)))
        trial = study.ask()
    finally:
        study.sampler = own
    try:
        trial.set_user_attr("worker", _worker())
        recipe = run.space(trial, run.n_layers)
        known = _known(study, str(recipe))
        trial.set_user_attr("recipe", str(recipe))
        if known is not None:
            trial.set_user_attr("duplicate_of", known.number)
            study.tell(trial, known.value)
            return "duplicate"
        [score] = score_recipes(run.model, [recipe], run.corpus, objective=run.objective)
        _tell(study, trial, score)
    except DavidError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        _say(f"trial {trial.number} failed: {error}")
        return "failed"
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    return "scored"


def _tell(study: Study, trial: Trial, score: Score) -> None:
    if math.isnan(score.nll):
        raise ScoreError("the objective's NLL is not a number")
    trial.set_user_attr("window_nll", list(score.window_nll))
    trial.set_user_attr("window_tokens", list(score.window_tokens))
    trial.set_user_attr("convention", score.convention)
    study.tell(trial, score.nll)


def _begin(study: Study, run: _Run, queue: Sequence[Recipe]) -> None:
    """Put the base first and the queue behind it, where the study does not have them yet."""
    if table.base_trial(study) is None:
        base = Recipe.identity(run.n_layers)
        params = params_of(run.space, base, run.n_layers)
        if params is not None:
            _enqueue(study, [params])
        else:
            _say("this space cannot say the base: it is scored outside the sampler's sight")
            [score] = score_recipes(run.model, [base], run.corpus, objective=run.objective)
            kept = {"recipe": str(base), "window_nll": list(score.window_nll), "convention": score.convention}
            kept["window_tokens"] = list(score.window_tokens)
            study.add_trial(create_trial(value=score.nll, user_attrs=kept))
    known = {trial.user_attrs["recipe"] for trial in table.complete(study)}
    wanted = []
    for recipe in queue:
        params = params_of(run.space, recipe, run.n_layers)
        if params is None:
            raise SearchError(f"the recipe {recipe} in the queue cannot be said in this space")
        if str(recipe) not in known:
            wanted.append(params)
    _enqueue(study, wanted)


def _enqueue(study: Study, wanted: Sequence[dict[str, Any]]) -> None:
    """Queue parameters that are not waiting or running already; failed ones may come again."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    queued = [_params(trial) for trial in unfinished]
    for params in wanted:
        if params not in queued:
            study.enqueue_trial(params)


def _params(trial: FrozenTrial) -> dict[str, Any]:
    return trial.system_attrs.get("fixed_params") or trial.params


def _reclaim(study: Study) -> None:
    """Give up the trials whose worker on this machine has died, and queue their parameters again.

    A worker signs its trial a moment after it has asked for it: ten seconds without a name are death too.
    """
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner, _, pid = trial.user_attrs.get("worker", "").rpartition(":")
        if owner:
            dead = owner == host and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
        else:
            dead = trial.datetime_start is None or datetime.now() - trial.datetime_start > timedelta(seconds=10)
        if dead:
            if _params(trial):  # first, so that a kill between the two loses nothing
                study.enqueue_trial(_params(trial))
            study.tell(trial.number, state=TrialState.FAIL)


def _sign(
    study: Study,
    model: nn.Module,
    corpus: Corpus,
    held_out: Corpus | None,
    space: Space,
    objective: Objective,
    seed: int,
) -> None:
    """Write into the study what it is made on; `SearchError` where it was made on something else."""
    about: dict[str, Any] = {
        "base": describe(model).model_dump(),
        "space": _name(space),
        "objective": _name(objective),
        "window": corpus.window,
        "bos": corpus.bos,
        "search_data": _data(corpus),
        "held_out_data": None if held_out is None else _data(held_out),
    }
    before = study.user_attrs.get("david")
    if before is not None:
        fixed = {key: value for key, value in about.items() if key != "held_out_data" or before[key] is not None}
        for key, value in fixed.items():
            if before[key] != value:
                raise SearchError(
                    f"the study {study.study_name!r} was made with another {key.replace('_', ' ')}: "
                    f"{before[key]}, now {value}; give the same, or another study or folder"
                )
        about = before | about
    else:
        about |= {
            "sampler": type(study.sampler).__name__,
            "seed": seed,
            "made_with": {
                "david": david.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
    study.set_user_attr("david", about)


def _data(corpus: Corpus) -> dict[str, Any]:
    data = Data(source=corpus.source, slice=corpus.slice, sha256=corpus.sha256, windows=corpus.span)
    return data.model_dump(mode="json")


def _name(thing: Any) -> str:
    """A function by its name, a partial with its arguments, a space of ours as its options."""
    if isinstance(thing, partial):
        given = [*map(repr, thing.args), *(f"{name}={value!r}" for name, value in thing.keywords.items())]
        return f"{_name(thing.func)}({', '.join(given)})"
    name = getattr(thing, "__name__", None) or repr(thing)
    return type(thing).__qualname__ if " at 0x" in name else name


def _check_disjoint(corpus: Corpus, held_out: Corpus) -> None:
    same = (corpus.sha256, corpus.window, corpus.slice) == (held_out.sha256, held_out.window, held_out.slice)
    (start, stop), (low, high) = corpus.span, held_out.span
    if same and start < high and low < stop:
        raise SearchError(
            f"search windows {start}–{stop - 1} and held-out windows {low}–{high - 1} of {corpus.source} overlap: "
            "corpus.split(n, m) gives disjoint ones"
        )


def _known(study: Study, notation: str) -> Any:
    return next((trial for trial in table.complete(study) if trial.user_attrs["recipe"] == notation), None)


def _check_sampler(sampler: str | BaseSampler) -> None:
    if isinstance(sampler, str) and sampler not in _SAMPLERS:
        raise SearchError(f"unknown sampler {sampler!r}: expected one of {', '.join(_SAMPLERS)}")
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SearchError("the sampler cmaes needs the package cmaes: pip install 'david[cma]'")


def _sampler(name: str, seed: int, n_trials: int) -> BaseSampler:
    own = int(np.random.SeedSequence([seed, n_trials]).generate_state(1)[0])
    return _SAMPLERS[name](seed=own)


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _standing(study: Study) -> str:
    base, best = table.base_trial(study), table.best_of_search(study, 1)
    parts = [f"base {base.value:.4f}"] if base is not None else []
    return ", ".join(parts + [f"best {trial.value:.4f}" for trial in best]) + " nats"


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
