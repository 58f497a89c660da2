"""Ending on a signal: after the windows in hand at Ctrl-C or SIGTERM, at once at the second."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from david.messages import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: int | None = None  # the signal that asked to end
_pausing = False
_listening = False


@contextmanager
def gently() -> Iterator[None]:
    """Within this, the first Ctrl-C or SIGTERM is kept for `check`, and the second is a KeyboardInterrupt at once.

    In another thread than the main one, to which Python brings its signals, nothing changes.
    """
    global _asked, _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _listening = None, True
    before = {number: signal.signal(number, _ask) for number in _SIGNALS}
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check() -> None:
    """`KeyboardInterrupt` where a signal has asked to end."""
    if _listening and _asked is not None:
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Sleep, though not on when a signal comes."""
    global _pausing
    check()
    _pausing = True
    try:
        time.sleep(seconds)
    finally:
        _pausing = False


def exit_code() -> int:
    """What the process ends with: 0 where no signal has asked it to end, else 128 and the signal's number."""
    return 0 if _asked is None else 128 + _asked


def _ask(number: int, _frame: FrameType | None) -> None:
    global _asked
    first, _asked = _asked is None, number
    if _pausing or not first:
        raise KeyboardInterrupt
    say(f"{signal.Signals(number).name}: ending after the windows in hand; once more to end at once")
