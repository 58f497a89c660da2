"""Lines to the person in front of the screen, while something runs."""

import sys

from tqdm.auto import tqdm

from david.errors import plain


def say(line: str) -> None:
    """A line to stderr, above a bar."""
    tqdm.write(plain(line), file=sys.stderr)
