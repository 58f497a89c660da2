"""Options of the commands that make a study: the space, what proposes recipes, how they are scored, judged and stored.

To add an option that `search` and `scan` share, add a field to its group here, and use it in `studies.run_study`.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from david.candidates.spaces import SPACES
from david.cli import inputs, local_workers
from david.cli.options import (
    JUDGING,
    OUTPUT,
    SEARCH,
    WORKERS,
    MaxLength,
    MemoryBudget,
    ModelOptions,
    Seed,
    Storage,
    Top,
)
from david.errors import RecipeError
from david.support.text import join_or

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from david.candidates.spaces import Space
    from david.candidates.strategies import Strategy
    from david.models.without_weights import Preview
    from david.recipe.recipe import Recipe


class ExtraCost(StrEnum):
    """What a search can minimise beside its objective."""

    visits = "visits"


@dataclass(frozen=True)
class SpaceOptions:
    """The search space."""

    panel: ClassVar[str] = SEARCH
    space: Annotated[str, typer.Option(metavar="NAME", help=f"{join_or(SPACES)}.")] = "blocks"
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="RANGE",
            help="Range of scales of repeats (removal: of damped layers): '0.1:1', '-0.5:1.5'. Default: no scales.",
        ),
    ] = None
    max_length: MaxLength = None
    max_visits: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Visits in the longest recipe; later repeats are left out."),
    ] = None

    def make(self) -> "Space":
        """Return the search space; `RecipeError` or `SearchError` if the options are not valid for it."""
        from david.candidates.spaces import space_named

        scales = None if self.scales is None else inputs.parse_range(self.scales, "--scales")
        return space_named(self.space, scales=scales, max_length=self.max_length, max_visits=self.max_visits)


@dataclass(frozen=True)
class ProposalOptions:
    """How many recipes a search scores, and what proposes them: a sampler or a strategy."""

    panel: ClassVar[str] = SEARCH
    also: Annotated[
        list[ExtraCost] | None,
        typer.Option(metavar="COST", help="Minimise this too (visits): finalists are taken from the Pareto front."),
    ] = None
    sampler: Annotated[str, typer.Option(metavar="NAME", help="tpe, random, cmaes, gp, qmc or nsga2.")] = "tpe"
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Distinct recipes to score in total, the base included.")
    ] = 40
    seed: Seed = 0
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="scan, beam or refine, in place of the sampler. Default: the sampler."),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Where refine starts: a recipe JSON, or a notation. Default: the base."),
    ] = None
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="First score each layer repeated, and each layer removed.")
    ] = False

    def check(self) -> None:
        """Check the sampler before a model is loaded; `SearchError` if there is none of this name."""
        from david.study.create import check_sampler

        check_sampler(self.sampler, 1 + len(self.also or ()))

    def strategy_for(self, space: SpaceOptions, preview: "Preview") -> "Strategy | None":
        """Return the strategy for a model, or None if the sampler proposes recipes.

        Raises:
            RecipeError: `--start` is given without `--strategy`, or does not fit the model.
        """
        from david.candidates.strategies import strategy_named

        if self.strategy is None:
            if self.start is not None:
                raise RecipeError("--start requires a strategy that refines: add --strategy refine")
            return None
        start = None if self.start is None else inputs.preview_recipe(preview, self.start)
        return strategy_named(self.strategy, max_length=space.max_length, max_visits=space.max_visits, start=start)

    def note_other_weights(self, loaded: Any) -> None:
        """Print a note if `--start` was made on other weights than those of the loaded model."""
        if self.start is not None:
            inputs.parse_recipe(self.start, None, None, loaded)

    def first_recipes(self, loaded: Any) -> "list[Recipe]":
        """Return the recipes that `--warm-start` scores first, of those that the model can run."""
        if not self.warm_start:
            return []
        from david.candidates.strategies import singles
        from david.sling.in_place import base_depth, can_run

        return [recipe for recipe in singles(base_depth(loaded)) if can_run(loaded, recipe)]


@dataclass(frozen=True)
class EvaluationOptions:
    """How recipes are scored: in which batches, within which memory, and whether poor ones are dropped early."""

    panel: ClassVar[str] = SEARCH
    pruner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="race or wilcoxon: drop poor recipes after a few windows. Default: drop none."
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Recipes proposed and scored together. Default: set by the search."),
    ] = None
    memory_budget: MemoryBudget = None

    def check(self, finalists: int) -> None:
        """Check the pruner and the memory budget before a model is loaded; `DavidError` if one cannot be used."""
        from david.study.create import pruner_named

        inputs.memory_bytes(self.memory_budget)
        if self.pruner is not None:
            pruner_named(self.pruner, 1 + finalists)

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes; `DavidError` if it is not a size."""
        return inputs.memory_bytes(self.memory_budget)


@dataclass(frozen=True)
class JudgingOptions:
    """How finalists are compared on held-out data."""

    panel: ClassVar[str] = JUDGING
    held_out: Annotated[
        int,
        typer.Option(
            min=2, metavar="N", help="Held-out windows (or questions, or documents): finalists are scored on them once."
        ),
    ] = 24
    top: Top = 5
    baseline: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Random recipes of the best one's depth to score on held-out windows too."
        ),
    ] = 5


@dataclass(frozen=True)
class StorageOptions:
    """Where a study is stored, who works on it, and where its results go."""

    panel: ClassVar[str] = WORKERS
    storage: Storage = None
    study: Annotated[str, typer.Option(metavar="NAME", help="The study's name in its storage.")] = "david"
    workers: Annotated[
        str,
        typer.Option(
            metavar="N", help="Worker processes on this machine: a number, or auto for one on each accelerator."
        ),
    ] = "1"
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="The run's folder: study, tables, plots, best.json and report.html.",
        ),
    ] = Path("run")

    def count_workers(self, model: ModelOptions) -> int:
        """Check the folder, and return the number of workers; `DavidError` if either cannot be used."""
        from david.report.artifacts import check_own_files
        from david.support.files import check_folder

        check_folder(self.out)
        check_own_files(self.out, self.study)
        return local_workers.count_workers(self.workers, model.device, model.device_map)

    def check(self) -> None:
        """Open and close the storage of `--storage` before a model is loaded; `StorageError` if it does not answer."""
        if self.storage is not None:
            from david.storage.backend import open_storage

            open_storage(self.storage).remove_session()

    def start_workers(self, n_workers: int) -> "AbstractContextManager[None]":
        """Run the command in `n_workers` processes, this one included, within a `with` block."""
        return local_workers.start_workers(n_workers, self.out)
