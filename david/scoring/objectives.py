"""Objectives: functions `(model, corpus) → Score` of the likelihoods that a model gives to a corpus.

`perplexity` scores texts and completions, `multiple_choice` scores questions. The functions below them are their parts,
which the engine shares.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from david.errors import ScoreError
from david.metrics import units
from david.metrics.score import Score
from david.scoring.conventions import DEFAULT_CONVENTION, TASKS, ConventionName, first_scored_position
from david.scoring.corpus import Corpus
from david.scoring.likelihood import token_nll, window_sums
from david.sling.forward import context_of, input_device
from david.support.arguments import check_type, check_whole
from david.support.text import brief

Objective = Callable[[nn.Module, Corpus], "Score"]


def perplexity(
    model: nn.Module, corpus: Corpus, *, convention: ConventionName = DEFAULT_CONVENTION, batch: int = 1
) -> Score:
    """Score a model on a corpus by the perplexity of its tokens.

    The model is scored as it stands: the base, slung, or a view. The cache is never used. Log-probabilities are
    computed in float32 from the logits on.

    Args:
        model: A causal language model in evaluation mode.
        corpus: The windows to score.
        convention: Which tokens of consecutive windows are scored (see `david.scoring.conventions`): `window` scores
            all but the first of each window, `llamacpp` the second half of each, as llama.cpp's perplexity tool does
            (positions T/2 + 1 … T − 1, after a context of at least T/2). A corpus of completions, strided or rolling
            windows marks its scored tokens itself (see `Corpus.load`), and the score takes the corpus's convention.
        batch: How many windows go through the model at once.

    Returns:
        The score, with the NLL of each window in nats.

    Raises:
        ScoreError: The windows do not fit the model, the convention does not fit the corpus, or the NLL of a window is
            not a number (an infinite one is a score).

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

    The likelihood of an answer behind its prompt is its mean log-probability per character, as in lm-eval's `acc_norm`.
    The model answers what is likeliest (the first of equals), and `Score.accuracy` is its share of right answers. A
    search needs something less coarse: the NLL of a question is minus the log of the right answer's share in a softmax
    over these likelihoods, which falls as the right answer leads further.

    Args:
        model: A causal language model in evaluation mode.
        corpus: The questions, a window for each answer.
        batch: How many windows go through the model at once.

    Returns:
        The score, with the NLL of each question in nats; a question counts as one token.

    Raises:
        ScoreError: As `perplexity` does, and if the corpus has no questions.

    Example:
        >>> questions = Corpus.load("questions.jsonl", tokenizer, prompt="question", column="answers", gold="right")
        >>> multiple_choice(model, questions).accuracy in (0.0, 0.5, 1.0)
        True
    """
    check_kind(corpus, questions=True)
    return by_question(windows_score(model, corpus, DEFAULT_CONVENTION, batch), corpus)


def by_question(score: Score, corpus: Corpus) -> Score:
    """Return the score of multiple-choice questions (see `multiple_choice`).

    Args:
        score: The score of the windows, one for each answer.
        corpus: The questions.
    """
    check_type("score", score, Score, ScoreError)
    check_type("corpus", corpus, Corpus, ScoreError)
    nll, right = [], []
    for item in corpus.items():
        choices = corpus.choices[item.start : item.stop]
        likelihoods = torch.tensor(
            [-score.window_nll[place] / choice.length for place, choice in zip(item, choices, strict=True)],
            dtype=torch.float64,
        )
        gold = [choice.right for choice in choices].index(True)
        loss = float(torch.logsumexp(likelihoods, 0) - likelihoods[gold])
        nll.append(math.inf if math.isnan(loss) else max(0.0, loss))  # not a number where every answer is impossible
        right.append(int(likelihoods.argmax()) == gold)
    questions = tuple(corpus.clusters[item.start] for item in corpus.items())
    return Score(tuple(nll), (1,) * len(nll), questions, corpus.convention, right=tuple(right), unit=units.QUESTION)


def windows_score(
    model: nn.Module, corpus: Corpus, convention: ConventionName = DEFAULT_CONVENTION, batch: int = 1
) -> Score:
    """Score each window by itself, as `perplexity` does, also if it is an answer to a multiple-choice question.

    Args:
        model: A causal language model in evaluation mode.
        corpus: The windows to score.
        convention: Which tokens of consecutive windows are scored.
        batch: How many windows go through the model at once.

    Raises:
        ScoreError: As `perplexity` does.
    """
    check_whole("batch", batch, ScoreError, least=1)
    first = first_scored(corpus, convention)
    check_fits(model, corpus)
    sums: list[float] = []
    with torch.inference_mode():
        for windows in torch.split(corpus.windows, batch):
            nll = token_nll(model, windows.to(input_device(model)), first)  # [B, T − first]
            sums += window_sums(nll, corpus.part(len(sums), len(sums) + len(windows)), first)
    wrong = next((i for i, value in enumerate(sums) if math.isnan(value)), None)
    if wrong is not None:
        raise ScoreError(f"the NLL of window {wrong} is not a number: the model's logits hold NaN")
    return score_of(sums, corpus, convention)


def score_of(sums: Sequence[float], corpus: Corpus, convention: ConventionName) -> Score:
    """Return the score of a corpus's first windows, or of all.

    Args:
        sums: The NLL of each of these windows in nats.
        corpus: The corpus that begins with them.
        convention: Which tokens of consecutive windows were scored.
    """
    n, first = len(sums), first_scored(corpus, convention)
    return Score(
        window_nll=tuple(sums),
        window_tokens=scored_tokens(corpus, first)[:n],
        documents=corpus.clusters[:n],
        convention=convention if corpus.scored is None else corpus.convention,
        # A corpus counts the bytes of its own cut.
        window_bytes=corpus.window_bytes[:n] if convention == DEFAULT_CONVENTION else (),
    )


def scored_tokens(corpus: Corpus, first: int) -> tuple[int, ...]:
    """Return how many tokens of each window are scored, from position `first` on."""
    check_type("corpus", corpus, Corpus, ScoreError)
    if corpus.scored is None:
        return (corpus.window - first,) * len(corpus)
    return tuple(corpus.scored[:, first:].sum(dim=1).tolist())


def first_scored(corpus: Corpus, convention: ConventionName) -> int:
    """Return the first position of a window whose token is scored; if the corpus marks them, in any of its windows.

    Raises:
        ScoreError: The convention does not fit the corpus.
    """
    check_type("corpus", corpus, Corpus, ScoreError)
    if corpus.scored is None:
        return first_scored_position(convention, corpus.window)
    if convention != DEFAULT_CONVENTION:
        raise ScoreError(
            f"the corpus has a convention of its own, {corpus.convention}; got {brief(convention)}: "
            "leave convention out"
        )
    return int(corpus.scored.any(dim=0).nonzero()[0])


def check_kind(corpus: Corpus, *, questions: bool) -> None:
    """Raise `ScoreError` unless a corpus is of the kind that an objective takes.

    Args:
        corpus: The corpus.
        questions: Whether the objective takes multiple-choice questions, or else texts and completions.
    """
    check_type("corpus", corpus, Corpus, ScoreError)
    if corpus.convention == TASKS:
        raise ScoreError("the corpus holds the documents of tasks: score it by what tasks.load returned")
    if corpus.choices and not questions:
        raise ScoreError("the corpus holds multiple-choice questions: score it by multiple_choice")
    if questions and not corpus.choices:
        raise ScoreError("the corpus has no questions: load it with gold, the column of right answers")


def check_fits(model: nn.Module, corpus: Corpus) -> None:
    """Raise `ScoreError` unless a model can score a corpus.

    The model must be in evaluation mode, take windows as long as these, and have all their tokens in its vocabulary.
    """
    check_type("model", model, nn.Module, ScoreError)
    check_type("corpus", corpus, Corpus, ScoreError)
    if any(module.training for module in model.modules()):
        raise ScoreError("the model is in training mode, where dropout makes scores random: call model.eval() first")
    longest = context_of(model)
    if longest is not None and longest < corpus.window:
        raise ScoreError(
            f"windows of {corpus.window} tokens are longer than the model takes ({longest} positions): "
            "take shorter windows"
        )
    weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    top = int(corpus.windows.max())
    if weight is not None and top >= (rows := weight.shape[0]):  # MusicGen has a list of embeddings instead
        raise ScoreError(
            f"token {top} is not in the model's vocabulary of {rows}, the corpus has another tokenizer: "
            "load the corpus with the model's own"
        )
