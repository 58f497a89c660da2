"""Options that several commands share: the model, the data, tasks, and single options.

Each group is a dataclass, whose fields `option_groups` turns into options; its methods do what the options ask for.
The groups of commands that make a study are in `study_options`.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from david.cli import inputs
from david.errors import CorpusError, ScoreError
from david.scoring.conventions import CONVENTIONS, DEFAULT_CONVENTION
from david.support.text import counted

if TYPE_CHECKING:
    from david.models.load_options import LoadOptions
    from david.models.without_weights import Preview
    from david.recipe.recipe import Recipe
    from david.scoring.corpus import Corpus

MODEL, DATA, SEARCH, JUDGING = "Model", "Data", "Search", "Judging"
WORKERS, OUTPUT, SAMPLING = "Storage and workers", "Output", "Sampling"

_LARGEST_SEED = 2**63 - 1


ConventionChoice = StrEnum("ConventionChoice", list(CONVENTIONS))  # type: ignore[misc]  # members from the table
_DEFAULT_CONVENTION = ConventionChoice(DEFAULT_CONVENTION)


def _check_seed(seed: int) -> int:
    """Refuse a seed that does not fit 64 bits: `max=` would print the limit in the help, wider than all else."""
    if seed > _LARGEST_SEED:
        raise typer.BadParameter(f"Input should be less than or equal to {_LARGEST_SEED}.")
    return seed


RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="A recipe JSON, or a recipe's notation: '0:12, 8:30', '0:12, 8:12*0.5, 12:30'.",
    ),
]
RecipesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="A recipe JSON, a recipe's notation ('0:12, 8:30'), or base. Repeatable."
    ),
]
Ratios = Annotated[
    str | None,
    typer.Option(metavar="RANGES", help="Slices of the depth, in place of a recipe: '0:0.3, 0.2:1'."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=SEARCH,
        help="Layers in the longest block. Default: a quarter of the model's layers (space windows: half).",
    ),
]
Top = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", rich_help_panel=JUDGING, help="Finalists: the best recipes, scored on held-out windows."
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, metavar="N", callback=_check_seed, help="The sampler's seed, of at most 63 bits.")
]
Storage = Annotated[
    str | None,
    typer.Option(metavar="URL", rich_help_panel=WORKERS, help="An Optuna storage. Default: study.db in the folder."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory for hidden states, such as '2GB'. Default: a quarter of the free memory."
    ),
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON instead of text.")]


@dataclass(frozen=True)
class ModelOptions:
    """The base model of a command, and how it is held: data type, device, quantisation, place of its parts."""

    panel: ClassVar[str] = MODEL
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Hub id, a folder, a .gguf file, demo, or a recipe JSON.")
    ] = "demo"
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as stored.", metavar="DTYPE")
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:1, … Default: the accelerator, if there is one.", metavar="DEVICE")
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="WAY",
            help="Quantise the weights while loading: 4bit or 8bit (bitsandbytes), int8 (torchao). Or stored: keep the "
            "blocks of a GGUF file and unpack them while they run.",
        ),
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="MAP", help="Spread the layers over accelerators, CPU and disk: auto, balanced or sequential."
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZES", help="With --device-map: memory of each device, such as '0=20GB,cpu=60GB'."),
    ] = None
    offload_folder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="With --device-map: where weights are kept that do not fit into memory."),
    ] = None

    def load_options(self) -> "LoadOptions":
        """Return how the model is to be held."""
        from david.models.load_options import LoadOptions

        return LoadOptions(
            self.dtype, self.device, self.quantize, self.device_map, self.max_memory, self.offload_folder
        )

    def preview(self) -> "Preview":
        """Return what is known of the model before its weights are read; see `inputs.preview_base`."""
        return inputs.preview_base(self.model, self.load_options())

    def load(self) -> tuple[Any, Any]:
        """Return the base model and its tokenizer; see `inputs.load_base_model`."""
        return inputs.load_base_model(self.model, self.load_options())

    def load_with_recipe(self, *, prove_new: bool = True) -> tuple[Any, Any, "Recipe | None"]:
        """Return the base model, its tokenizer, and the recipe if MODEL is one; see `inputs.load_with_recipe`."""
        return inputs.load_with_recipe(self.model, self.load_options(), prove_new=prove_new)


@dataclass(frozen=True)
class DataOptions:
    """The text, prompts or questions that recipes are scored on, how they are cut, and by which convention."""

    panel: ClassVar[str] = DATA
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="A text, JSON lines, parquet or CSV file, a Hub dataset, or python-topics."),
    ] = "python-topics"
    slice: Annotated[str | None, typer.Option(metavar="ROWS", help="Rows of the data: 'test[:200]', '[10%:20%]'.")] = (
        None
    )
    column: Annotated[str, typer.Option(metavar="NAME", help="The column that holds the text.")] = "text"
    prompt_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The column that holds prompts: each row is a window; only --column is scored."
        ),
    ] = None
    gold_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column that holds right answers, for multiple-choice questions: --column holds lists of answers.",
        ),
    ] = None
    group_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column (of tasks: the field) that says what belongs together: rows with the same value count as "
            "one document, as copies of a text do anyway.",
        ),
    ] = None
    window: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens in a window.")] = 128
    windows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Windows (or questions, or documents of tasks) to score.")
    ] = 8
    convention: Annotated[
        ConventionChoice,
        typer.Option(
            metavar="NAME",
            help="Which tokens are scored. "
            + "; ".join(f"{convention.name}: {convention.help}" for convention in CONVENTIONS.values())
            + ".",
        ),
    ] = _DEFAULT_CONVENTION
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens between strided windows. Default: half a window."),
    ] = None
    bos: Annotated[
        bool | None, typer.Option(help="BOS as the first token of each window. Default: as the tokenizer does.")
    ] = None

    def changed(self, defaults: "DataOptions") -> list[str]:
        """Return the options that differ from `defaults`, except those that tasks have too."""
        names = [name for name, value in vars(self).items() if value != getattr(defaults, name)]
        return [f"--{name.replace('_', '-')}" for name in names if name not in ("windows", "group_column")]

    def without_columns(self) -> "DataOptions":
        """Return these options for a text file, which has neither rows nor columns."""
        return replace(self, slice=None, column="text", prompt_column=None, gold_column=None, group_column=None)

    def corpus(self, tokenizer: Any, source: str | None = None, *, windows: int | None = None) -> "Corpus":
        """Return the windows of `--data`, or of `source` in its place: the first ones, or all.

        Raises:
            CorpusError: The data cannot be read or cut, or `--stride` comes without strided windows.
        """
        from david.scoring.corpus import Corpus

        if self.stride is not None and not CONVENTIONS[self.convention].takes_stride:
            strided = " or ".join(name for name, convention in CONVENTIONS.items() if convention.takes_stride)
            raise CorpusError(f"--stride requires strided windows: add --convention {strided}")
        return Corpus.load(
            self.data if source is None else source,
            tokenizer,
            slice=self.slice,
            window=self.window,
            bos=self.bos,
            column=self.column,
            prompt=self.prompt_column,
            gold=self.gold_column,
            group=self.group_column,
            convention=self.convention.value if CONVENTIONS[self.convention].first_scored is None else None,
            stride=self.stride,
            windows=windows,
        )

    def hold_out(self, tokenizer: Any, held_out: int) -> "tuple[Corpus, Corpus]":
        """Return `--windows` windows to search on, and so many held-out ones; `CorpusError` as `corpus` raises it."""
        from david.scoring.sources import is_text_file

        # The windows of one document are held out in their order. Other windows are drawn from all.
        windows = self.windows + held_out if is_text_file(self.data) else None
        return self.corpus(tokenizer, windows=windows).hold_out(self.windows, held_out)

    def first_windows(self, tokenizer: Any, source: str | None = None) -> "Corpus":
        """Return the first `--windows` windows or questions of the data.

        Raises:
            CorpusError: The data have fewer, or `corpus` raises it.
        """
        corpus = self.corpus(tokenizer, source, windows=self.windows)
        n, item = len(corpus.items()), "question" if corpus.choices else "window"
        if self.windows > n:
            shorter = "" if corpus.choices else ", a shorter --window"
            raise CorpusError(
                f"--windows {self.windows} is more than {corpus.source} has: {counted(n, item)} of up to "
                f"{corpus.window} tokens; give --windows {n} or fewer{shorter}, or more data"
            )
        return corpus.take(self.windows)

    def objective(self) -> Any:
        """Return the objective: multiple choice for questions with right answers, else perplexity by a convention.

        Raises:
            ScoreError: A convention is given for questions.
        """
        from david.scoring.objectives import multiple_choice, perplexity

        if self.gold_column is not None:
            if self.convention is not _DEFAULT_CONVENTION:
                raise ScoreError(f"multiple choice has no conventions: leave --convention {self.convention} out")
            return multiple_choice
        if self.convention is _DEFAULT_CONVENTION or CONVENTIONS[self.convention].first_scored is None:
            return perplexity  # the second kind marks its scored tokens in the corpus
        return partial(perplexity, convention=self.convention.value)


@dataclass(frozen=True)
class TaskOptions:
    """Tasks of lm-eval to score on."""

    panel: ClassVar[str] = DATA
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks of lm-eval: YAML files or names, separated by commas: mine.yaml,arc_easy:acc_norm.",
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only the first N documents of each task.")
    ] = None

    def check(self, data_options: list[str] | None = None) -> None:
        """Check the tasks' names and the options beside them, before a model is loaded.

        Args:
            data_options: Options in use that do not go with tasks, such as `["--column"]`.

        Raises:
            CorpusError: The options contradict each other, or a name cannot be a task's.
        """
        if self.tasks is None:
            if self.limit is not None:
                raise CorpusError("--limit requires --tasks")
            return
        if data_options:
            raise CorpusError(f"--tasks brings its own documents and measures: leave {', '.join(data_options)} out")
        from david.scoring.tasks import parse_task_names

        parse_task_names(self.tasks)

    def load(self, loaded: Any, tokenizer: Any, group: str | None = None) -> Any:
        """Return the `Tasks` for a model, or None if there are none; `group` is `--group-column`."""
        if self.tasks is None:
            return None
        from david.scoring.tasks import load_tasks

        return load_tasks(self.tasks, loaded, tokenizer, limit=self.limit, group=group)
