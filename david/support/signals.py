"""Stop on a signal: the first Ctrl-C, SIGTERM or SIGHUP after the current windows, the second at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from david.support.console import say

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_asked: int | None = None  # the signal that asked to stop
_when = 0.0  # when it came
_ONE_SIGNAL = 1.0  # seconds: a scheduler may signal every process, and the first worker the others again
_pausing = False
_listening = False
_listeners: list[Callable[[int], None]] = []


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer the first signal until `raise_if_asked`; the second raises KeyboardInterrupt at once.

    A signal that the process was started to ignore stays ignored. Python delivers signals to the main thread, so in any
    other thread this changes nothing.
    """
    global _asked, _listening
    if _listening or not _in_main_thread():
        yield
        return
    _asked, _listening = None, True
    handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _ask) for number in handled}
    try:
        yield
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def forwarded_to(to: Callable[[int], None]) -> Iterator[None]:
    """Also pass each signal that `deferred_signals` handles to a function."""
    _listeners.append(to)
    try:
        yield
    finally:
        _listeners.remove(to)


def is_asked() -> bool:
    """Return whether a signal has asked this thread to stop."""
    return _listening and _asked is not None and _in_main_thread()


def raise_if_asked() -> None:
    """Raise `KeyboardInterrupt` if a signal has asked to stop."""
    if is_asked():
        raise KeyboardInterrupt


def interruptible_sleep(seconds: float) -> None:
    """Sleep until a signal comes; one that came before is left to `raise_if_asked`."""
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
    """Return the exit code of the process: 0 without a signal, else 128 plus the signal's number."""
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
    say(f"{signal.Signals(number).name}: stopping after the windows in progress; press again to stop at once")
