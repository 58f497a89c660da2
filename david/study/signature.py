"""The signature of a study: the base, data, space and objective that it was made on."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import transformers
from optuna import Study
from torch import nn

from david._version import __version__
from david.candidates.encoding import Space
from david.candidates.spaces import is_built_in
from david.errors import SearchError
from david.models.describe import describe_base
from david.recipe.schema import Data
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity
from david.study import signature
from david.study.extra_objectives import ExtraObjective
from david.support.console import say


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


def study_signature(
    model: nn.Module,
    space: Space,
    corpus: Corpus,
    held_out: Corpus | None,
    objective: Objective,
    also: Mapping[str, ExtraObjective],
) -> dict[str, Any]:
    """What a study is made on: what every worker that joins it must have too."""
    return {
        "base": describe_base(model).model_dump(),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "space": signature.name_of(space),
        "space_name": type(space).__name__.lower() if is_built_in(space) else signature.name_of(space),
        "objective": signature.name_of(objective),
        "also": [[name, _told(what)] for name, what in also.items()],
        "window": corpus.window,
        "bos": corpus.bos,
        "search_data": signature.data_of(corpus),
        "search_documents": list(corpus.documents),
        "held_out_data": None if held_out is None else signature.data_of(held_out),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of David, torch and transformers."""
    return {"david": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _told(what: ExtraObjective) -> Any:
    """What a study remembers of what it minimises beside the NLL."""
    if isinstance(what, Corpus):
        what = perplexity, what
    if isinstance(what, tuple):
        return {"objective": signature.name_of(what[0]), "data": signature.data_of(what[1])}
    return signature.name_of(what)
