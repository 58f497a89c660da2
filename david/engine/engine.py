"""Scores many recipes of one model on one corpus: each distinct visit once, or else sling, score, reset."""

import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from david.engine.estimate import Estimate
from david.engine.meter import Meter
from david.engine.prefix_tree import Cost, Plan, groups
from david.engine.runner import Runner
from david.engine.self_check import checked_runner
from david.engine.state_cache import State
from david.errors import DavidError, ScoreError
from david.metrics.score import Score
from david.models import offload
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import (
    Objective,
    by_question,
    check_fits,
    check_kind,
    first_scored,
    multiple_choice,
    perplexity,
    score_of,
    scored_tokens,
    windows_score,
)
from david.sling.forward import input_device
from david.sling.in_place import base_depth, base_layers, check_recipe, running_base, slung
from david.support import memory
from david.support.console import say
from david.support.memory import lacks_memory
from david.support.text import one_line

Path = tuple[tuple[int, float], ...]  # the visits (layer, scale) that lead to a state
Outcome = Score | DavidError
Drop = Callable[[range, Mapping[int, Sequence[float]]], Collection[int]]
Done = Callable[[float], Any]

_TOKENS_AT_ONCE = 1024  # go through a layer together: with more, two cores are no faster
_TOKENS_AT_ONCE_WIDE = 8192  # … on an accelerator, or where a layer is loaded for them
_CHECK_PASSES = 10  # forward passes of a window that the self-check costs, about
_NOTHING = Cost(0, 0, 0, 0, 0, 0, 0)
_BEST = 8  # recipes whose states are kept between calls, besides the base's


def score_recipes(
    model: nn.Module,
    recipes: Sequence[Recipe],
    corpus: Corpus,
    *,
    objective: Objective = perplexity,
    memory_budget: int | None = None,
    progress: bool = False,
) -> list[Score]:
    """The score of each recipe, in their order. The model is afterwards what it was, also when a score raises.

    With `perplexity` or `multiple_choice` (or a `functools.partial` of them) as the objective, recipes that share
    beginnings share the work: each distinct visit is made once for all of them, where that saves more than the engine's
    self-check costs. Any other objective `(model, corpus) → Score` is called on the slung model, recipe by recipe.
    `memory_budget` is how many bytes of hidden states may be held at once (left out, a quarter of the memory that is
    free); a smaller one costs visits, never exactness.

    Raises `RecipeError` or `SlingError` for a recipe that the model cannot run, and `ScoreError` where one cannot be
    scored; what a model or an objective raises comes out as it is.

    Example:
        >>> base, deeper = score_recipes(model, [Recipe.identity(30), Recipe.parse("0:12, 8:30")], corpus)
        >>> base.nll == perplexity(model, corpus).nll, deeper.tokens == base.tokens
        (True, True)
    """
    for recipe in recipes:
        check_recipe(model, recipe)
    cost = Plan.of(recipes, base_depth(model)).cost
    saved = (cost.visits_one_by_one - cost.visits) * len(corpus)
    worth = saved > _CHECK_PASSES * base_depth(model) or offload.is_offloaded(base_layers(model))
    engine = Engine(model, corpus, objective=objective, memory_budget=memory_budget, shared=worth)
    scores = []
    whole = engine.work(recipes)
    with tqdm(total=whole, unit="visit", unit_scale=True, disable=not progress) as bar:
        for outcome in engine.outcomes(recipes, done=lambda work: bar.update(min(work, whole - bar.n))):
            if isinstance(outcome, DavidError):
                raise outcome if outcome.__cause__ is None else outcome.__cause__
            scores.append(outcome)
    return scores


class Engine:
    """Scores recipes of a model on a corpus, call after call.

    With `keeps`, states of the base's beginning and of the best recipes' are kept between calls, so that a recipe costs
    only what follows its first difference from them. `batches` are the ranges of windows that go through a layer
    together; with `rung`, the first is so many windows, and at each further rung as many again as were seen before, so
    that recipes can be dropped early. Where the engine does not fit the model or the objective, or is not `shared`,
    recipes are scored one by one: sling, score, reset.
    """

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        *,
        objective: Objective = perplexity,
        memory_budget: int | None = None,
        rung: int | None = None,
        shared: bool = True,
        keeps: bool = False,
    ) -> None:
        if memory_budget is not None and memory_budget < 1:
            raise ScoreError(f"memory_budget must be at least 1 byte; got {memory_budget}")
        self.model, self.corpus, self.objective = model, corpus, objective
        self.n_layers, self.meter = base_depth(model), Meter()
        self.end_visits = 1.0  # what an end costs, as the self-check finds it
        self._reason: str | None = None  # why recipes are scored one by one
        self._runner: Runner | None = None
        self._window_bytes = corpus.window  # of the state of one window, as the self-check finds it
        self._keeps = keeps
        self._kept: dict[range, dict[Path, State]] = {}
        self._best: list[tuple[float, Recipe]] = []
        function, options = _known(objective)
        self._options = options if function else None
        if self._options is None:
            self._reason = "the objective may do anything with the model and the corpus"
            self.batches = [range(len(corpus))]
            return
        self._by_question = function is multiple_choice
        check_kind(corpus, questions=self._by_question)
        self._convention = self._options.get("convention", "window")
        self._first = first_scored(corpus, self._convention)
        check_fits(model, corpus)
        if shared:
            self._attach(self._options)
        device = torch.device("cpu") if self.streamed else input_device(model)
        self._budget = memory_budget or memory.free(device) // 4
        self.batches = list(_batches(len(corpus), self._windows_at_once(), rung))

    @property
    def window_tokens(self) -> tuple[int, ...]:
        """Scored tokens of each window."""
        return scored_tokens(self.corpus, self._first)

    @property
    def shares(self) -> bool:
        """Whether recipes share visits; else they are scored one by one."""
        return self._runner is not None

    @property
    def streamed(self) -> bool:
        """Whether layers are loaded for each call, so that all recipes of a batch go through them together."""
        return self._runner is not None and self._runner.streamed

    def work(self, recipes: Sequence[Recipe]) -> float:
        """What scoring these costs, in visits of one window; an end is `end_visits` of them."""
        refused = dict(self._refusals(recipes))
        plans = self._plans([recipe for i, recipe in enumerate(recipes) if i not in refused])
        return self._work(sum((plan.cost for plan in plans), start=_NOTHING))

    def estimate(self, recipes: Sequence[Recipe]) -> Estimate:
        """What scoring these is going to cost, measured on the base, which is scored for it."""
        before, start = replace(self.meter), time.perf_counter()
        self.outcomes([self._base])
        loading = self.meter.load_seconds - before.load_seconds
        seconds = (time.perf_counter() - start - loading) / self.work([self._base])
        plans = list(self._plans(recipes))
        cost = sum((plan.cost for plan in plans), start=_NOTHING)
        stops = sum(plan.stops(self._order(plan, {})) for plan in plans)
        loads = stops * len(self.batches) if self.streamed else 0
        return Estimate(
            cost=cost,
            groups=len(plans),
            windows=len(self.corpus),
            batches=len(self.batches),
            end_visits=self.end_visits,
            state_bytes=self._window_bytes * max(map(len, self.batches)),
            loads=loads,
            seconds=seconds * self._work(cost) + (loads * loading / (self.meter.loads - before.loads) if loads else 0),
            reason=self._reason,
        )

    def _plans(self, recipes: Sequence[Recipe]) -> Iterator[Plan]:
        """The plans of the groups that recipes are run in, on the largest batch."""
        groups_ = self._groups(recipes, max(self.batches, key=len)) if self._runner else [range(len(recipes))]
        return (Plan.of([recipes[i] for i in numbers], self.n_layers) for numbers in groups_)

    def _work(self, cost: Cost) -> float:
        visits, ends = (cost.visits, cost.ends) if self._runner else (cost.visits_one_by_one, cost.recipes)
        return (visits + self.end_visits * ends) * len(self.corpus)

    def _windows_at_once(self) -> int:
        """Windows in a batch: as many as make a layer's call efficient, and a run's two states fit into its budget."""
        wide = self.streamed or input_device(self.model).type != "cpu"
        efficient = (_TOKENS_AT_ONCE_WIDE if wide else _TOKENS_AT_ONCE) // self.corpus.window
        return max(1, min(efficient, self._budget // ((4 if self._keeps else 2) * self._window_bytes)))

    def outcomes(
        self,
        recipes: Sequence[Recipe],
        *,
        drop: Drop | None = None,
        done: Done = lambda _visits: None,
    ) -> list[Outcome]:
        """The score of each recipe, or why it has none.

        After each batch of windows `drop` is told the batch, and by its number the NLL that each recipe has on each of
        its windows; the scores of the numbers that it returns end there, with fewer windows than the corpus has. `done`
        is told the work as it is done, in visits of a window.
        """
        failed = dict(self._refusals(recipes))
        if self._options is None:
            return [failed.get(i) or self._by_objective(recipe, done) for i, recipe in enumerate(recipes)]
        found: list[list[float]] = [[] for _ in recipes]
        alive = [i for i in range(len(recipes)) if i not in failed]
        place = 0
        with running_base(self.model), torch.inference_mode():
            while place < len(self.batches) and alive:
                batch = self.batches[place]
                values = self._try_batch([recipes[i] for i in alive], batch, done)
                if isinstance(values, Exception):
                    if lacks_memory(values) and self._reduce_batch(place):
                        continue
                    each = {i: self._alone(recipes[i], batch, done) for i in alive}
                else:
                    each = dict(zip(alive, values, strict=True))
                place += 1
                failed |= {i: its for i, its in each.items() if isinstance(its, DavidError)}
                scored = {i: its for i, its in each.items() if not isinstance(its, DavidError)}
                for i, its in scored.items():
                    found[i] += its
                dropped = set(drop(batch, scored) if drop is not None and scored else ())
                alive = [i for i in scored if i not in dropped]
        outcomes = [failed.get(i) or self.score_of(nll) for i, nll in enumerate(found)]
        self._keep_best(recipes, outcomes)
        return outcomes

    def clear_cache(self) -> None:
        """Keep no states any longer."""
        self._kept.clear()
        self.meter.held = 0

    def score_of(self, nll: Sequence[float]) -> Outcome:
        """The score that the NLL of the first windows of the corpus make, or of all; or why they make none."""
        wrong = next((i for i, value in enumerate(nll) if math.isnan(value)), None)
        if wrong is not None:
            return ScoreError(f"the NLL of window {wrong} is not a number: the model's logits hold NaN")
        score = score_of(nll, self.corpus, self._convention)
        return by_question(score, self.corpus) if self._by_question else score

    def _refusals(self, recipes: Sequence[Recipe]) -> Iterator[tuple[int, DavidError]]:
        for i, recipe in enumerate(recipes):
            try:
                check_recipe(self.model, recipe)
            except DavidError as error:
                yield i, error

    def _by_objective(self, recipe: Recipe, done: Done) -> Outcome:
        try:
            with slung(self.model, recipe):
                score = self.objective(self.model, self.corpus)
        except DavidError as error:
            return error
        except Exception as error:  # any kind: the caller's own code
            self._recover(error)
            return error_as_outcome("scoring", error)
        done((len(recipe) + self.end_visits) * len(self.corpus))
        return score if not math.isnan(score.nll) else ScoreError("the objective's NLL is not a number")

    def _values(self, recipes: Sequence[Recipe], batch: range, done: Done) -> Sequence[list[float] | DavidError]:
        """The NLL of each window of a batch, of each recipe; or why there is none."""
        if self._runner is None:
            return [self._one_by_one(recipe, batch, done) for recipe in recipes]
        found: dict[int, list[float]] = {}
        for numbers in self._groups(recipes, batch):
            plan = Plan.of([recipes[i] for i in numbers], self.n_layers)
            paths = plan.paths() if self._keeps else {}
            pool = self._kept.setdefault(batch, {})
            known = {node: pool[path] for node, path in paths.items() if path in pool}
            nll = self._runner.nll(
                plan,
                self._order(plan, known),
                self.corpus.part(batch.start, batch.stop),
                meter=self.meter,
                known=known,
                keep=partial(self._keep, pool, paths),
                tick=lambda is_end: done((self.end_visits if is_end else 1.0) * len(batch)),
            )
            found |= {i: nll[end] for i, end in zip(numbers, plan.ends, strict=True)}
        return [found[i] for i in range(len(recipes))]

    def _try_batch(
        self, recipes: Sequence[Recipe], batch: range, done: Done
    ) -> Sequence[list[float] | DavidError] | Exception:
        """The same; or what the model raises, with nothing held any longer."""
        try:
            return self._values(recipes, batch, done)
        except Exception as error:  # any kind: the code of any model
            self._recover(error)
            return error

    def _alone(self, recipe: Recipe, batch: range, done: Done) -> list[float] | DavidError:
        """The same of one recipe, so that one that the model cannot run takes no other with it."""
        found = self._try_batch([recipe], batch, done)
        return error_as_outcome("scoring", found) if isinstance(found, Exception) else found[0]

    def _recover(self, error: Exception) -> None:
        """Let go of all that an error has left behind; it comes out again where the device itself has failed."""
        if isinstance(error, torch.AcceleratorError) and not lacks_memory(error):
            raise ScoreError(f"the device failed, and needs a new process: {one_line(error)}") from error
        traceback.clear_frames(error.__traceback__)  # they hold states
        self.clear_cache()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _one_by_one(self, recipe: Recipe, batch: range, done: Done) -> list[float] | DavidError:
        windows = self.corpus.part(batch.start, batch.stop)
        try:
            with slung(self.model, recipe):
                score = windows_score(self.model, windows, **self._options or {})
        except DavidError as error:
            return error
        done((len(recipe) + self.end_visits) * len(batch))
        return list(score.window_nll)

    def _order(self, plan: Plan, known: Mapping[int, State]) -> list[int]:
        return plan.elevator(known) if self.streamed else plan.depth_first(known)

    def _groups(self, recipes: Sequence[Recipe], batch: range) -> Iterator[list[int]]:
        """Recipes, by their numbers, that are run together: all, where the budget holds their states."""
        kept = max(self.meter.held, self._budget // 2) if self._keeps else self.meter.held
        states = max(1, (self._budget - kept) // (self._window_bytes * len(batch)))
        plan = Plan.of(recipes, self.n_layers)
        if plan.peak(self._order(plan, {})) <= states:
            yield list(range(len(recipes)))
        else:
            yield from groups(recipes, self.n_layers, states, elevator=self.streamed)

    def _keep(self, pool: dict[Path, State], paths: Mapping[int, Path], node: int, state: State) -> bool:
        """Take a state into a pool, where there is room; every k-th of a path, where there is not room for all."""
        share = self._budget // (2 * len(self.batches))  # the other half is for the run itself
        stride = -(-self.n_layers * state.nbytes // max(1, share))
        path = paths.get(node)
        if path is None or len(path) % stride or self.meter.held + state.nbytes > self._budget // 2:
            return False
        pool[path] = state
        self.meter.hold(state.nbytes)
        return True

    def _keep_best(self, recipes: Sequence[Recipe], outcomes: Sequence[Outcome]) -> None:
        """Remember the best recipes, and where states become many, let go of all but theirs and the base's."""
        if not self._keeps:
            return
        whole = [
            (-math.inf if recipe == self._base else score.nll, recipe)
            for recipe, score in zip(recipes, outcomes, strict=True)
            if isinstance(score, Score) and len(score.window_nll) == len(self.corpus.items())
        ]
        self._best = sorted([*self._best, *whole], key=lambda scored: scored[0])[: _BEST + 1]
        if self.meter.held <= self._budget // 4:
            return
        ways = {tuple(recipe)[:depth] for _, recipe in self._best for depth in range(1, len(recipe) + 1)}
        for pool in self._kept.values():
            for path in [path for path in pool if path not in ways]:
                self.meter.hold(-pool.pop(path).nbytes)

    def _reduce_batch(self, place: int) -> bool:
        """Whether fewer windows or states can be held from this place on, where there is no memory for so many."""
        if self._runner is None:
            return False
        batch = self.batches[place]
        if len(batch) > 1:
            half = len(batch) // 2
            say(f"no memory for {len(batch)} windows at once: going on with {half}")
            rest = [batch[i : i + half] for batch in self.batches[place:] for i in range(0, len(batch), half)]
            self.batches[place:] = rest
            self._budget = max(1, self._budget // 2)
        elif self._budget > (least := 2 * self._window_bytes):
            say("no memory for so many states of a window: going on with as few as can be")
            self._budget = least
        else:
            return False
        return True

    def _attach(self, options: Mapping[str, Any]) -> None:
        """Make the runner, where it is held against the plain way and gives the same."""
        found = checked_runner(self.model, self.corpus, self._first, options)
        if isinstance(found, str):
            self._reason, model = found, type(self.model).__name__
            say(f"{model} does not go through the engine ({found}): its recipes are scored one by one")
        else:
            self._runner, self._window_bytes, self.end_visits = found.runner, found.window_bytes, found.end_visits

    @property
    def _base(self) -> Recipe:
        return Recipe.identity(self.n_layers)


def error_as_outcome(what: str, error: Exception) -> ScoreError:
    """What another's code has raised at something, as why there is no score."""
    failure = ScoreError(f"{what} raised {type(error).__name__}: {one_line(error)}")
    failure.__cause__ = error
    return failure


def is_token_objective(objective: Objective) -> bool:
    """Whether an objective is a sum over windows, so that recipes can be dropped early."""
    function, _ = _known(objective)
    return function is perplexity


def _known(objective: Objective) -> tuple[Objective | None, dict[str, Any]]:
    """Which of ours an objective is, and its options; None where it is none that is made of tokens' NLLs."""
    whole = isinstance(objective, partial) and not objective.args
    function = objective.func if whole else objective  # type: ignore[attr-defined]
    options = dict(objective.keywords) if whole else {}  # type: ignore[attr-defined]
    return (function if function in (perplexity, multiple_choice) else None), options


def _batches(n_windows: int, at_once: int, rung: int | None) -> Iterator[range]:
    start, stop = 0, rung or n_windows
    while start < n_windows:
        stop = min(stop, n_windows)
        yield from (range(low, min(low + at_once, stop)) for low in range(start, stop, at_once))
        start, stop = stop, 2 * stop
