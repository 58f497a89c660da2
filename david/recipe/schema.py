"""The parts of a recipe file: data, scores, origin and versions, read strictly."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_MAX_WINDOWS = 1_000_000

LONGEST = 10_000  # visits of a recipe, and layers of a base: a hundred times those of the deepest models
MAX_FILE_BYTES = 1_000_000


class Part(BaseModel):
    """A part of a recipe file: read strictly, never changed; no NaN or infinity, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _as_ranges(windows: Any) -> Any:
    """Convert the two numbers by which older files state one half-open range of windows."""
    pair = isinstance(windows, list | tuple) and len(windows) == 2 and all(isinstance(end, int) for end in windows)
    return f"{windows[0]}:{windows[1]}" if pair else windows


def _checked_windows(windows: str | None) -> str | None:
    expected = f"expected the numbers of at most {_MAX_WINDOWS} windows, such as '0:12' or '7, 3, 20:22'"
    try:
        count = sum(max(0, part.stop - part.start) for part in ranges_of(windows or ""))
    except ValueError:
        raise ValueError(expected) from None
    if count > _MAX_WINDOWS:
        raise ValueError(expected)
    return windows


def ranges_of(windows: str) -> list[range]:
    """Return the ranges of window numbers that a text such as `"7, 3, 20:22"` states.

    Raises:
        ValueError: A part is no number.
    """
    parts = (part.partition(":") for part in windows.split(",") if windows)
    return [range(int(start), int(stop) if stop else int(start) + 1) for start, _, stop in parts]


class Data(Part):
    """The data that a score was measured on.

    Attributes:
        source: Where the text is from.
        slice: Which rows of it.
        sha256: Hash of the text's UTF-8 bytes.
        windows: The windows that were scored, by number, as half-open ranges (`"0:12"`, `"7, 3, 20:22"`).
        tokens_sha256: Hash of their tokens as little-endian int64.
        documents: How many documents they begin in.
        scored_sha256: Hash of which tokens are scored and which answers are right, unless all tokens but a window's
            first are scored.
    """

    source: str
    slice: str | None = None
    sha256: str
    windows: Annotated[str | None, BeforeValidator(_as_ranges), AfterValidator(_checked_windows)] = None
    tokens_sha256: str | None = None
    documents: int | None = None
    scored_sha256: str | None = None


class Convention(Part):
    """How a text was cut into windows, and which tokens were scored.

    Attributes:
        name: The perplexity convention.
        window: Tokens of a window.
        bos: Whether each window begins with the BOS token.
    """

    name: str
    window: int = Field(gt=0)
    bos: bool


class Measurement(Part):
    """One score of a recipe, beside its base's on the same data.

    In multiple choice a question counts as a token.

    Attributes:
        metric: What was measured.
        value: The recipe's score.
        base: The base's score.
        nll_difference: Recipe minus base, in nats per token.
        interval95: Its 95% interval.
        accuracy: The recipe's share of questions answered right.
        base_accuracy: The base's share.
        tokens: Scored tokens.
        held_out: Whether the data was held out of the search.
        convention: The perplexity convention.
        data: The data.
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
    """The trial that a recipe comes from.

    Attributes:
        study: Name of the study.
        trial: Number of the trial.
        space: The search space.
        sampler: The sampler.
        strategy: The strategy, if one proposed the recipe and not the sampler.
        trials: Trials of the study.
        seed: The sampler's seed.
    """

    study: str
    trial: int
    space: str
    sampler: str
    strategy: str | None = None
    trials: int
    seed: int | None = None


class Versions(Part):
    """Versions of the libraries that made the file, and when.

    Attributes:
        david: Version of David.
        torch: Version of torch.
        transformers: Version of transformers.
        created: Time, ISO 8601, UTC.
    """

    david: str
    torch: str | None = None
    transformers: str | None = None
    created: str
