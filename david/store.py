"""Where a study lives: opening it with its sampler, signing what it is made on."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from david import records, report, table
from david.corpus import Corpus
from david.errors import SearchError, brief, plain
from david.messages import say
from david.origin import Data
from david.racing import RacingPruner
from david.storage import open_storage, unsaid

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
    with report.readable(f"the study {name!r}"):
        with unsaid():
            study = optuna.create_study(
                storage=opened, study_name=name, directions=["minimize"] * values, load_if_exists=True
            )
        if "david" in study.user_attrs:
            table.trials(study)
            records.finalists(study)
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


def sign(study: Study, about: dict[str, Any], once: dict[str, Any]) -> None:
    """Write into the study what it is made on, and `once` what made it; `SearchError` where it was made on another.

    Another sampler or pruner may go on, with a word.
    """
    check_signed(study, about)
    before = study.user_attrs.get("david")
    if before is None:
        study.set_user_attr("david", about | once)
        return
    for key in ("sampler", "pruner"):
        if key in before and before[key] != once[key]:
            say(f"the study was begun with the {key} {before[key]}, and goes on with {once[key]}")
    if before["held_out_data"] is None:
        study.set_user_attr("david", before | {"held_out_data": about["held_out_data"]})


def check_signed(study: Study, about: Mapping[str, Any]) -> None:
    """`SearchError` where a study was made on another base, corpus, space or objective.

    Of the base, its weights count, not the place they were loaded from. Held-out data may come later.
    """
    before = study.user_attrs.get("david", {})
    for key, value in about.items():
        if key not in before or (key == "held_out_data" and (value is None or before[key] is None)):
            continue
        if not (same_weights(before[key], value) if key == "base" else before[key] == value):
            one, other = _apart(before[key], value)
            raise SearchError(
                f"the study {study.study_name!r} was made with another {key.replace('_', ' ')}: {one}, now {other}; "
                "give the same, or another study or folder"
            )


def _apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values as texts; of dictionaries what they differ in."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return str(one), str(other)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    first, second = (", ".join(f"{key} {its.get(key)!r}" for key in keys) for its in (one, other))
    return first, second


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


def models_parameters_alone(sampler: BaseSampler) -> bool:
    """Whether a sampler models nothing beside trials without parameters."""
    return isinstance(
        sampler,
        optuna.samplers.CmaEsSampler
        | optuna.samplers.GPSampler
        | optuna.samplers.QMCSampler
        | optuna.samplers.NSGAIISampler,
    )
