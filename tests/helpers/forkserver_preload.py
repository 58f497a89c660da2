"""Imported by a fork server, so that each worker it forks has loaded, and run, all that a search needs."""

import psycopg  # noqa: F401  # a driver is imported where a URL names it
import torch

from david.candidates.spaces import Block
from david.study.run_search import search
from tests.helpers.processes import corpus
from tests.tiny_models import tiny_model

torch.set_num_threads(1)
search(tiny_model("llama"), corpus().take(3), space=Block(), held_out=None, n_trials=2, progress=False)
