"""Score many recipes of one model on one corpus, and run each distinct visit once.

`score_recipes` is for one list of recipes, `Engine` for one list after another. An engine schedules recipes, checks
once that shared visits give the scores of slinging by hand (the self-check), runs the schedule batch by batch, and
falls back to scoring one recipe at a time if the self-check or a run fails.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from david.engine.estimate import Estimate
from david.engine.memory_budget import MemoryBudget, window_batches
from david.engine.meter import Meter
from david.engine.one_by_one import Outcome, error_as_outcome
from david.engine.prefix_tree import Cost
from david.engine.runner import Runner
from david.engine.schedule import Schedule, total_cost
from david.engine.scorer import Scorer
from david.engine.self_check import checked_runner
from david.engine.state_cache import StateCache
from david.engine.token_objective import TokenObjective
from david.errors import DavidError, RecipeError, ScoreError
from david.metrics.score import Score
from david.models import offload
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, perplexity, scored_tokens
from david.sling.forward import input_device
from david.sling.in_place import base_depth, base_layers, check_recipe, running_base, slung
from david.support import memory
from david.support.arguments import check_function, check_type, check_whole, checked_list, described
from david.support.console import say

Drop = Callable[[range, Mapping[int, Sequence[float]]], Collection[int]]
Done = Callable[[float], Any]

_CHECK_PASSES = 10  # forward passes of a window that the self-check costs, about


def score_recipes(
    model: nn.Module,
    recipes: Sequence[Recipe],
    corpus: Corpus,
    *,
    objective: Objective = perplexity,
    memory_budget: int | None = None,
    progress: bool = False,
) -> list[Score]:
    """Score recipes of a model on a corpus.

    With `perplexity` or `multiple_choice` (or a `functools.partial` of them) as the objective, recipes that begin alike
    share visits: each distinct visit runs once for all of them, if that saves more than the engine's self-check costs.
    Any other objective is called on the slung model, one recipe at a time.

    Args:
        model: A loaded model, slung or not; afterwards it is what it was, also when scoring raises.
        recipes: Recipes of the model's base.
        corpus: The windows to score.
        objective: A function `(model, corpus) → Score`.
        memory_budget: Bytes of hidden states that may be held at once; if None, a quarter of the free memory. A smaller
            budget costs visits, never exactness.
        progress: Whether to show a progress bar.

    Returns:
        The score of each recipe, in the order of `recipes`.

    Raises:
        RecipeError: A recipe does not fit the model.
        SlingError: The model cannot run a recipe.
        ScoreError: A recipe cannot be scored.
        Exception: What the model or the objective raises comes out unchanged.

    Example:
        >>> base, deeper = score_recipes(model, [Recipe.identity(30), Recipe.parse("0:12, 8:30")], corpus)
        >>> base.nll == perplexity(model, corpus).nll, deeper.tokens == base.tokens
        (True, True)
    """
    check_type("corpus", corpus, Corpus, ScoreError)
    schedule = make_schedule(model, recipes)
    for refusal in schedule.refusals.values():
        raise refusal
    cost = total_cost(schedule.groups())
    visits_saved = (cost.visits_one_by_one - cost.visits) * len(corpus)
    pays = visits_saved > _CHECK_PASSES * schedule.n_layers or offload.is_offloaded(base_layers(model))
    engine = Engine(model, corpus, objective=objective, memory_budget=memory_budget, shared=pays)
    scores = []
    total = engine.work(schedule)
    with tqdm(total=total, unit="visit", unit_scale=True, disable=not progress) as bar:
        for outcome in engine.outcomes(schedule, done=lambda work: bar.update(min(work, total - bar.n))):
            if isinstance(outcome, DavidError):
                raise outcome if outcome.__cause__ is None else outcome.__cause__
            scores.append(outcome)
    return scores


def make_schedule(model: nn.Module, recipes: Sequence[Recipe]) -> Schedule:
    """Check recipes against a model, each once, and schedule those that it can run."""
    recipes = checked_list("recipes", recipes, Recipe, RecipeError)
    refusals: dict[int, DavidError] = {}
    for number, recipe in enumerate(recipes):
        try:
            check_recipe(model, recipe)
        except DavidError as error:
            refusals[number] = error
    valid = tuple(number for number in range(len(recipes)) if number not in refusals)
    return Schedule(tuple(recipes), base_depth(model), refusals, valid)


class Engine:
    """Score recipes of a model on a corpus, call after call.

    Recipes share visits if the objective is `perplexity` or `multiple_choice`, `shared` is true and the self-check
    passes. Otherwise they are scored one by one: sling, score, reset.

    Args:
        model: A loaded model, slung or not; after each call it is what it was.
        corpus: The windows to score.
        objective: A function `(model, corpus) → Score`.
        memory_budget: Bytes of hidden states that may be held at once; if None, a quarter of the free memory.
        rung: Windows of the first rung; each further rung has as many windows as all before it, so that recipes can be
            dropped early. If None, all windows are one rung.
        shared: Whether recipes may share visits.
        keeps: Whether to keep states of the base and of the best recipes between calls, so that a recipe costs only
            what follows its first difference from them.

    Attributes:
        n_layers: Layers of the base.
        batches: The ranges of windows that go through a layer together; a rung is one batch or more.
        end_visits: What an end costs, in visits, as the self-check measures it.
        meter: What all calls have cost so far.

    Raises:
        ScoreError: The budget is less than a byte, or the objective cannot score the corpus on this model.
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
        check_type("corpus", corpus, Corpus, ScoreError)
        check_function("objective", objective, "(model, corpus) → Score", ScoreError)
        if memory_budget is not None:
            check_whole("memory_budget", memory_budget, ScoreError)
            if memory_budget < 1:
                raise ScoreError(f"memory_budget must be at least 1 byte; got {memory_budget}")
        self.model, self.corpus, self.objective = model, corpus, objective
        self.n_layers, self.meter = base_depth(model), Meter()
        self.batches = [range(len(corpus))]
        self.end_visits = 1.0
        self._reason: str | None = None  # why recipes are scored one by one
        self._schedule = make_schedule(model, [])  # of the last list of recipes
        self._budget = MemoryBudget(memory_budget or 0, window_bytes=corpus.window, keeps=keeps)
        self._cache = StateCache(self._budget, self.meter, self.n_layers)
        self._token_objective = TokenObjective.of(objective)
        runner = self._checked_runner(shared)
        self._scorer = Scorer(model, corpus, self._token_objective, runner, self._budget, self._cache, self.meter)
        if self._token_objective is not None:
            self._plan_batches(memory_budget, rung)

    def _checked_runner(self, shared: bool) -> Runner | None:
        """Return the runner, if recipes may share visits and it gives the scores of slinging by hand."""
        if self._token_objective is None:
            self._reason = "the objective may do anything with the model and the corpus"
            return None
        self._token_objective.check(self.model, self.corpus)
        if not shared:
            return None
        first = self._token_objective.first_position(self.corpus)
        checked = checked_runner(self.model, self.corpus, first, self._token_objective.options)
        if isinstance(checked, str):
            self._reason = checked
            say(f"{type(self.model).__name__}: recipes are scored one by one, without the engine ({checked})")
            return None
        self.end_visits, self._budget.window_bytes = checked.end_visits, checked.window_bytes
        return checked.runner

    def _plan_batches(self, memory_budget: int | None, rung: int | None) -> None:
        """Set the budget, and the batches of windows that fit into it."""
        if memory_budget is None:
            device = torch.device("cpu") if self.streamed else input_device(self.model)
            self._budget.total = memory.free(device) // 4
        wide = self.streamed or input_device(self.model).type != "cpu"
        at_once = self._budget.windows_at_once(self.corpus.window, wide=wide)
        self.batches = list(window_batches(len(self.corpus), at_once, rung))

    @property
    def window_tokens(self) -> tuple[int, ...]:
        """Scored tokens of each window."""
        assert self._token_objective is not None
        return scored_tokens(self.corpus, self._token_objective.first_position(self.corpus))

    @property
    def shares(self) -> bool:
        """Whether recipes share visits; else they are scored one by one."""
        return self._scorer.runner is not None

    @property
    def streamed(self) -> bool:
        """Whether layers are loaded for each call, so that all recipes of a batch go through them together."""
        return self._scorer.streamed

    # ---- the schedule and what it costs

    def work(self, recipes: Sequence[Recipe] | Schedule) -> float:
        """Return what scoring recipes costs, in visits of one window; an end counts as `end_visits` of them.

        Args:
            recipes: Recipes of the base, or their schedule; those that the model cannot run cost nothing.
        """
        groups = self._scorer.groups(self._schedule_of(recipes), max(self.batches, key=len))
        return self._window_visits(total_cost(groups))

    def estimate(self, recipes: Sequence[Recipe]) -> Estimate:
        """Estimate what scoring recipes costs; the base is scored to measure the time of a visit.

        Args:
            recipes: Recipes of the base; those that the model cannot run cost nothing.

        Returns:
            Visits, states, loads and seconds.
        """
        schedule, base = self._schedule_of(recipes), make_schedule(self.model, [Recipe.identity(self.n_layers)])
        before, start = replace(self.meter), time.perf_counter()
        self.outcomes(base)
        load_seconds = self.meter.load_seconds - before.load_seconds
        visit_seconds = (time.perf_counter() - start - load_seconds) / self.work(base)
        groups = self._scorer.groups(schedule, max(self.batches, key=len))
        cost = total_cost(groups)
        loads = sum(group.stops for group in groups) * len(self.batches) if self.streamed else 0
        return Estimate(
            cost=cost,
            groups=len(groups),
            windows=len(self.corpus),
            batches=len(self.batches),
            end_visits=self.end_visits,
            state_bytes=self._budget.window_bytes * max(map(len, self.batches)),
            loads=loads,
            seconds=visit_seconds * self._window_visits(cost)
            + (loads * load_seconds / (self.meter.loads - before.loads) if loads else 0),
            reason=self._reason,
        )

    def _schedule_of(self, recipes: Sequence[Recipe] | Schedule) -> Schedule:
        """Return the schedule of recipes; the list of the last call is not scheduled again."""
        if isinstance(recipes, Schedule):
            return recipes
        # Equal recipes may state other bases, which `check_recipe` reads: so the very same objects.
        if [*map(id, recipes)] != [*map(id, self._schedule.recipes)]:
            self._schedule = make_schedule(self.model, recipes)
        return self._schedule

    def _window_visits(self, cost: Cost) -> float:
        visits, ends = (cost.visits, cost.ends) if self.shares else (cost.visits_one_by_one, cost.recipes)
        return (visits + self.end_visits * ends) * len(self.corpus)

    # ---- runs

    def outcomes(
        self,
        recipes: Sequence[Recipe] | Schedule,
        *,
        drop: Drop | None = None,
        done: Done = lambda _visits: None,
    ) -> list[Outcome]:
        """Score recipes, and return an error in place of a score that cannot be made.

        Args:
            recipes: Recipes of the base, or their schedule.
            drop: Called after each batch with the range of its windows, and the NLL in nats of each of these windows by
                the place of the recipe in `recipes`. It returns the places of recipes to score no further: their scores
                have the windows seen so far.
            done: Called as work is done, with the work in visits of one window.

        Returns:
            The score of each recipe, or why it has none, in the order of `recipes`.

        Raises:
            ScoreError: The accelerator has failed; only a new process can use it.
        """
        schedule = self._schedule_of(recipes)
        everything, failures = schedule.recipes, dict(schedule.refusals)
        if self._token_objective is None:
            return [failures.get(i) or self._score_with_objective(recipe, done) for i, recipe in enumerate(everything)]
        nll: list[list[float]] = [[] for _ in everything]
        place = 0

        def count(visits: int, ends: int, windows: int) -> None:
            done((visits + self.end_visits * ends) * windows)

        with running_base(self.model), torch.inference_mode():
            while place < len(self.batches) and schedule.numbers:
                values = self._scorer.score_batch(schedule, self.batches, place, count)
                scored = {number: value for number, value in values.items() if not isinstance(value, DavidError)}
                failures |= {number: value for number, value in values.items() if isinstance(value, DavidError)}
                for number, value in scored.items():
                    nll[number] += value
                dropped = set(drop(self.batches[place], scored) if drop is not None and scored else ())
                schedule = schedule.only([number for number in scored if number not in dropped])
                place += 1
        outcomes = [failures.get(number) or self.score_of(values) for number, values in enumerate(nll)]
        n_items = len(self.corpus.items())
        self._cache.keep_best(
            (recipe, score.nll)
            for recipe, score in zip(everything, outcomes, strict=True)
            if isinstance(score, Score) and len(score.window_nll) == n_items  # of all windows
        )
        return outcomes

    def score_of(self, nll: Sequence[float]) -> Outcome:
        """Return the score of the first windows of the corpus, or of all.

        Args:
            nll: NLL in nats of each of these windows.

        Returns:
            The score; a `ScoreError` if an NLL is not a number.
        """
        assert self._token_objective is not None
        return self._token_objective.score(nll, self.corpus)

    def clear_cache(self) -> None:
        """Drop all states that are kept between calls."""
        self._cache.clear()

    def _score_with_objective(self, recipe: Recipe, done: Done) -> Outcome:
        """Score a recipe by calling the objective on the slung model."""

        def score() -> Any:
            try:
                with slung(self.model, recipe):
                    return self.objective(self.model, self.corpus)
            except DavidError as error:
                return error

        outcome = self._scorer.attempt(score)
        if isinstance(outcome, DavidError):
            return outcome
        if isinstance(outcome, Exception):
            return error_as_outcome("scoring", outcome)
        if not isinstance(outcome, Score):
            return ScoreError(f"the objective must return a Score, as perplexity does; got {described(outcome)}")
        done((len(recipe) + self.end_visits) * len(self.corpus))
        return outcome if not math.isnan(outcome.nll) else ScoreError("the objective's NLL is not a number")
