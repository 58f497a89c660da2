"""Tasks of lm-eval as an objective. Defined in `david.scoring.tasks`."""

from david.scoring.tasks import Tasks
from david.scoring.tasks import load_tasks as load
from david.scoring.tasks import parse_task_names as check_names

__all__ = ["Tasks", "check_names", "load"]
