"""The study loop: ask, run, tell; resume; judge the best on windows that the search has not seen."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import optuna
import torch
import transformers
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import nn
from tqdm.auto import tqdm

from david import page, records, report, stopping, store, units
from david._version import __version__
from david.also import Also, check_also, measures_of, share_of, values_of
from david.base import describe
from david.corpus import Corpus
from david.engine import Engine, counts_tokens
from david.errors import DavidError, SearchError
from david.judging import judge
from david.messages import end_at, say
from david.origin import ranges_of
from david.queueing import Asked, enqueue, first_queued, reclaim
from david.recipe import Recipe
from david.rounds import Run, in_hand, kept, play
from david.score import Objective, check_fits, perplexity
from david.sling import base_depth, check_recipe
from david.space import Space, is_built_in, named, params_of
from david.storage import one_look
from david.strategy import Refine, Strategy
from david.strategy import named as strategy_named
from david.workers import Heart, alone

_REPEATS_BEFORE_RANDOM = 5  # proposals in a row with nothing new, before one is drawn at random, not by the sampler
_REPEATS_BEFORE_END = 200  # … and before the space counts as used up
_FAILURES_BEFORE_END = 20
_WAIT = 0.5  # seconds between two looks at what other workers do
_FIRST_RUNG = 2  # windows on which recipes race first


def search(
    model: nn.Module,
    corpus: Corpus,
    *,
    space: Space | str = "blocks",
    held_out: Corpus | None,
    objective: Objective = perplexity,
    also: Mapping[str, Also] | None = None,
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
    """Search for recipes with a lower NLL than the base's, until `n_trials` distinct ones (the base counts) are scored.

    Each trial asks the study's sampler for a recipe of the `space`, scores it on `corpus` (see `engine.Engine`) and
    tells the study the mean NLL, to be minimised. The base comes first, the recipes of `queue` next. A
    recipe that comes again is told the score it has, marked `duplicate_of`, and does not count; when nothing new
    comes any more the study ends with a word. At the end the `top` best and the base are scored on the `held_out`
    windows, once, and beside them `baseline` random recipes as deep as the best of these (see `parts.scattered`). With
    `out`, that folder gets tables, plots, `best.json` and a page (see `page.write`).

    What stands in `also` is minimised beside the NLL, each by a name of its own: a corpus by its mean NLL,
    `(objective, corpus)`, or a function of the recipe, such as `{"visits": len}`. The study then has several values,
    its best are those that no other recipe beats in all (the Pareto front), lowest NLL first, and strategies go by the
    NLL.

    A `strategy` is asked for what comes next in the sampler's place: `"scan"`, `"beam"`, `"refine"`, or any function
    `(study, n_layers) → recipes` (see `david.strategy`), which need not be such as the space can say. The search ends
    where it has none.

    A `batch` of recipes is asked for and scored together, so that they share what they have in common; left out, the
    queue is in batches of 32 (in one, where layers are loaded for each call or recipes race; one by one, where nothing
    can be shared) and the sampler is asked for one at a time. `memory_budget` is how many bytes of hidden states may be
    held (see `score_recipes`).

    With a `pruner` recipes race: `"race"` is a paired test against the `top` best so far (`RacingPruner`), `"wilcoxon"`
    or any other is Optuna's, and is shown the mean NLL of each window with the window's number for the step. After the
    first two windows, and at the latest whenever those seen have doubled, it may drop a recipe. That trial is
    `partial`: told the base's NLL plus its difference on the windows it has seen, though never less than the best's,
    and never among the best.

    Several processes may search together: each makes the same call, on one `storage`. What one has in hand is left to
    it, what a dead one had is run by another, and the finalists are judged by one. All end when nothing is in hand.

    The study lives in `out`'s `study.db`, in an Optuna `storage` under `study_name`, or is a `study` given by hand
    (which keeps its own sampler); the same call again goes on where it stopped. One worker and one `seed` give the same
    study each time. Ctrl-C, or SIGTERM, ends after the windows in hand, the second at once: what is scored is kept, and
    tables and plots are written; the recipes in hand come again at the next call.

    Raises `SearchError` for a study made on another model, corpus or space, or a folder that cannot be written, and
    `SlingError` for a model that is refused; nothing is made then.

    Example:
        >>> study = search(model, windows, space="block", held_out=others, n_trials=3, out="run")
        >>> len(study.trials), study.trials[0].user_attrs["recipe"]
        (3, '0:30')
    """
    _check_counts(n_trials=n_trials, batch=batch)
    if baseline < 0:
        raise SearchError(f"baseline must be 0 or more; got {baseline}")
    space = named(space) if isinstance(space, str) else space
    strategy = strategy_named(strategy) if isinstance(strategy, str) else strategy
    also = dict(also or {})
    check_also(also, held_out)
    _check_data(model, corpus, held_out)
    n_layers = base_depth(model)
    start = [strategy.start] if isinstance(strategy, Refine) and strategy.start is not None else []
    for recipe in (Recipe.identity(n_layers), *start, *queue):
        check_recipe(model, recipe)
        params_of(space, recipe, n_layers)  # raises for a space that does not fit the model
    racing = _racing(pruner, objective, 1 + top, also)
    share = share_of(model, also, memory_budget)
    scorer = partial(Engine, model, objective=objective, memory_budget=share, keeps=True)
    engine = scorer(corpus, rung=_FIRST_RUNG if racing else None)
    measures, by_hand = measures_of(model, also, share), study is not None
    about = study_signature(model, space, corpus, held_out, objective, also)
    if study is None:
        study = store.open_for(out, storage, study_name, sampler, seed, 1 + len(also))
    _check_directions(study, list(also))
    store.check_signed(study, about)
    if out is not None:
        report.ready_folder(out)
    if racing is not None:
        study.pruner = racing
    own_seed = None if by_hand or isinstance(sampler, BaseSampler) else seed
    once = {"sampler": type(study.sampler).__name__, "seed": own_seed, "made_with": library_versions()}
    once["pruner"] = None if racing is None else type(racing).__name__
    _tell_seen(corpus, held_out, start)
    with stopping.gently(), Heart(study) as heart:
        run = Run(
            model,
            scorer,
            engine,
            space,
            strategy,
            seed,
            batch,
            racing=racing is not None,
            by_hand=by_hand,
            heart=heart,
            also=measures,
        )
        try:
            if own_seed is not None and heart.workers() > 1:
                study.sampler.reseed_rng()  # or two that start at once would draw the same
            with alone(study, heart, "beginning"):
                store.sign(study, about, once)
                begin_study(study, run, queue)
            run_loop(study, run, n_trials, progress)
            await_others(study, run)
            if held_out is not None:
                judge(study, run, held_out, top=top, baseline=baseline, progress=progress)
        except KeyboardInterrupt:
            say(f"interrupted: {scored_text(study)}; the same call goes on from here")
            with suppress(DavidError, OSError):  # the storage may be gone, or the study not begun
                _write(study, out, top)
            return study
        except BaseException:
            with suppress(DavidError, OSError):  # what ended the search is told, not this
                _write(study, out, top)
            raise
        _write(study, out, top)
    return study


def _write(study: Study, out: str | os.PathLike[str] | None, top: int) -> None:
    if out is not None:
        page.write(study, out, top=top)


def run_loop(study: Study, run: Run, n_trials: int, progress: bool) -> None:
    stale = failures = here = 0
    scored = len(records.complete(study))
    with tqdm(unit="visit", unit_scale=True, smoothing=0.1, disable=not progress or scored >= n_trials) as bar:
        while True:
            stopping.check()
            with one_look(study):
                reclaim(study, run.heart, unsigned=not run.by_hand)
                if (scored := len(records.complete(study))) >= n_trials:
                    break
                if stale >= _REPEATS_BEFORE_END:
                    say(f"the space is used up: nothing new in {stale} proposals, {scored} recipes scored")
                    return
                elsewhere = len(in_hand(study, run))
                room = n_trials - scored - elsewhere
                has_next = room > 0 and _has_next(study, run, room)
                if not has_next and not elsewhere:
                    say(f"the strategy is at its end, {scored} recipes scored")
                    return
                n = min(run.recipes_at_once(study), -(-room // run.heart.workers()))
                bar.set_description_str(f"search {scored}/{n_trials} recipes", refresh=False)
                bar.set_postfix_str(_standing(study))
            if not has_next:  # what others have in hand may fail, or they may die; or what comes next hangs on it
                stopping.pause(_WAIT)
                continue
            each = bar.n / here if here else run.engine.work([Recipe.identity(run.n_layers)])
            own = study.sampler
            if stale >= _REPEATS_BEFORE_RANDOM:
                study.sampler = store.sampler_named("random", run.seed, len(study.get_trials(deepcopy=False)))
            try:
                later = each * (n_trials - scored - n)
                outcomes = play(study, run, n, until=n_trials, expect=partial(_expect, bar, later), done=bar.update)
            finally:
                study.sampler = own
            stale = stale + len(outcomes) if set(outcomes) == {"duplicate"} else 0
            for outcome in outcomes:
                if run.strategy is not None and outcome == "refused":
                    continue  # a strategy asks for whatever comes next, and learns from this
                failures = failures + 1 if outcome in ("failed", "refused") else failures * (outcome == "duplicate")
                here += outcome == "scored"
            if failures >= _FAILURES_BEFORE_END:
                raise SearchError(f"{failures} recipes in a row failed; the last one's reason stands above")
        end_at(bar, bar.n)
        bar.set_description_str(f"search {scored}/{n_trials} recipes")


def _has_next(study: Study, run: Run, room: int) -> bool:
    """Whether there is something to ask for now; a strategy fills an empty queue, as far as there is room."""
    if run.strategy is None or first_queued(study) is not None:
        return True
    _enqueue(study, run, run.strategy(study, run.n_layers), store.name_of(run.strategy), room)
    return first_queued(study) is not None


def await_others(study: Study, run: Run) -> None:
    """Wait until the others have finished what they have in hand: one of it may be the best."""
    told = False
    while running := len(in_hand(study, run)):
        stopping.check()
        if not told:
            say(f"waiting for {running} recipes that other workers have in hand")
            told = True
        stopping.pause(_WAIT)
        reclaim(study, run.heart, unsigned=not run.by_hand)


def _expect(bar: Any, later: float, work: float) -> None:
    """Let a bar end where this much work, and what comes later, is done."""
    end_at(bar, bar.n + work + later)


def _asked(run: Run, recipe: Recipe, strategy: str | None = None) -> Asked:
    """How a recipe is queued: by its parameters where the space can say it, else as it is."""
    params = params_of(run.space, recipe, run.n_layers)
    return Asked({}, str(recipe), strategy) if params is None else Asked(params, None, strategy)


def begin_study(study: Study, run: Run, queue: Sequence[Recipe]) -> None:
    """Put the base first and the queue behind it, where the study does not have them yet."""
    base = Recipe.identity(run.n_layers)
    running = {trial.user_attrs.get("recipe") for trial in in_hand(study, run)}
    waits = str(base) in running or first_queued(study) in (None, _asked(run, base))
    if records.base_trial(study) is None and not waits:
        _score_base(study, run, base)  # a queue that was left behind would come before it
    _enqueue(study, run, [base, *queue])
    finished = (TrialState.COMPLETE, TrialState.WAITING)
    bare = sum(_bare(trial) for trial in study.get_trials(deepcopy=False, states=finished))
    if bare and run.strategy is None and store.models_parameters_alone(study.sampler):
        sampler = type(study.sampler).__name__
        say(f"{sampler} draws at random here, since the space cannot say {bare} of the recipes: tpe goes by the others")


def _bare(trial: FrozenTrial) -> bool:
    return not (trial.params or trial.system_attrs.get("fixed_params"))


def _score_base(study: Study, run: Run, base: Recipe) -> None:
    [score] = run.engine.outcomes([base])
    if isinstance(score, DavidError):
        raise score
    means = {i: nll / score.window_tokens[i] for i, nll in enumerate(score.window_nll)}
    about = {"recipe": str(base), **kept(score)}
    [values] = values_of(run.also, [base])
    if isinstance(values, DavidError):
        raise values
    values = [score.nll, *values]
    study.add_trial(create_trial(values=values, user_attrs=about, intermediate_values={} if run.also else means))


def _enqueue(
    study: Study, run: Run, recipes: Sequence[Recipe], strategy: str | None = None, room: int | None = None
) -> None:
    """Queue the recipes that are not scored yet, as far as there is room."""
    known = {trial.user_attrs["recipe"] for trial in records.complete(study)}
    new = [recipe for recipe in recipes if str(recipe) not in known]
    enqueue(study, [_asked(run, recipe, strategy) for recipe in new[:room]])


def study_signature(
    model: nn.Module,
    space: Space,
    corpus: Corpus,
    held_out: Corpus | None,
    objective: Objective,
    also: Mapping[str, Also],
) -> dict[str, Any]:
    """What a study is made on: what every worker that joins it must have too."""
    return {
        "base": describe(model).model_dump(),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "space": store.name_of(space),
        "space_name": type(space).__name__.lower() if is_built_in(space) else store.name_of(space),
        "objective": store.name_of(objective),
        "also": [[name, _told(what)] for name, what in also.items()],
        "window": corpus.window,
        "bos": corpus.bos,
        "search_data": store.data_of(corpus),
        "search_documents": list(corpus.documents),
        "held_out_data": None if held_out is None else store.data_of(held_out),
    }


def library_versions() -> dict[str, str]:
    return {"david": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _told(what: Also) -> Any:
    """What a study remembers of what it minimises beside the NLL."""
    if isinstance(what, Corpus):
        what = perplexity, what
    if isinstance(what, tuple):
        return {"objective": store.name_of(what[0]), "data": store.data_of(what[1])}
    return store.name_of(what)


def _racing(
    pruner: str | BasePruner | None, objective: Objective, finalists: int, also: Mapping[str, Also]
) -> BasePruner | None:
    if pruner is None:
        return None
    if not counts_tokens(objective):
        raise SearchError("only recipes scored by perplexity can race: leave the pruner out, or the objective")
    if also:
        raise SearchError(f"recipes race by their NLL alone: leave the pruner out, or {', '.join(also)}")
    return store.pruner_named(pruner, finalists)


def _check_directions(study: Study, also: Sequence[str]) -> None:
    """`SearchError` unless a study minimises the NLL, and as many values beside it as there are names."""
    wanted = 1 + len(also)
    if study.directions == [optuna.study.StudyDirection.MINIMIZE] * wanted:
        store.check_sampler(study.sampler, wanted)
        return
    what = "one value, the NLL" if wanted == 1 else f"{wanted} values, the NLL and {', '.join(also)}"
    how = "direction='minimize'" if wanted == 1 else f"directions={['minimize'] * wanted}"
    raise SearchError(
        f"the study {study.study_name!r} must minimise {what}; it has {len(study.directions)} "
        f"({', '.join(direction.name.lower() for direction in study.directions)}): give the same, or another study "
        f"or folder, by hand optuna.create_study({how})"
    )


def _check_counts(**counts: int | None) -> None:
    for name, number in counts.items():
        if number is not None and number < 1:
            raise SearchError(f"{name} must be at least 1; got {number}")


def _check_data(model: nn.Module, corpus: Corpus, held_out: Corpus | None) -> None:
    """`ScoreError` where windows do not fit the model, `SearchError` where search and held-out ones share tokens."""
    check_fits(model, corpus)
    if held_out is None:
        return
    check_fits(model, held_out)
    both = corpus.shared_tokens(held_out)
    if both:
        raise SearchError(
            f"search and held-out windows of {corpus.source} overlap in {both} tokens: windows {corpus.places} and "
            f"{held_out.places}; corpus.hold_out(n, m) gives disjoint ones"
        )


def _tell_seen(corpus: Corpus, held_out: Corpus | None, start: Sequence[Recipe]) -> None:
    """A word where the search, or a recipe that it starts from, has seen something of what is held out."""
    if held_out is None:
        return
    if corpus.shared_documents(held_out):
        say("search and held-out windows are parts of one document: unseen by the search, but much like what it saw")
    scores = [score for recipe in start for score in recipe.scores if score.convention.window == held_out.window]
    windows = [its.data.windows for its in scores if its.data.sha256 == held_out.sha256 and its.data.windows]
    ranges = [some for text in windows for some in ranges_of(text)]
    seen = [number for number in held_out.numbers if any(number in some for some in ranges)]
    if seen:
        say(f"the recipe to start from was scored on {len(seen)} of the held-out windows before: it has seen them")


def scored_text(study: Study) -> str:
    try:
        return f"{len(records.complete(study))} recipes are scored"
    except DavidError as error:  # the storage is gone
        return str(error)


def _standing(study: Study) -> str:
    base, best = records.base_trial(study), records.best_of_search(study, 1)
    parts = [f"base {records.value_of(base):.4f}"] if base is not None else []
    unit = records.unit_of(study)
    parts += [f"best {records.value_of(trial):.4f}" for trial in best]
    return ", ".join(parts) + (" nats" if units.is_nll(unit) else f" {unit}")
