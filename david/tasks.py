"""Tasks of lm-eval as an objective. Defined in `david.scoring.tasks`."""

from david.scoring.tasks import Tasks, check_names, load

__all__ = ["Tasks", "check_names", "load"]
