"""Studies as they are stored: backends, trial attributes, results, heartbeats, locks, claims, the queue."""

from typing import TYPE_CHECKING

from david._lazy import attach

if TYPE_CHECKING:
    from david.storage.backend import open_storage
    from david.storage.studies import open_existing

__all__ = ["open_existing", "open_storage"]

__getattr__, __dir__ = attach(__name__, {"open_existing": "studies", "open_storage": "backend"})
