"""Describe a recipe in words: its path over the base, and what it costs to run.

`explain` returns an `Explanation`; with the `Costs` of a base, in weights and bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from david.recipe.picture import text_picture
from david.recipe.recipe import Recipe
from david.recipe.verdict import verdict_sentence


@dataclass(frozen=True)
class Costs:
    """What one token costs on a base.

    Compute is counted as weights multiplied per token (FLOPs are twice that), without attention over the context.

    Attributes:
        layer_parameters: Weights of each base layer.
        layer_kv_bytes: Bytes that each base layer keeps in its cache for a token.
        end_parameters: Weights of the head.
        layer_windows: How many tokens each base layer keeps at most, such as those of a sliding window; None for all.
            Empty: every layer keeps all.
        layer_state_bytes: Bytes that each base layer keeps for a text of any length: the states of linear attention,
            convolutions and recurrences. Empty: none.
    """

    layer_parameters: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    end_parameters: int
    layer_windows: tuple[int | None, ...] = ()
    layer_state_bytes: tuple[int, ...] = ()

    def cache_bytes(self, repeat_map: Sequence[int], n_tokens: int) -> int:
        """Return the bytes of the cache after a text.

        Args:
            repeat_map: The base layer of each visit.
            n_tokens: The length of the text.

        Example:
            >>> costs = Costs((1, 1), (8, 8), 0, layer_windows=(None, 3), layer_state_bytes=(0, 100))
            >>> costs.cache_bytes([0, 1], 10)
            204
        """
        return sum(self._layer_cache_bytes(layer, n_tokens) for layer in repeat_map)

    def _layer_cache_bytes(self, layer: int, n_tokens: int) -> int:
        window = self.layer_windows[layer] if self.layer_windows else None
        kept = n_tokens if window is None else min(n_tokens, window)
        return kept * self.layer_kv_bytes[layer] + (self.layer_state_bytes[layer] if self.layer_state_bytes else 0)

    def growth(self, layer: int) -> int:
        """Return the bytes that a base layer adds to its cache for each token of a long text: 0 with a window."""
        return 0 if self.layer_windows and self.layer_windows[layer] is not None else self.layer_kv_bytes[layer]


@dataclass(frozen=True)
class Explanation:
    """A recipe in words and figures; `str` is text for a person, `to_dict` plain values.

    Attributes:
        verdict: What the scores of its file say of it, in words; None without scores.
        recipe: The notation.
        picture: The path as one line of text.
        visits: Visits of the recipe.
        base_layers: Layers of the base; if nothing states them, as many as the deepest visit needs.
        depth_stated: Whether the recipe or the costs state the base's layers; else the additional costs are the most
            that they can be.
        path: A line for each segment.
        skipped: Layers without a visit.
        extra_depth: Additional visits, as a fraction of the base's layers: 0.25 is a quarter more.
        extra_compute: Additional weights multiplied per token, as a fraction of the base's.
        extra_kv_cache: Additional bytes in the KV cache per token of a long text, as a fraction of the base's.
        kv_bytes_per_token: Bytes by which the KV cache grows with each token of a long text; None without the base's
            costs.
        weights_per_token: Weights multiplied per token; None without the base's costs.
        extra_bounded_cache: Additional bytes in the part of the cache that does not grow with a long text (full
            windows, states), as a fraction of the base's; 0 if the base has none.
        bounded_cache_bytes: Bytes in that part; None without the base's costs.
        window: Tokens after which every window is full; None without windows.
    """

    verdict: str | None
    recipe: str
    picture: str
    visits: int
    base_layers: int
    depth_stated: bool
    path: tuple[str, ...]
    skipped: tuple[int, ...]
    extra_depth: float
    extra_compute: float
    extra_kv_cache: float
    kv_bytes_per_token: int | None
    weights_per_token: int | None
    extra_bounded_cache: float = 0.0
    bounded_cache_bytes: int | None = None
    window: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        skipped = ", ".join(map(str, self.skipped)) or "none"
        kv, weights = self.kv_bytes_per_token, self.weights_per_token
        measured = " of the layers" if weights is None else f", {weights / 1e6:,.1f} M weights"
        cached = "" if kv is None else f", {kv:,} bytes"
        least, most = ("", "") if self.depth_stated else ("at least ", "at most ")
        if not self.depth_stated:
            skipped += f" of layers 0–{self.base_layers - 1}" if self.base_layers > 1 else " of layer 0"
        lines = [
            *([] if self.verdict is None else [f"verdict     {self.verdict}"]),
            f"recipe      {self.recipe}",
            f"picture     {self.picture}",
            f"visits      {self.visits} on a base of {least}{self.base_layers} layers "
            f"({most}{self.extra_depth:+.1%} depth)",
            "path        " + "\n            ".join(self.path),
            f"not visited {skipped}",
            f"per token   {most}{self.extra_compute:+.1%} compute{measured}; {most}{self.extra_kv_cache:+.1%} "
            f"KV cache{cached}",
        ]
        if self.bounded_cache_bytes:
            full = "" if self.window is None else f", full after {self.window:,} tokens"
            lines.append(
                f"bounded     {self.extra_bounded_cache:+.1%} cache that does not grow with the text (windows and "
                f"states), {self.bounded_cache_bytes:,} bytes{full}"
            )
        lines.append("weights     +0 bytes: every visit is by reference")
        return "\n".join(lines)


def explain(recipe: Recipe, costs: Costs | None = None) -> Explanation:
    """Describe what a recipe does and costs.

    Args:
        recipe: The recipe.
        costs: What the base costs; left out, every layer counts the same and the head nothing.

    Returns:
        The description.

    Raises:
        RecipeError: The recipe does not run on a base of as many layers as `costs` has.

    Example:
        >>> print(explain(Recipe.from_blocks(8, [(2, 5, 2)])).path)
        ('layers 0–4', 'back to layer 2 (3 again): layers 2–7')
    """
    n_layers = recipe.n_layers
    has_costs = costs is not None
    costs = costs or Costs((1,) * n_layers, (1,) * n_layers, 0)
    recipe.check(len(costs.layer_parameters))
    n_layers = len(costs.layer_parameters)
    weights = sum(costs.layer_parameters[layer] for layer in recipe.repeat_map) + costs.end_parameters
    base_weights = sum(costs.layer_parameters) + costs.end_parameters
    kv_bytes, base_kv = (sum(map(costs.growth, layers)) for layers in (recipe.repeat_map, range(n_layers)))
    windows = [costs.layer_windows[layer] for layer in recipe.repeat_map] if costs.layer_windows else []
    window = max((length for length in windows if length is not None), default=None)
    bounded, base_bounded = (_bounded_bytes(costs, layers) for layers in (recipe.repeat_map, range(n_layers)))
    return Explanation(
        verdict=verdict_sentence(recipe),
        recipe=str(recipe),
        picture=text_picture(recipe.repeat_map, n_layers),
        visits=len(recipe),
        base_layers=n_layers,
        depth_stated=has_costs or recipe.depth is not None,
        path=_path(recipe),
        skipped=tuple(sorted(set(range(n_layers)) - set(recipe.repeat_map))),
        extra_depth=len(recipe) / n_layers - 1,
        extra_compute=weights / base_weights - 1 if base_weights else 0.0,
        extra_kv_cache=kv_bytes / base_kv - 1 if base_kv else 0.0,
        kv_bytes_per_token=kv_bytes if has_costs else None,
        weights_per_token=weights if has_costs else None,
        extra_bounded_cache=bounded / base_bounded - 1 if base_bounded else 0.0,
        bounded_cache_bytes=bounded if has_costs else None,
        window=window,
    )


def _bounded_bytes(costs: Costs, layers: Sequence[int]) -> int:
    """Return the bytes that some layers keep once every window is full, without what grows."""
    longest = max((length for length in costs.layer_windows if length is not None), default=0)
    return costs.cache_bytes(layers, longest) - longest * sum(map(costs.growth, layers))


def _path(recipe: Recipe) -> tuple[str, ...]:
    lines = []
    reached = 0  # the next layer on the base
    seen: set[int] = set()
    for start, stop, scale in recipe.segments:
        layers = f"layer {start}" if stop == start + 1 else f"layers {start}–{stop - 1}"
        strength = "" if scale == 1 else f" at scale {scale:g}"
        lead = ""
        if start < reached:
            lead = f"back to layer {start} ({len(seen & set(range(start, stop)))} again): "
        elif start > reached:
            over = f"{reached}" if start == reached + 1 else f"{reached}–{start - 1}"
            lead = f"over {over}: "
        lines.append(f"{lead}{layers}{strength}")
        reached = stop
        seen.update(range(start, stop))
    return tuple(lines)
