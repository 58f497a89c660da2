"""Tasks of lm-eval (EleutherAI's evaluation harness) as a score: one value for each document.

Harness, documents and requests are made once, and score whatever the model runs at the moment: the base, a sling, a
view. Nothing that a model answered is kept from one call to the next.
"""

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from david.errors import CorpusError, ScoreError
from david.metrics import units
from david.metrics.score import Score
from david.scoring.conventions import TASKS
from david.scoring.corpus import Corpus
from david.scoring.lm_eval_adapter import Task, around, bound, quiet, read, ready, seeded, without_cache
from david.scoring.objectives import check_fits
from david.scoring.tokens import Tokenizer
from david.sling.forward import context_of, input_device
from david.sling.in_place import running_base
from david.support.console import say
from david.support.text import brief, one_line

__all__ = ["Tasks", "load"]

_LONGEST = 2048  # tokens: logits of more are gigabytes, and few tasks have longer documents


@dataclass(frozen=True, eq=False, repr=False)
class Tasks:
    """Tasks that are ready to be scored; itself an objective `(model, corpus) → Score` on its own corpora.

    A corpus of tasks has a document for a window: `take`, `split` and `hold_out` pick documents, and a search that is
    given two parts of it is judged on documents that it has not seen. Its `window` is the longest prompt with its
    answers, in tokens.
    """

    parts: tuple[Task, ...]
    everything: Corpus
    harness: Any
    max_length: int

    def __repr__(self) -> str:
        return f"tasks({', '.join(part.measured for part in self.parts)}, max_length={self.max_length})"

    @cached_property
    def each(self) -> dict[str, Corpus]:
        """The documents of each task by itself, by its name."""
        return {part.name: self._of(part) for part in self.parts}

    @property
    def corpus(self) -> Corpus:
        """The documents of all tasks, one mean over all of them; `ScoreError` where they are measured in several units.

        One document counts as much as another, whichever task it is of.
        """
        _one_unit(self.parts)
        return self.everything

    def __call__(self, model: nn.Module, corpus: Corpus) -> Score:
        """Score a model, as it stands, on documents of these tasks: of each one value, the lower the better.

        A metric of which more is better is told as what it lacks (`1 − acc`), one that is a likelihood in nats: `unit`
        says which. Raises `ScoreError` for a corpus of other documents, for tasks in several units, and where a
        document has no value.
        """
        if corpus.convention != TASKS or corpus.sha256 != self.everything.sha256:
            raise ScoreError(f"{corpus} has no documents of {self}: take those of its own corpus")
        check_fits(model, corpus)
        if missing := set(corpus.numbers) - {n for part in self.parts for n in part.requests}:
            raise ScoreError(f"{self} was loaded with a limit, without {len(missing)} of the documents of {corpus}")
        wanted = {part: [n for n in corpus.numbers if n in part.numbers] for part in self.parts}
        wanted = {part: numbers for part, numbers in wanted.items() if numbers}
        unit = _one_unit(list(wanted))
        requests = [request for part, numbers in wanted.items() for n in numbers for request in part.requests[n]]
        try:
            with quiet(), seeded(model), torch.inference_mode():
                self._answer(model, requests)
                for part, numbers in wanted.items():
                    part.kept.apply([request for n in numbers for request in part.requests[n]])
            found = {n: part.score(n) for part, numbers in wanted.items() for n in numbers}
        finally:
            for request in requests:
                request.resps, request.filtered_resps = [], {}
        losses, weights = zip(*(found[number] for number in corpus.numbers), strict=True)
        if any(map(math.isnan, losses)):
            number = corpus.numbers[[math.isnan(loss) for loss in losses].index(True)]
            raise ScoreError(f"document {number} of {self} has a value that is not a number")
        measured = ", ".join(part.measured for part in wanted)
        return Score(losses, weights, corpus.documents, f"{TASKS} {measured}", unit=unit)

    def _answer(self, model: nn.Module, requests: Sequence[Any]) -> None:
        """Have the model answer, without a cache but where it generates."""
        harness = bound(self.harness, model)
        for kind in dict.fromkeys(request.request_type for request in requests):
            asked = [request for request in requests if request.request_type == kind for _ in range(request.repeats)]
            with without_cache(model) if kind != "generate_until" else nullcontext():
                try:
                    answers = getattr(harness, kind)(asked, disable_tqdm=True)
                except (AssertionError, LookupError, TypeError, ValueError) as error:  # what lm-eval itself refuses
                    raise ScoreError(f"lm-eval cannot run {self}: {one_line(error)}") from None
            for request, answer in zip(asked, answers, strict=True):
                request.resps.append(answer)

    def _of(self, part: Task) -> Corpus:
        places = [place for place, number in enumerate(self.everything.numbers) if number in part.numbers]
        return self.everything.part(places[0], places[-1] + 1)


def load(
    names: str | os.PathLike[str] | Sequence[str],
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    limit: int | None = None,
    max_length: int | None = None,
    batch: int | None = None,
) -> Tasks:
    """Read tasks, and make their requests for a model.

    A name is the path of a task's YAML file, relative to which it may name its data, or one of lm-eval's own tasks,
    groups and tags, whose data come from the Hub; several are a list, or a text with commas. Behind a colon stands what
    is measured, as in `arc_easy:acc_norm` or `gsm8k:exact_match:flexible-extract` (a metric, then a filter); left out,
    what the task names first. Examples in a prompt (few-shot) are as many as the task says, or none.

    `limit` takes each task's first documents alone. `max_length` is how many tokens a prompt with its answer may have,
    what comes before is cut off, with a word; left out, what the model takes, and at most 2048. `batch` requests go
    through the model at once; left out, one, or 16 on an accelerator.

    A task file is a program: it may name Python code that lies beside it (`!function`). Trust it as you would a script.
    Tasks that run what a model has written are refused.

    Raises `ScoreError` where lm-eval is not installed, or a metric has no value for each document; `CorpusError` for a
    task that is not known or cannot be read.

    Example:
        >>> tasks = load("mine.yaml", model, tokenizer, limit=6)
        >>> [score] = score_recipes(model, [recipe], tasks.each["mine"], objective=tasks)
        >>> score.unit, len(score.window_nll)
        ('1 − acc', 6)
        >>> seen, unseen = tasks.corpus.hold_out(2, 4)
        >>> study = search(model, seen, space="block", held_out=unseen, objective=tasks, n_trials=2)
    """
    wanted = check_names(names)
    for name, number in (("limit", limit), ("max_length", max_length), ("batch", batch)):
        if number is not None and number < 1:
            raise ScoreError(f"{name} must be at least 1; got {number}")
    if any(module.training for module in model.modules()):
        raise ScoreError("the model is in training mode, where dropout makes scores random: call model.eval() first")
    if getattr(tokenizer, "bos_token_id", None) is None and getattr(tokenizer, "eos_token_id", None) is None:
        raise ScoreError("lm-eval needs a tokenizer with a BOS or EOS token, behind which a text begins; this has none")
    most = context_of(model)
    if max_length is not None and most is not None and max_length > most:
        raise ScoreError(f"max_length {max_length} is more than the model takes ({most} positions)")
    longest = max_length or min(_LONGEST, most or _LONGEST)
    with quiet(), running_base(model):
        harness = around(model, tokenizer, longest, batch or (1 if input_device(model).type == "cpu" else 16))
        found = [(its, task, metric, kept) for name, metric, kept in wanted for its, task in read(name)]
        parts: list[Task] = []
        for name, task, metric, kept in found:
            if any(part.name == name for part in parts):
                raise CorpusError(f"the task {name} is asked for twice: name it once")
            parts.append(ready(name, task, metric, kept, limit, parts[-1].numbers.stop if parts else 0))
        return Tasks(tuple(parts), _corpus(parts, harness, longest, limit), harness, longest)


def check_names(names: str | os.PathLike[str] | Sequence[str]) -> list[tuple[str, str | None, str | None]]:
    """Each name with its metric and filter, where it has them; what is wrong with them as far as can be told so far.

    Raises `ScoreError` where lm-eval is not installed, and `CorpusError` for no name, or no such file.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ScoreError("tasks need the package lm-eval: pip install 'david[eval]'")
    texts = [os.fspath(names)] if isinstance(names, os.PathLike) else names
    found: list[tuple[str, str | None, str | None]] = []
    for text in texts.split(",") if isinstance(texts, str) else texts:
        told = [text.strip()] if os.path.isfile(text.strip()) else text.strip().split(":")
        if not told[0]:
            raise CorpusError(f"expected the names of tasks, such as arc_easy or ./mine.yaml; got {brief(names)}")
        if len(told) > 3 or not all(told):
            raise CorpusError(f"cannot read the task {brief(text)}: expected name, name:metric or name:metric:filter")
        if _is_path(told[0]) and not os.path.isfile(os.path.expanduser(told[0])):
            raise CorpusError(f"no such task file: {told[0]}")
        found.append((told[0], told[1] if len(told) > 1 else None, told[2] if len(told) > 2 else None))
    if not found:
        raise CorpusError("expected the names of tasks, such as arc_easy or ./mine.yaml; got none")
    return found


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or os.sep in name or name.startswith("~")


def _one_unit(parts: Sequence[Task]) -> str:
    """The unit that tasks have in common; what several metrics lack is told as of one score."""
    found = list(dict.fromkeys(part.unit for part in parts))
    if len(found) > 1 and all(unit.startswith(units.lost("")) for unit in found):
        return units.lost("score")
    if len(found) > 1:
        measured = ", ".join(f"{part.name} in {part.unit}" for part in parts)
        raise ScoreError(f"tasks that are scored as one need one unit; got {measured}: name a metric, or score each")
    return found[0]


def _corpus(parts: Sequence[Task], harness: Any, longest: int, limit: int | None) -> Corpus:
    """A window for each document: the tokens of its prompt and its answers, the last ones where they are too many."""
    numbers, rows = [], []
    for part in parts:
        cut = 0
        for number, requests in part.requests.items():
            texts = dict.fromkeys(text for request in requests for text in request.args if isinstance(text, str))
            rows.append(harness.tok_encode("".join(texts)))
            cut += len(rows[-1]) > longest and _is_cut(harness, requests, longest)
            numbers.append(number)
        if cut:
            many = f"{cut} of {len(part.requests)} documents of {part.name}"
            say(f"{many} are longer than {longest} tokens: the beginnings of their prompts are cut off")
    width = max(2, min(longest, max(map(len, rows))))
    windows = torch.zeros(len(rows), width, dtype=torch.int64)
    for window, row in zip(windows, rows, strict=True):
        seen = row[-width:]
        window[: len(seen)] = torch.tensor(seen, dtype=torch.int64)
    data = hashlib.sha256()
    for part in parts:
        data.update(part.name.encode())
        for document in part.task.eval_docs:
            data.update(json.dumps(document, sort_keys=True, default=str).encode())
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
    )


def _is_cut(harness: Any, requests: Sequence[Any], longest: int) -> bool:
    """Whether something of a document's prompts is not read: rolling likelihoods read all, in several windows."""
    for request in requests:
        if request.request_type == "loglikelihood" and len(harness.tok_encode("".join(request.args))) > longest + 1:
            return True
        if request.request_type == "generate_until":
            new = request.args[1].get("max_gen_toks", harness.max_gen_toks)
            if len(harness.tok_encode(request.args[0])) > longest - new:
                return True
    return False
