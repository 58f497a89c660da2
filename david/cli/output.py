"""What the commands print: text for people, JSON for programs."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from david.metrics import units
from david.metrics.score import CUT_ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from david.metrics.score import Score
    from david.report.study_report import StudyReport


def print_run(report: "StudyReport", out: Path, as_json: bool = False) -> None:
    """Print a study's leaderboard, its sentences, and the files of its folder.

    Args:
        report: The study's report.
        out: The folder.
        as_json: Print JSON instead of text.
    """
    from david.report.sentences import board_text

    lines = report.sentences
    baseline, luck = report.results.baseline, report.luck
    data = {
        "folder": str(out),
        "verdict": lines[0],
        "looks": report.results.evaluations,
        "baseline": None if baseline is None else vars(baseline),
        "rankings": {name: vars(correlation) for name, correlation in report.rank_correlations.items()},
        "objective_rankings": [
            {"objectives": list(pair)} | vars(found) for pair, found in report.objective_correlations.items()
        ],
        "luck": None if luck is None else vars(luck),
        "shrinkage": None if report.shrinkage is None else vars(report.shrinkage),
        "leaderboard": json.loads(report.board.to_json(orient="records")),
    }
    files = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    text = "\n".join([board_text(report.board), "", *lines, "", f"{out}: {', '.join(files)}"])
    print_result(data, text, as_json)


def print_result(data: Any, text: str, as_json: bool) -> None:
    """Print the result of a command.

    Args:
        data: The result as JSON-like data, in which infinity and NaN become null.
        text: The result as text.
        as_json: Print the data instead of the text.
    """
    sys.stdout.write((json.dumps(_finite(data), indent=2) if as_json else text) + "\n")


def _finite(value: Any) -> Any:
    """Return data with None instead of infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(score: "Score") -> dict[str, float]:
    """Return the figures of a score by their names.

    Args:
        score: The score.

    Returns:
        NLL, perplexity, and bits a byte if known; for multiple-choice questions NLL and accuracy; for tasks whose
        score is no NLL their metric, such as `acc`; and the share of generated answers that were cut, if there are any.
    """
    if score.right:
        return {"nll": score.nll, "accuracy": score.accuracy}
    cut = {"cut_share": score.cut_share} if score.cut else {}
    if not units.is_nll(score.unit):
        return dict([units.readable(score.unit, score.nll)]) | cut
    bits = {} if math.isnan(score.bits_per_byte) else {"bits_per_byte": score.bits_per_byte}
    return {"nll": score.nll, "perplexity": score.perplexity} | bits | cut


def figures_text(score: "Score") -> str:
    """Return `figures` as a line of text.

    Args:
        score: The score.
    """
    values = figures(score)
    if "accuracy" in values:
        return f"accuracy {score.accuracy:.1%}  NLL of the right answer {score.nll:.6f} nats a question"
    cut = f"  answers cut {score.cut_share:.1%}" if "cut_share" in values else ""
    if not units.is_nll(score.unit):
        return "{} {:.4f}".format(*units.readable(score.unit, score.nll)) + cut
    text = f"perplexity {score.perplexity:.4f}  NLL {score.nll:.6f} {score.unit}"
    return text + (f"  {score.bits_per_byte:.4f} bits a byte" if "bits_per_byte" in values else "") + cut


def cut_notes(shares: "Iterable[float]") -> list[str]:
    """Return a note if answers were cut.

    Args:
        shares: The shares of answers that were cut; NaN where none were generated.
    """
    if not any(share > 0 for share in shares):
        return []
    return [f"note: {CUT_ANSWERS}"]
