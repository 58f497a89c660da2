"""The commands that make a study or read one: `search`, `scan`, `profile` and `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from david.cli.inputs import check_recipe_options, memory_bytes, preview_corpus, preview_parts
from david.cli.option_groups import Omit
from david.cli.options import (
    OUTPUT,
    SEARCH,
    WORKERS,
    DataOptions,
    Json,
    MaxLength,
    MemoryBudget,
    ModelOptions,
    Storage,
    TaskOptions,
)
from david.cli.output import print_result, print_run
from david.cli.study_options import EvaluationOptions, JudgingOptions, ProposalOptions, SpaceOptions, StorageOptions
from david.errors import SearchError
from david.support import signals

if TYPE_CHECKING:
    from david.scoring.corpus import Corpus

_SEARCH_DATA = DataOptions(window=128, windows=12)
_SCAN_DATA = DataOptions(window=128, windows=8)


def search(
    model: ModelOptions = ModelOptions(),
    data: DataOptions = _SEARCH_DATA,
    tasks: Annotated[TaskOptions, Omit(("limit",))] = TaskOptions(),
    space: SpaceOptions = SpaceOptions(),
    proposals: ProposalOptions = ProposalOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    judging: JudgingOptions = JudgingOptions(),
    storage: StorageOptions = StorageOptions(study="david", out=Path("run")),
) -> None:
    """Search for a better arrangement of a model's layers. The same command again resumes the search.

    Example: david search demo --scales 0.1:1 --trials 40 --out run
    """
    n_workers = storage.count_workers(model)
    search_space = space.make()
    check_recipe_options(proposals.start, None)
    tasks.check(data.changed(_SEARCH_DATA))
    evaluation.check(judging.top)
    proposals.check()

    preview = model.preview()
    settings = {
        "space": search_space,
        "objective": data.objective(),
        "also": dict.fromkeys(map(str, proposals.also or ()), len),
        "n_trials": proposals.trials,
        "queue": proposals.first_recipes(preview.model),
        "strategy": proposals.strategy_for(space, preview),
        "sampler": proposals.sampler,
        "seed": proposals.seed,
    }
    if tasks.tasks is None:
        parts = preview_parts(preview, data, judging.held_out, settings)
    storage.check()

    loaded, tokenizer = model.load()
    proposals.note_other_weights(loaded)
    if tasks.tasks is not None:
        settings["objective"] = tasks.load(loaded, tokenizer, data.group_column)
        parts = settings["objective"].corpus.hold_out(data.windows, judging.held_out)
    run_study(loaded, parts, settings, evaluation, judging, storage, n_workers)


def scan(
    model: ModelOptions = ModelOptions(),
    data: DataOptions = _SCAN_DATA,
    max_length: MaxLength = None,
    evaluation: EvaluationOptions = EvaluationOptions(),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=SEARCH, help="Estimate the cost; score only the base."),
    ] = False,
    judging: JudgingOptions = JudgingOptions(),
    storage: StorageOptions = StorageOptions(study="scan", out=Path("scan")),
    as_json: Json = False,
) -> None:
    """Score every block of layers up to a length, each repeated once, and draw the scores as a heatmap.

    Example: david scan demo --max-length 2 --windows 4 --out scan
    """
    from david.candidates.spaces import Block
    from david.recipe.blocks import all_blocks, longest_block
    from david.recipe.recipe import Recipe

    n_workers = storage.count_workers(model)
    evaluation.check(judging.top)
    objective, preview = data.objective(), model.preview()
    n_layers = preview.depth
    longest = longest_block(max_length, n_layers)
    recipes = all_blocks(n_layers, longest)
    settings = {
        "space": Block(max_length=longest),
        "objective": objective,
        "n_trials": 1 + len(recipes),
        "queue": recipes,
        "sampler": "random",
    }
    parts = preview_parts(preview, data, judging.held_out, settings)
    if not dry_run:
        storage.check()

    loaded, _ = model.load()
    if dry_run:
        from david.engine.engine import Engine

        engine = Engine(loaded, parts[0], objective=objective, memory_budget=evaluation.memory_bytes, keeps=True)
        cost = engine.estimate([Recipe.identity(n_layers), *recipes])
        print_result(cost.to_dict(), str(cost), as_json)
        return
    run_study(loaded, parts, settings, evaluation, judging, storage, n_workers, as_json)


def run_study(
    loaded: Any,
    parts: "tuple[Corpus, Corpus]",
    settings: dict[str, Any],
    evaluation: EvaluationOptions,
    judging: JudgingOptions,
    storage: StorageOptions,
    n_workers: int,
    as_json: bool = False,
) -> None:
    """Run a study with its workers and print its results.

    Args:
        loaded: The base model.
        parts: The windows to search on, and the held-out windows.
        settings: Arguments of `david.search` that are the command's own.
        evaluation: How recipes are scored.
        judging: How finalists are compared.
        storage: Where the study and its results go.
        n_workers: Processes that work on the study, this one included.
        as_json: Print JSON instead of text.

    Raises:
        typer.Exit: A signal has ended the run; the exit code is 128 plus its number.
    """
    from david.report.study_report import StudyReport
    from david.study.run_search import search as run_search

    budget = evaluation.memory_bytes
    with storage.start_workers(n_workers):
        study = run_search(
            loaded,
            parts[0],
            held_out=parts[1],
            pruner=evaluation.pruner,
            batch=evaluation.batch,
            memory_budget=budget,
            top=judging.top,
            baseline=judging.baseline,
            storage=storage.storage,
            study_name=storage.study,
            out=storage.out,
            **settings,
        )
    print_run(StudyReport.read(study, judging.top), storage.out, as_json)
    if code := signals.exit_code():
        raise typer.Exit(code)


def profile(
    model: ModelOptions = ModelOptions(),
    data: Annotated[DataOptions, Omit(("gold_column", "group_column", "convention", "stride"))] = _SCAN_DATA,
    memory_budget: MemoryBudget = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", rich_help_panel=OUTPUT, help="The folder for tables and plots.")
    ] = Path("profile"),
    as_json: Json = False,
) -> None:
    """Measure each layer: how much it changes the hidden state, and what repeating or removing it costs.

    Example: david profile demo --windows 4
    """
    from david.report.artifacts import check_own_profile, write_profile
    from david.support.files import check_folder

    check_folder(out)
    check_own_profile(out)

    from david.analysis.profile import profile as run_profile

    budget = memory_bytes(memory_budget)
    corpus = preview_corpus(model.preview(), data)
    loaded, _ = model.load()
    measured = run_profile(loaded, corpus, memory_budget=budget, progress=True)
    files = write_profile(measured.layers, measured.distances, out)
    text = measured.layers.to_string(index=False, float_format="{:+.4f}".format)
    text += f"\n\n{out}: {', '.join(sorted(path.name for path in files))}"
    print_result(
        {"layers": measured.layers.to_dict("records"), "distances": measured.distances.to_numpy().tolist()},
        text,
        as_json,
    )


def report(
    folder: Annotated[Path | None, typer.Argument(metavar="FOLDER", help="A run's folder.")] = None,
    storage: Storage = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=WORKERS, help="The study's name, if the storage holds several."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", rich_help_panel=OUTPUT, help="Where to write. Default: the run's folder."),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=OUTPUT,
            help="How many of the best recipes to show that are not judged yet. Nothing is scored.",
        ),
    ] = 5,
    as_json: Json = False,
) -> None:
    """Write a study's page, tables and plots again, and print its leaderboard.

    Example: david report run
    """
    from david.report import page
    from david.report.study_report import StudyReport
    from david.storage import studies

    opened = studies.open_existing(folder, storage, study)
    target = out or folder
    if target is None:
        raise SearchError("no folder to write to: add --out FOLDER")
    with studies.damage_reported(f"the study {opened.study_name!r}"):
        summary = StudyReport.read(opened, top)
        page.write_run(summary, target)
        print_run(summary, target, as_json)
