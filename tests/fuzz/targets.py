"""What is fuzzed: each target takes bytes as a stranger wrote them, and lets no exception out but David's own."""

import contextlib
from collections.abc import Callable

from david.cli.inputs import parse_range
from david.errors import DavidError
from david.notation.formats import FORMATS, WRITABLE, read, write
from david.recipe.explain import explain
from david.recipe.recipe import Recipe
from david.recipe.schema import Data
from david.scoring.sources import _slice_bounds

LONGEST_LINE = 1000  # characters of an error


def recipe(data: bytes) -> None:
    """A recipe file: refused in a line, or read, written and read again equal."""
    with ours():
        found = Recipe.from_json(data)
        assert Recipe.from_json(found.to_json()) == found
        used(found)


def notation(data: bytes) -> None:
    """A recipe as a person types it."""
    with ours():
        used(Recipe.parse(data.decode("utf-8", "surrogateescape")))


def languages(data: bytes) -> None:
    """A recipe in another tool's language, which the first line names: refused, or read, written and read again."""
    name, _, text = data.decode("utf-8", "surrogateescape").partition("\n")
    if name not in FORMATS:
        return
    with ours():
        for architecture in ("LlamaForCausalLM", "CohereForCausalLM"):
            found = read(f"{text}\n", name, n_layers=8, architecture=architecture)
            used(found)
            if name in WRITABLE:
                assert (
                    read(write(found, name, model="owner/name"), name, n_layers=8, architecture=architecture) == found
                )


def options(data: bytes) -> None:
    """What else a person types: a slice of the data, ratios, the windows that a score was made on."""
    text = data.decode("utf-8", "surrogateescape")
    with ours():
        start, stop = _slice_bounds(text, 1000, "data")
        assert 0 <= start < stop <= 1000
    with ours():
        Recipe.from_ratios(12, [parse_range(part, "--ratios") for part in text.split(",")])
    with contextlib.suppress(ValueError):  # pydantic's, which a recipe file makes ours
        Data(source="", sha256="", windows=text)


def used(found: Recipe) -> None:
    """All that is done to a recipe before a model is loaded."""
    assert Recipe.parse(str(found)) == found
    found.is_base, found.picture, repr(found), hash(found)
    if len(found) < 1000:  # an element for each visit: for notebooks alone
        found._repr_html_()
    assert str(explain(found))


@contextlib.contextmanager
def ours():
    """David's own errors, which end here, say what they have to in one short line."""
    try:
        yield
    except DavidError as error:
        line = str(error)
        assert line
        assert len(line) <= LONGEST_LINE, line[:LONGEST_LINE]
        assert line.isprintable(), line


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe,
    "notation": notation,
    "languages": languages,
    "options": options,
}
