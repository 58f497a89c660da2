"""The memory budget of an engine: how many windows and hidden states fit, and what to do when memory runs out."""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from david.errors import ScoreError
from david.support.console import say
from david.support.memory import lacks_memory
from david.support.text import one_line

_TOKENS_AT_ONCE = 1024  # go through a layer together: with more, two cores are no faster
_TOKENS_AT_ONCE_WIDE = 8192  # … on an accelerator, or where a layer is loaded for them


@dataclass
class MemoryBudget:
    """Bytes of hidden states that may be held at once.

    Attributes:
        total: The bytes.
        window_bytes: Bytes of the hidden state of one window.
        keeps: Whether half of the total is for states kept between calls.
    """

    total: int
    window_bytes: int
    keeps: bool

    def windows_at_once(self, window: int, *, wide: bool) -> int:
        """Return the windows of a batch: as many as make a layer's call efficient, if two states of a run fit.

        Args:
            window: Tokens of a window.
            wide: Whether layers run on an accelerator, or are loaded for each call.
        """
        efficient = (_TOKENS_AT_ONCE_WIDE if wide else _TOKENS_AT_ONCE) // window
        return max(1, min(efficient, self.total // ((4 if self.keeps else 2) * self.window_bytes)))

    def states_at_once(self, batch: range) -> int:
        """Return how many states of a batch of windows a run may hold, at least 1."""
        reserved = self.total // 2 if self.keeps else 0
        return max(1, (self.total - reserved) // (self.window_bytes * len(batch)))

    def reduce(self, batches: list[range], place: int) -> bool:
        """Hold fewer windows or states after memory has run out, and print what changes.

        Args:
            batches: The batches of windows; those from `place` on are halved in place, if they have several windows.
            place: The batch that ran out of memory.

        Returns:
            Whether the batch is worth another try; False if as little as possible is held already.
        """
        batch = batches[place]
        if len(batch) > 1:
            half = len(batch) // 2
            say(f"out of memory with {len(batch)} windows at once: continuing with {half}")
            batches[place:] = [part[i : i + half] for part in batches[place:] for i in range(0, len(part), half)]
            self.total = max(1, self.total // 2)
        elif self.total > (least := 2 * self.window_bytes):
            say("out of memory for the states of one window: continuing with as few states as possible")
            self.total = least
        else:
            return False
        return True


def window_batches(n_windows: int, at_once: int, rung: int | None) -> Iterator[range]:
    """Yield the ranges of windows that are scored together.

    Args:
        n_windows: Windows of the corpus.
        at_once: Windows of a batch at most.
        rung: Windows of the first rung; each further rung has as many windows as all before it. If None, one rung.
    """
    start, stop = 0, rung or n_windows
    while start < n_windows:
        stop = min(stop, n_windows)
        yield from (range(low, min(low + at_once, stop)) for low in range(start, stop, at_once))
        start, stop = stop, 2 * stop


def release_memory(error: Exception) -> None:
    """Free what an error has left behind in memory.

    Raises:
        ScoreError: The accelerator itself has failed; only a new process can use it.
    """
    if isinstance(error, torch.AcceleratorError) and not lacks_memory(error):
        raise ScoreError(f"the device failed: {one_line(error)}; start a new process") from error
    traceback.clear_frames(error.__traceback__)  # they hold states
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
