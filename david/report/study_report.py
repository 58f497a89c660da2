"""What the files, the page and the terminal show of a study: each table and number is computed once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from optuna import Study

from david.errors import SearchError
from david.metrics.paired_test import Correlation
from david.metrics.score import CUT_ANSWERS
from david.metrics.selection_bias import Luck
from david.metrics.shrinkage import Shrinkage
from david.report import sentences, tables
from david.storage.results import StudyResults
from david.support.arguments import check_whole


@dataclass(frozen=True, eq=False)
class StudyReport:
    """The tables and sentences of a study.

    Attributes:
        results: The study's results.
        top: How many recipes the leaderboard shows that are not judged yet, and how many paths the page draws.
    """

    results: StudyResults
    top: int = 5

    @classmethod
    def read(cls, study: Study | StudyResults, top: int = 5) -> "StudyReport":
        """Read a study once.

        Raises:
            SearchError: No search has run on the study.
        """
        check_whole("top", top, SearchError, least=0)
        return cls(StudyResults.read(study), top)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The table of `tables.trials`."""
        return tables.trials(self.results)

    @cached_property
    def board(self) -> pd.DataFrame:
        """The table of `tables.leaderboard`."""
        return tables.leaderboard(self.results, self.top)

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """The table of `tables.blocks`."""
        return tables.blocks(self.results)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The Pareto front of all that the study minimises."""
        return tables.front(self.trials)

    @cached_property
    def depth_front(self) -> pd.DataFrame:
        """The Pareto front of the NLL and the visits."""
        return tables.front(self.trials, ["visits"])

    @cached_property
    def luck(self) -> Luck | None:
        """The luck line."""
        return tables.luck(self.results)

    @cached_property
    def rank_correlations(self) -> Mapping[str, Correlation]:
        """How well the search windows rank the recipes for each other measure."""
        return tables.rank_correlations(self.results)

    @cached_property
    def objective_correlations(self) -> Mapping[tuple[str, str], Correlation]:
        """How similarly each two of the study's objectives rank its recipes."""
        return tables.objective_correlations(self.results)

    @cached_property
    def shrinkage(self) -> Shrinkage | None:
        """How much of the finalists' gain on the search windows is left on the held-out ones."""
        return tables.shrinkage(self.results)

    @property
    def n_recipes(self) -> int:
        """How many recipes were scored, without the base."""
        return len(self.results.scored) - 1

    @property
    def luck_sentence(self) -> str:
        """The luck line in a sentence; empty if it is unknown."""
        return sentences.luck(self.luck, self.n_recipes, self.results.unit, self.results.item)

    @property
    def shrinkage_sentence(self) -> str:
        """The shrinkage in a sentence; empty if it is unknown."""
        return sentences.shrinkage(self.shrinkage, self.results.unit, self.results.item)

    @property
    def ranking_sentences(self) -> list[str]:
        """How objectives and measures rank the recipes, in sentences."""
        return [
            *sentences.objective_sentences(self.objective_correlations),
            *sentences.ranking_sentences(self.rank_correlations),
        ]

    @property
    def cut_note(self) -> str:
        """What a cut answer is, in a sentence; empty if no answer of the leaderboard was cut."""
        shares = [self.board[name] for name in ("search_cut", "held_out_cut") if name in self.board]
        return CUT_ANSWERS if any((share > 0).any() for share in shares) else ""

    @property
    def sentences(self) -> list[str]:
        """What the study found, in sentences, the verdict first."""
        lines = (
            sentences.verdict(self.board),
            sentences.looks(self.results),
            self.shrinkage_sentence,
            sentences.baseline(self.results),
            self.luck_sentence,
            *sentences.scarcity(self.results),
            *self.ranking_sentences,
            self.cut_note,
        )
        return [line for line in lines if line]
