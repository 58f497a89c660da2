"""Count and time what scoring costs: visits, ends, loads of weights, and bytes of hidden states."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Meter:
    """What runs have cost so far.

    Attributes:
        visits: Visits that ran.
        ends: Ends (norm, head) that ran.
        loads: Loads of a layer (or of the end) that is offloaded.
        visit_seconds: Seconds of all visits.
        end_seconds: Seconds of all ends.
        load_seconds: Seconds of all loads.
        held: Bytes of states that are held now.
        peak: Bytes of states that were held at once at most.
        largest: Bytes of the largest state.
        exact: Whether to wait for the accelerator after each visit, end and load, so that seconds are exact.
    """

    visits: int = 0
    ends: int = 0
    loads: int = 0
    visit_seconds: float = 0.0
    end_seconds: float = 0.0
    load_seconds: float = 0.0
    held: int = 0
    peak: int = 0
    largest: int = 0
    exact: bool = False

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count a `visit`, an `end` or a `load`, and the seconds of the `with`."""
        start = time.perf_counter()
        yield
        if self.exact and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        counts = vars(self)
        counts[f"{kind}s"] += 1
        counts[f"{kind}_seconds"] += time.perf_counter() - start

    def hold(self, nbytes: int) -> None:
        """Count bytes of a state that is held from now on; a negative number for one that is dropped."""
        self.held += nbytes
        self.peak, self.largest = max(self.peak, self.held), max(self.largest, nbytes)
