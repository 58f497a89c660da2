"""Ways to search that need no sampler: a full scan, a beam over blocks, refinement by neighbours.

A strategy is any function `(study, n_layers) → recipes` that says what to score next, and nothing where it is at its
end. These here keep no state of their own: all they go by is what the study has scored, so that a search can be killed
and taken up, and several workers can share one.
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

Strategy = Callable[[Study, int], Sequence[Recipe]]

_STEPS = ("drop", "add", "swap", "scale", "grow", "shrink", "shift", "move", "cut", "repeat")  # few and telling first
_COARSE, _FINE = (0.5, 2.0), (0.75, 1.0, 1.25, 1.5)  # strengths: each visit has a coarse one before any has a fine one
_MAX_LENGTH = 8  # of visits that are cut or repeated together
_MERGED = 16  # improvements that are tried together at most


@dataclass(frozen=True)
class Scan:
    """Every block of up to `max_length` layers run twice; left out, a quarter of the base's layers."""

    max_length: int | None = None
    max_visits: int | None = None

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """What is not scored yet."""
        return _new(_blocks(n_layers, self.max_length, self.max_visits), _scored(study))


@dataclass(frozen=True)
class Beam:
    """A scan of single blocks, then the `width` best with another of the best stacked on, as long as that helps.

    A recipe of k blocks comes from the best of k − 1. `max_visits` bounds how deep a recipe becomes.
    """

    width: int = 8
    max_length: int | None = None
    max_visits: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SearchError(f"a beam needs a width of at least 1; got {self.width}")

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """The next level, where the one before is scored."""
        scored = _scored(study)
        level = _blocks(n_layers, self.max_length, self.max_visits)
        best_singles = _best(level, scored, self.width)
        before = scored.get(Recipe.identity(n_layers), math.inf)
        while not (new := _new(level, scored)):
            beam = _best(level, scored, self.width)
            if not beam or scored[beam[0]] >= before:
                return []
            before = scored[beam[0]]
            level = list(dict.fromkeys(self._stacked(beam, best_singles, n_layers)))
        return new

    def _stacked(self, beam: Sequence[Recipe], singles: Sequence[Recipe], n_layers: int) -> Iterator[Recipe]:
        for recipe in beam:
            for single in singles:
                parts = sorted((blocks_of(recipe, n_layers) or []) + (blocks_of(single, n_layers) or []))
                both = Recipe.from_blocks(n_layers, parts)
                if self.max_visits is None or len(both) <= self.max_visits:
                    yield both


@dataclass(frozen=True)
class Refine:
    """Hill climbing from `start` (left out, from the base): to the best neighbour, again and again.

    After the neighbours of a recipe come its improvements put together: to the best the next best, to the better of
    that and the best alone the one behind, and so on. Where it helps to leave out single visits, the same is done once
    more with runs of those that help. The best of all is where it goes on. `steps` are kinds of neighbours (see
    `david.neighbours`), which are tried kind by kind: the next one where none before has helped. At most `max_length`
    visits are cut or repeated together. It is at its end where no neighbour is better.
    """

    start: Recipe | None = None
    steps: Sequence[str] = _STEPS
    max_length: int = _MAX_LENGTH
    max_visits: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.steps) - set(STEPS))
        if unknown or not self.steps:
            raise SearchError(f"unknown steps {unknown}: expected some of {', '.join(STEPS)}")

    def __call__(self, study: Study, n_layers: int) -> list[Recipe]:
        """The neighbours of where it stands, or their best ones put together."""
        scored = _scored(study)
        here = self.start or Recipe.identity(n_layers)
        while here in scored:
            step, better, new = self._better(here, scored, n_layers)
            if new or not better:
                return new
            together, new = self._together(here, better, scored)
            if not new and step == "drop":
                runs = _runs(here, scored, self.max_length)
                new = _new(runs, scored)
                if not new:
                    apart, new = self._together(here, _ahead(here, [*better, *runs], scored), scored)
                    together = min(together, apart, key=scored.__getitem__)
            if new:
                return new
            here = together
        return [here]

    def _better(
        self, here: Recipe, scored: Mapping[Recipe, float], n_layers: int
    ) -> tuple[str, list[Recipe], list[Recipe]]:
        """The first kind of neighbours that has helped, and those that have; or what of a kind is not scored yet."""
        for step, around in self._around(here, n_layers):
            new = _new(around, scored)
            if new or (better := _ahead(here, around, scored)):
                return step, [] if new else better, new
        return "", [], []

    def _together(
        self, here: Recipe, better: Sequence[Recipe], scored: Mapping[Recipe, float]
    ) -> tuple[Recipe, list[Recipe]]:
        """What improvements of a recipe, best first, make together; and what is to be scored to know it."""
        best, merged = better[0], 0
        for other in better[1:]:
            both = _merged(here, best, other) if merged < _MERGED else None
            if both is None or (self.max_visits is not None and len(both) > self.max_visits):
                continue
            if both not in scored:
                return best, [both]
            best, merged = min(best, both, key=scored.__getitem__), merged + 1
        return best, []

    def _around(self, here: Recipe, n_layers: int) -> Iterator[tuple[str, list[Recipe]]]:
        """The neighbours of a recipe, kind by kind."""
        for step in self.steps:
            for scales in (_COARSE, _FINE) if step == "scale" else (_FINE,):
                room = partial(neighbours, max_length=self.max_length, max_visits=self.max_visits)
                yield step, room(here, n_layers, steps={step}, scales=scales)


def singles(n_layers: int) -> list[Recipe]:
    """Each layer run twice, and each left out: a queue with which a search begins to know a model.

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
    """The strategy that a name on the command line stands for: `scan`, `beam` or `refine`."""
    if start is not None and name != "refine":
        raise SearchError(f"only refine starts from a recipe; got it with {name!r}")
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
    """The NLL of each recipe that a study has scored; infinity where it cannot be."""
    results = StudyResults.read(study)
    nll = dict.fromkeys(results.refused, math.inf)
    nll |= {trial.user_attrs["recipe"]: trial_attributes.value_of(trial) for trial in results.scored}
    return {Recipe.parse(notation): value for notation, value in nll.items()}


def _new(recipes: Sequence[Recipe], scored: Mapping[Recipe, float]) -> list[Recipe]:
    return [recipe for recipe in recipes if recipe not in scored]


def _best(recipes: Sequence[Recipe], scored: Mapping[Recipe, float], n: int) -> list[Recipe]:
    """The n with the lowest NLL, lowest first."""
    return sorted((recipe for recipe in recipes if recipe in scored), key=scored.__getitem__)[:n]


def _ahead(here: Recipe, recipes: Sequence[Recipe], scored: Mapping[Recipe, float]) -> list[Recipe]:
    """Those that are better than a recipe, best first."""
    return [recipe for recipe in _best(recipes, scored, len(recipes)) if scored[recipe] < scored[here]]


def _runs(here: Recipe, scored: Mapping[Recipe, float], max_length: int) -> list[Recipe]:
    """Runs of visits left out: of each length the two, apart, that promise most by what each visit left out gains."""
    visits = list(here)

    def without(start: int, stop: int) -> Recipe:
        layers, scales = zip(*visits[:start], *visits[stop:], strict=True)
        return Recipe(layers, scales)

    gains = [scored[here] - scored.get(without(i, i + 1), math.inf) for i in range(len(visits))]
    found = []
    for length in range(2, min(max_length, len(visits) - 1) + 1):
        promised = {start: sum(gains[start : start + length]) for start in range(len(visits) - length + 1)}
        starts = sorted((start for start, gain in promised.items() if gain > 0), key=promised.__getitem__, reverse=True)
        apart = next((start for start in starts if abs(start - starts[0]) >= length), None)
        found += [without(start, start + length) for start in (*starts[:1], apart) if start is not None]
    return found


def _merged(here: Recipe, one: Recipe, other: Recipe) -> Recipe | None:
    """What two recipes make of a third together, where they change it in different places."""
    visits = list(here)
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
