"""What a model makes of a corpus: the negative log-likelihood of each window."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from david import layers
from david.corpus import Corpus
from david.errors import ScoreError
from david.views import hidden, with_hidden

ConventionName = Literal["window", "llamacpp"]
Objective = Callable[[nn.Module, Corpus], "Score"]

_END_SPREAD = 0.05  # of the logits' spread: what half precision may change in them
_LOGITS_BYTES = 256 * 2**20  # more than this for a batch of windows, and the logits are made in chunks of positions


@dataclass(frozen=True)
class Score:
    """The NLL of each window in nats, summed over its scored tokens, and how many those are.

    `documents` is the document each window begins in; `convention` names which tokens were scored.
    """

    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    documents: tuple[int, ...]
    convention: str

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return sum(self.window_tokens)

    @property
    def nll(self) -> float:
        """Mean NLL in nats over the scored tokens."""
        return sum(self.window_nll) / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.inf if self.nll > 700 else math.exp(self.nll)


def perplexity(model: nn.Module, corpus: Corpus, *, convention: ConventionName = "window", batch: int = 1) -> Score:
    """Score a model on a corpus, as it stands: the base, slung, or a view. The cache is never used.

    Conventions: `window` scores every token of a window but its first; `llamacpp` scores the second half of each
    window, as llama.cpp's perplexity tool does (positions T/2 + 1 … T − 1, after a context of at least T/2).
    `batch` windows go through the model at once. Log-probabilities are computed in float32 from the logits on.

    Raises `ScoreError` when the windows do not fit the model, or when a window's NLL is not a number (an infinite
    one is a score).
    """
    if convention not in ("window", "llamacpp"):
        raise ScoreError(f"unknown convention {convention!r}: expected 'window' or 'llamacpp'")
    if batch < 1:
        raise ScoreError(f"batch must be at least 1; got {batch}")
    first = 1 if convention == "window" else corpus.window // 2 + 1
    if first >= corpus.window:
        raise ScoreError(f"convention {convention!r} needs windows of at least 3 tokens; got {corpus.window}")
    check_fits(model, corpus)
    sums: list[float] = []
    with torch.inference_mode():
        for windows in torch.split(corpus.windows, batch):
            nll = _token_nll(model, windows.to(_device(model)), first)  # [B, scored]
            sums += nll.double().sum(dim=1).tolist()
    wrong = next((i for i, value in enumerate(sums) if math.isnan(value)), None)
    if wrong is not None:
        raise ScoreError(f"the NLL of window {wrong} is not a number: the model's logits hold NaN")
    return Score(tuple(sums), (corpus.window - first,) * len(corpus), corpus.documents, convention)


def _token_nll(model: nn.Module, windows: Tensor, first: int) -> Tensor:
    """NLL of the tokens from position `first` on, `[B, T − first]` in float32, of windows `[B, T]`."""
    scored = windows[:, first:]
    vocabulary = _config(model).vocab_size
    chunk = max(1, _LOGITS_BYTES // (4 * vocabulary * len(windows)))
    chunked = chunk < windows.shape[1] and layers.is_known(model) and not layers.is_coupled(model)
    last = _last_output(model, windows) if chunked else None
    if last is None:
        logits = _forward(model, windows).logits[:, first - 1 : -1]  # [B, T − first, V]
        return _cross_entropy(logits, scored)
    states = hidden(last)[:, first - 1 : -1]  # [B, T − first, D]
    parts = []
    for part, targets in zip(torch.split(states, chunk, dim=1), torch.split(scored, chunk, dim=1), strict=True):
        parts.append(_cross_entropy(_end(model, last, part, targets), targets))
    return torch.cat(parts, dim=1)


def _forward(model: nn.Module, tokens: Tensor, **options: Any) -> Any:
    """The model's output without a cache, whatever its configuration would have it return besides."""
    if getattr(_config(model), "output_router_logits", False):
        options["output_router_logits"] = False  # the load-balancing loss they are for needs every layer's
    return model(input_ids=tokens, use_cache=False, return_dict=True, **options)


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
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    try:
        logits = _forward(model, windows, **few).logits[:, -1:]
    finally:
        handle.remove()
    if len(caught) != 1 or hidden(caught[0]).shape[:2] != windows.shape:
        return None
    again = _end(model, caught[0], hidden(caught[0])[:, -1:], windows[:, -1:])
    near = (again - logits).abs().max() <= _END_SPREAD * logits.std()
    return caught[0] if near else None


def _end(model: nn.Module, last: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """Logits `[B, t, V]` that the end of a model (norm, head, …) makes of finished states `[B, t, D]`."""
    with _layers_give(model, with_hidden(last, states)):
        logits: Tensor = _forward(model, tokens).logits
    return logits


class _Given(nn.Module):
    """Stands in the place of all layers and hands on a finished output; in all else it is like the last of them."""

    def __init__(self, like: nn.Module, output: Any) -> None:
        super().__init__()
        self.__dict__ |= {"_like": like, "_given": output}  # names that no layer has

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_like"], name)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._given


@contextmanager
def _layers_give(model: nn.Module, output: Any) -> Iterator[None]:
    """A finished hidden state in the place of all layers: the model's own forward then is its end (norm, head, …)."""
    stack = layers.find(model)
    before, final = layers.now(stack), len(stack.layers) - 1
    end = nn.ModuleList([_Given(stack.layers[final], output)])
    try:
        layers.put(stack, layers.followed(stack, before, end, [final]))
        yield
    finally:
        layers.put(stack, before)


def check_fits(model: nn.Module, corpus: Corpus) -> None:
    """`ScoreError` unless a corpus can be scored by a model: its length, its vocabulary, and no training mode."""
    if any(module.training for module in model.modules()):
        raise ScoreError("the model is in training mode, where dropout makes scores random: call model.eval() first")
    longest = getattr(_config(model), "max_position_embeddings", None)
    if longest is not None and 0 < longest < corpus.window:  # XLNet says -1: any length
        raise ScoreError(f"windows of {corpus.window} tokens are longer than the model takes ({longest} positions)")
    weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    top = int(corpus.windows.max())
    if weight is not None and top >= (rows := weight.shape[0]):  # MusicGen has a list of embeddings
        raise ScoreError(f"token {top} is not in the model's vocabulary of {rows}: the corpus has another tokenizer")


def _config(model: nn.Module) -> Any:
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]


def _device(model: nn.Module) -> torch.device:
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves what it is given
