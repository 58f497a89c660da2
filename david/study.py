"""The study loop: ask, run, tell; resume; judge the best on windows that the search has not seen."""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
import transformers
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import nn
from tqdm.auto import tqdm

import david
from david import report, store, table
from david.corpus import Corpus
from david.engine import score_recipes
from david.errors import DavidError, ScoreError, SearchError
from david.models import describe
from david.recipe import Recipe
from david.score import Objective, Score, check_fits, perplexity
from david.space import Space, named, params_of

_REPEATS_BEFORE_RANDOM = 5  # proposals in a row with nothing new, before one is drawn at random, not by the sampler
_REPEATS_BEFORE_END = 200  # … and before the space counts as used up
_FAILURES_BEFORE_END = 20


def search(
    model: nn.Module,
    corpus: Corpus,
    *,
    space: Space | str = "blocks",
    held_out: Corpus | None,
    objective: Objective = perplexity,
    study: Study | None = None,
    n_trials: int,
    out: str | os.PathLike[str] | None = None,
    queue: Sequence[Recipe] = (),
    storage: str | None = None,
    study_name: str = "david",
    sampler: str | BaseSampler = "tpe",
    seed: int = 0,
    top: int = 5,
    progress: bool = True,
) -> Study:
    """Search for recipes with a lower NLL than the base's, until `n_trials` distinct ones (the base counts) are scored.

    Each trial asks the study's sampler for a recipe of the `space`, scores it on `corpus` (see `score_recipes`) and
    tells the study the mean NLL, to be minimised. The base comes first, the recipes of `queue` next. A
    recipe that comes again is told the score it has, marked `duplicate_of`, and does not count; when nothing new
    comes any more the study ends with a word. At the end the `top` best and the base are scored on the `held_out`
    windows, once. With `out`, that folder gets tables, plots and `best.json` (see `report.write`).

    The study lives in `out`'s `study.db`, in an Optuna `storage` under `study_name`, or is a `study` given by hand
    (which keeps its own sampler); the same call again goes on where it stopped. One worker and one `seed` give the same
    study each time. Ctrl-C ends cleanly: what is scored is kept, and tables and plots are written.

    Raises `SearchError` for a study made on another model, corpus or space, or a folder that cannot be written, and
    `SlingError` for a model that is refused; nothing is made then.

    Example:
        >>> study = search(model, windows, space="block", held_out=others, n_trials=40, out="run")  # doctest: +SKIP
        >>> study.best_trial.user_attrs["recipe"]  # doctest: +SKIP
    """
    if n_trials < 1:
        raise SearchError(f"n_trials must be at least 1; got {n_trials}")
    space = named(space) if isinstance(space, str) else space
    check_fits(model, corpus)
    if held_out is not None:
        check_fits(model, held_out)
        _check_disjoint(corpus, held_out)
    run = _Run(model, corpus, space, objective, describe(model).num_layers, seed, by_hand=study is not None)
    wanted = _queue(run, queue)
    about = _about(run, held_out)
    if study is None:
        study = store.open_for(out, storage, study_name, sampler, seed)
    if out is not None:
        report.ready_folder(out)
    if len(study.directions) != 1 or study.direction != optuna.study.StudyDirection.MINIMIZE:
        raise SearchError("the study must minimise one value, the NLL: optuna.create_study(direction='minimize')")
    own_seed = None if run.by_hand or isinstance(sampler, BaseSampler) else seed
    store.sign(study, about, {"sampler": type(study.sampler).__name__, "seed": own_seed, "made_with": _made_with()})
    try:
        _begin(study, run, wanted)
        _loop(study, run, n_trials, progress)
        if held_out is not None:
            _judge(study, run, held_out, top, progress)
    except KeyboardInterrupt:
        _say(f"interrupted: {len(table.complete(study))} recipes are scored; the same call goes on from here")
    finally:
        if out is not None:
            report.write(study, out, top=top)
    return study


@dataclass(frozen=True)
class _Run:
    """What a trial needs."""

    model: nn.Module
    corpus: Corpus
    space: Space
    objective: Objective
    n_layers: int
    seed: int
    by_hand: bool  # the study is the caller's, who may ask it for trials too

    def score(self, recipe: Recipe, corpus: Corpus) -> Score:
        [score] = score_recipes(self.model, [recipe], corpus, objective=self.objective)
        if math.isnan(score.nll):
            raise ScoreError("the objective's NLL is not a number")
        return score


def _loop(study: Study, run: _Run, n_trials: int, progress: bool) -> None:
    stale = failures = 0
    scored = len(table.complete(study))
    with tqdm(total=n_trials, initial=min(scored, n_trials), desc="search", unit="recipe", disable=not progress) as bar:
        while scored < n_trials:
            if stale >= _REPEATS_BEFORE_END:
                _say(f"the space is used up: nothing new in {stale} proposals, {scored} recipes scored")
                return
            store.reclaim(study, unsigned=not run.by_hand)
            own = study.sampler
            if stale >= _REPEATS_BEFORE_RANDOM:
                study.sampler = store.sampler_named("random", run.seed, len(study.get_trials(deepcopy=False)))
            try:
                outcome = _trial(study, run)
            finally:
                study.sampler = own
            stale = stale + 1 if outcome == "duplicate" else 0
            failures = failures + 1 if outcome == "failed" else failures * (outcome == "duplicate")
            if failures >= _FAILURES_BEFORE_END:
                raise SearchError(f"{failures} recipes in a row failed; the last one's reason stands above")
            if outcome == "scored":
                bar.update()
                bar.set_postfix_str(_standing(study), refresh=False)
            scored = len(table.complete(study))


def _trial(study: Study, run: _Run) -> str:
    """Ask, run and tell one trial; whether it was scored, a duplicate, or failed."""
    trial = study.ask()
    try:
        trial.set_user_attr("worker", store.worker())
        recipe = run.space(trial, run.n_layers)
        trial.set_user_attr("recipe", str(recipe))
        known = _known(study, str(recipe))
        if known is None:
            score = run.score(recipe, run.corpus)
            known = _known(study, str(recipe))  # another worker may have been faster
        if known is not None:
            trial.set_user_attr("duplicate_of", known.number)
            study.tell(trial, known.value, state=known.state)
            return "duplicate"
        for name, value in _kept(score).items():
            trial.set_user_attr(name, value)
        study.tell(trial, score.nll)
    except DavidError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
        _say(f"trial {trial.number} failed: {error}")
        return "failed"
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    return "scored"


def _known(study: Study, notation: str) -> FrozenTrial | None:
    """The trial that has scored a recipe, or found that it cannot be scored."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        scored = trial.state == TrialState.COMPLETE or "error" in trial.user_attrs
        if scored and trial.user_attrs.get("recipe") == notation and "duplicate_of" not in trial.user_attrs:
            return trial
    return None


def _kept(score: Score) -> dict[str, Any]:
    """What a trial keeps of its score."""
    return {
        "window_nll": list(score.window_nll),
        "window_tokens": list(score.window_tokens),
        "convention": score.convention,
    }


def _queue(run: _Run, queue: Sequence[Recipe]) -> dict[str, dict[str, Any]]:
    """The notation and the parameters of each recipe that is to come first."""
    wanted = {}
    for recipe in queue:
        params = params_of(run.space, recipe, run.n_layers)
        if params is None:
            raise SearchError(f"the recipe {recipe} in the queue cannot be said in this space")
        wanted[str(recipe)] = params
    return wanted


def _begin(study: Study, run: _Run, wanted: dict[str, dict[str, Any]]) -> None:
    """Put the base first and the queue behind it, where the study does not have them yet."""
    if table.base_trial(study) is None:
        base = Recipe.identity(run.n_layers)
        params = params_of(run.space, base, run.n_layers)
        if params is not None:
            store.enqueue(study, [params])
        else:
            _say("this space cannot say the base: it is scored outside the sampler's sight")
            score = run.score(base, run.corpus)
            study.add_trial(create_trial(value=score.nll, user_attrs={"recipe": str(base), **_kept(score)}))
    known = {trial.user_attrs["recipe"] for trial in table.complete(study)}
    store.enqueue(study, [params for notation, params in wanted.items() if notation not in known])


def _judge(study: Study, run: _Run, held_out: Corpus, top: int, progress: bool) -> None:
    """Score the base and the `top` best on held-out windows, and keep that in the study; each once."""
    base = table.base_trial(study)
    picked = [*([base] if base is not None else []), *table.best_of_search(study, top)]
    wanted = [trial for trial in picked if table.held_out(study, trial) is None]
    with tqdm(total=len(wanted), desc="held-out", unit="recipe", disable=not progress or not wanted) as bar:
        for trial in wanted:
            score = run.score(Recipe.parse(trial.user_attrs["recipe"]), held_out)
            kept = table.HeldOut(score.window_nll, score.window_tokens, score.documents)
            table.keep_held_out(study, trial, kept)
            bar.update()


def _about(run: _Run, held_out: Corpus | None) -> dict[str, Any]:
    """What a study is made on: what every worker that joins it must have too."""
    ours = type(run.space).__module__ == "david.space"
    return {
        "base": describe(run.model).model_dump(),
        "dtype": str(next(run.model.parameters()).dtype).removeprefix("torch."),
        "space": store.name_of(run.space),
        "space_name": type(run.space).__name__.lower() if ours else store.name_of(run.space),
        "objective": store.name_of(run.objective),
        "window": run.corpus.window,
        "bos": run.corpus.bos,
        "search_data": store.data_of(run.corpus),
        "held_out_data": None if held_out is None else store.data_of(held_out),
    }


def _made_with() -> dict[str, str]:
    return {"david": david.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _check_disjoint(corpus: Corpus, held_out: Corpus) -> None:
    """`SearchError` where both are of one text and share tokens."""
    if corpus.sha256 != held_out.sha256:
        return
    (start, stop), (low, high) = ([end * part.window for end in part.span] for part in (corpus, held_out))
    if start < high and low < stop:
        raise SearchError(
            f"search and held-out windows of {corpus.source} overlap: tokens {start}–{stop - 1} and {low}–{high - 1}; "
            "corpus.split(n, m) gives disjoint ones"
        )


def _standing(study: Study) -> str:
    base, best = table.base_trial(study), table.best_of_search(study, 1)
    parts = [f"base {base.value:.4f}"] if base is not None else []
    return ", ".join(parts + [f"best {trial.value:.4f}" for trial in best]) + " nats"


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
