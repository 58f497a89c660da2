"""lm-eval (EleutherAI's evaluation harness) from outside: its tasks read and made ready, and a model put before it."""

import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr
from copy import copy, deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from david.errors import CorpusError, ScoreError
from david.metrics import units
from david.scoring.sources import quiet_datasets
from david.scoring.tokens import Tokenizer
from david.sling.forward import input_device, text_config
from david.support.console import say
from david.support.text import brief, one_line

_SEED = 1234  # lm-eval's own: of the examples in a prompt, and of what is sampled

Told = tuple[float, float]  # of a document: what is to be minimised, and how much it counts


@dataclass(frozen=True, eq=False)
class Task:
    """A task of lm-eval and its requests; `numbers` are those of its documents among all that were loaded."""

    name: str
    task: Any
    metric: str
    kept: Any  # the filters of lm-eval that answers go through before they are measured
    unit: str
    told: Callable[[Any], Told]
    numbers: range
    requests: Mapping[int, Sequence[Any]]  # by the document's number

    @property
    def measured(self) -> str:
        """The task with its metric, and the filter where it is one that does something."""
        return ":".join([self.name, self.metric, *([] if self.kept.name == "none" else [self.kept.name])])

    def score(self, number: int) -> Told:
        """What a document came to, when all its requests are answered and filtered."""
        requests = self.requests[number]
        try:
            answers = [request.filtered_resps[self.kept.name] for request in requests]
            return self.told(self.task.process_results(requests[0].doc, answers)[self.metric])
        except Exception as error:  # any kind: a task's own code
            raise ScoreError(
                f"document {number - self.numbers.start} of the task {self.name} cannot be measured by {self.metric}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from None


def bound(harness: Any, model: nn.Module) -> Any:
    """The harness as it is, around the model in hand: the one that it was made for, or a view."""
    own = copy(harness)
    own._model, own._config = model, model.config
    within = type(own)._loglikelihood_tokens
    # rolling likelihoods would show a bar for each window, whatever they are told
    own._loglikelihood_tokens = lambda *args, **options: within(own, *args, **options | {"disable_tqdm": True})
    return own


def read(name: str) -> list[tuple[str, Any]]:
    """The tasks of lm-eval that a name stands for, with their names and their data."""
    from lm_eval.tasks import TaskManager

    path = Path(os.path.expanduser(name))
    if not path.is_file():
        say(f"no file here is called {name}: reading lm-eval's own tasks (some 15 s), then asking the Hub for its data")
        manager = _own_tasks()
        if name not in manager.all_tasks:
            near = ", ".join(get_close_matches(name, manager.all_tasks, 3))
            hint = f" (it has {near})" if near else ""
            raise CorpusError(f"lm-eval has no task {brief(name)}{hint}: give one of its names, or a task file's path")
        return _loaded(manager, name, name, Path.cwd())
    manager = TaskManager(include_defaults=False)
    own = str(path.absolute())
    try:
        return _loaded(manager, name, own, path.absolute().parent)
    except FileNotFoundError:  # lm-eval itself looks for data where it was started
        return _loaded(manager, name, own, Path.cwd(), last=True)


@cache
def _own_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _loaded(manager: Any, name: str, spec: str, folder: Path, *, last: bool = False) -> list[tuple[str, Any]]:
    """What lm-eval makes of a name, from within a folder; a file that is missing there comes out, but for the last."""
    try:
        with chdir(folder), quiet_datasets():
            found = list(manager.load([spec])["tasks"].items())
    except Exception as error:  # any kind: yaml's, datasets', the Hub's, a task's own code
        if isinstance(error, FileNotFoundError) and not last and folder != Path.cwd():
            raise
        raise CorpusError(f"the task {name} cannot be read: {_reason(error.__cause__ or error)}") from None
    if not found:
        raise CorpusError(f"the task {name} has no documents")
    return found


def _reason(error: BaseException) -> str:
    """What went wrong in the code of others; where that says little, with the kind of the error."""
    if isinstance(error, StopIteration):
        return "its data have no rows"
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError | TypeError | AttributeError) else ""
    return kind + one_line(error)


def ready(name: str, task: Any, metric: str | None, kept: str | None, limit: int | None, first: int) -> Task:
    """A task with its requests made, the first of its documents with this number."""
    if getattr(task, "MULTIMODAL", False):
        raise CorpusError(f"the task {name} shows pictures or plays sounds: David asks in words alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise CorpusError(f"the task {name} runs what the model writes as a program: David does not")
    metrics, filters = list(task.aggregation()), {its.name: its for its in task._filters}
    metric, kept = metric or next(iter(metrics), ""), kept or next(iter(filters))
    if metric not in metrics:
        raise ScoreError(f"the task {name} has no metric {metric!r}: it has {', '.join(metrics) or 'none'}")
    if kept not in filters:
        raise ScoreError(f"the task {name} has no filter {kept!r}: it has {', '.join(filters)}")
    unit, told = _measure(name, task, metric)
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(_SEED)
    try:
        size = len(task.eval_docs)
        with redirect_stderr(io.StringIO()):  # a bar
            task.build_all_requests(limit=limit)
    except Exception as error:  # any kind: templates and code of the task's own
        raise CorpusError(f"the task {name} makes no requests: {type(error).__name__}: {one_line(error)}") from None
    requests: dict[int, list[Any]] = {}
    for request in sorted(task.instances, key=lambda request: (request.doc_id, request.idx)):
        requests.setdefault(first + request.doc_id, []).append(request)
    return Task(name, task, metric, filters[kept], unit, told, range(first, first + size), requests)


def _measure(name: str, task: Any, metric: str) -> tuple[str, Callable[[Any], Told]]:
    """The unit of a metric, and what of it is to be minimised for a document; `ScoreError` where it has no such value.

    How lm-eval sums a metric up says what it is: by a mean over documents, or as a likelihood.
    """
    from lm_eval.api import metrics

    how = task.aggregation()[metric]
    if how in (metrics.mean, metrics.nanmean):
        if task.higher_is_better().get(metric, True):
            return units.lost(metric), lambda value: (1 - float(value), 1)
        return metric, lambda value: (float(value), 1)
    if how is metrics.perplexity:
        return "nats a document", lambda value: (-float(value), 1)
    if how is metrics.weighted_perplexity:
        return f"nats a {'word' if 'word' in metric else 'byte'}", lambda value: (-float(value[0]), int(value[1]))
    if how is metrics.bits_per_byte:
        return "bits a byte", lambda value: (-float(value[0]) / math.log(2), int(value[1]))
    if how is metrics.brier_score:
        return metric, lambda value: (_brier(*value), 1)
    others = ", ".join(other for other in task.aggregation() if other != metric)
    raise ScoreError(
        f"{metric} of the task {name} is no mean over documents, so that nothing can be paired: "
        f"name another metric, as in {name}:metric{f' (it has {others})' if others else ''}"
    )


def _brier(gold: int, shares: Any) -> float:
    """Of a question, the squared distance of the answers' shares to the right one."""
    return float(np.sum((np.asarray(shares) - np.eye(len(shares))[gold]) ** 2))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what lm-eval logs of each call: that the model is loaded already, and the like."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def seeded(model: nn.Module) -> Iterator[None]:
    """What is sampled is the same each time, and nobody else's random numbers change."""
    device = input_device(model)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_kind(device)):
        torch.manual_seed(_SEED)
        yield


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """lm-eval leaves the model's cache on, and nothing reads it: each call would fill one for nothing."""
    config = text_config(model)
    before = getattr(config, "use_cache", None)
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


def around(model: nn.Module, tokenizer: Tokenizer, max_length: int, batch: int) -> Any:
    """lm-eval's view of a model, which asks it for logits and keeps nothing."""
    from lm_eval.models.huggingface import HFLM

    own = deepcopy(tokenizer)  # HFLM gives it a token to pad with
    return HFLM(pretrained=model, tokenizer=own, backend="causal", max_length=max_length, batch_size=batch)
