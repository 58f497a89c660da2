"""The estimated cost of scoring recipes, and its text on the screen."""

from dataclasses import asdict, dataclass
from typing import Any

from david.engine.prefix_tree import Cost


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of scoring recipes on a corpus.

    Attributes:
        cost: Visits, ends and states for one batch of windows, summed over the groups.
        groups: Groups of recipes that run one after another; several if the memory budget does not hold all states.
        windows: Windows of the corpus.
        batches: Batches that the windows are scored in.
        end_visits: What an end costs, in visits.
        state_bytes: Bytes of the hidden state of one batch.
        loads: Loads of a layer (or of the end), if layers are offloaded.
        seconds: Seconds of the whole, loads included.
        reason: Why no visit is shared; None if visits are shared.
    """

    cost: Cost
    groups: int
    windows: int
    batches: int
    end_visits: float
    state_bytes: int
    loads: int
    seconds: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"ratio": self.ratio}

    @property
    def ratio(self) -> float:
        """How many times less work this is than one recipe at a time."""
        return self.cost.ratio(self.end_visits) if self.reason is None else 1.0

    def __str__(self) -> str:
        cost, why = self.cost, f": {self.reason}" if self.reason else ""
        lines = [
            f"recipes   {cost.recipes:,}, on {self.windows} windows in batches of {-(-self.windows // self.batches)}",
            f"visits    {cost.visits:,} distinct a batch, {cost.visits_one_by_one:,} recipe by recipe",
            f"ends      {cost.ends:,} a batch, each as costly as {self.end_visits:.1f} visits",
            f"work      {self.ratio:.2f} times less than recipe by recipe{why}",
        ]
        states = cost.sweep_states if self.loads else cost.states
        at_once = f"states    {states} at once, {states * self.state_bytes / 1e6:,.1f} MB"
        if self.loads:
            lines.append(f"{at_once}; {cost.sweeps} sweeps, {self.loads:,} loads of a layer or the end")
        elif self.reason is None:
            lines.append(at_once)
        if self.groups > 1:
            lines.append(f"groups    {self.groups}, since the memory budget holds no more states at once")
        return "\n".join([*lines, f"time      about {_duration(self.seconds)}"])


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
