"""Token log-likelihoods: from logits to the NLL of each window, in bounded memory."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from david.scoring.corpus import Corpus
from david.sling import locate
from david.sling.forward import end, forward, text_config
from david.sling.views import hidden

_END_SPREAD = 0.05  # of the logits' spread: what half precision may change in them
_LOGITS_BYTES = 256 * 2**20  # more than this for a batch of windows, and the logits are made in chunks of positions


def window_sums(nll: Tensor, corpus: Corpus, first: int) -> list[float]:
    """The NLL of each window, of that of its tokens `[B, T − first]`."""
    if corpus.scored is not None:
        nll = nll.where(corpus.scored[:, first:].to(nll.device), 0)
    return nll.double().sum(dim=1).tolist()


def token_nll(model: nn.Module, windows: Tensor, first: int) -> Tensor:
    """NLL of the tokens from position `first` on, `[B, T − first]` in float32, of windows `[B, T]`."""
    chunked = positions_at_once(model, len(windows)) < windows.shape[1]
    last = _last_output(model, windows) if chunked and locate.is_known(model) and not locate.is_coupled(model) else None
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
    handle = locate.find(model).layers[-1].register_forward_hook(lambda _module, _args, output: caught.append(output))
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
