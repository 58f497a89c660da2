"""Lists of paths that PoLar and its forerunner CoLa find by search: for each question, layers that answer it rightly.

tianyi-lab/PoLar (30d0efd): `PolarDataset` in polar/data.py reads `final_valid_transitions` of each sample, and skips
what is no path. A path is the layers in the order of their visits. David reads one of all the paths in a file.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from david.errors import RecipeError
from david.notation.parsing import BaseHints, Format, ParsedRecipe, as_json, as_layer, bounded_list, text_or_none
from david.support.text import brief

_PATHS = "final_valid_transitions"
MOST_TEXT = 200_000_000  # characters of a file: for 2,000 questions PoLar writes some 30 million


def read_polar(text: str, hints: BaseHints) -> ParsedRecipe:
    """Read the path that answers the most questions, or the one of another rank; of two equals the shorter one.

    The text is a file `merged_mcts_samples.json`, one sample of it, or the list of a sample's paths.
    """
    document = as_json(text, "a list of PoLar's paths")
    counts: Counter[tuple[int, ...]] = Counter()
    for sample in _samples(document):
        paths = sample.get(_PATHS) or []
        if not isinstance(paths, list):
            raise RecipeError(f"{_PATHS} must be a list of paths; got {brief(paths)}")
        counts.update({_path(path) for path in paths})
    counts.pop((), None)
    if not 1 <= hints.rank <= len(counts):
        raise RecipeError(f"this file has no rank {hints.rank}: it has {len(counts)} paths in {_PATHS}")
    ranked = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    model = text_or_none(document.get("BASE_MODEL")) if isinstance(document, Mapping) else None
    return ParsedRecipe(ranked[hints.rank - 1], model=model)


def _samples(document: Any) -> list[Mapping[str, Any]]:
    """Return the samples of a document, as PoLar finds them: under `samples`, in a list, or by name."""
    if isinstance(document, list) and document and all(isinstance(path, list) for path in document):
        return [{_PATHS: document}]
    if isinstance(document, Mapping) and _PATHS in document:
        return [document]
    samples = document.get("samples", list(document.values())) if isinstance(document, Mapping) else document
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        raise RecipeError(f"a file of PoLar must have a list of samples with {_PATHS}; got {brief(samples)}")
    return samples


def _path(value: Any) -> tuple[int, ...]:
    """Check a path, which may stand in a mapping with its score; an empty one is no path."""
    layers = value.get("path") if isinstance(value, Mapping) else value
    return tuple(map(as_layer, bounded_list(layers))) if layers else ()


def has_paths(text: str) -> bool:
    """Return whether a text is JSON with lists of paths."""
    return text.startswith(("[", "{")) and f'"{_PATHS}"' in text


POLAR = Format(
    name="polar",
    describes="the path that answers the most questions, `merged_mcts_samples.json` of PoLar and CoLa",
    read=read_polar,
    write=None,
    limits="read only: it states which answers were right",
    json_keys=(_PATHS, "samples"),
    has_ranks=True,
    json_priority=1,
    looks_like=has_paths,
    text_priority=6,
)
