"""Open or create the study of a search, with its sampler and pruner.

`open_study` opens one in a storage, `open_for` in the place that the options of a search name.
"""

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
from david.storage.study_metadata import METADATA
from david.support import files
from david.support.extras import install_hint
from david.support.text import brief, plain

_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    # in groups: trials of a strategy, which may have no parameters, then do not change the joint space of the others
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, group=True),
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": partial(optuna.samplers.QMCSampler, scramble=True),  # without it the seed would change nothing
    "nsga2": optuna.samplers.NSGAIISampler,
}
_WILCOXON_P = 0.01  # at Optuna's default of 0.1 a race loses one winner in five: experiments/engine/racing.md


def pruner_named(pruner: str | BasePruner, finalists: int) -> BasePruner:
    """Return a pruner by its name.

    Args:
        pruner: `"race"` or `"wilcoxon"`; a pruner is returned as it is.
        finalists: How many recipes a race leaves at least.

    Raises:
        SearchError: If the name is unknown.
    """
    if isinstance(pruner, BasePruner):
        return pruner
    if pruner == "race":
        return RacingPruner(finalists)
    if pruner != "wilcoxon":
        raise SearchError(f"unknown pruner {pruner!r}: expected race or wilcoxon, or one of Optuna's")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.pruners.WilcoxonPruner(p_threshold=_WILCOXON_P)


def open_study(
    storage: str | None, name: str = "david", *, sampler: str | BaseSampler = "tpe", seed: int = 0, values: int = 1
) -> Study:
    """Open a study in an Optuna storage, or create it.

    Args:
        storage: The URL of the storage; None keeps the study in memory.
        name: The study's name, one line of text.
        sampler: An Optuna sampler, or the name of one.
        seed: The seed of a sampler given by name. The sampler is seeded by (`seed`, trials so far), so that a resumed
            study does not draw its first trials again.
        values: How many values the study minimises.

    Raises:
        SearchError: If the sampler, the seed or the name is invalid, or the study is damaged.
        StorageError: If the storage does not answer.
    """
    check_sampler(sampler, values)
    if seed < 0:
        raise SearchError(f"a seed must be 0 or more; got {seed}")
    if name != plain(name, len(name)):
        raise SearchError(f"a study's name must be one line of whole characters; got {brief(name)}")
    opened = open_storage(storage)
    with studies.damage_reported(f"the study {name!r}"):
        with without_creation_log():
            study = optuna.create_study(
                storage=opened, study_name=name, directions=["minimize"] * values, load_if_exists=True
            )
        if METADATA in study.user_attrs:
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
    """Open or create the study of a search, in its storage, its folder or memory.

    The folder is created only after all other checks have passed.

    Args:
        out: The folder of the search, which keeps the study if there is no storage; None for none.
        storage: The URL of the storage; None for none.
        name: The study's name.
        sampler: An Optuna sampler, or the name of one.
        seed: The seed of a sampler given by name.
        values: How many values the study minimises.

    Raises:
        SearchError: If the folder cannot be written, and as `open_study`.
    """
    if out is not None:
        files.check_folder(out)
    if storage is None and out is not None:
        check_sampler(sampler, values)
        files.make_folder(out)
        storage = studies.storage_in(out)
    return open_study(storage, name, sampler=sampler, seed=seed, values=values)


def sampler_named(name: str, seed: int, n_trials: int) -> BaseSampler:
    """Return a sampler by its name, seeded for a study that has `n_trials` trials.

    Raises:
        SearchError: If the seed is negative.
    """
    if seed < 0:
        raise SearchError(f"seed must be 0 or more; got {seed}")
    position = 0 if name == "qmc" else n_trials  # qmc continues one sequence: the study keeps the position in it
    derived_seed = int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _SAMPLERS[name](seed=derived_seed)


def check_sampler(sampler: str | BaseSampler, values: int) -> None:
    """Check that a sampler exists and can minimise so many values.

    Raises:
        SearchError: If the sampler is unknown or not installed, or minimises a single value only.
    """
    if not isinstance(sampler, BaseSampler) and (not isinstance(sampler, str) or sampler not in _SAMPLERS):
        raise SearchError(f"unknown sampler {sampler!r}: expected one of {', '.join(_SAMPLERS)}")
    if values > 1 and (sampler == "cmaes" or isinstance(sampler, optuna.samplers.CmaEsSampler)):
        raise SearchError("the sampler cmaes minimises a single value: take tpe or nsga2, or leave `also` out")
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SearchError(f"the sampler cmaes needs the package cmaes: {install_hint('cma')}")


def ignores_trials_without_params(sampler: BaseSampler) -> bool:
    """Return whether a sampler falls back to random draws if some trials have no parameters."""
    return isinstance(
        sampler,
        optuna.samplers.CmaEsSampler
        | optuna.samplers.GPSampler
        | optuna.samplers.QMCSampler
        | optuna.samplers.NSGAIISampler,
    )
