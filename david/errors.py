"""The exceptions that David raises on purpose.

Each message says what is wrong, what was expected and given, and what to do.

    DavidError
    ├── RecipeError    a repeat map, scale, ratio, notation or recipe file is not valid
    ├── ModelError     a model cannot be loaded
    ├── SlingError     a model cannot run a recipe exactly, and is refused
    ├── CorpusError    data cannot be read or cannot fill a window
    ├── ScoreError     a score cannot be computed, or is not a number
    └── SearchError    a study, space or output folder cannot be used
        └── StorageError    a storage cannot be opened, or was unreachable for too long
"""


class DavidError(Exception):
    """Base class of all exceptions that David raises on purpose."""


class RecipeError(DavidError, ValueError):
    """A repeat map, scale, ratio, notation or recipe file is not valid."""


class ModelError(DavidError):
    """A model cannot be loaded."""


class SlingError(DavidError):
    """A model cannot run a recipe exactly, and is refused."""


class CorpusError(DavidError):
    """Data cannot be read, or cannot fill a window."""


class ScoreError(DavidError):
    """A score cannot be computed, or is not a number."""


class SearchError(DavidError):
    """A study, a space or an output folder cannot be used."""


class StorageError(SearchError):
    """A storage cannot be opened, or was unreachable for too long."""
