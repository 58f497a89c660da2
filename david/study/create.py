"""Where a study lives: opening it with its sampler, signing what it is made on."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from david.candidates.pruner import RacingPruner
from david.errors import SearchError
from david.report import tables
from david.storage import studies
from david.storage.backend import open_storage, without_creation_log
from david.storage.results import StudyResults
from david.support import files
from david.support.text import brief, plain

_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    # in groups: trials of a strategy, which may have no parameters, then leave the joint space of the others alone
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, group=True),
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": partial(optuna.samplers.QMCSampler, scramble=True),  # or its seed would change nothing
    "nsga2": optuna.samplers.NSGAIISampler,
}
_WILCOXON = 0.01  # at Optuna's default of 0.1 a race loses one winner in five: experiments/engine/racing.md


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
    if seed < 0:
        raise SearchError(f"a seed must be 0 or more; got {seed}")
    if name != plain(name, len(name)):
        raise SearchError(f"a study's name must be one line of whole characters; got {brief(name)}")
    opened = open_storage(storage)
    with studies.readable(f"the study {name!r}"):
        with without_creation_log():
            study = optuna.create_study(
                storage=opened, study_name=name, directions=["minimize"] * values, load_if_exists=True
            )
        if "david" in study.user_attrs:
            results = StudyResults.read(study)
            tables.trials(results)  # raises where the study is damaged
            results.finalists()
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
        files.check_folder(out)
    if storage is None and out is not None:
        check_sampler(sampler, values)
        files.make_folder(out)
        storage = studies.storage_in(out)
    return open_study(storage, name, sampler=sampler, seed=seed, values=values)


def sampler_named(name: str, seed: int, n_trials: int) -> BaseSampler:
    """A sampler with a seed of its own for a study of so many trials."""
    if seed < 0:
        raise SearchError(f"seed must be 0 or more; got {seed}")
    begun = 0 if name == "qmc" else n_trials  # whose sequence goes on where it stopped: the study keeps the place
    own = int(np.random.SeedSequence([seed, begun]).generate_state(1)[0])
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


def models_parameters_alone(sampler: BaseSampler) -> bool:
    """Whether a sampler models nothing beside trials without parameters."""
    return isinstance(
        sampler,
        optuna.samplers.CmaEsSampler
        | optuna.samplers.GPSampler
        | optuna.samplers.QMCSampler
        | optuna.samplers.NSGAIISampler,
    )
