"""Imported by a fork server, so that each worker it forks has loaded, and run, all that a search needs."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "architectures"))  # which Python 3.11 does not hand on

import psycopg  # noqa: F401  # a driver is imported where a URL names it
import torch
from tiny_models import tiny_model

from david.candidates.spaces import Block
from david.study.search import search
from tests.test_study_kill import corpus

torch.set_num_threads(1)
search(tiny_model("llama"), corpus().take(3), space=Block(), held_out=None, n_trials=2, progress=False)
