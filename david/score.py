"""What a model makes of a corpus: the negative log-likelihood of each window."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from david import layers, units
from david.corpus import TASKS, Corpus
from david.errors import ScoreError
from david.forward import context_of, end, forward, input_device, text_config
from david.views import hidden

ConventionName = Literal["window", "llamacpp"]
Objective = Callable[[nn.Module, Corpus], "Score"]

_END_SPREAD = 0.05  # of the logits' spread: what half precision may change in them
_LOGITS_BYTES = 256 * 2**20  # more than this for a batch of windows, and the logits are made in chunks of positions


@dataclass(frozen=True)
class Score:
    """The NLL of each window in nats, summed over its scored tokens, and how many those are.

    `documents` is the document each window begins in; `convention` names which tokens were scored. `window_bytes` is
    how many UTF-8 bytes these stand for, empty where that is not known. A score of multiple-choice questions has a
    question for a window and counts it as one token; `right` tells which were answered right. `unit` says what the mean
    is in: nats a token, or of an objective that is no NLL what is minimised instead, such as `1 − acc`.

    Example:
        >>> score = Score(window_nll=(4.0, 8.0), window_tokens=(2, 2), documents=(0, 1), convention="window")
        >>> score.tokens, score.nll, round(score.perplexity, 3)
        (4, 3.0, 20.086)
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int, ...]
    convention: str
    window_bytes: tuple[int, ...] = ()
    right: tuple[bool, ...] = ()
    unit: str = units.TOKEN

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(self.window_tokens)

    @property
    def nll(self) -> float:
        """Mean NLL in nats over the scored tokens; NaN where there are none."""
        return sum(self.window_nll) / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.inf if self.nll > 700 else math.exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        """NLL in bits over the UTF-8 bytes of the scored text, which any tokenizer has alike; NaN where not known."""
        return sum(self.window_nll) / math.log(2) / sum(self.window_bytes) if any(self.window_bytes) else math.nan

    @property
    def accuracy(self) -> float:
        """The share of questions that were answered right; NaN of what is no multiple choice."""
        return sum(self.right) / len(self.right) if self.right else math.nan


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


def window_sums(nll: Tensor, corpus: Corpus, first: int) -> list[float]:
    """The NLL of each window, of that of its tokens `[B, T − first]`."""
    if corpus.scored is not None:
        nll = nll.where(corpus.scored[:, first:].to(nll.device), 0)
    return nll.double().sum(dim=1).tolist()


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


def token_nll(model: nn.Module, windows: Tensor, first: int) -> Tensor:
    """NLL of the tokens from position `first` on, `[B, T − first]` in float32, of windows `[B, T]`."""
    chunked = positions_at_once(model, len(windows)) < windows.shape[1]
    last = _last_output(model, windows) if chunked and layers.is_known(model) and not layers.is_coupled(model) else None
    if last is not None:
        return end_nll(model, last, hidden(last), windows, first)
    wanted = windows.shape[1] - first + 1  # positions, the last included, though nothing follows it
    few = _keep_logits(model, wanted) if first > 1 else {}
    return _cross_entropy(forward(model, windows, **few).logits[:, -wanted:-1], windows[:, first:])


def end_nll(
    model: nn.Module, form: Any, states: Tensor, windows: Tensor, first: int, *, by_position: bool = True
) -> Tensor:
    """NLL of the tokens from position `first` on, `[B, T − first]`, as the end of a model tells it.

    Of finished states `[B, T, D]`; `form` is what the last layer hands on, of any text. An end that works
    `by_position` (see `ends_by_position`) makes large logits in chunks.
    """
    targets, chunk = windows[:, first:], positions_at_once(model, len(windows))
    if not by_position:
        return _cross_entropy(end(model, form, states, windows)[:, first - 1 : -1], targets)
    if chunk >= windows.shape[1]:
        return _cross_entropy(end(model, form, states[:, first - 1 :], windows[:, first - 1 :])[:, :-1], targets)
    parts = zip(torch.split(states[:, first - 1 : -1], chunk, dim=1), torch.split(targets, chunk, dim=1), strict=True)
    return torch.cat([_cross_entropy(end(model, form, part, tokens), tokens) for part, tokens in parts], dim=1)


def positions_at_once(model: nn.Module, n_windows: int) -> int:
    """Of how many positions of each of so many windows the logits are made at once."""
    return max(1, _LOGITS_BYTES // (4 * int(text_config(model).vocab_size) * n_windows))


def _keep_logits(model: nn.Module, positions: int) -> dict[str, int]:
    """What has a model make the logits of its last positions alone, where it can."""
    return {"logits_to_keep": positions} if "logits_to_keep" in signature(model.forward).parameters else {}


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-probability of each target, computed in float32 a window at a time."""
    rows = [
        nn.functional.cross_entropy(window.float(), target, reduction="none")
        for window, target in zip(logits, targets.to(logits.device), strict=True)
    ]
    return torch.stack(rows)


def _last_output(model: nn.Module, windows: Tensor) -> Any:
    """What the last layer hands on, `[B, T, D]` or a tuple that begins with it; None where it does not make the end.

    The logits of the last token tell: those of the whole forward pass must be those of the hidden state alone.
    """
    caught: list[Any] = []
    handle = layers.find(model).layers[-1].register_forward_hook(lambda _module, _args, output: caught.append(output))
    try:
        logits = forward(model, windows, **_keep_logits(model, 1)).logits[:, -1:]
    finally:
        handle.remove()
    if len(caught) != 1 or not ends_by_position(model, caught[0], windows, logits):
        return None
    return caught[0]


def ends_by_position(model: nn.Module, last: Any, windows: Tensor, logits: Tensor) -> bool:
    """Whether a model's end makes of a part of the last layer's output what it makes of that part of the whole.

    `logits` `[B, 1, V]` are those of the windows' last token.
    """
    states = hidden(last)
    if states.shape[:2] != windows.shape:
        return False
    again = end(model, last, states[:, -1:], windows[:, -1:])
    return bool((again - logits).abs().max() <= _END_SPREAD * logits.std())


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
