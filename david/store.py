"""Where a study lives: opening it, signing what it is made on, queueing, taking up what a dead worker left."""

import contextlib
import importlib.util
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import optuna
import psutil
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from david import report
from david.corpus import Corpus
from david.errors import SearchError, one_line
from david.origin import Data
from david.racing import RacingPruner

WANTED = "wanted"  # of a trial: a recipe that its space cannot say
STRATEGY = "strategy"  # of a trial: what asked for it, where that was not the sampler

_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    # in groups: trials of a strategy, which may have no parameters, then leave the joint space of the others alone
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, group=True),
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
_WILCOXON = 0.01  # at Optuna's default of 0.1 a race loses one winner in five: experiments/engine/racing.md
_UNSIGNED = timedelta(seconds=10)  # a worker signs its trial a moment after asking: longer without a name is death


@dataclass(frozen=True)
class Asked:
    """What a trial is queued for: parameters; or none, and a recipe that its space cannot say."""

    params: dict[str, Any]
    recipe: str | None = None
    strategy: str | None = field(default=None, compare=False)


def pruner_named(pruner: str | BasePruner, finalists: int) -> BasePruner:
    """A pruner by its name; one that is one already. A race leaves at least so many `finalists`."""
    if isinstance(pruner, BasePruner):
        return pruner
    if pruner == "race":
        return RacingPruner(finalists)
    if pruner != "wilcoxon":
        raise SearchError(f"unknown pruner {pruner!r}: expected race or wilcoxon, or one of Optuna's")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.pruners.WilcoxonPruner(p_threshold=_WILCOXON)


def open_study(
    storage: str | None, name: str = "david", *, sampler: str | BaseSampler = "tpe", seed: int = 0, values: int = 1
) -> Study:
    """Open or make a study in an Optuna storage (None keeps it in memory), which minimises so many values.

    The sampler's seed is drawn from (`seed`, trials so far), so that a resumed study does not draw its beginning again.
    """
    check_sampler(sampler, values)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * values, load_if_exists=True
        )
    except Exception as error:  # SQLAlchemy, drivers and Optuna each have their own kinds
        raise SearchError(f"the storage {storage} cannot be used: {one_line(error)}") from error
    study.sampler = sampler if isinstance(sampler, BaseSampler) else sampler_named(sampler, seed, len(study.trials))
    return study


def open_for(
    out: str | os.PathLike[str] | None,
    storage: str | None,
    name: str,
    sampler: str | BaseSampler,
    seed: int,
    values: int = 1,
) -> Study:
    """The study of a search, in its storage, its folder or memory; the folder is made only when nothing else fails."""
    if out is not None:
        report.check_folder(out)
    if storage is None and out is not None:
        check_sampler(sampler, values)
        report.ready_folder(out)
        storage = report.storage_in(out)
    return open_study(storage, name, sampler=sampler, seed=seed, values=values)


def sampler_named(name: str, seed: int, n_trials: int) -> BaseSampler:
    """A sampler with a seed of its own for a study of so many trials."""
    own = int(np.random.SeedSequence([seed, n_trials]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _SAMPLERS[name](seed=own)


def check_sampler(sampler: str | BaseSampler, values: int) -> None:
    """`SearchError` for a sampler that is not known or installed, or cannot minimise so many values."""
    if isinstance(sampler, str) and sampler not in _SAMPLERS:
        raise SearchError(f"unknown sampler {sampler!r}: expected one of {', '.join(_SAMPLERS)}")
    if values > 1 and (sampler == "cmaes" or isinstance(sampler, optuna.samplers.CmaEsSampler)):
        raise SearchError("the sampler cmaes minimises one value alone: take tpe or nsga2, or leave `also` out")
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SearchError("the sampler cmaes needs the package cmaes: pip install 'david[cma]'")


def sign(study: Study, about: dict[str, Any], once: dict[str, Any]) -> None:
    """Write into the study what it is made on, and `once` what made it; `SearchError` where it was made on another.

    Of the base, its weights count, not the place they were loaded from. Held-out data may come later.
    """
    before = study.user_attrs.get("david")
    if before is None:
        study.set_user_attr("david", about | once)
        return
    for key, value in about.items():
        if key not in before or (key == "held_out_data" and (value is None or before[key] is None)):
            continue
        if not (same_weights(before[key], value) if key == "base" else before[key] == value):
            raise SearchError(
                f"the study {study.study_name!r} was made with another {key.replace('_', ' ')}: {before[key]}, "
                f"now {value}; give the same, or another study or folder"
            )
    if before["held_out_data"] is None:
        study.set_user_attr("david", before | {"held_out_data": about["held_out_data"]})


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two bases are one, wherever they were loaded from."""
    return all(one[part] == other[part] for part in ("architecture", "num_layers", "fingerprint"))


def data_of(corpus: Corpus) -> dict[str, Any]:
    """A corpus as a recipe file tells of it."""
    data = Data(
        source=corpus.source,
        slice=corpus.slice,
        sha256=corpus.sha256,
        windows=corpus.places,
        tokens_sha256=corpus.tokens_sha256,
        documents=len(set(corpus.documents)),
        scored_sha256=corpus.scored_sha256,
    )
    told: dict[str, Any] = data.model_dump(mode="json")
    if corpus.scored_sha256 is None:
        del told["scored_sha256"]  # studies of before do not have it
    return told


def name_of(thing: Any) -> str:
    """A function by its name, a partial with its arguments, a space of ours as its options."""
    if isinstance(thing, partial):
        given = [*map(repr, thing.args), *(f"{name}={value!r}" for name, value in thing.keywords.items())]
        return f"{name_of(thing.func)}({', '.join(given)})"
    name = getattr(thing, "__name__", None) or repr(thing)
    return type(thing).__qualname__ if " at 0x" in name else name


def worker() -> str:
    """This process, as a trial names it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def enqueue(study: Study, wanted: Sequence[Asked]) -> None:
    """Queue what is not waiting or running already; what failed may come again."""
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    queued = [_asked(trial) for trial in unfinished]
    for asked in wanted:
        if asked not in queued:
            _queue(study, asked)


def first_queued(study: Study) -> Asked | None:
    """What is asked for next; None where nothing waits."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return _asked(waiting[0]) if waiting else None


def models_parameters_alone(sampler: BaseSampler) -> bool:
    """Whether a sampler models nothing beside trials without parameters."""
    return isinstance(
        sampler,
        optuna.samplers.CmaEsSampler
        | optuna.samplers.GPSampler
        | optuna.samplers.QMCSampler
        | optuna.samplers.NSGAIISampler,
    )


def reclaim(study: Study, *, unsigned: bool) -> None:
    """Give up the trials whose worker on this machine has died, and queue again what they were asked for.

    With `unsigned`, also those that nobody signed in time; a study that others ask too may have such trials alive.
    """
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner, _, pid = trial.user_attrs.get("worker", "").rpartition(":")
        if owner:
            dead = owner == host and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
        else:
            dead = unsigned and trial.datetime_start is not None and datetime.now() - trial.datetime_start > _UNSIGNED
        if dead:
            asked = _asked(trial)
            if asked != Asked({}):  # first, so that a kill between the two loses nothing
                _queue(study, asked)
            with contextlib.suppress(UpdateFinishedTrialError):  # another worker may do the same at once
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _queue(study: Study, asked: Asked) -> None:
    told = {WANTED: asked.recipe, STRATEGY: asked.strategy}
    study.enqueue_trial(asked.params, user_attrs={name: value for name, value in told.items() if value is not None})


def _asked(trial: FrozenTrial) -> Asked:
    told = trial.user_attrs
    return Asked(trial.system_attrs.get("fixed_params") or trial.params, told.get(WANTED), told.get(STRATEGY))
