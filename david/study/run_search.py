"""Search for recipes (`search`): check, open the study, sign it, run the loop, judge the finalists, write tables."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from torch import nn

from david.candidates.encoding import Space
from david.candidates.spaces import params_of, space_named
from david.candidates.strategies import Refine, Strategy, strategy_named
from david.engine.engine import Engine
from david.engine.token_objective import is_token_objective
from david.errors import DavidError, SearchError
from david.recipe.recipe import Recipe
from david.recipe.schema import ranges_of
from david.report import artifacts, page
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, check_fits, perplexity
from david.sling.in_place import base_depth, check_recipe
from david.storage.heartbeat import WorkerHeartbeat
from david.storage.lock import exclusive_lock
from david.study import create, signature
from david.study.extra_objectives import (
    ExtraMeasure,
    ExtraObjective,
    check_extra_objectives,
    measures_of,
    memory_share,
)
from david.study.finalists import judge_finalists
from david.study.loop import await_others, begin_study, run_loop, scored_text
from david.study.run import Run
from david.study.signature import library_versions, study_signature
from david.support import files, signals
from david.support.arguments import check_function, check_type, check_whole, checked_list, described
from david.support.console import say

FIRST_RUNG = 2  # windows on which recipes race first

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "corpus": Corpus,
    "held_out": Corpus,
    "also": Mapping,
    "study": Study,
    "out": (str, os.PathLike),
    "storage": str,
    "study_name": str,
}


@dataclass(frozen=True)
class _Options:
    """The options of a search, names resolved."""

    model: nn.Module
    corpus: Corpus
    held_out: Corpus | None
    space: Space
    strategy: Strategy | None
    objective: Objective
    also: Mapping[str, ExtraObjective]
    queue: Sequence[Recipe]
    sampler: str | BaseSampler
    seed: int
    pruner: str | BasePruner | None
    n_trials: int
    batch: int | None
    memory_budget: int | None
    top: int
    baseline: int
    out: str | os.PathLike[str] | None
    progress: bool

    @property
    def start(self) -> list[Recipe]:
        """The recipe that a strategy starts from, if it names one."""
        return [self.strategy.start] if isinstance(self.strategy, Refine) and self.strategy.start is not None else []


@dataclass(frozen=True)
class _Scoring:
    """What scores recipes: the engine on the search windows, one for any other corpus, and the extra measures."""

    engine: Engine
    engine_on: Callable[[Corpus], Engine]
    extra_measures: Mapping[str, ExtraMeasure]


def search(
    model: nn.Module,
    corpus: Corpus,
    *,
    space: Space | str = "blocks",
    held_out: Corpus | None,
    objective: Objective = perplexity,
    also: Mapping[str, ExtraObjective] | None = None,
    study: Study | None = None,
    n_trials: int,
    out: str | os.PathLike[str] | None = None,
    queue: Sequence[Recipe] = (),
    strategy: str | Strategy | None = None,
    storage: str | None = None,
    study_name: str = "david",
    sampler: str | BaseSampler = "tpe",
    seed: int = 0,
    pruner: str | BasePruner | None = None,
    batch: int | None = None,
    memory_budget: int | None = None,
    top: int = 5,
    baseline: int = 5,
    progress: bool = True,
) -> Study:
    """Search for recipes with a lower NLL than the base's.

    Each trial asks the study's sampler for a recipe of the space, scores it on `corpus` (see `engine.Engine`), and
    tells the study the mean NLL, to be minimised. The base is scored first. A recipe that is proposed again gets the
    score that it has, is marked `duplicate_of`, and does not count. At the end the best recipes and the base are scored
    once on the `held_out` windows.

    The same call again resumes the study. With one worker, one `seed` gives the same study each time. Several processes
    may search together: each makes the same call on one `storage`. Each recipe is claimed by one worker, recipes of
    crashed workers are queued again, and one worker judges the finalists. All workers return when no recipe is being
    scored any more.

    Ctrl-C, or SIGTERM, ends the search after the windows that are being scored; a second one ends it at once. Scores
    are kept, tables and plots are written, and unfinished recipes are queued again by the next call.

    Args:
        model: The model whose layers are rearranged, slung or not.
        corpus: The search windows.
        space: The search space: its name, a space of `david.space`, or any function `(trial, n_layers) → Recipe`.
        held_out: Windows that share no token with `corpus`, on which the finalists are judged; None for no judging.
        objective: What scores a model on a corpus.
        also: Extra objectives, minimised beside the NLL, by name: a corpus (its mean NLL), `(objective, corpus)`, or a
            function of the recipe, as in `{"visits": len}`. The study then has several values, its best recipes are the
            Pareto front (no other recipe is better in all values), lowest NLL first, and strategies go by the NLL.
        study: An Optuna study of your own, which keeps its sampler; None opens or creates one.
        n_trials: Search until so many distinct recipes are scored, the base included. The search ends earlier, with a
            message, when the space is exhausted or the strategy has finished.
        out: A folder for `study.db`, tables, plots, `best.json` and a page (see `page.write`).
        queue: Recipes to score first, behind the base.
        strategy: What proposes recipes in the sampler's place: `"scan"`, `"beam"`, `"refine"`, or any function
            `(study, n_layers) → recipes` (see `david.strategy`). Its recipes need not have parameters in the space.
        storage: The URL of an Optuna storage for the study; None for `out`'s `study.db`, or memory without `out`.
        study_name: The study's name in the storage.
        sampler: An Optuna sampler, or one of `tpe`, `random`, `cmaes`, `gp`, `qmc`, `nsga2`.
        seed: The seed of a sampler given by name, and of the random recipes of `baseline`.
        pruner: Let recipes race. `"race"` is a paired test against the `top` best so far (`RacingPruner`);
            `"wilcoxon"` or any other pruner is Optuna's, and gets the mean NLL of each window, with the window's number
            as the step. It may drop a recipe after the first two windows, and at the latest whenever the windows seen
            have doubled. A dropped trial is `partial`: its value is the base's NLL plus the difference on the windows
            seen, always higher than the best's, and it is never among the best.
        batch: How many recipes are asked for and scored together, so that they share the states of common layers. None:
            32 of the queue (all, if layers are loaded for each call or recipes race; one, if nothing can be shared),
            and one of the sampler.
        memory_budget: How many bytes of hidden states may be held (see `score_recipes`).
        top: How many of the best recipes are judged on `held_out`.
        baseline: How many random recipes, as deep as the best finalist (see `recipe.blocks.scattered`), are scored
            beside it on `held_out`.
        progress: Whether to show progress bars.

    Returns:
        The study. Its trials have the recipe in the user attribute `recipe`.

    Raises:
        SearchError: If an option is invalid, the study was made on another model, corpus or space, or the folder cannot
            be written. Nothing is created then. Also if 20 recipes in a row fail.
        SlingError: If the model is refused. Nothing is created then.
        StorageError: If the storage does not answer.

    Example:
        >>> study = search(model, windows, space="block", held_out=others, n_trials=3, out="run")
        >>> len(study.trials), study.trials[0].user_attrs["recipe"]
        (3, '0:30')
    """
    _check_types(
        corpus=corpus, held_out=held_out, also=also, study=study, out=out, storage=storage, study_name=study_name
    )
    _check_functions(space, objective, strategy)
    if out is not None:
        artifacts.check_own_files(out, study_name if study is None else study.study_name)
    options = _Options(
        model=model,
        corpus=corpus,
        held_out=held_out,
        space=space_named(space) if isinstance(space, str) else space,
        strategy=strategy_named(strategy) if isinstance(strategy, str) else strategy,
        objective=objective,
        also=dict(also or {}),
        queue=checked_list("queue", queue, Recipe, SearchError),
        sampler=sampler,
        seed=seed,
        pruner=pruner,
        n_trials=n_trials,
        batch=batch,
        memory_budget=memory_budget,
        top=top,
        baseline=baseline,
        out=out,
        progress=progress,
    )
    _check_options(options)
    racing_pruner = _racing_pruner(options)
    scoring = _make_scoring(options, is_racing=racing_pruner is not None)
    is_external = study is not None
    made_on = study_signature(model, options.space, corpus, held_out, objective, options.also)
    if study is None:
        study = create.open_for(out, storage, study_name, sampler, seed, 1 + len(options.also))
    _check_study(study, options, made_on)
    if racing_pruner is not None:
        study.pruner = racing_pruner
    made_with = _made_with(study, options, racing_pruner, is_external=is_external)
    _warn_of_seen_data(corpus, held_out, options.start)
    with signals.deferred_signals(), WorkerHeartbeat(study) as heartbeat:
        run = _make_run(options, scoring, heartbeat, is_racing=racing_pruner is not None, is_external=is_external)
        try:
            _sign_and_begin(study, run, options.queue, made_on, made_with)
            run_loop(study, run, n_trials, progress)
            await_others(study, run)
            if held_out is not None:
                judge_finalists(study, run, held_out, top=top, baseline=baseline, progress=progress)
        except KeyboardInterrupt:
            say(f"interrupted: {scored_text(study)}; repeat the same call to resume")
            with suppress(DavidError, OSError):  # the storage may be gone, or the study not begun
                _write_results(study, options)
            return study
        except BaseException:
            with suppress(DavidError, OSError):  # the error that ended the search is the one to report
                _write_results(study, options)
            raise
        _write_results(study, options)
    return study


def _check_types(**given: object) -> None:
    """Refuse options of other types, before anything is done with them."""
    for name, value in given.items():
        if value is not None or name in ("corpus", "study_name"):
            check_type(name, value, _TYPES[name], SearchError)


def _check_functions(space: object, objective: object, strategy: object) -> None:
    """Refuse what cannot be called where a function is expected."""
    check_function("objective", objective, "(model, corpus) → Score", SearchError)
    if not isinstance(space, str):
        kind = "(trial, n_layers) → Recipe, or a name"
        check_function("space", space, kind, SearchError)
        if isinstance(space, type | nn.Module) or hasattr(space, "bos_token_id"):  # can be called, with other arguments
            named = f"the class {space.__name__}" if isinstance(space, type) else described(space)
            raise SearchError(f"space must be a function {kind}; got {named}")
    if strategy is not None and not isinstance(strategy, str):
        check_function("strategy", strategy, "(study, n_layers) → recipes, or a name", SearchError)


def _check_options(options: _Options) -> None:
    """Refuse options that cannot be searched with, before anything is touched."""
    check_whole("n_trials", options.n_trials, SearchError, least=1)
    if options.batch is not None:
        check_whole("batch", options.batch, SearchError, least=1)
    for name in ("seed", "top", "baseline"):
        check_whole(name, getattr(options, name), SearchError, least=0)
    if options.memory_budget is not None:
        check_whole("memory_budget", options.memory_budget, SearchError, least=1)
    check_extra_objectives(options.also, options.held_out)
    n_layers = base_depth(options.model)
    _check_data(options.model, options.corpus, options.held_out)
    for recipe in (Recipe.identity(n_layers), *options.start, *options.queue):
        check_recipe(options.model, recipe)
        params_of(options.space, recipe, n_layers)  # raises for a space that does not fit the model


def check_search(
    model: nn.Module,
    corpus: Corpus,
    held_out: Corpus,
    *,
    space: Space,
    n_trials: int,
    objective: Objective = perplexity,
    also: Mapping[str, ExtraObjective] | None = None,
    queue: Sequence[Recipe] = (),
    strategy: Strategy | None = None,
) -> None:
    """Check arguments of `search`, which has them all, with a model that may have no weights yet.

    Raises:
        SearchError: As `search` raises it.
        SlingError: The model, or a recipe on it, is refused.
        ScoreError: The windows do not fit the model.
    """
    options = _Options(
        model=model,
        corpus=corpus,
        held_out=held_out,
        space=space,
        strategy=strategy,
        objective=objective,
        also=dict(also or {}),
        queue=queue,
        sampler="tpe",
        seed=0,
        pruner=None,
        n_trials=n_trials,
        batch=None,
        memory_budget=None,
        top=1,
        baseline=0,
        out=None,
        progress=False,
    )
    _check_options(options)


def _check_data(model: nn.Module, corpus: Corpus, held_out: Corpus | None) -> None:
    """Raise `ScoreError` if windows do not fit the model, `SearchError` if both parts share tokens or copies."""
    check_fits(model, corpus)
    if held_out is None:
        return
    check_fits(model, held_out)
    shared = corpus.shared_tokens(held_out)
    if shared:
        raise SearchError(
            f"search and held-out windows of {corpus.source} overlap in {shared} tokens: windows {corpus.places} and "
            f"{held_out.places}; corpus.hold_out(n, m) gives disjoint ones"
        )
    if corpus.shares_copies(held_out):
        raise SearchError(
            f"search and held-out windows of {corpus.source} hold copies of one text, or rows of one group: "
            "corpus.hold_out(n, m) keeps them on one side"
        )


def _racing_pruner(options: _Options) -> BasePruner | None:
    """Return the pruner of a race; None if recipes do not race. Raises `SearchError` if they cannot."""
    if options.pruner is None:
        return None
    if not is_token_objective(options.objective):
        raise SearchError("racing requires perplexity as the objective: leave the pruner or the objective out")
    if options.also:
        raise SearchError(f"recipes race by their NLL alone: leave the pruner out, or {', '.join(options.also)}")
    return create.pruner_named(options.pruner, 1 + options.top)


def _make_scoring(options: _Options, *, is_racing: bool) -> _Scoring:
    """Make the engines, which share the memory budget."""
    model, also = options.model, options.also
    share = memory_share(model, also, options.memory_budget)
    engine_on = partial(Engine, model, objective=options.objective, memory_budget=share, keeps=True)
    engine = engine_on(options.corpus, rung=FIRST_RUNG if is_racing else None)
    return _Scoring(engine, engine_on, measures_of(model, also, share))


def _check_study(study: Study, options: _Options, made_on: Mapping[str, Any]) -> None:
    """Refuse a study of other values or another signature, then create the folder of the search."""
    _check_directions(study, list(options.also))
    signature.check_own(study)
    signature.check_signed(study, made_on)
    if options.out is not None:
        files.make_folder(options.out)


def _check_directions(study: Study, also: Sequence[str]) -> None:
    """Raise `SearchError` unless a study minimises the NLL and the values of these names."""
    n_values = 1 + len(also)
    if study.directions == [optuna.study.StudyDirection.MINIMIZE] * n_values:
        create.check_sampler(study.sampler, n_values)
        return
    what = "one value, the NLL" if n_values == 1 else f"{n_values} values, the NLL and {', '.join(also)}"
    how = "direction='minimize'" if n_values == 1 else f"directions={['minimize'] * n_values}"
    raise SearchError(
        f"the study {study.study_name!r} must minimise {what}; it has {len(study.directions)} "
        f"({', '.join(direction.name.lower() for direction in study.directions)}): use the same objectives, another "
        f"study or folder, or a study of optuna.create_study({how})"
    )


def _made_with(
    study: Study, options: _Options, racing_pruner: BasePruner | None, *, is_external: bool
) -> dict[str, Any]:
    """Return what a new study notes of its sampler, seed, pruner and library versions."""
    is_seeded = not is_external and isinstance(options.sampler, str)
    return {
        "sampler": type(study.sampler).__name__,
        "seed": options.seed if is_seeded else None,
        "made_with": library_versions(),
        "pruner": None if racing_pruner is None else type(racing_pruner).__name__,
    }


def _make_run(
    options: _Options, scoring: _Scoring, heartbeat: WorkerHeartbeat, *, is_racing: bool, is_external: bool
) -> Run:
    return Run(
        model=options.model,
        engine_on=scoring.engine_on,
        engine=scoring.engine,
        space=options.space,
        strategy=options.strategy,
        seed=options.seed,
        batch=options.batch,
        racing=is_racing,
        external_study=is_external,
        heartbeat=heartbeat,
        extra_measures=scoring.extra_measures,
    )


def _sign_and_begin(
    study: Study, run: Run, queue: Sequence[Recipe], made_on: dict[str, Any], made_with: dict[str, Any]
) -> None:
    """Sign the study, and queue the base and the caller's recipes; one worker at a time."""
    if made_with["seed"] is not None and run.heartbeat.workers() > 1:
        study.sampler.reseed_rng()  # otherwise two workers that start at once would draw the same recipes
    with exclusive_lock(study, run.heartbeat, "beginning"):
        signature.sign(study, made_on, made_with)
        begin_study(study, run, queue)


def _write_results(study: Study, options: _Options) -> None:
    if options.out is not None:
        page.write(study, options.out, top=options.top)


def _warn_of_seen_data(corpus: Corpus, held_out: Corpus | None, start: Sequence[Recipe]) -> None:
    """Print a note if the search, or a recipe that it starts from, has seen some of the held-out data."""
    if held_out is None:
        return
    if corpus.shared_documents(held_out):
        say("search and held-out windows come from one document: they share no tokens, but their text is similar")
    scores = [score for recipe in start for score in recipe.scores if score.convention.window == held_out.window]
    scored_windows = [
        score.data.windows for score in scores if score.data.sha256 == held_out.sha256 and score.data.windows
    ]
    ranges = [window_range for text in scored_windows for window_range in ranges_of(text)]
    seen = [number for number in held_out.numbers if any(number in window_range for window_range in ranges)]
    if seen:
        say(f"the recipe to start from was scored on {len(seen)} of the held-out windows: for it, these are seen data")
