"""Lines to the person in front of the screen, while something runs."""

import sys

from tqdm.auto import tqdm


def say(line: str) -> None:
    """A line to stderr, above a bar."""
    tqdm.write(line, file=sys.stderr)
