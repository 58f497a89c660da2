"""A recipe in words: its segments as a person reads them, and what it costs to run."""

from dataclasses import asdict, dataclass
from typing import Any

from david.recipe.picture import text_picture
from david.recipe.recipe import Recipe


@dataclass(frozen=True)
class Costs:
    """What one token costs a base: weights multiplied, and bytes kept in the KV cache.

    `layer_parameters` and `layer_kv_bytes` have an entry for each base layer; `end_parameters` are those of the head.
    Compute is counted as weights multiplied per token (twice that in FLOPs), attention over the context left out.
    """

    layer_parameters: tuple[int, ...]
    layer_kv_bytes: tuple[int, ...]
    end_parameters: int


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `str()` of it is the text for a person, `to_dict()` the same for a machine.

    The `extra_` figures are fractions of the base's own cost: 0.25 is a quarter more.
    """

    recipe: str
    picture: str
    visits: int
    base_layers: int
    path: tuple[str, ...]
    skipped: tuple[int, ...]
    extra_depth: float
    extra_compute: float
    extra_kv_cache: float
    kv_bytes_per_token: int | None
    weights_per_token: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        skipped = ", ".join(map(str, self.skipped)) or "none"
        kv, weights = self.kv_bytes_per_token, self.weights_per_token
        measured = " of the layers" if weights is None else f", {weights / 1e6:,.1f} M weights"
        cached = "" if kv is None else f", {kv:,} bytes"
        lines = [
            f"recipe      {self.recipe}",
            f"picture     {self.picture}",
            f"visits      {self.visits} on a base of {self.base_layers} layers ({self.extra_depth:+.1%} depth)",
            "path        " + "\n            ".join(self.path),
            f"not visited {skipped}",
            f"per token   {self.extra_compute:+.1%} compute{measured}; {self.extra_kv_cache:+.1%} KV cache{cached}",
            "weights     +0 bytes: every visit is by reference",
        ]
        return "\n".join(lines)


def explain(recipe: Recipe, costs: Costs | None = None) -> Explanation:
    """Tell what a recipe does and costs. Without `costs`, every layer is taken to cost the same and the head nothing.

    Example:
        >>> print(explain(Recipe.from_blocks(8, [(2, 5, 2)])).path)
        ('layers 0–4', 'back to layer 2 (3 again): layers 2–7')
    """
    n_layers = recipe.n_layers
    known = costs is not None
    costs = costs or Costs((1,) * n_layers, (1,) * n_layers, 0)
    recipe.check(len(costs.layer_parameters))
    n_layers = len(costs.layer_parameters)
    weights = sum(costs.layer_parameters[layer] for layer in recipe.repeat_map) + costs.end_parameters
    base_weights = sum(costs.layer_parameters) + costs.end_parameters
    kv_bytes = sum(costs.layer_kv_bytes[layer] for layer in recipe.repeat_map)
    base_kv = sum(costs.layer_kv_bytes)
    return Explanation(
        recipe=str(recipe),
        picture=text_picture(recipe.repeat_map, n_layers),
        visits=len(recipe),
        base_layers=n_layers,
        path=_path(recipe),
        skipped=tuple(sorted(set(range(n_layers)) - set(recipe.repeat_map))),
        extra_depth=len(recipe) / n_layers - 1,
        extra_compute=weights / base_weights - 1 if base_weights else 0.0,
        extra_kv_cache=kv_bytes / base_kv - 1 if base_kv else 0.0,
        kv_bytes_per_token=kv_bytes if known else None,
        weights_per_token=weights if known else None,
    )


def _path(recipe: Recipe) -> tuple[str, ...]:
    lines = []
    reached = 0  # the layer that would come next on the base
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
