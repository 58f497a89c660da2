"""Tasks of lm-eval (EleutherAI's evaluation harness) as an objective: one value for each document.

`load_tasks` (`david.tasks.load`) reads tasks and makes their requests once; the `Tasks` that it returns score whatever
the model runs at the moment: the base, a sling, a view. No answer of a model is kept from one call to the next.
"""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from david.errors import CorpusError, ScoreError
from david.metrics import units
from david.metrics.score import Score, mean_share
from david.scoring.conventions import TASKS
from david.scoring.corpus import Corpus
from david.scoring.hold_out import comparable, document_groups
from david.scoring.lm_eval_adapter import (
    CutAnswers,
    Task,
    fixed_seed,
    prepare_task,
    quiet_lm_eval,
    read_tasks,
    with_model,
    without_cache,
    wrap_model,
)
from david.scoring.objectives import check_fits
from david.scoring.tokens import Tokenizer
from david.sling.forward import context_of, input_device
from david.sling.in_place import running_base
from david.support.arguments import check_tokenizer, check_type, checked_list
from david.support.console import say
from david.support.extras import install_hint
from david.support.text import brief, counted, one_line

__all__ = ["Tasks", "load_tasks"]

_LONGEST = 2048  # tokens: logits of more are gigabytes, and few tasks have longer documents


@dataclass(frozen=True, eq=False, repr=False)
class Tasks:
    """Tasks that are ready to be scored: an objective `(model, corpus) → Score` on their own corpora.

    A corpus of tasks has a document in the place of a window: `take`, `split` and `hold_out` pick documents, so that a
    search on one part is judged on documents of the other. Its `window` is the longest prompt with its answers, in
    tokens.

    Attributes:
        parts: The tasks with their requests.
        everything: The documents of all tasks, whichever units they are measured in.
        harness: lm-eval's harness.
        max_length: The most tokens of a prompt with its answer.
    """

    parts: tuple[Task, ...]
    everything: Corpus
    harness: Any
    max_length: int

    def __repr__(self) -> str:
        return f"tasks({', '.join(part.measured for part in self.parts)}, max_length={self.max_length})"

    @cached_property
    def each(self) -> dict[str, Corpus]:
        """The documents of each task by itself, by the task's name."""
        return {part.name: self._documents_of(part) for part in self.parts}

    @property
    def corpus(self) -> Corpus:
        """The documents of all tasks, for one mean over all of them; each document counts as much as another.

        Raises:
            ScoreError: The tasks are measured in several units.
        """
        _common_unit(self.parts)
        return self.everything

    def __call__(self, model: nn.Module, corpus: Corpus) -> Score:
        """Score a model, as it stands, on documents of these tasks.

        Args:
            model: A causal language model in evaluation mode.
            corpus: Documents of these tasks: `corpus`, one of `each`, or a part of them.

        Returns:
            The score, a value for each document, the lower the better. `unit` says what it is: a metric of which more
            is better becomes `1 − acc`, one that is a likelihood is in nats. Where the model generates its answers,
            `cut_share` says how many of them reached the task's token limit or ended inside the model's thinking:
            most of these count as wrong, so compare two scores only where it is low for both.

        Raises:
            ScoreError: The corpus holds other documents, the tasks have several units, lm-eval cannot run them, or a
                document has no value.
        """
        numbers_of, unit = self._asked(model, corpus)
        requests_of = {n: part.requests[n] for part, numbers in numbers_of.items() for n in numbers}
        requests = [request for of_document in requests_of.values() for request in of_document]
        try:
            with quiet_lm_eval(), fixed_seed(model), torch.inference_mode():
                is_cut = self._answer(model, requests)
                for part, numbers in numbers_of.items():
                    part.filter.apply([request for n in numbers for request in part.requests[n]])
            scored = {n: part.document_score(n) for part, numbers in numbers_of.items() for n in numbers}
        finally:
            for request in requests:
                request.resps, request.filtered_resps = [], {}
        losses, weights = zip(*(scored[number] for number in corpus.numbers), strict=True)
        if any(map(math.isnan, losses)):
            number = corpus.numbers[[math.isnan(loss) for loss in losses].index(True)]
            raise ScoreError(f"document {number} of {self} has a value that is not a number")
        measured = ", ".join(part.measured for part in numbers_of)
        answers = ([cut for request in requests_of[n] for cut in is_cut.get(id(request), ())] for n in corpus.numbers)
        cut = tuple(mean_share(of_document) for of_document in answers if of_document)
        return Score(losses, weights, corpus.clusters, f"{TASKS} {measured}", unit=unit, cut=cut)

    def _asked(self, model: nn.Module, corpus: Corpus) -> tuple[Mapping[Task, Sequence[int]], str]:
        """Return the documents of each task that a corpus asks for, and their unit; `ScoreError` if they do not fit."""
        check_type("corpus", corpus, Corpus, ScoreError)
        if corpus.convention != TASKS or corpus.sha256 != self.everything.sha256:
            raise ScoreError(f"{corpus} has no documents of {self}: take those of its own corpus")
        check_fits(model, corpus)
        if missing := set(corpus.numbers) - {n for part in self.parts for n in part.requests}:
            raise ScoreError(f"{self} was loaded with a limit, without {len(missing)} of the documents of {corpus}")
        numbers_of = {part: [n for n in corpus.numbers if n in part.numbers] for part in self.parts}
        numbers_of = {part: numbers for part, numbers in numbers_of.items() if numbers}
        return numbers_of, _common_unit(list(numbers_of))

    def _answer(self, model: nn.Module, requests: Sequence[Any]) -> dict[int, list[bool]]:
        """Have the model answer requests; its cache is on only where it generates.

        Returns:
            By the `id` of each request whose answers are generated, whether each of these was cut.
        """
        harness = with_model(self.harness, model)
        cut_answers, is_cut = CutAnswers(harness), dict[int, list[bool]]()
        for kind in dict.fromkeys(request.request_type for request in requests):
            of_kind = [request for request in requests if request.request_type == kind for _ in range(request.repeats)]
            with without_cache(model) if kind != "generate_until" else nullcontext():
                try:
                    answers = getattr(harness, kind)(of_kind, disable_tqdm=True)
                except (AssertionError, LookupError, TypeError, ValueError) as error:  # what lm-eval itself refuses
                    raise ScoreError(f"lm-eval cannot run {self}: {one_line(error)}") from None
            for request, answer in zip(of_kind, answers, strict=True):
                request.resps.append(answer)
                if kind == "generate_until":
                    is_cut.setdefault(id(request), []).append(cut_answers.take(request))
        return is_cut

    def _documents_of(self, part: Task) -> Corpus:
        places = [place for place, number in enumerate(self.everything.numbers) if number in part.numbers]
        return self.everything.part(places[0], places[-1] + 1)


def load_tasks(
    names: str | os.PathLike[str] | Sequence[str],
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    max_length: int | None = None,
    batch: int | None = None,
    group: str | None = None,
) -> Tasks:
    """Read tasks of lm-eval, and make their requests for a model.

    A task file is a program: it may name Python code that lies beside it (`!function`). Trust it as you would a script.
    Tasks that run what a model has written are refused. Examples in a prompt (few-shot) are as many as the task says,
    or none.

    Args:
        names: One task, several in a list, or several in a text with commas. A name is the path of a task's YAML file,
            which may name its data relative to itself, or one of lm-eval's own tasks, groups and tags, whose data come
            from the Hub. Behind a colon stand the metric and the filter, as in `arc_easy:acc_norm` or
            `gsm8k:exact_match:flexible-extract`. Default: what the task names first.
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        limit: Take only so many of the first documents of each task.
        max_length: The most tokens of a prompt with its answer; the beginning of a longer prompt is cut off, and a
            note is printed. Default: the positions of the model, at most 2048.
        batch: How many requests go through the model at once. Default: one, or 16 on an accelerator.
        group: The field of the documents that says which belong together, as in `Corpus.load`. Documents whose requests
            are equal belong together anyway.

    Returns:
        The tasks, an objective with its corpora.

    Raises:
        ScoreError: lm-eval is not installed, a metric has no value for each document, or an option does not fit.
        CorpusError: A task is unknown, or cannot be read.

    Example:
        >>> tasks = david.tasks.load("mine.yaml", model, tokenizer, limit=6)
        >>> [score] = score_recipes(model, [recipe], tasks.each["mine"], objective=tasks)
        >>> score.unit, len(score.window_nll)
        ('1 − acc', 6)
        >>> seen, unseen = tasks.corpus.hold_out(2, 4)
        >>> study = search(model, seen, space="block", held_out=unseen, objective=tasks, n_trials=2)
    """
    specs = parse_task_names(names)
    longest = _check_options(model, tokenizer, {"limit": limit, "max_length": max_length, "batch": batch})
    with quiet_lm_eval(), running_base(model):
        harness = wrap_model(model, tokenizer, longest, batch or (1 if input_device(model).type == "cpu" else 16))
        tasks = [(name, task, *measure) for spec, *measure in specs for name, task in read_tasks(spec)]
        parts: list[Task] = []
        for name, task, metric, filter_name in tasks:
            if any(part.name == name for part in parts):
                raise CorpusError(f"the task {name} is asked for twice: name it once")
            first = parts[-1].numbers.stop if parts else 0
            parts.append(prepare_task(name, task, metric, filter_name, limit, first))
        return Tasks(tuple(parts), _corpus_of(parts, harness, longest, limit, group), harness, longest)


def parse_task_names(names: str | os.PathLike[str] | Sequence[str]) -> list[tuple[str, str | None, str | None]]:
    """Split the names of tasks into task, metric and filter.

    Args:
        names: The names as `load_tasks` takes them.

    Returns:
        For each task its name or path, its metric and its filter; None for what is left out.

    Raises:
        ScoreError: lm-eval is not installed.
        CorpusError: There is no name, a name cannot be read, or there is no such file. Whether lm-eval has a task of
            this name is not known before it is loaded.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ScoreError(f"tasks need the package lm-eval: {install_hint('eval')}")
    texts = [os.fspath(names)] if isinstance(names, os.PathLike) else names
    texts = texts if isinstance(texts, str) else checked_list("names", texts, str, CorpusError)
    specs: list[tuple[str, str | None, str | None]] = []
    for text in texts.split(",") if isinstance(texts, str) else texts:
        parts = [text.strip()] if os.path.isfile(text.strip()) else text.strip().split(":")
        if not parts[0]:
            raise CorpusError(f"expected the names of tasks, such as arc_easy or ./mine.yaml; got {brief(names)}")
        if len(parts) > 3 or not all(parts):
            raise CorpusError(f"cannot read the task {brief(text)}: expected name, name:metric or name:metric:filter")
        if _is_path(parts[0]) and not os.path.isfile(os.path.expanduser(parts[0])):
            raise CorpusError(f"no such task file: {parts[0]}")
        specs.append((parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else None))
    if not specs:
        raise CorpusError("expected the names of tasks, such as arc_easy or ./mine.yaml; got none")
    return specs


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or os.sep in name or name.startswith("~")


def _check_options(model: nn.Module, tokenizer: Tokenizer, options: Mapping[str, int | None]) -> int:
    """Return the most tokens of a prompt with its answer; `ScoreError` if an option does not fit the model."""
    for name, number in options.items():
        if number is not None and number < 1:
            raise ScoreError(f"{name} must be at least 1; got {number}")
    check_type("model", model, nn.Module, ScoreError)
    check_tokenizer(tokenizer, ScoreError)
    if any(module.training for module in model.modules()):
        raise ScoreError("the model is in training mode, where dropout makes scores random: call model.eval() first")
    if getattr(tokenizer, "bos_token_id", None) is None and getattr(tokenizer, "eos_token_id", None) is None:
        raise ScoreError("lm-eval needs a tokenizer with a BOS or EOS token, behind which a text begins; this has none")
    max_length, positions = options["max_length"], context_of(model)
    if max_length is not None and positions is not None and max_length > positions:
        raise ScoreError(f"max_length {max_length} is more than the model takes ({positions} positions)")
    return max_length or min(_LONGEST, positions or _LONGEST)


def _common_unit(parts: Sequence[Task]) -> str:
    """Return the unit that tasks have in common; `1 − score` for several metrics of which more is better."""
    distinct = list(dict.fromkeys(part.unit for part in parts))
    if len(distinct) > 1 and all(unit.startswith(units.one_minus("")) for unit in distinct):
        return units.one_minus("score")
    if len(distinct) > 1:
        measured = ", ".join(f"{part.name} in {part.unit}" for part in parts)
        raise ScoreError(f"tasks that are scored as one need one unit; got {measured}: name a metric, or score each")
    return distinct[0]


def _corpus_of(parts: Sequence[Task], harness: Any, longest: int, limit: int | None, group: str | None) -> Corpus:
    """Return a window for each document: the last tokens, at most `longest`, of its prompt and its answers."""
    numbers, rows = [], []
    texts_of: list[str] = [""] * parts[-1].numbers.stop  # of each document; empty behind a limit
    names: list[Any] = [None] * len(texts_of)
    for part in parts:
        n_cut = 0
        for number, requests in part.requests.items():
            texts = dict.fromkeys(text for request in requests for text in request.args if isinstance(text, str))
            rows.append(harness.tok_encode("".join(texts)))
            texts_of[number] = "".join(texts)
            names[number] = None if group is None else _group_name(part, requests[0].doc, group)
            n_cut += len(rows[-1]) > longest and _is_cut(harness, requests, longest)
            numbers.append(number)
        if n_cut:
            many = f"{n_cut} of {len(part.requests)} documents of {part.name}"
            say(f"{many} are longer than {longest} tokens: the beginnings of their prompts are cut off")
    width = max(2, min(longest, max(map(len, rows))))
    windows = torch.zeros(len(rows), width, dtype=torch.int64)
    for window, row in zip(windows, rows, strict=True):
        end = row[-width:]
        window[: len(end)] = torch.tensor(end, dtype=torch.int64)
    data = hashlib.sha256()
    for part in parts:
        data.update(part.name.encode())
        for document in part.task.eval_docs:
            data.update(json.dumps(document, sort_keys=True, default=str).encode())
    groups, n_copies = document_groups(texts_of, names)
    if n_copies:
        source = ", ".join(part.name for part in parts)
        say(f"{n_copies} of {counted(len(numbers), 'document')} of {source} are copies: copies count as one document")
    begins = harness.tok_encode("a")
    return Corpus(
        windows=windows,
        documents=tuple(numbers),
        source=", ".join(part.name for part in parts),
        slice=None if limit is None else f"[:{limit}]",
        sha256=data.hexdigest(),
        bos=bool(begins) and begins[0] == harness.tokenizer.bos_token_id,
        numbers=tuple(numbers),
        convention=TASKS,
        groups=groups,
    )


def _group_name(part: Task, document: Any, group: str) -> Any:
    """Return the name of a document's group; `CorpusError` if the document has no such field."""
    if group not in document:
        fields = ", ".join(map(str, list(document)[:20]))
        raise CorpusError(f"documents of the task {part.name} have no field {group!r}: they have {fields}")
    return comparable(document[group])


def _is_cut(harness: Any, requests: Sequence[Any], longest: int) -> bool:
    """Return whether the beginning of a prompt is not read: rolling likelihoods read all of it, in several windows."""
    for request in requests:
        if request.request_type == "loglikelihood" and len(harness.tok_encode("".join(request.args))) > longest + 1:
            return True
        if request.request_type == "generate_until":
            new = request.args[1].get("max_gen_toks", harness.max_gen_toks)
            if len(harness.tok_encode(request.args[0])) > longest - new:
                return True
    return False
