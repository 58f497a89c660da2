"""What the commands print: text for a person, JSON for a machine."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from david.metrics import units


def print_run(study: Any, out: Path, top: int, as_json: bool = False) -> None:
    """Print a study's leaderboard and what its folder holds."""
    from david.report import sentences, tables
    from david.storage import results

    board = tables.leaderboard(study, top)
    luck, recipes = tables.luck(study), len(results.complete(study)) - 1
    by_luck = sentences.luck(luck, recipes, results.unit_of(study), results.item_of(study))
    said = (
        sentences.verdict(board),
        sentences.looks(study),
        sentences.baseline(study),
        by_luck,
        *sentences.rankings(study),
    )
    lines = [line for line in said if line]
    found = {
        "folder": str(out),
        "verdict": lines[0],
        "looks": results.evaluations(study),
        "baseline": None if (baseline := results.baseline(study)) is None else vars(baseline),
        "rankings": {name: vars(found) for name, found in tables.rank_correlations(study).items()},
        "luck": None if luck is None else vars(luck),
        "leaderboard": json.loads(board.to_json(orient="records")),
    }
    files = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    text = "\n".join([sentences.board_text(board), "", *lines, "", f"{out}: {', '.join(files)}"])
    print_found(found, text, as_json)


def print_found(found: Any, text: str, as_json: bool) -> None:
    """Print one thing, as JSON or as text."""
    sys.stdout.write((json.dumps(_finite(found), indent=2) if as_json else text) + "\n")


def _finite(value: Any) -> Any:
    """Infinity and NaN are no JSON: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(score: Any) -> dict[str, float]:
    """What a score comes to: NLL, perplexity, and bits a byte where these are known; of questions, NLL and accuracy.

    Of tasks that are measured otherwise, what a person reads of them, such as `acc`.
    """
    if score.right:
        return {"nll": score.nll, "accuracy": score.accuracy}
    if not units.is_nll(score.unit):
        return dict([units.read(score.unit, score.nll)])
    found = {"nll": score.nll, "perplexity": score.perplexity}
    return found if math.isnan(score.bits_per_byte) else found | {"bits_per_byte": score.bits_per_byte}


def figures_text(score: Any) -> str:
    """The same for a person."""
    found = figures(score)
    if "accuracy" in found:
        return f"accuracy {score.accuracy:.1%}  NLL of the right answer {score.nll:.6f} nats a question"
    if not units.is_nll(score.unit):
        return "{} {:.4f}".format(*units.read(score.unit, score.nll))
    text = f"perplexity {score.perplexity:.4f}  NLL {score.nll:.6f} {score.unit}"
    return text + (f"  {score.bits_per_byte:.4f} bits a byte" if "bits_per_byte" in found else "")
