"""Token likelihoods: from a model's logits to the NLL of each window, in bounded memory.

`token_nll` runs a model on windows, `end_nll` takes hidden states that are finished already, and `window_sums` adds up
the tokens of each window. Logits that would be too large at once are made in chunks of positions.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from david.scoring.corpus import Corpus
from david.sling import locate
from david.sling.forward import forward, run_end, text_config
from david.sling.views import hidden

_END_SPREAD = 0.05  # of the logits' spread: what half precision may change in them
_LOGITS_BYTES = 256 * 2**20  # if the logits of a batch of windows are larger, they are made in chunks of positions


def window_sums(nll: Tensor, corpus: Corpus, first: int) -> list[float]:
    """Return the NLL of each window.

    Args:
        nll: The NLL of each token `[B, T − first]` in nats.
        corpus: The B windows.
        first: The position of the first of these tokens.

    Returns:
        The sums over the scored tokens, added up in float64.
    """
    if corpus.scored is not None:
        nll = nll.where(corpus.scored[:, first:].to(nll.device), 0)
    return nll.double().sum(dim=1).tolist()


def token_nll(model: nn.Module, windows: Tensor, first: int) -> Tensor:
    """Return the NLL of tokens in windows, by the model's own forward pass.

    Args:
        model: The model, as it stands.
        windows: Token ids `[B, T]`.
        first: The position of the first scored token, at least 1.

    Returns:
        The NLL of the tokens from there on `[B, T − first]` in nats, float32.
    """
    chunked = positions_at_once(model, len(windows)) < windows.shape[1]
    last = _last_output(model, windows) if chunked and locate.is_known(model) and not locate.is_coupled(model) else None
    if last is not None:
        return end_nll(model, last, hidden(last), windows, first)
    n_positions = windows.shape[1] - first + 1  # the last one included, though no token follows it
    options = _last_logits_only(model, n_positions) if first > 1 else {}
    return _cross_entropy(forward(model, windows, **options).logits[:, -n_positions:-1], windows[:, first:])


def end_nll(
    model: nn.Module, form: Any, states: Tensor, windows: Tensor, first: int, *, by_position: bool = True
) -> Tensor:
    """Return the NLL of tokens in windows, by the end of a model (final norm and head) on finished hidden states.

    Args:
        model: The model.
        form: An output of the model's last layer, for any text: the states are put in its place.
        states: Finished hidden states `[B, T, D]`.
        windows: Token ids `[B, T]`.
        first: The position of the first scored token, at least 1.
        by_position: Whether the end works position by position (see `ends_by_position`), so that large logits can be
            made in chunks.

    Returns:
        The NLL of the tokens from there on `[B, T − first]` in nats, float32.
    """
    targets, chunk = windows[:, first:], positions_at_once(model, len(windows))
    if not by_position:
        return _cross_entropy(run_end(model, form, states, windows)[:, first - 1 : -1], targets)
    if chunk >= windows.shape[1]:
        return _cross_entropy(run_end(model, form, states[:, first - 1 :], windows[:, first - 1 :])[:, :-1], targets)
    parts = zip(torch.split(states[:, first - 1 : -1], chunk, dim=1), torch.split(targets, chunk, dim=1), strict=True)
    return torch.cat([_cross_entropy(run_end(model, form, part, tokens), tokens) for part, tokens in parts], dim=1)


def positions_at_once(model: nn.Module, n_windows: int) -> int:
    """Return for how many positions of each window the logits are made at once, for so many windows in a batch."""
    return max(1, _LOGITS_BYTES // (4 * int(text_config(model).vocab_size) * n_windows))


def ends_by_position(model: nn.Module, last: Any, windows: Tensor, logits: Tensor) -> bool:
    """Return whether a model's end works position by position.

    It does if the end makes of the last position alone the logits that it makes of this position in the whole window.

    Args:
        model: The model.
        last: The output of its last layer for the windows.
        windows: Token ids `[B, T]`.
        logits: The logits of the windows' last token `[B, 1, V]`, from the whole windows.
    """
    states = hidden(last)
    if states.shape[:2] != windows.shape:
        return False
    again = run_end(model, last, states[:, -1:], windows[:, -1:])
    return bool((again - logits).abs().max() <= _END_SPREAD * logits.std())


def _last_logits_only(model: nn.Module, positions: int) -> dict[str, int]:
    """Return the option that has a model make the logits of its last positions alone; none if it has no such option."""
    return {"logits_to_keep": positions} if "logits_to_keep" in signature(model.forward).parameters else {}


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return minus the log-probability of each target, computed in float32 one window at a time."""
    rows = [
        nn.functional.cross_entropy(window.float(), target, reduction="none")
        for window, target in zip(logits, targets.to(logits.device), strict=True)
    ]
    return torch.stack(rows)


def _last_output(model: nn.Module, windows: Tensor) -> Any:
    """Return the output of the last layer, `[B, T, D]` or a tuple that begins with it; None if the end needs more.

    The logits of the last token decide: those of the whole forward pass must equal those of the hidden state alone.
    """
    outputs: list[Any] = []
    handle = locate.find(model).layers[-1].register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        logits = forward(model, windows, **_last_logits_only(model, 1)).logits[:, -1:]
    finally:
        handle.remove()
    if len(outputs) != 1 or not ends_by_position(model, outputs[0], windows, logits):
        return None
    return outputs[0]
