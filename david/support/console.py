"""Lines to the person in front of the screen, while something runs."""

import sys
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

from david.support.text import plain


def say(line: str) -> None:
    """A line to stderr, above a bar."""
    tqdm.write(plain(line), file=sys.stderr)


def set_bar_total(bar: Any, total: float) -> None:
    """Let a bar end there. In a notebook it is drawn by a widget, which has its own end and must be told."""
    bar.total = total
    if (drawn := getattr(bar, "container", None)) is not None:
        widget = drawn.children[1]
        widget.max, widget.bar_style, widget.layout.width = total, "", None


class UnfailingStream:
    """A stream on which nothing fails: a log on a full disk loses lines, and ends no search."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, where that goes."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, where that goes."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
