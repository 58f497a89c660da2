"""The options that several commands share: one wording and one meaning each."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from david.candidates.spaces import SPACES
from david.support.text import join_or


class Convention(StrEnum):
    """How a text is cut and which tokens are scored: see `Corpus.load` and `score.perplexity`."""

    window = "window"
    llamacpp = "llamacpp"
    strided = "strided"
    rolling = "rolling"


class Cost(StrEnum):
    """What a search can minimise beside its objective."""

    visits = "visits"


Model = Annotated[str, typer.Argument(help="A Hub id, a folder, a .gguf file, demo, or a recipe JSON.")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="A recipe JSON, or its notation: '0:12, 8:30', '0:12, 8:12*0.5, 12:30'.")
]
RecipesOption = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="A recipe JSON, its notation ('0:12, 8:30'), or base; give it again for more."),
]
Ratios = Annotated[str | None, typer.Option(help="Slices of the depth instead of a recipe: '0:0.3, 0.2:1'.")]
DataOption = Annotated[
    str, typer.Option("--data", help="A text, JSON lines, parquet or CSV file, a Hub dataset, or python-topics.")
]
Slice = Annotated[str | None, typer.Option(help="Rows of the data: 'test[:200]', '[10%:20%]'.")]
Column = Annotated[str, typer.Option(help="The data's column that holds the text.")]
PromptColumn = Annotated[
    str | None, typer.Option(help="The column of prompts: each row is a window, and --column is what is scored of it.")
]
GoldColumn = Annotated[
    str | None,
    typer.Option(help="The column of right answers, where --column holds lists of them: multiple-choice questions."),
]
Window = Annotated[int, typer.Option(min=2, help="Tokens in a window.")]
Windows = Annotated[
    int, typer.Option(min=1, help="How many windows to score; of multiple choice, questions; of tasks, documents.")
]
HeldOut = Annotated[
    int, typer.Option(min=2, help="How many further windows (questions, documents) judge the best recipes, once.")
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks", help="Tasks of lm-eval: a YAML file or a name; several with commas: mine.yaml,arc_easy:acc_norm."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="The first documents of each task alone.")]
ConventionOption = Annotated[
    Convention,
    typer.Option(help="Which tokens are scored: all but a window's first; llama.cpp's; a sliding window; lm-eval's."),
]
Stride = Annotated[int | None, typer.Option(min=1, help="Tokens between strided windows; left out, half a window.")]
AlsoOption = Annotated[
    list[Cost] | None, typer.Option("--also", help="Minimise this beside the NLL: the front of both is judged.")
]
Bos = Annotated[bool | None, typer.Option(help="BOS as each window's first token; left out, the tokenizer's habit.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; left out, as stored.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; left out, the accelerator if there is one.")]
Out = Annotated[Path, typer.Option(help="The run's folder: study, tables, plots, best.json, report.html.")]
Storage = Annotated[str | None, typer.Option(help="An Optuna storage URL instead of the folder's study.db.")]
Workers = Annotated[
    str, typer.Option(help="Processes on this machine: a number, which share its cores, or auto: one a device.")
]
StudyName = Annotated[str, typer.Option("--study", help="The study's name in its storage.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The sampler's seed.")]
Top = Annotated[int, typer.Option(min=1, help="How many of the best are judged on held-out windows.")]
Baseline = Annotated[
    int, typer.Option(min=0, help="Random recipes, as deep as the best, that are measured on held-out windows too.")
]
StrategyName = Annotated[
    str | None, typer.Option("--strategy", help="scan, beam or refine in the sampler's place; left out, the sampler.")
]
Start = Annotated[
    str | None, typer.Option(help="Where refine starts: a recipe JSON, or its notation; left out, the base.")
]
WarmStart = Annotated[bool, typer.Option("--warm-start", help="Begin with each layer repeated, and each left out.")]
Space = Annotated[str, typer.Option(help=f"{join_or(SPACES)}.")]
Scales = Annotated[
    str | None,
    typer.Option(
        help="Range of strengths: '0.1:1', '-0.5:1.5'; of repeats, or of what removal damps; left out, plain."
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Longest block; left out, a quarter of the layers (a window: half of them).")
]
MaxVisits = Annotated[
    int | None, typer.Option(min=1, help="Visits of the deepest recipe; repeats that come too late are left out.")
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Recipes asked for and scored together; left out, what suits the search.")
]
Pruner = Annotated[
    str | None, typer.Option(help="race, or wilcoxon: the hopeless are dropped after a few windows; left out, none is.")
]
MemoryBudget = Annotated[
    str | None, typer.Option(help="Hidden states held at once: '2GB'; left out, a quarter of the free memory.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would cost, and score nothing but the base.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

DEFAULT_DATA = "python-topics"
