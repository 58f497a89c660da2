"""The commands that make a study or read one: `search`, `scan`, `profile` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from david.cli import local_workers
from david.cli.inputs import as_range, bytes_of, check_recipe, check_tasks, corpus_of, load, objective_of, strategy_of
from david.cli.options import (
    DEFAULT_DATA,
    AlsoOption,
    Baseline,
    Batch,
    Bos,
    Column,
    Convention,
    ConventionOption,
    DataOption,
    Device,
    DryRun,
    Dtype,
    GoldColumn,
    HeldOut,
    Json,
    MaxLength,
    MaxVisits,
    MemoryBudget,
    Model,
    Out,
    PromptColumn,
    Pruner,
    Scales,
    Seed,
    Slice,
    Space,
    Start,
    Storage,
    StrategyName,
    Stride,
    StudyName,
    TasksOption,
    Top,
    WarmStart,
    Window,
    Windows,
    Workers,
)
from david.cli.output import print_found, print_run
from david.errors import SearchError
from david.support import signals

_WINDOW = 128


def search(
    model: Model = "demo",
    data: DataOption = DEFAULT_DATA,
    slice: Slice = None,  # noqa: A002  # the option's name
    column: Column = "text",
    prompt_column: PromptColumn = None,
    gold_column: GoldColumn = None,
    window: Window = _WINDOW,
    windows: Windows = 12,
    held_out: HeldOut = 24,
    convention: ConventionOption = Convention.window,
    stride: Stride = None,
    bos: Bos = None,
    tasks: TasksOption = None,
    space: Space = "blocks",
    scales: Scales = None,
    max_length: MaxLength = None,
    max_visits: MaxVisits = None,
    also: AlsoOption = None,
    sampler: Annotated[str, typer.Option(help="tpe, random, cmaes, gp, qmc or nsga2.")] = "tpe",
    trials: Annotated[int, typer.Option(min=1, help="Distinct recipes to score in all, the base included.")] = 40,
    seed: Seed = 0,
    strategy: StrategyName = None,
    start: Start = None,
    warm_start: WarmStart = False,
    pruner: Pruner = None,
    batch: Batch = None,
    memory_budget: MemoryBudget = None,
    top: Top = 5,
    baseline: Baseline = 5,
    storage: Storage = None,
    study: StudyName = "david",
    workers: Workers = "1",
    out: Out = Path("run"),
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Search for a better arrangement of a model's layers; the same command again goes on where it stopped.

    Example: david search demo --scales 0.1:1 --trials 40 --out run
    """
    from david.candidates.spaces import space_named
    from david.candidates.strategies import singles
    from david.support.files import check_folder

    check_folder(out)
    n_workers = local_workers.number_of(workers, device)
    strengths = None if scales is None else as_range(scales, "--scales")
    wanted = space_named(space, scales=strengths, max_length=max_length, max_visits=max_visits)
    check_recipe(start, None)
    others = {
        "--data": data != DEFAULT_DATA,
        "--slice": slice is not None,
        "--column": column != "text",
        "--prompt-column": prompt_column is not None,
        "--gold-column": gold_column is not None,
        "--window": window != _WINDOW,
        "--convention": convention is not Convention.window,
        "--stride": stride is not None,
        "--bos": bos is not None,
    }
    check_tasks(tasks, others=others)

    from david.sling.in_place import base_depth, can_run
    from david.study.search import search as run_search

    loaded, tokenizer = load(model, dtype, device)
    if tasks is None:
        objective = objective_of(convention, gold_column)
        corpus = corpus_of(tokenizer, data, slice, window, bos, column, prompt_column, gold_column, convention, stride)
    else:
        from david.scoring.tasks import load as load_tasks

        objective = load_tasks(tasks, loaded, tokenizer)
        corpus = objective.corpus
    seen, unseen = corpus.hold_out(windows, held_out)
    warm = [recipe for recipe in singles(base_depth(loaded)) if warm_start and can_run(loaded, recipe)]
    with local_workers.beside(n_workers, out):
        made = run_search(
            loaded,
            seen,
            space=wanted,
            held_out=unseen,
            objective=objective,
            also=dict.fromkeys(map(str, also or ()), len),
            n_trials=trials,
            out=out,
            queue=warm,
            strategy=strategy_of(strategy, start, max_length, max_visits, loaded),
            storage=storage,
            study_name=study,
            sampler=sampler,
            seed=seed,
            pruner=pruner,
            batch=batch,
            memory_budget=bytes_of(memory_budget),
            top=top,
            baseline=baseline,
        )
    print_run(made, out, top)
    _leave()


def scan(
    model: Model = "demo",
    data: DataOption = DEFAULT_DATA,
    slice: Slice = None,  # noqa: A002
    column: Column = "text",
    prompt_column: PromptColumn = None,
    gold_column: GoldColumn = None,
    window: Window = 128,
    windows: Windows = 8,
    held_out: HeldOut = 24,
    convention: ConventionOption = Convention.window,
    stride: Stride = None,
    bos: Bos = None,
    max_length: MaxLength = None,
    pruner: Pruner = None,
    batch: Batch = None,
    memory_budget: MemoryBudget = None,
    dry_run: DryRun = False,
    top: Top = 5,
    baseline: Baseline = 5,
    storage: Storage = None,
    study: StudyName = "scan",
    workers: Workers = "1",
    out: Out = Path("scan"),
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score every block of layers up to a length, each repeated once, as a heatmap.

    Example: david scan demo --max-length 2 --windows 4 --out scan
    """
    from david.candidates.spaces import Block
    from david.recipe.blocks import all_blocks, longest_block
    from david.recipe.recipe import Recipe
    from david.support.files import check_folder

    check_folder(out)
    n_workers = local_workers.number_of(workers, device)

    from david.sling.in_place import base_depth
    from david.study.search import search as run_search

    loaded, tokenizer = load(model, dtype, device)
    corpus = corpus_of(tokenizer, data, slice, window, bos, column, prompt_column, gold_column, convention, stride)
    seen, unseen = corpus.hold_out(windows, held_out)
    n_layers = base_depth(loaded)
    longest = longest_block(max_length, n_layers)
    every = all_blocks(n_layers, longest)
    if dry_run:
        from david.engine.engine import Engine

        budget = bytes_of(memory_budget)
        engine = Engine(loaded, seen, objective=objective_of(convention, gold_column), memory_budget=budget, keeps=True)
        cost = engine.estimate([Recipe.identity(n_layers), *every])
        print_found(cost.to_dict(), str(cost), as_json)
        return
    with local_workers.beside(n_workers, out):
        made = run_search(
            loaded,
            seen,
            space=Block(max_length=longest),
            held_out=unseen,
            objective=objective_of(convention, gold_column),
            n_trials=1 + len(every),
            out=out,
            queue=every,
            storage=storage,
            study_name=study,
            sampler="random",
            pruner=pruner,
            batch=batch,
            memory_budget=bytes_of(memory_budget),
            top=top,
            baseline=baseline,
        )
    print_run(made, out, top, as_json)
    _leave()


def profile(
    model: Model = "demo",
    data: DataOption = DEFAULT_DATA,
    slice: Slice = None,  # noqa: A002
    column: Column = "text",
    prompt_column: PromptColumn = None,
    window: Window = 128,
    windows: Windows = 8,
    bos: Bos = None,
    memory_budget: MemoryBudget = None,
    out: Annotated[Path, typer.Option(help="The folder for the tables and plots.")] = Path("profile"),
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """What each layer does: how much it turns the hidden state, and what repeating it and leaving it out cost.

    Example: david profile demo --windows 4
    """
    from david.report.artifacts import write_profile
    from david.support.files import check_folder

    check_folder(out)

    from david.analysis.profile import profile as run_profile

    loaded, tokenizer = load(model, dtype, device)
    corpus = corpus_of(tokenizer, data, slice, window, bos, column, prompt_column, None).take(windows)
    found = run_profile(loaded, corpus, memory_budget=bytes_of(memory_budget), progress=True)
    files = write_profile(found.layers, found.distances, out)
    text = found.layers.to_string(index=False, float_format="{:+.4f}".format)
    text += f"\n\n{out}: {', '.join(sorted(path.name for path in files))}"
    print_found(
        {"layers": found.layers.to_dict("records"), "distances": found.distances.to_numpy().tolist()}, text, as_json
    )


def report(
    folder: Annotated[Path | None, typer.Argument(help="A run's folder.")] = None,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option("--study", help="The study's name, where there are several.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; left out, the run's folder.")] = None,
    top: Top = 5,
    as_json: Json = False,
) -> None:
    """Write a study's page, tables and plots again, and print its leaderboard.

    Example: david report run
    """
    from david.report import page
    from david.storage import studies

    opened = studies.open_existing(folder, storage, study)
    target = out or folder
    if target is None:
        raise SearchError("say where to write: --out FOLDER")
    with studies.readable(f"the study {opened.study_name!r}"):
        page.write(opened, target, top=top)
        print_run(opened, target, top, as_json)


def _leave() -> None:
    """Exit as a process does that a signal has ended, where one has."""
    if code := signals.exit_code():
        raise typer.Exit(code)
