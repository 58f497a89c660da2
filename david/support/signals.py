"""Ending on a signal: after the windows in hand at Ctrl-C, SIGTERM or SIGHUP, at once at the second."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from david.support.console import say

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_asked: int | None = None  # the signal that asked to end
_when = 0.0  # … and came then
_ONE_SIGNAL = 1.0  # seconds: a scheduler may tell every process, and the first worker the others once more
_pausing = False
_listening = False
_listeners: list[Callable[[int], None]] = []


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Within this, the first signal to end is kept for `raise_if_asked`, and the second is a KeyboardInterrupt at once.

    A signal that the process was started to ignore stays ignored. In another thread than the main one, to which Python
    brings its signals, nothing changes, and nothing there ends by them.
    """
    global _asked, _listening
    if _listening or not _in_main_thread():
        yield
        return
    _asked, _listening = None, True
    heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _ask) for number in heeded}
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def forwarded_to(to: Callable[[int], None]) -> Iterator[None]:
    """Within this, whatever signal comes while `deferred_signals` listens is told to another too."""
    _listeners.append(to)
    try:
        yield
    finally:
        _listeners.remove(to)


def is_asked() -> bool:
    """Whether a signal has asked this thread to end."""
    return _listening and _asked is not None and _in_main_thread()


def raise_if_asked() -> None:
    """`KeyboardInterrupt` where a signal has asked to end."""
    if is_asked():
        raise KeyboardInterrupt


def interruptible_sleep(seconds: float) -> None:
    """Sleep, though not on when a signal comes; one that came before is for `raise_if_asked`."""
    global _pausing
    if not _in_main_thread():
        time.sleep(seconds)
        return
    _pausing = True
    try:
        time.sleep(seconds)
    finally:
        _pausing = False


def exit_code() -> int:
    """What the process ends with: 0 where no signal has asked it to end, else 128 and the signal's number."""
    return 0 if _asked is None else 128 + _asked


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _ask(number: int, _frame: FrameType | None) -> None:
    global _asked, _when
    if number == signal.SIGTERM == _asked and time.monotonic() - _when < _ONE_SIGNAL:
        return
    first, _asked, _when = _asked is None, number, time.monotonic()
    for to in _listeners:
        to(number)
    if _pausing or not first:
        raise KeyboardInterrupt
    say(f"{signal.Signals(number).name}: ending after the windows in hand; once more to end at once")
