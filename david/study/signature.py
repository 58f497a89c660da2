"""The signature of a study: the base, data, space and objective that it was made on.

`study_signature` returns it, `sign` stores it in the study, `check_signed` refuses a study that was made on another.
`storage.study_metadata` reads it back.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import transformers
from optuna import Study
from optuna.trial import TrialState
from torch import nn

from david._version import __version__
from david.candidates.encoding import Space
from david.candidates.spaces import is_built_in
from david.errors import SearchError
from david.models.describe import describe_base, weight_type
from david.recipe.schema import Data
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, multiple_choice, perplexity
from david.scoring.tasks import Tasks
from david.storage.study_metadata import CUSTOM, METADATA, MULTIPLE_CHOICE, PERPLEXITY, TASKS
from david.storage.trial_attributes import RECIPE
from david.study.extra_objectives import ExtraObjective
from david.support.console import say


def sign(study: Study, signature: dict[str, Any], once: dict[str, Any]) -> None:
    """Store in a study what it is made on. Another sampler or pruner may go on with it, and a note is printed.

    Args:
        study: The study.
        signature: What every worker must have too, from `study_signature`.
        once: What is stored by the first worker alone: sampler, pruner, seed, versions.

    Raises:
        SearchError: The study was made on another base, corpus, space or objective.
    """
    check_signed(study, signature)
    stored = study.user_attrs.get(METADATA)
    if stored is None:
        study.set_user_attr(METADATA, signature | once)
        return
    for key in ("sampler", "pruner"):
        if key in stored and stored[key] != once[key]:
            say(f"the study was begun with the {key} {stored[key]}, and goes on with {once[key]}")
    if stored["held_out_data"] is None:
        study.set_user_attr(METADATA, stored | {"held_out_data": signature["held_out_data"]})


def check_signed(study: Study, signature: Mapping[str, Any]) -> None:
    """Check that a study, if it was begun, was made on the same base, data, space and objective.

    The weights of the base count, not the place they were loaded from. Held-out data may come later.

    Args:
        study: The study.
        signature: What it must have been made on, from `study_signature`.

    Raises:
        SearchError: It was made on another; the message names both.
    """
    stored = study.user_attrs.get(METADATA, {})
    for key, value in signature.items():
        if key not in stored or (key == "held_out_data" and (value is None or stored[key] is None)):
            continue
        if not (same_weights(stored[key], value) if key == "base" else stored[key] == value):
            one, other = _difference(stored[key], value)
            raise SearchError(
                f"the study {study.study_name!r} was made with another {key.replace('_', ' ')}: {one}, now {other}; "
                "give the same, or another study or folder"
            )


def check_own(study: Study) -> None:
    """Check that all finished trials of a study are a search's: the best of a stranger's would be taken for a recipe.

    Raises:
        SearchError: It holds others.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))  # first: a search signs before it tells
    is_signed = METADATA in study.user_attrs
    strangers = [trial.number for trial in complete if not is_signed or RECIPE not in trial.user_attrs]
    if strangers:
        raise SearchError(
            f"the study {study.study_name!r} holds finished trials that no search of David's has scored (in all "
            f"{len(strangers)}, first trial {strangers[0]}): its best trial could be one of them; give a new study"
        )


def same_weights(base: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two bases have the same weights, wherever they were loaded from.

    Args:
        base: A base as `describe_base` describes it.
        other: Another.
    """
    return all(base[part] == other[part] for part in ("architecture", "num_layers", "fingerprint"))


def describe_data(corpus: Corpus) -> dict[str, Any]:
    """Return a corpus as a study stores it.

    Args:
        corpus: The corpus.
    """
    data = Data(
        source=corpus.source,
        slice=corpus.slice,
        sha256=corpus.sha256,
        windows=corpus.places,
        tokens_sha256=corpus.tokens_sha256,
        documents=len(set(corpus.documents)),
        scored_sha256=corpus.scored_sha256,
    )
    description: dict[str, Any] = data.model_dump(mode="json")
    if corpus.scored_sha256 is None:
        del description["scored_sha256"]  # old studies do not have the key
    return description


def callable_name(thing: Any) -> str:
    """Return the name of a function, a partial with its arguments, or a space with its options.

    Args:
        thing: The function, partial or space.
    """
    if isinstance(thing, partial):
        options = [*map(repr, thing.args), *(f"{name}={value!r}" for name, value in thing.keywords.items())]
        return f"{callable_name(thing.func)}({', '.join(options)})"
    name = getattr(thing, "__name__", None) or repr(thing)
    return type(thing).__qualname__ if " at 0x" in name else name


def _kind_of(objective: Objective) -> str:
    """Return the kind of an objective: `perplexity`, `multiple_choice`, `tasks` or `custom`.

    Args:
        objective: The objective; of a partial its function counts.
    """
    function: Any = objective
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, Tasks):
        return TASKS
    if function is perplexity:
        return PERPLEXITY
    return MULTIPLE_CHOICE if function is multiple_choice else CUSTOM


def study_signature(
    model: nn.Module,
    space: Space,
    corpus: Corpus,
    held_out: Corpus | None,
    objective: Objective,
    also: Mapping[str, ExtraObjective],
) -> dict[str, Any]:
    """Return what a study is made on: every worker that joins it must have the same.

    Args:
        model: The base.
        space: The search space.
        corpus: The search data.
        held_out: The held-out data, if any.
        objective: The objective.
        also: The extra objectives by their names.
    """
    return {
        "base": describe_base(model).model_dump(),
        "dtype": weight_type(model),
        "space": callable_name(space),
        "space_name": type(space).__name__.lower() if is_built_in(space) else callable_name(space),
        "objective": callable_name(objective),
        "objective_kind": _kind_of(objective),
        "also": [[name, _describe_extra(extra)] for name, extra in also.items()],
        "window": corpus.window,
        "bos": corpus.bos,
        "search_data": describe_data(corpus),
        "search_documents": _documents_of(corpus),
        "held_out_data": None if held_out is None else describe_data(held_out),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of David, torch and transformers."""
    return {"david": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _documents_of(corpus: Corpus) -> list[int | str]:
    """Return the document or group of each window; where questions are in groups, of each question."""
    if not corpus.groups:
        return list(corpus.documents)
    return [corpus.clusters[item.start] for item in corpus.items()]


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """Return two values as texts; of dictionaries only the keys that differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return str(one), str(other)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    first, second = (", ".join(f"{key} {values.get(key)!r}" for key in keys) for values in (one, other))
    return first, second


def _describe_extra(extra: ExtraObjective) -> Any:
    """Return an extra objective as a study stores it."""
    if isinstance(extra, Corpus):
        extra = perplexity, extra
    if isinstance(extra, tuple):
        return {"objective": callable_name(extra[0]), "data": describe_data(extra[1])}
    return callable_name(extra)
