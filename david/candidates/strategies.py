"""Search strategies that replace the sampler: `Scan` (all blocks), `Beam` (stacked blocks), `Refine` (hill climbing).

A strategy is any function `(study, n_layers) → recipes` that returns what to score next, and nothing when it has
finished. These keep no state: they use only what the study has scored, so that a search can be killed and resumed, and
several workers can share one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise

from optuna import Study

from david.candidates.neighbours import STEPS, neighbours
from david.errors import SearchError
from david.recipe.blocks import all_blocks, blocks_of, longest_block
from david.recipe.recipe import Recipe
from david.storage import trial_attributes
from david.storage.results import StudyResults
from david.support.arguments import check_type

Strategy = Callable[[Study, int], Sequence[Recipe]]

# first the steps with few neighbours that often help
_STEPS = ("drop", "add", "swap", "scale", "grow", "shrink", "shift", "move", "cut", "repeat")
_COARSE, _FINE = (0.5, 2.0), (0.75, 1.0, 1.25, 1.5)  # strengths: coarse ones for every visit before any fine one
_MAX_LENGTH = 8  # visits that are cut or repeated together
_MAX_MERGED = 16  # improvements that are combined


@dataclass(frozen=True)
class Scan:
    """Every block run twice.

    Attributes:
        max_length: Layers of the longest block; left out, a quarter of the base's layers.
        max_visits: The most visits of a recipe.
    """

    max_length: int | None = None
    max_visits: int | None = None

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """Return the recipes that are not scored yet."""
        return _unscored(_blocks(n_layers, self.max_length, self.max_visits), _scored(study))


@dataclass(frozen=True)
class Beam:
    """A scan of single blocks, then the best recipes with one more of the best blocks, as long as that helps.

    A recipe of k blocks comes from the best of k − 1.

    Attributes:
        width: How many of the best recipes of a level are extended.
        max_length: Layers of the longest block; left out, a quarter of the base's layers.
        max_visits: The most visits of a recipe.

    Raises:
        SearchError: `width` is below 1.
    """

    width: int = 8
    max_length: int | None = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SearchError(f"the width of a beam must be at least 1; got {self.width}")

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """Return what is not scored of the first level that is not complete."""
        scored = _scored(study)
        level = _blocks(n_layers, self.max_length, self.max_visits)
        best_singles = _best(level, scored, self.width)
        before = scored.get(Recipe.identity(n_layers), math.inf)
        while not (new := _unscored(level, scored)):
            beam = _best(level, scored, self.width)
            if not beam or scored[beam[0]] >= before:
                return []
            before = scored[beam[0]]
            level = list(dict.fromkeys(self._stack(beam, best_singles, n_layers)))
        return new

    def _stack(self, beam: Sequence[Recipe], singles: Sequence[Recipe], n_layers: int) -> Iterator[Recipe]:
        for recipe in beam:
            for single in singles:
                parts = sorted((blocks_of(recipe, n_layers) or []) + (blocks_of(single, n_layers) or []))
                both = Recipe.from_blocks(n_layers, parts)
                if self.max_visits is None or len(both) <= self.max_visits:
                    yield both


@dataclass(frozen=True)
class Refine:
    """Hill climbing: from a recipe to its best neighbour, until no neighbour is better.

    The steps are tried one after the other: the next only if none before has helped. Improvements of a recipe are then
    combined: the best with the next best, the better of that and the best alone with the third, and so on. If it helps
    to leave out single visits, the same is done once more with runs of visits that help. The search goes on from
    the best of all.

    Attributes:
        start: Where to begin; left out, the base.
        steps: Kinds of neighbours, see `david.neighbours`.
        max_length: The most visits that are cut or repeated together.
        max_visits: The most visits of a recipe.

    Raises:
        SearchError: A step is unknown, or there is none.
    """

    start: Recipe | None = None
    steps: Sequence[str] = _STEPS
    max_length: int = _MAX_LENGTH
    max_visits: int | None = None

    def __post_init__(self) -> None:
        if self.start is not None:
            check_type("start", self.start, Recipe, SearchError)
        unknown = sorted(set(self.steps) - set(STEPS))
        if unknown or not self.steps:
            raise SearchError(f"unknown steps {unknown}: expected some of {', '.join(STEPS)}")

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """Return the neighbours of the current recipe that are not scored, or a combination of improvements."""
        scored = _scored(study)
        current = self.start or Recipe.identity(n_layers)
        while current in scored:
            step, better, new = self._first_helpful_step(current, scored, n_layers)
            if new or not better:
                return new
            combined, new = self._combine(current, better, scored)
            if not new and step == "drop":
                shortened = _without_runs(current, scored, self.max_length)
                new = _unscored(shortened, scored)
                if not new:
                    improvements = _improvements(current, [*better, *shortened], scored)
                    other, new = self._combine(current, improvements, scored)
                    combined = min(combined, other, key=scored.__getitem__)
            if new:
                return new
            current = combined
        return [current]

    def _first_helpful_step(
        self, current: Recipe, scored: Mapping[Recipe, float], n_layers: int
    ) -> tuple[str, list[Recipe], list[Recipe]]:
        """Return the first step that has helped, its improvements, best first, and what of it is not scored yet."""
        for step, candidates in self._neighbours(current, n_layers):
            new = _unscored(candidates, scored)
            if new or (better := _improvements(current, candidates, scored)):
                return step, [] if new else better, new
        return "", [], []

    def _combine(
        self, current: Recipe, better: Sequence[Recipe], scored: Mapping[Recipe, float]
    ) -> tuple[Recipe, list[Recipe]]:
        """Return the best combination of improvements, best first, and what must be scored to know it."""
        best, merged = better[0], 0
        for other in better[1:]:
            both = _merge(current, best, other) if merged < _MAX_MERGED else None
            if both is None or (self.max_visits is not None and len(both) > self.max_visits):
                continue
            if both not in scored:
                return best, [both]
            best, merged = min(best, both, key=scored.__getitem__), merged + 1
        return best, []

    def _neighbours(self, current: Recipe, n_layers: int) -> Iterator[tuple[str, list[Recipe]]]:
        """Yield the neighbours of a recipe, step by step."""
        for step in self.steps:
            for scales in (_COARSE, _FINE) if step == "scale" else (_FINE,):
                limited = partial(neighbours, max_length=self.max_length, max_visits=self.max_visits)
                yield step, limited(current, n_layers, steps={step}, scales=scales)


def singles(n_layers: int) -> list[Recipe]:
    """Return a recipe that runs each layer twice and one that leaves it out: a good start for a search.

    Example:
        >>> [str(recipe) for recipe in singles(2)]
        ['0, 0:2', '0:2, 1', '1', '0']
    """
    base = range(n_layers)
    skips = [Recipe((*base[:layer], *base[layer + 1 :])) for layer in base if n_layers > 1]
    return [*all_blocks(n_layers, 1), *skips]


def strategy_named(
    name: str, *, max_length: int | None = None, max_visits: int | None = None, start: Recipe | None = None
) -> Strategy:
    """Return a built-in strategy.

    Args:
        name: `"scan"`, `"beam"` or `"refine"`.
        max_length: Layers of the longest block; for `refine`, visits that are cut or repeated together.
        max_visits: The most visits of a recipe.
        start: Where `refine` begins.

    Raises:
        SearchError: There is no such strategy, or another than `refine` has a start.

    Example:
        >>> strategy_named("beam", max_length=4)
        Beam(width=8, max_length=4, max_visits=None)
    """
    if start is not None and name != "refine":
        raise SearchError(f"only refine starts from a recipe; got one with {name!r}")
    match name:
        case "scan":
            return Scan(max_length, max_visits)
        case "beam":
            return Beam(max_length=max_length, max_visits=max_visits)
        case "refine":
            return Refine(start, max_length=max_length or _MAX_LENGTH, max_visits=max_visits)
    raise SearchError(f"unknown strategy {name!r}: expected scan, beam or refine")


def _blocks(n_layers: int, max_length: int | None, max_visits: int | None) -> list[Recipe]:
    blocks = all_blocks(n_layers, longest_block(max_length, n_layers))
    return [recipe for recipe in blocks if max_visits is None or len(recipe) <= max_visits]


def _scored(study: Study) -> dict[Recipe, float]:
    """Return the NLL of each recipe that a study has scored; infinity if it cannot be scored."""
    results = StudyResults.read(study)
    nll = dict.fromkeys(results.refused, math.inf)
    nll |= {trial.user_attrs[trial_attributes.RECIPE]: trial_attributes.value_of(trial) for trial in results.scored}
    return {Recipe.parse(notation): value for notation, value in nll.items()}


def _unscored(recipes: Sequence[Recipe], scored: Mapping[Recipe, float]) -> list[Recipe]:
    return [recipe for recipe in recipes if recipe not in scored]


def _best(recipes: Sequence[Recipe], scored: Mapping[Recipe, float], n: int) -> list[Recipe]:
    """Return the n recipes with the lowest NLL, lowest first."""
    return sorted((recipe for recipe in recipes if recipe in scored), key=scored.__getitem__)[:n]


def _improvements(current: Recipe, recipes: Sequence[Recipe], scored: Mapping[Recipe, float]) -> list[Recipe]:
    """Return the recipes that are better than `current`, best first."""
    return [recipe for recipe in _best(recipes, scored, len(recipes)) if scored[recipe] < scored[current]]


def _without_runs(current: Recipe, scored: Mapping[Recipe, float], max_length: int) -> list[Recipe]:
    """Leave out runs of visits: of each length, two disjoint runs whose single visits gain the most together."""
    visits = list(current)

    def without(start: int, stop: int) -> Recipe:
        layers, scales = zip(*visits[:start], *visits[stop:], strict=True)
        return Recipe(layers, scales)

    gains = [scored[current] - scored.get(without(i, i + 1), math.inf) for i in range(len(visits))]
    shortened = []
    for length in range(2, min(max_length, len(visits) - 1) + 1):
        sums = {start: sum(gains[start : start + length]) for start in range(len(visits) - length + 1)}
        starts = sorted((start for start, gain in sums.items() if gain > 0), key=sums.__getitem__, reverse=True)
        disjoint = next((start for start in starts if abs(start - starts[0]) >= length), None)
        shortened += [without(start, start + length) for start in (*starts[:1], disjoint) if start is not None]
    return shortened


def _merge(current: Recipe, one: Recipe, other: Recipe) -> Recipe | None:
    """Apply the changes of two recipes to a third; None if they change the same place."""
    visits = list(current)
    edits = []
    for changed in (list(one), list(other)):
        codes = SequenceMatcher(None, visits, changed, autojunk=False).get_opcodes()
        edits += [(low, high, changed[start:stop]) for code, low, high, start, stop in codes if code != "equal"]
    edits.sort(key=lambda edit: edit[:2])
    if any(after[0] < before[1] or after[:2] == before[:2] for before, after in pairwise(edits)):
        return None
    for low, high, part in reversed(edits):
        visits[low:high] = part
    if not visits:
        return None
    layers, scales = zip(*visits, strict=True)
    return Recipe(layers, scales)
