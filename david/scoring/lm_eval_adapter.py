"""Adapter to lm-eval (EleutherAI's evaluation harness): its tasks, and a model as it takes one.

`read_tasks` finds tasks by name, `prepare_task` makes a task's requests, `wrap_model` and `with_model` put a model
into lm-eval's harness, `CutAnswers` notes which generated answers were cut. Nothing of lm-eval is imported before
one of them is called.
"""

import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr
from copy import copy, deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from david.errors import CorpusError, ScoreError
from david.scoring.lm_eval_metrics import Loss, document_loss
from david.scoring.sources import quiet_datasets
from david.scoring.tokens import Tokenizer
from david.sling.forward import input_device, text_config
from david.support.console import say
from david.support.text import brief, one_line

_SEED = 1234  # lm-eval's own, of the examples in a prompt; here of sampled answers too

# What begins and ends a model's thinking, in its chat template and in what it generates.
_THINKING = (
    ("<think>", "</think>"),  # DeepSeek, GLM, Qwen, SmolLM, and most others
    ("<thought>", "</thought>"),  # EXAONE
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis", "<|channel|>final"),  # gpt-oss
)


@dataclass(frozen=True, eq=False)
class Task:
    """A task of lm-eval with its requests.

    Attributes:
        name: The task's name.
        task: The task of lm-eval.
        metric: The metric that is minimised.
        filter: The filters of lm-eval that answers pass before they are measured.
        unit: The unit of the loss.
        loss: Takes lm-eval's value of the metric for a document, and returns its loss and its weight.
        numbers: The numbers of the task's documents among those of all tasks.
        requests: lm-eval's requests by the number of their document.
    """

    name: str
    task: Any
    metric: str
    filter: Any
    unit: str
    loss: Callable[[Any], Loss]
    numbers: range
    requests: Mapping[int, Sequence[Any]]

    @property
    def measured(self) -> str:
        """The task with its metric, and with the filter if that does something: `gsm8k:exact_match:strict-match`."""
        return ":".join([self.name, self.metric, *([] if self.filter.name == "none" else [self.filter.name])])

    def document_score(self, number: int) -> Loss:
        """Return the loss and the weight of a document whose requests are all answered and filtered.

        Raises:
            ScoreError: The task's own code cannot measure the answers.
        """
        requests = self.requests[number]
        try:
            answers = [request.filtered_resps[self.filter.name] for request in requests]
            return self.loss(self.task.process_results(requests[0].doc, answers)[self.metric])
        except Exception as error:  # any kind: a task's own code
            raise ScoreError(
                f"document {number - self.numbers.start} of the task {self.name} cannot be measured by {self.metric}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from None


def wrap_model(model: nn.Module, tokenizer: Tokenizer, max_length: int, batch: int) -> Any:
    """Return lm-eval's harness (`HFLM`) around a model, which asks the model for logits and keeps nothing.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, which stays as it is.
        max_length: The most tokens of a prompt with its answer.
        batch: How many requests go through the model at once.
    """
    from lm_eval.models.huggingface import HFLM

    padded = deepcopy(tokenizer)  # HFLM sets a padding token on it
    return HFLM(pretrained=model, tokenizer=padded, backend="causal", max_length=max_length, batch_size=batch)


def with_model(harness: Any, model: nn.Module) -> Any:
    """Return a copy of a harness around another model: the one it was made for as it now stands, or a view."""
    rebound = copy(harness)
    rebound._model, rebound._config = model, model.config
    loglikelihood_tokens = type(rebound)._loglikelihood_tokens
    # Rolling likelihoods show a progress bar for each window, whatever option they are called with.
    rebound._loglikelihood_tokens = lambda *args, **options: loglikelihood_tokens(
        rebound, *args, **options | {"disable_tqdm": True}
    )
    return rebound


class CutAnswers:
    """Notes which of the answers that lm-eval generates are cut: most of these count as wrong.

    An answer is cut if it reaches the token limit of its task, or ends inside the model's thinking, whether at the
    limit or at a text that the task ends answers at. lm-eval returns texts alone, in which that cannot be seen, so this
    object reads the tokens of each batch. It then stands in the place of lm-eval's cache hook, which is called for each
    answer of the batch in turn with its request.

    Args:
        harness: lm-eval's harness; it is changed, so give a copy.
    """

    def __init__(self, harness: Any) -> None:
        self._harness = harness
        self._generate = harness._model_generate
        self._batch: list[tuple[str, bool]] = []  # the text of each answer of the batch, and whether it was ended
        self._by_request: defaultdict[str, list[bool]] = defaultdict(list)
        harness._model_generate, harness.cache_hook = self._model_generate, self

    def take(self, request: Any) -> bool:
        """Return whether the next answer to a request was cut; each answer is returned once.

        Args:
            request: A `generate_until` request of lm-eval that was answered.
        """
        return self._by_request[_request_key(request.args)].pop(0)

    def add_partial(self, kind: str, arguments: tuple[str, Any], _answer: Any) -> None:
        """Note the next answer of the batch; called by lm-eval."""
        if kind == "generate_until":
            text, is_ended = self._batch.pop(0)
            is_cut = not is_ended or ends_in_thinking(arguments[0], text)
            self._by_request[_request_key(arguments)].append(is_cut)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        harness = self._harness
        tokens: torch.Tensor = self._generate(context=context, max_length=max_length, stop=stop, **options)
        configured = options.get("eos_token_id", getattr(harness.model.generation_config, "eos_token_id", None))
        ends = {harness.eot_token_id, *(configured if isinstance(configured, list) else [configured])}
        stop = [text for text in stop if text]
        for row in tokens[:, context.shape[1] :].tolist():
            text = harness.tok_decode(row, skip_special_tokens=False)
            texts = (text, harness.tok_decode(row))
            is_ended = not ends.isdisjoint(row) or any(end in each for each in texts for end in stop)
            for end in stop:  # as lm-eval cuts its answer
                text = text.split(end)[0]
            self._batch.append((text, is_ended))
        return tokens


def _request_key(arguments: tuple[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, default=str)


def ends_in_thinking(prompt: str, answer: str) -> bool:
    """Return whether an answer ends before the model has ended its thinking.

    Args:
        prompt: The prompt; some chat templates end it with what begins the thinking.
        answer: The answer, with its special tokens.

    Example:
        >>> ends_in_thinking("2 + 2?", "<think>I add"), ends_in_thinking("2 + 2? <think>", "I add.</think>4")
        (True, False)
    """
    for begin, end in _THINKING:
        begins_at = answer.rfind(begin)
        if begins_at < 0 and prompt.rstrip().endswith(begin):
            begins_at = 0
        if begins_at >= 0 and answer.rfind(end) < begins_at:
            return True
    return False


def read_tasks(name: str) -> list[tuple[str, Any]]:
    """Read the tasks of lm-eval that a name stands for, and their data.

    Args:
        name: The path of a task's YAML file, or the name of a task, group or tag of lm-eval's own.

    Returns:
        The name of each task, and lm-eval's object.

    Raises:
        CorpusError: The task is unknown, cannot be read, or has no documents.
    """
    from lm_eval.tasks import TaskManager

    path = Path(os.path.expanduser(name))
    if not path.is_file():
        say(f"no file here is called {name}: reading lm-eval's own tasks (some 15 s), then asking the Hub for its data")
        manager = _own_tasks()
        if name not in manager.all_tasks:
            near = ", ".join(get_close_matches(name, manager.all_tasks, 3))
            hint = f" (it has {near})" if near else ""
            raise CorpusError(f"lm-eval has no task {brief(name)}{hint}: give one of its names, or a task file's path")
        return _load_from(manager, name, name, Path.cwd())
    manager = TaskManager(include_defaults=False)
    spec = str(path.absolute())
    try:
        return _load_from(manager, name, spec, path.absolute().parent)
    except FileNotFoundError:  # lm-eval itself looks for data in the current folder
        return _load_from(manager, name, spec, Path.cwd(), last=True)


def prepare_task(
    name: str, task: Any, metric: str | None, filter_name: str | None, limit: int | None, first: int
) -> Task:
    """Make the requests of a task.

    Args:
        name: The task's name.
        task: The task of lm-eval.
        metric: The metric to minimise; None for the task's first.
        filter_name: The filter that answers pass; None for the task's first.
        limit: Take so many of the first documents; None for all.
        first: The number of the task's first document among those of all tasks.

    Raises:
        CorpusError: The task needs more than words, runs what the model writes, or makes no requests.
        ScoreError: The task has no such metric or filter, or the metric has no value for each document.
    """
    if getattr(task, "MULTIMODAL", False):
        raise CorpusError(f"the task {name} shows pictures or plays sounds: David asks in words alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise CorpusError(f"the task {name} runs what the model writes as a program: David does not")
    metrics, filters = list(task.aggregation()), {each.name: each for each in task._filters}
    metric, filter_name = metric or next(iter(metrics), ""), filter_name or next(iter(filters))
    if metric not in metrics:
        raise ScoreError(f"the task {name} has no metric {metric!r}: it has {', '.join(metrics) or 'none'}")
    if filter_name not in filters:
        raise ScoreError(f"the task {name} has no filter {filter_name!r}: it has {', '.join(filters)}")
    unit, loss = document_loss(name, task, metric)
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(_SEED)
    try:
        size = len(task.eval_docs)
        with redirect_stderr(io.StringIO()):  # a progress bar
            task.build_all_requests(limit=limit)
    except Exception as error:  # any kind: templates and code of the task's own
        raise CorpusError(f"the task {name} makes no requests: {type(error).__name__}: {one_line(error)}") from None
    requests: dict[int, list[Any]] = {}
    for request in sorted(task.instances, key=lambda request: (request.doc_id, request.idx)):
        requests.setdefault(first + request.doc_id, []).append(request)
    return Task(name, task, metric, filters[filter_name], unit, loss, range(first, first + size), requests)


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Log nothing below an error: lm-eval notes at each call that the model is loaded already, and the like."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def fixed_seed(model: nn.Module) -> Iterator[None]:
    """Sample the same answers each time, and leave the random state of the process as it was."""
    device = input_device(model)
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=kind):
        torch.manual_seed(_SEED)
        yield


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Turn the model's cache off: lm-eval leaves it on, so that each call would fill one that nothing reads."""
    config = text_config(model)
    before = getattr(config, "use_cache", None)
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


@cache
def _own_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _load_from(manager: Any, name: str, spec: str, folder: Path, *, last: bool = False) -> list[tuple[str, Any]]:
    """Load tasks with a folder as the current one; if a file is missing there and this is not the last try, say so.

    A missing file raises `FileNotFoundError` unless `last`; all else that goes wrong raises `CorpusError`.
    """
    try:
        with chdir(folder), quiet_datasets():
            tasks = list(manager.load([spec])["tasks"].items())
    except Exception as error:  # any kind: yaml's, datasets', the Hub's, a task's own code
        if isinstance(error, FileNotFoundError) and not last and folder != Path.cwd():
            raise
        raise CorpusError(f"the task {name} cannot be read: {_reason(error.__cause__ or error)}") from None
    if not tasks:
        raise CorpusError(f"the task {name} has no documents")
    return tasks


def _reason(error: BaseException) -> str:
    """Return what an error in the code of others says, with the error's kind if the message alone says little."""
    if isinstance(error, StopIteration):
        return "its data have no rows"
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError | TypeError | AttributeError) else ""
    return kind + one_line(error)
