"""Text that is safe to show: on one line, of bounded length, with invisible characters escaped."""

import re
from collections.abc import Iterable

_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def plain(text: str, most: int = 1000) -> str:
    """Return a text on one line of at most `most` characters, with line breaks and invisible characters escaped."""
    text = _INVISIBLE.sub(_escaped, text)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """Escape the invisible characters of a text but line breaks and tabs."""
    return _INVISIBLE.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def one_line(error: BaseException) -> str:
    """Return the message of another library's error, on one line of at most 300 characters."""
    return plain(" ".join(str(error).split()) or type(error).__name__, 300)


def brief(value: object) -> str:
    """Return the `repr` of an unexpected value, on one line of at most 60 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of thousands of digits, or an object's own
        return f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "…"


def counted(how_many: int, name: str) -> str:
    """Return a number of things: `1 window`, `2,000 windows`."""
    return f"{how_many:,} {name}" + "s" * (how_many != 1)


def join_or(names: Iterable[str]) -> str:
    """Join names for a sentence.

    Example:
        >>> join_or(["scan", "beam", "refine"])
        'scan, beam or refine'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
