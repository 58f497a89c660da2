"""What a model makes of a corpus: the negative log-likelihood of each window."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from david.errors import ScoreError
from david.metrics import units
from david.metrics.score import Score
from david.scoring.corpus import TASKS, Corpus
from david.scoring.likelihood import token_nll, window_sums
from david.sling.forward import context_of, input_device

ConventionName = Literal["window", "llamacpp"]
Objective = Callable[[nn.Module, Corpus], "Score"]


def perplexity(model: nn.Module, corpus: Corpus, *, convention: ConventionName = "window", batch: int = 1) -> Score:
    """Score a model on a corpus, as it stands: the base, slung, or a view. The cache is never used.

    Conventions: `window` scores every token of a window but its first; `llamacpp` scores the second half of each
    window, as llama.cpp's perplexity tool does (positions T/2 + 1 … T − 1, after a context of at least T/2). Where a
    corpus says itself which tokens count (completions, strided or rolling windows, see `Corpus.load`), these are
    scored, and the score says so. `batch` windows go through the model at once. Log-probabilities are computed in
    float32 from the logits on.

    Raises `ScoreError` when the windows do not fit the model, or when a window's NLL is not a number (an infinite
    one is a score).

    Example:
        >>> score = perplexity(model, corpus)
        >>> score.tokens == len(corpus) * (corpus.window - 1), score.nll > 0
        (True, True)
        >>> perplexity(model, corpus, convention="llamacpp").convention
        'llamacpp'
    """
    check_kind(corpus, questions=False)
    return windows_score(model, corpus, convention, batch)


def multiple_choice(model: nn.Module, corpus: Corpus, *, batch: int = 1) -> Score:
    """Score a model on multiple-choice questions (`Corpus.load` with `gold`).

    The likelihood of each answer behind its prompt is the mean log-probability over its characters, as in lm-eval's
    `acc_norm`; the model answers what is likeliest (the first of equals), and `Score.accuracy` is its share of right
    answers. A search needs something that is less coarse: the NLL of a question is minus the log of the right answer's
    share, a softmax over these likelihoods, which falls as the right answer leads further.

    Raises `ScoreError` as `perplexity` does, and for a corpus without questions.

    Example:
        >>> questions = Corpus.load("questions.jsonl", tokenizer, prompt="question", column="answers", gold="right")
        >>> multiple_choice(model, questions).accuracy in (0.0, 0.5, 1.0)
        True
    """
    check_kind(corpus, questions=True)
    return by_question(windows_score(model, corpus, "window", batch), corpus)


def by_question(score: Score, corpus: Corpus) -> Score:
    """The score of questions, of that of each answer."""
    nll, right = [], []
    for item in corpus.items():
        choices = corpus.choices[item.start : item.stop]
        likelihoods = torch.tensor(
            [-score.window_nll[place] / choice.length for place, choice in zip(item, choices, strict=True)],
            dtype=torch.float64,
        )
        gold = [choice.right for choice in choices].index(True)
        lost = float(torch.logsumexp(likelihoods, 0) - likelihoods[gold])
        nll.append(math.inf if math.isnan(lost) else max(0.0, lost))  # where every answer is impossible
        right.append(int(likelihoods.argmax()) == gold)
    questions = tuple(corpus.documents[item.start] for item in corpus.items())
    return Score(tuple(nll), (1,) * len(nll), questions, corpus.convention, right=tuple(right), unit=units.QUESTION)


def check_kind(corpus: Corpus, *, questions: bool) -> None:
    """`ScoreError` unless a corpus holds multiple-choice questions, or none, as an objective wants it."""
    if corpus.convention == TASKS:
        raise ScoreError("the corpus holds the documents of tasks: score it by what tasks.load gave")
    if corpus.choices and not questions:
        raise ScoreError("the corpus holds multiple-choice questions: score it by multiple_choice")
    if questions and not corpus.choices:
        raise ScoreError("the corpus has no questions: load it with gold, the column of right answers")


def windows_score(model: nn.Module, corpus: Corpus, convention: ConventionName = "window", batch: int = 1) -> Score:
    """What `perplexity` tells, also of the answers to multiple-choice questions, each by itself."""
    if batch < 1:
        raise ScoreError(f"batch must be at least 1; got {batch}")
    first = first_scored(corpus, convention)
    check_fits(model, corpus)
    sums: list[float] = []
    with torch.inference_mode():
        for windows in torch.split(corpus.windows, batch):
            nll = token_nll(model, windows.to(input_device(model)), first)  # [B, scored]
            sums += window_sums(nll, corpus.part(len(sums), len(sums) + len(windows)), first)
    wrong = next((i for i, value in enumerate(sums) if math.isnan(value)), None)
    if wrong is not None:
        raise ScoreError(f"the NLL of window {wrong} is not a number: the model's logits hold NaN")
    return score_of(sums, corpus, convention)


def score_of(sums: Sequence[float], corpus: Corpus, convention: ConventionName) -> Score:
    """The score that the NLL of a corpus's first windows make, or of all."""
    seen, first = len(sums), first_scored(corpus, convention)
    return Score(
        window_nll=tuple(sums),
        window_tokens=scored_tokens(corpus, first)[:seen],
        documents=corpus.documents[:seen],
        convention=convention if corpus.scored is None else corpus.convention,
        window_bytes=corpus.window_bytes[:seen] if convention == "window" else (),
    )


def scored_tokens(corpus: Corpus, first: int) -> tuple[int, ...]:
    """How many tokens of each window are scored, from position `first` on."""
    if corpus.scored is None:
        return (corpus.window - first,) * len(corpus)
    return tuple(corpus.scored[:, first:].sum(dim=1).tolist())


def first_scored(corpus: Corpus, convention: str) -> int:
    """The first position of a window whose token is scored."""
    if corpus.scored is not None:
        if convention != "window":
            raise ScoreError(
                f"the corpus was cut for its own convention, {corpus.convention}; got {convention!r} for it"
            )
        return int(corpus.scored.any(dim=0).nonzero()[0])
    if convention not in ("window", "llamacpp"):
        raise ScoreError(f"unknown convention {convention!r}: expected 'window' or 'llamacpp'")
    first = 1 if convention == "window" else corpus.window // 2 + 1
    if first >= corpus.window:
        raise ScoreError(f"convention {convention!r} needs windows of at least 3 tokens; got {corpus.window}")
    return first


def check_fits(model: nn.Module, corpus: Corpus) -> None:
    """`ScoreError` unless a corpus can be scored by a model: its length, its vocabulary, and no training mode."""
    if any(module.training for module in model.modules()):
        raise ScoreError("the model is in training mode, where dropout makes scores random: call model.eval() first")
    longest = context_of(model)
    if longest is not None and longest < corpus.window:
        raise ScoreError(f"windows of {corpus.window} tokens are longer than the model takes ({longest} positions)")
    weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    top = int(corpus.windows.max())
    if weight is not None and top >= (rows := weight.shape[0]):  # MusicGen has a list of embeddings
        raise ScoreError(f"token {top} is not in the model's vocabulary of {rows}: the corpus has another tokenizer")
