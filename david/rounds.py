"""One round of a search: ask for recipes, score them together, tell what came out."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from david import files, layers, records, stopping, units
from david.also import Measure, values_of
from david.claims import claim, held
from david.corpus import Corpus
from david.engine import Engine, Outcome, raised
from david.errors import DavidError, ModelError, RecipeError, SearchError, SlingError, StorageError
from david.memory import lacks_memory
from david.messages import say
from david.queueing import WANTED, comes_alone, give_back, queued, was_queued
from david.racing import RacingPruner
from david.recipe import Recipe
from david.score import Score
from david.space import Space
from david.storage import one_look
from david.strategy import Strategy
from david.workers import OWNER, Heart

Tell = Callable[[float], Any]
_Fresh = dict[str, tuple[Trial, Recipe]]

DUPLICATE = "duplicate"
_QUEUED_AT_ONCE = 32  # recipes of a queue that are scored together
_GO_ON = 0.55  # of a rung's recipes, as far as a bar can tell beforehand (experiments/engine: a landscape of blocks)


@dataclass(frozen=True)
class Run:
    """What the trials of a search share."""

    model: nn.Module
    engine_on: Callable[[Corpus], Engine]
    engine: Engine  # on the search windows
    space: Space
    strategy: Strategy | None
    seed: int
    batch: int | None
    racing: bool
    by_hand: bool  # the study is the caller's, who may ask it for trials too
    heart: Heart
    also: Mapping[str, Measure] = field(default_factory=dict)  # what is minimised beside the objective

    @property
    def n_layers(self) -> int:
        """Layers of the base."""
        return self.engine.n_layers

    def recipes_at_once(self, study: Study) -> int:
        """How many to ask for: the base comes alone, so that the others find its states."""
        waiting = queued(study)
        together = next((i for i, asked in enumerate(waiting) if asked.comes_alone), None)
        if records.base_trial(study) is None or together == 0:
            return 1
        n = self._recipes_at_once(len(waiting))
        return n if together is None else min(n, together)

    def _recipes_at_once(self, waiting: int) -> int:
        if self.batch is not None:
            return self.batch if self.strategy is None else max(1, min(self.batch, waiting))
        if self.racing or self.engine.streamed:
            return max(1, waiting)
        return max(1, min(waiting, _QUEUED_AT_ONCE)) if self.engine.shares else 1


def play(study: Study, run: Run, n: int, *, until: float = math.inf, expect: Tell, done: Tell) -> list[str]:
    """Ask, run and tell so many trials; of each, whether it was scored, a duplicate, refused by the model, or failed.

    They are fewer where the queue is at its end, or `until` so many recipes are scored or in hand. `expect` is told how
    much work is still to come, in visits of a window, as far as is known; `done` what is done.
    """
    trials: list[Trial] = []
    try:
        fresh, again, outcomes = _ask(study, run, n, until, trials)
        recipes = [recipe for _, recipe in fresh.values()]
        race = Race(study, run, list(fresh.values()), expect) if run.racing else None
        expect(run.engine.work(recipes) if race is None else race.to_come(0, recipes))
        scores = _scores(run, recipes, race, done)
        values = _values(run, recipes, scores)
        with one_look(study):
            known = _known(study)
        for i, ((notation, (trial, _)), score) in enumerate(zip(fresh.items(), scores, strict=True)):
            other, its = known.get(notation), values[i]
            if race is not None and i in race.told:
                outcomes.append("scored")
            elif other is not None and (isinstance(its, DavidError) or records.PARTIAL not in other.user_attrs):
                again.append((trial, notation))  # another worker took this one for dead, and was faster
            elif isinstance(score, DavidError) or isinstance(its, DavidError):
                outcomes.append(tell_once(tell_failed, study, trial, its))
            else:
                outcomes.append(tell_once(tell_score, study, trial, score, its))
        with one_look(study):
            known = _known(study) if again else {}
        return outcomes + [tell_once(tell_duplicate, study, trial, notation, known) for trial, notation in again]
    except BaseException as error:
        by_recipe = isinstance(error, Exception) and not isinstance(error, StorageError | ModelError)
        with suppress(Exception):  # where it is the storage that fails
            _let_go(study, trials, was_lost=by_recipe)
        raise


def _ask(
    study: Study, run: Run, n: int, until: float, trials: list[Trial]
) -> tuple[_Fresh, list[tuple[Trial, str]], list[str]]:
    """Ask for so many `trials`: which are to be scored, by their notations; which are known; what became of others."""
    fresh: _Fresh = {}
    again: list[tuple[Trial, str]] = []
    outcomes: list[str] = []
    for i in range(n):
        with one_look(study):
            if i and len(records.complete(study)) + len(in_hand(study, run)) >= until:
                break  # others have asked meanwhile
        trials.append(trial := study.ask())
        if (run.strategy is not None or (i and run.batch is None)) and not was_queued(study, trial):
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)  # others took what was left of the queue
            break
        if i and comes_alone(trial):
            _let_go(study, [trial], was_lost=False)
            break
        recipe = _proposal(study, run, trial)
        if isinstance(recipe, str):
            outcomes.append(recipe)
        elif str(recipe) in fresh:
            again.append((trial, str(recipe)))
        else:
            fresh[str(recipe)] = trial, recipe
        if comes_alone(trial):
            break
    theirs = claim(study, run.heart, {notation: trial for notation, (trial, _) in fresh.items()})
    with one_look(study):
        known = _known(study)  # after the claim: what is not in hand any longer is told
        trials[:] = held(study, run.heart, trials)
    fresh = {notation: its for notation, its in fresh.items() if its[0] in trials}
    passed = {notation: fresh.pop(notation)[0] for notation in [*fresh] if notation in theirs or notation in known}
    again = [(trial, notation) for notation, trial in passed.items()] + [its for its in again if its[0] in trials]
    left = [(trial, notation) for trial, notation in again if notation in theirs]
    outcomes += [tell_once(_left_to, study, trial, notation, theirs[notation]) for trial, notation in left]
    return fresh, [(trial, notation) for trial, notation in again if notation not in theirs], outcomes


def in_hand(study: Study, run: Run) -> list[FrozenTrial]:
    """The trials that workers have in hand; what a caller asks of a study of his own is none of them."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if OWNER in trial.user_attrs or not run.by_hand]


def _let_go(study: Study, trials: Sequence[Trial], *, was_lost: bool) -> None:
    """End what is not told yet of these trials, and queue again what they were asked for."""
    numbers = {trial.number for trial in trials}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number in numbers:
            give_back(study, trial, was_lost=was_lost)


def _proposal(study: Study, run: Run, trial: Trial) -> Recipe | str:
    """What a trial is to score: what the space makes of its parameters, or the recipe that was queued without any.

    Or else what became of it at once.
    """
    try:
        trial.set_user_attr(OWNER, run.heart.name)
        wanted = trial.user_attrs.get(WANTED)
        return run.space(trial, run.n_layers) if wanted is None else Recipe.parse(wanted)
    except StorageError:
        raise
    except DavidError as error:
        return tell_once(tell_failed, study, trial, error)
    except UpdateFinishedTrialError:
        return DUPLICATE
    except Exception as error:  # any kind: the space may be the caller's own, and the sampler another's
        return tell_once(tell_failed, study, trial, raised("asking for a recipe", error))


def _left_to(study: Study, trial: Trial, notation: str, number: int) -> str:
    """Leave a recipe to the worker that has it in hand: what comes of it is told of that trial."""
    trial.set_user_attr("duplicate_of", number)
    trial.set_user_attr("recipe", notation)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return DUPLICATE


def _scores(run: Run, recipes: Sequence[Recipe], race: "Race | None", done: Tell) -> list[Outcome]:
    """The score of each recipe; Ctrl-C ends it between two batches of windows."""

    def drop(windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        _check_weights(run.model)
        dropped = [] if race is None else race(windows, nll)
        if windows.stop < len(run.engine.corpus):
            stopping.check()
        return dropped

    outcomes = run.engine.outcomes(recipes, drop=drop, done=done)
    _check_weights(run.model)
    return outcomes


def _check_weights(model: nn.Module) -> None:
    """`ModelError` where weights on disk, which those in memory may be a view of, were written over."""
    if name := files.overwritten(layers.unwrapped(model)):
        raise ModelError(
            f"{name} was written over while the search ran, and with it maybe the model in memory: what was scored "
            "before stands; start again, on the model that the study was made on"
        )


class Race:
    """Shows the study's pruner what a round's recipes have on each rung, and tells those that it drops at once."""

    def __init__(self, study: Study, run: Run, racers: Sequence[tuple[Trial, Recipe]], expect: Tell) -> None:
        self._study, self._run, self._racers, self._expect = study, run, racers, expect
        self._nll: list[list[float]] = [[] for _ in racers]
        self.told: set[int] = set()  # the numbers of those that were dropped

    def __call__(self, windows: range, nll: Mapping[int, Sequence[float]]) -> list[int]:
        """The numbers of the recipes that end here."""
        engine, dropped = self._run.engine, []
        for i, its in nll.items():
            self._nll[i] += its
            with suppress(UpdateFinishedTrialError):
                self._report(self._racers[i][0], windows, self._nll[i])
        base = records.base_trial(self._study)
        if windows.stop == len(engine.corpus) or base is None:
            return []
        base_recipe = Recipe.identity(engine.n_layers)
        best = min(records.value_of(trial) for trial in (base, *records.best_of_search(self._study, 1)))
        for i in nll:
            trial, recipe = self._racers[i]
            score = engine.score_of(self._nll[i])
            if isinstance(score, Score) and recipe != base_recipe and trial.should_prune():
                tell_once(tell_score, self._study, trial, score, [estimate_nll(score, base, best)], is_partial=True)
                dropped.append(i)
        self.told |= set(dropped)
        self._expect(self.to_come(windows.stop, [self._racers[i][1] for i in nll if i not in self.told]))
        return dropped

    def _report(self, trial: Trial, windows: range, nll: Sequence[float]) -> None:
        tokens = self._run.engine.window_tokens
        if isinstance(self._study.pruner, RacingPruner):
            if windows.start == 0:  # first: another worker may read the trial between the two
                trial.set_user_attr(records.WINDOW_TOKENS, list(tokens))
            trial.set_user_attr(records.WINDOW_NLL, list(nll))
        else:
            for window in windows:
                trial.report(nll[window] / tokens[window], window)

    def to_come(self, seen: int, recipes: Sequence[Recipe]) -> float:
        """How much work is still to come, in visits of a window, where of each rung's recipes about half go on."""
        engine = self._run.engine
        later = [len(batch) for batch in engine.batches if batch.start >= seen]
        windows = sum(size * _GO_ON**rung for rung, size in enumerate(later))
        return windows * engine.work(recipes) / len(engine.corpus)


def _values(run: Run, recipes: Sequence[Recipe], scores: Sequence[Outcome]) -> list[list[float] | DavidError]:
    """What a study minimises of each recipe, its NLL first; or why it has none."""
    scored = [i for i, score in enumerate(scores) if isinstance(score, Score)]
    further = dict(zip(scored, values_of(run.also, [recipes[i] for i in scored]), strict=True))
    found: list[list[float] | DavidError] = []
    for i, score in enumerate(scores):
        its = score if isinstance(score, DavidError) else further[i]
        found.append(its if isinstance(its, DavidError) or isinstance(score, DavidError) else [score.nll, *its])
    return found


def estimate_nll(score: Score, base: FrozenTrial, best: float) -> float:
    """What a dropped recipe's first windows make of the base's NLL; never as low as the best."""
    its = base.user_attrs[records.WINDOW_NLL][: len(score.window_nll)]
    value = records.value_of(base) + (sum(score.window_nll) - sum(its)) / score.tokens
    return max(math.nextafter(best, math.inf), score.nll if math.isnan(value) else value)


def tell_once(tell: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """What becomes of a trial that is told; a duplicate where another worker has told it.

    Optuna may give one trial to two workers, and one that was taken for dead may be alive.
    """
    try:
        return tell(*args, **kwargs)
    except UpdateFinishedTrialError:
        return DUPLICATE


def tell_score(study: Study, trial: Trial, score: Score, values: Sequence[float], *, is_partial: bool = False) -> str:
    if is_partial:
        trial.set_user_attr(records.PARTIAL, len(score.window_nll))
    for name, its in kept(score).items():
        trial.set_user_attr(name, its)
    study.tell(trial, [float(value) for value in values], skip_if_finished=True)
    return "scored"


def tell_failed(study: Study, trial: Trial, error: DavidError) -> str:
    trial.set_user_attr(records.ERROR, str(error))
    if error.__cause__ is not None and lacks_memory(error.__cause__):
        trial.set_user_attr(records.NO_MEMORY, True)
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    if trial.user_attrs.get("recipe") == records.base_of(study):
        raise SearchError(f"the base itself cannot be scored: {error}") from error
    say(f"trial {trial.number} failed: {error}")
    return "refused" if isinstance(error, RecipeError | SlingError) else "failed"


def tell_duplicate(study: Study, trial: Trial, notation: str, known: Mapping[str, FrozenTrial]) -> str:
    """Tell a trial what is known of its recipe; or nothing, where a worker that was taken for dead had it in hand."""
    its = known.get(notation)
    if its is not None:
        trial.set_user_attr("duplicate_of", its.number)
    trial.set_user_attr("recipe", notation)
    values, state = (None, TrialState.FAIL) if its is None else (its.values, its.state)
    study.tell(trial, values, state=state, skip_if_finished=True)
    return DUPLICATE


def _known(study: Study) -> dict[str, FrozenTrial]:
    """Of each recipe, the trial that has scored it, or found that it cannot be scored."""
    return records.refused(study) | {trial.user_attrs["recipe"]: trial for trial in records.complete(study)}


def kept(score: Score) -> dict[str, Any]:
    """What a trial keeps of its score."""
    return {
        records.WINDOW_TOKENS: list(score.window_tokens),
        records.WINDOW_NLL: list(score.window_nll),
        "convention": score.convention,
        **({records.RIGHT: list(score.right)} if score.right else {}),
        **({} if score.unit == units.TOKEN else {records.UNIT: score.unit}),
    }
