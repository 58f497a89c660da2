"""How to install the extras of David, the optional packages that `pyproject.toml` groups by name."""


def install_hint(extra: str) -> str:
    """Return how to install an extra, for an error. David is on no package index, so that takes a clone.

    Args:
        extra: Name of the extra in `pyproject.toml`.

    Example:
        >>> install_hint("postgres")
        "run pip install -c constraints.txt -e '.[postgres]' in a clone of David"
    """
    return f"run pip install -c constraints.txt -e '.[{extra}]' in a clone of David"
