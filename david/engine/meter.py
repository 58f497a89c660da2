"""What scoring has cost so far, counted and timed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class Meter:
    """What runs have cost: visits, ends, and loads of a layer that is offloaded, with their seconds.

    And the bytes of states: held now, held at most, of the largest.
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
    exact: bool = False  # wait for the device after each

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count a `visit`, an `end` or a `load`, and how long it takes."""
        start = time.perf_counter()
        yield
        if self.exact and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        state = vars(self)
        state[f"{what}s"] += 1
        state[f"{what}_seconds"] += time.perf_counter() - start

    def hold(self, nbytes: int) -> None:
        """Count a state that is held from now on, or with a negative number one that no longer is."""
        self.held += nbytes
        self.peak, self.largest = max(self.peak, self.held), max(self.largest, nbytes)
