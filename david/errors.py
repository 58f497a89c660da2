"""Everything David raises on purpose.

Each message says what was expected, what came, and what to do.

    DavidError
    ├── RecipeError    a repeat map, scale, ratio, notation or recipe file that is not valid
    ├── ModelError     a model that cannot be loaded
    ├── SlingError     a model that cannot run a recipe exactly, and so is refused
    ├── CorpusError    data that cannot be read or cannot fill a window
    ├── ScoreError     a score that cannot be computed, or is not a number
    └── SearchError    a study, space or output folder that cannot be used
        └── StorageError    a storage that cannot be opened, or has been gone for too long
"""


class DavidError(Exception):
    """The root of everything David raises on purpose."""


class RecipeError(DavidError, ValueError):
    """A repeat map, scale, ratio, notation or recipe file that is not valid."""


class ModelError(DavidError):
    """A model that cannot be loaded."""


class SlingError(DavidError):
    """A model that cannot run a recipe exactly, and so is refused."""


class CorpusError(DavidError):
    """Data that cannot be read, or that cannot fill a window."""


class ScoreError(DavidError):
    """A score that cannot be computed, or is not a number."""


class SearchError(DavidError):
    """A study, a space or an output folder that cannot be used."""


class StorageError(SearchError):
    """A storage that cannot be opened, or has been gone for too long."""
