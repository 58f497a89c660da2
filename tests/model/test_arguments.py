"""Arguments of wrong types: each public function refuses them at once, in one line that says what it expects."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import david
from david import David, DavidError, Recipe, neighbours, notation, page, plot, profile, report, space, table, widgets
from david.scoring.corpus import Corpus
from tests.helpers.corpora import byte_tokenizer
from tests.helpers.searches import run, whole_corpus
from tests.tiny_models import tiny_model

DEEPER = Recipe.parse("0:6, 5")
WRONG = {
    "a number": 5,
    "a text": "no such thing",
    "a list": [object()],
    "a dictionary": {"x": object()},
    "nothing": None,
    "an object": object(),
    "a class": Recipe,
    "a module": nn.Linear(2, 2),
    "a corpus": whole_corpus().take(1),
    "a recipe": DEEPER,
}


def _slung(model: Any, recipe: Any = DEEPER) -> None:
    with David.slung(model, recipe):
        pass


@pytest.fixture(scope="module")
def given() -> SimpleNamespace:
    """A model, a corpus, and a study of them."""
    model, corpus = tiny_model("llama"), whole_corpus().take(3)
    return SimpleNamespace(model=model, corpus=corpus, study=run(model, corpus, space="block", n_trials=2))


def _score(given: Any, x: Any) -> Any:
    return david.score_recipes(given.model, [DEEPER], given.corpus, objective=lambda _model, _corpus: x)


def _search(given: Any, **options: Any) -> Any:
    return run(options.pop("model", given.model), options.pop("corpus", given.corpus), n_trials=2, **options)


def _call(module: Any, name: str) -> Callable[[Any, Any], Any]:
    return lambda _, x: getattr(module, name)(x)


# Each public function with one argument replaced by x; the names of the wrong values that are right there; a word that
# the error must have.
BORDER: dict[str, tuple[Callable[[Any, Any], Any], str, str]] = {
    "perplexity: model": (lambda g, x: david.perplexity(x, g.corpus), "a module", "model must be a loaded model"),
    "perplexity: corpus": (lambda g, x: david.perplexity(g.model, x), "a corpus", "corpus must be a corpus"),
    "multiple_choice: corpus": (lambda g, x: david.multiple_choice(g.model, x), "a corpus", "corpus must be"),
    "score_recipes: model": (lambda g, x: david.score_recipes(x, [DEEPER], g.corpus), "", "transformers model"),
    "score_recipes: recipes": (lambda g, x: david.score_recipes(g.model, x, g.corpus), "", "recipes"),
    "score_recipes: recipe": (lambda g, x: david.score_recipes(g.model, [x], g.corpus), "a recipe", "recipes[0]"),
    "score_recipes: corpus": (lambda g, x: david.score_recipes(g.model, [DEEPER], x), "a corpus", "corpus must be"),
    "score_recipes: objective": (
        lambda g, x: david.score_recipes(g.model, [DEEPER], g.corpus, objective=x),
        "a class, a module",
        "objective must be a function (model, corpus) → Score",
    ),
    "score_recipes: what the objective returns": (_score, "", "objective must return a Score"),
    "search: tokenizer as space": (lambda g, _: _search(g, space=byte_tokenizer()), "", "space must be a function"),
    "search: model": (lambda g, x: _search(g, model=x), "", "transformers model"),
    "search: corpus": (lambda g, x: _search(g, corpus=x), "a corpus", "corpus must be"),
    "search: held_out": (lambda g, x: _search(g, held_out=x), "a corpus, nothing", "held_out must be a corpus"),
    "search: space": (lambda g, x: _search(g, space=x), "", "space"),
    "search: strategy": (lambda g, x: _search(g, strategy=x), "a class, a module, nothing", "strategy"),
    "search: objective": (lambda g, x: _search(g, objective=x), "a class, a module", "objective must be a function"),
    "search: also": (lambda g, x: _search(g, also=x), "nothing", "also"),
    "search: study": (lambda g, x: _search(g, study=x), "nothing", "study must be an Optuna study"),
    "search: queue": (lambda g, x: _search(g, queue=[x]), "a recipe", "queue[0] must be a Recipe"),
    "search: sampler": (lambda g, x: _search(g, sampler=x), "", "sampler"),
    "search: what the space returns": (
        lambda g, x: _search(g, space=lambda _trial, _n: x),
        "a recipe",
        "the recipe that the space returns must be a Recipe",
    ),
    "search: what the objective returns": (
        lambda g, x: _search(g, objective=lambda _model, _corpus: x),
        "",
        "the base itself cannot be scored: the objective must return a Score",
    ),
    "search: what the strategy returns": (
        lambda g, x: _search(g, strategy=lambda _study, _n: [x]),
        "a recipe",
        "the recipes of the strategy[0] must be a Recipe",
    ),
    "compare: model": (lambda g, x: david.compare(x, [DEEPER], {"x": g.corpus}), "", "transformers model"),
    "compare: recipe": (lambda g, x: david.compare(g.model, [x], {"x": g.corpus}), "a recipe", "recipes[0]"),
    "compare: corpora": (lambda g, x: david.compare(g.model, [DEEPER], x), "", "corpora"),
    "compare: corpus": (lambda g, x: david.compare(g.model, [DEEPER], {"x": x}), "a corpus", "corpora['x'] must be"),
    "measure: study": (lambda g, x: david.measure(x, g.model, g.corpus, name="m"), "", "study must be"),
    "measure: model": (lambda g, x: david.measure(g.study, x, g.corpus, name="m"), "", "transformers model"),
    "measure: corpus": (lambda g, x: david.measure(g.study, g.model, x, name="m"), "a corpus", "corpus must be"),
    "load_model: source": (lambda _, x: david.load_model(x), "a text", "source must be a path or a name"),
    "Chat: model": (lambda _, x: david.Chat(x, byte_tokenizer()), "", "transformers model"),
    "Chat: tokenizer": (lambda g, x: david.Chat(g.model, x), "", "tokenizer must be"),
    "Chat: recipe": (lambda g, x: david.Chat(g.model, byte_tokenizer(), recipes=[x]), "a recipe", ""),
    "export: model": (lambda _, x: david.export(x, DEEPER, "no-folder"), "", "transformers model"),
    "Corpus.load: source": (lambda _, x: Corpus.load(x, byte_tokenizer()), "a text", "source must be"),
    "Corpus.load: tokenizer": (lambda _, x: Corpus.load(tokenizer=x), "", "tokenizer"),
    "Corpus: another": (lambda g, x: g.corpus.shared_tokens(x), "a corpus", "other must be a corpus"),
    "sling: model": (lambda _, x: David.sling(x, DEEPER), "", "transformers model"),
    "sling: recipe": (lambda g, x: David.sling(g.model, x), "a recipe", ""),
    "slung: model": (lambda _, x: _slung(x), "", "transformers model"),
    "slung: recipe": (lambda g, x: _slung(g.model, x), "a recipe", ""),
    "view: model": (lambda _, x: David.view(x, DEEPER), "", "transformers model"),
    "reset: model": (lambda _, x: David.reset(x), "", "transformers model"),
    "check: model": (lambda _, x: David.check(x), "", "transformers model"),
    "Recipe: base": (lambda _, x: Recipe([0], base=x), "nothing", "base must be"),
    "Recipe.parse": (lambda _, x: Recipe.parse(x), "", ""),
    "Recipe.load": (lambda _, x: Recipe.load(x), "", ""),
    "Recipe.from_json": (lambda _, x: Recipe.from_json(x), "", ""),
    "params_of: space": (lambda _, x: space.params_of(x, DEEPER, 6), "a class, a module", "space must be"),
    "params_of: recipe": (lambda _, x: space.params_of(space.Block(), x, 6), "a recipe", "recipe must be"),
    "blocks_of: recipe": (lambda _, x: space.blocks_of(x, 6), "a recipe", "recipe must be"),
    "neighbours: recipe": (lambda _, x: neighbours.neighbours(x, 6), "a recipe", "recipe must be"),
    "notation.read": (lambda _, x: notation.read(x), "", ""),
    "notation.write: recipe": (lambda _, x: notation.write(x, "david"), "a recipe", "recipe must be"),
    "notation.moved: recipe": (lambda _, x: notation.moved(x, 8), "a recipe", "recipe must be"),
    "profile: model": (lambda g, x: profile.profile(x, g.corpus), "", "model"),
    "profile: corpus": (lambda g, x: profile.profile(g.model, x), "a corpus", "corpus must be"),
    "slider: tokenizer": (lambda g, x: widgets.slider(g.model, x, g.corpus), "", "tokenizer must be"),
    "slider: corpus": (lambda g, x: widgets.slider(g.model, byte_tokenizer(), x), "a corpus", "corpus must be"),
    "report.verdict": (lambda _, x: report.verdict(x), "", "board must be a table"),
    "report.board_text": (lambda _, x: report.board_text(x), "", "board must be a table"),
    **{
        f"{module.__name__}.{name}: study": (_call(module, name), "", "study must be an Optuna study")
        for module, names in {
            table: "trials leaderboard blocks luck rank_correlations",
            page: "page show",
            report: "best_recipe looks baseline rankings",
        }.items()
        for name in names.split()
    },
}


_TRIALS_PLOTS = ("history", "depth")
BORDER |= {
    f"plot.{name}: table": (_call(plot, name), "", "table must be a table")
    for name in ("blocks", "influence", "paths", "profile", *_TRIALS_PLOTS)
}
BORDER["plot.tradeoff: table"] = (lambda _, x: plot.tradeoff(x, "visits"), "", "table must be a table")
BORDER["plot.depth: front"] = (
    lambda g, x: plot.depth(table.trials(g.study), front=x), "nothing", "table must be a table",
)  # fmt: skip


@pytest.mark.parametrize("border", BORDER)
def test_wrong_types_are_refused_at_the_border(border: str, given: SimpleNamespace) -> None:
    call, right, words = BORDER[border]
    for name, value in WRONG.items():
        if name in right.split(", "):
            continue
        with pytest.raises(DavidError) as refused:
            call(given, value)
        message = str(refused.value)
        assert "\n" not in message, name
        assert len(message) < 400, name
        assert words in message, (name, message)
    assert given.model.config.num_hidden_layers == 6


# Each public function with one number replaced by x; a word that the error must have.
NUMBERS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "perplexity": (lambda g, x: david.perplexity(g.model, g.corpus, batch=x), "batch"),
    "perplexity of a search": (
        lambda g, x: david.score_recipes(g.model, [DEEPER], g.corpus, objective=partial(david.perplexity, batch=x)),
        "batch",
    ),
    "score_recipes": (lambda g, x: david.score_recipes(g.model, [DEEPER], g.corpus, memory_budget=x), "memory_budget"),
    "Corpus.load: window": (lambda _, x: Corpus.load(tokenizer=byte_tokenizer(), window=x), "window"),
    "Corpus.load: windows": (lambda _, x: Corpus.load(tokenizer=byte_tokenizer(), windows=x), "windows"),
    "take": (lambda g, x: g.corpus.take(x), "take"),
    "split": (lambda g, x: g.corpus.split(1, x), "windows"),
    "hold_out": (lambda g, x: g.corpus.hold_out(1, 1, seed=x), "seed"),
    **{
        f"search: {name}": (lambda g, x, name=name: _search(g, **{name: x}), name)
        for name in ("seed", "batch", "memory_budget", "top", "baseline")
    },
    "search: n_trials": (lambda g, x: run(g.model, g.corpus, n_trials=x), "n_trials"),
    "compare: decode": (lambda g, x: david.compare(g.model, [DEEPER], {"x": g.corpus}, decode=x), "decode"),
    "compare: rounds": (lambda g, x: david.compare(g.model, [DEEPER], {"x": g.corpus}, rounds=x), "rounds"),
    "measure": (lambda g, x: david.measure(g.study, g.model, g.corpus, name="m", most=x), "most"),
    "Corpus.load: stride": (lambda _, x: Corpus.load(tokenizer=byte_tokenizer(), stride=x), "stride"),
    "page": (lambda g, x: page.page(g.study, top=x), "top"),
}


@pytest.mark.parametrize("border", NUMBERS)
def test_wrong_numbers_are_refused_at_the_border(border: str, given: SimpleNamespace) -> None:
    call, word = NUMBERS[border]
    for value in ("x", "3", 1.5, True, -1, [1], object()):
        with pytest.raises(DavidError, match=word) as refused:
            call(given, value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


def test_tables_of_other_functions_are_not_drawn(given: SimpleNamespace) -> None:
    trials = table.trials(given.study)
    with pytest.raises(DavidError, match=r"the table of table\.paths; .* no column 'visit'"):
        plot.paths(trials)
    with pytest.raises(DavidError, match=r"the table of table\.trials; .* no column 'also_kl'"):
        plot.tradeoff(trials, "kl")
    with pytest.raises(DavidError, match=r"the table of table\.blocks; .* other values than numbers"):
        plot.blocks(trials)


def test_right_types_are_not_refused(given: SimpleNamespace) -> None:
    objective = partial(david.perplexity, batch=2)
    scores = david.score_recipes(given.model, (recipe for recipe in [DEEPER]), given.corpus, objective=objective)  # type: ignore[arg-type]
    assert scores[0].tokens == given.corpus.windows.numel() - len(given.corpus)
