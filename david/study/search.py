"""The study loop: ask, run, tell; resume; judge the best on windows that the search has not seen."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from torch import nn

from david.candidates.encoding import Space
from david.candidates.spaces import params_of, space_named
from david.candidates.strategies import Refine, Strategy
from david.candidates.strategies import strategy_named as strategy_named
from david.engine.engine import Engine
from david.engine.token_objective import is_token_objective
from david.errors import DavidError, SearchError
from david.recipe.recipe import Recipe
from david.recipe.schema import ranges_of
from david.report import page
from david.scoring.corpus import Corpus
from david.scoring.objectives import Objective, check_fits, perplexity
from david.sling.in_place import base_depth, check_recipe
from david.storage.heartbeat import WorkerHeartbeat
from david.storage.lock import exclusive_lock
from david.study import create, signature
from david.study.extra_objectives import ExtraObjective, check_extra_objectives, measures_of, memory_share
from david.study.finalists import judge_finalists
from david.study.loop import await_others, begin_study, run_loop, scored_text
from david.study.run import Run
from david.study.signature import library_versions, study_signature
from david.support import files, signals
from david.support.console import say

_FIRST_RUNG = 2  # windows on which recipes race first


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
    space = space_named(space) if isinstance(space, str) else space
    strategy = strategy_named(strategy) if isinstance(strategy, str) else strategy
    also = dict(also or {})
    check_extra_objectives(also, held_out)
    _check_data(model, corpus, held_out)
    n_layers = base_depth(model)
    start = [strategy.start] if isinstance(strategy, Refine) and strategy.start is not None else []
    for recipe in (Recipe.identity(n_layers), *start, *queue):
        check_recipe(model, recipe)
        params_of(space, recipe, n_layers)  # raises for a space that does not fit the model
    racing = _racing(pruner, objective, 1 + top, also)
    share = memory_share(model, also, memory_budget)
    scorer = partial(Engine, model, objective=objective, memory_budget=share, keeps=True)
    engine = scorer(corpus, rung=_FIRST_RUNG if racing else None)
    measures, by_hand = measures_of(model, also, share), study is not None
    about = study_signature(model, space, corpus, held_out, objective, also)
    if study is None:
        study = create.open_for(out, storage, study_name, sampler, seed, 1 + len(also))
    _check_directions(study, list(also))
    signature.check_signed(study, about)
    if out is not None:
        files.make_folder(out)
    if racing is not None:
        study.pruner = racing
    own_seed = None if by_hand or isinstance(sampler, BaseSampler) else seed
    once = {"sampler": type(study.sampler).__name__, "seed": own_seed, "made_with": library_versions()}
    once["pruner"] = None if racing is None else type(racing).__name__
    _tell_seen(corpus, held_out, start)
    with signals.deferred_signals(), WorkerHeartbeat(study) as heart:
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
            with exclusive_lock(study, heart, "beginning"):
                signature.sign(study, about, once)
                begin_study(study, run, queue)
            run_loop(study, run, n_trials, progress)
            await_others(study, run)
            if held_out is not None:
                judge_finalists(study, run, held_out, top=top, baseline=baseline, progress=progress)
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


def _racing(
    pruner: str | BasePruner | None, objective: Objective, finalists: int, also: Mapping[str, ExtraObjective]
) -> BasePruner | None:
    if pruner is None:
        return None
    if not is_token_objective(objective):
        raise SearchError("only recipes scored by perplexity can race: leave the pruner out, or the objective")
    if also:
        raise SearchError(f"recipes race by their NLL alone: leave the pruner out, or {', '.join(also)}")
    return create.pruner_named(pruner, finalists)


def _check_directions(study: Study, also: Sequence[str]) -> None:
    """`SearchError` unless a study minimises the NLL, and as many values beside it as there are names."""
    wanted = 1 + len(also)
    if study.directions == [optuna.study.StudyDirection.MINIMIZE] * wanted:
        create.check_sampler(study.sampler, wanted)
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
