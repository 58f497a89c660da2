"""Text that is safe to show: on one line, of bounded length, with unseen characters escaped."""

import re
from collections.abc import Iterable

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def plain(text: str, most: int = 1000) -> str:
    """A text on one line of at most so many characters: what breaks it, moves a cursor or turns it round is escaped."""
    text = _UNSEEN.sub(_escaped, text)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """A text of any length, its line breaks and tabs as they are, and whatever else acts unseen on a screen escaped."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def one_line(error: BaseException) -> str:
    """What another library's error says, on one line of at most 300 characters."""
    return plain(" ".join(str(error).split()) or type(error).__name__, 300)


def brief(value: object) -> str:
    """What came instead of what was expected, as Python writes it, on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of thousands of digits, or an object's own
        return f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "…"


def join_or(names: Iterable[str]) -> str:
    """Join names for a sentence.

    Example:
        >>> join_or(["scan", "beam", "refine"])
        'scan, beam or refine'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
