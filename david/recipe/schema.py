"""The parts of a recipe file: its data, scores, origin and versions, read strictly."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_MOST_WINDOWS = 1_000_000

LONGEST = 10_000  # visits of a recipe, and layers of a base: a hundred times those of the deepest models
MAX_FILE_BYTES = 1_000_000


class Part(BaseModel):
    """A part of a recipe file: read strictly, never changed; no NaN or infinity, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _as_ranges(windows: Any) -> Any:
    """Files of before held one half-open range of windows as two numbers."""
    pair = isinstance(windows, list | tuple) and len(windows) == 2 and all(isinstance(end, int) for end in windows)
    return f"{windows[0]}:{windows[1]}" if pair else windows


def _checked(windows: str | None) -> str | None:
    expected = f"expected the numbers of at most {_MOST_WINDOWS} windows, such as '0:12' or '7, 3, 20:22'"
    try:
        some = sum(max(0, part.stop - part.start) for part in ranges_of(windows or ""))
    except ValueError:
        raise ValueError(expected) from None
    if some > _MOST_WINDOWS:
        raise ValueError(expected)
    return windows


def ranges_of(windows: str) -> list[range]:
    """The numbers of windows that half-open ranges such as `"7, 3, 20:22"` stand for."""
    parts = (part.partition(":") for part in windows.split(",") if windows)
    return [range(int(start), int(stop) if stop else int(start) + 1) for start, _, stop in parts]


class Data(Part):
    """The text of a score: `sha256` is of its UTF-8 bytes.

    `windows` says which of it were scored, by number, as half-open ranges (`"0:12"`, `"7, 3, 20:22"`), `tokens_sha256`
    is of their tokens as little-endian int64, `documents` how many documents they begin in. Where not all tokens but
    a window's first are scored, `scored_sha256` is of which are, and of which answers to questions are right.
    """

    source: str
    slice: str | None = None
    sha256: str
    windows: Annotated[str | None, BeforeValidator(_as_ranges), AfterValidator(_checked)] = None
    tokens_sha256: str | None = None
    documents: int | None = None
    scored_sha256: str | None = None


class Convention(Part):
    """How a text was cut and which tokens were scored."""

    name: str
    window: int = Field(gt=0)
    bos: bool


class Measurement(Part):
    """One score of a recipe beside its base's; `nll_difference` and its interval: nats a token, recipe minus base.

    Of multiple choice a question counts as a token, and `accuracy` is the share answered right.
    """

    metric: str
    value: float
    base: float
    nll_difference: float
    interval95: tuple[float, float] | None = None
    accuracy: float | None = None
    base_accuracy: float | None = None
    tokens: int
    held_out: bool
    convention: Convention
    data: Data


class Origin(Part):
    """The trial that a recipe came from; a `strategy` asked for it, or else the sampler."""

    study: str
    trial: int
    space: str
    sampler: str
    strategy: str | None = None
    trials: int
    seed: int | None = None


class Versions(Part):
    """What made the file, and when (ISO 8601, UTC)."""

    david: str
    torch: str | None = None
    transformers: str | None = None
    created: str
