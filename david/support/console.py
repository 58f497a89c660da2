"""What David tells a person on stderr while something runs.

`say` prints every note of David; `UnfailingStream` keeps a full disk from ending a run.
"""

import logging
import sys
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

from david.support.text import plain


class _StderrHandler(logging.Handler):
    """Prints records above a progress bar, to what `sys.stderr` is at the moment: it may have been redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, which `say` has escaped."""
        tqdm.write(record.getMessage(), file=sys.stderr)


_logger = logging.getLogger("david")
_logger.addHandler(_StderrHandler())
_logger.propagate = False  # or a program with logging of its own would print each note twice
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.INFO)


def say(line: str) -> None:
    """Print a note to stderr, above a progress bar if there is one.

    A note is a record of the logger `david` at level INFO: `logging.getLogger("david").setLevel("WARNING")` silences
    David, and a handler that you add gets every note.

    Args:
        line: The note.
    """
    _logger.info("%s", plain(line))  # escaped here, so that every handler gets text that is safe to show


def set_bar_total(bar: Any, total: float) -> None:
    """Set the total of a progress bar. In a notebook a widget draws the bar and holds a total of its own."""
    bar.total = total
    if (drawn := getattr(bar, "container", None)) is not None:
        widget = drawn.children[1]
        widget.max, widget.bar_style, widget.layout.width = total, "", None


class UnfailingStream:
    """A stream that drops what cannot be written: a log on a full disk loses lines, but ends no search."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if that is possible."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
