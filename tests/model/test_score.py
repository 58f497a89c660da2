"""Perplexity against plain torch, against published figures, and without a trace on the model."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from david.errors import ScoreError
from david.metrics.score import Score
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import by_question, multiple_choice, perplexity
from david.sling import locate
from david.sling.in_place import slung, view
from david.sling.locate import find, is_known
from tests.helpers.corpora import (
    BOS,
    QUESTIONS,
    byte_tokenizer,
    choice_corpus,
    of_completions,
    of_guide,
    of_lm_eval,
    random_corpus,
    write_rows,
)
from tests.tiny_models import NOT_BUILT, TYPES, VOCABULARY, tiny_model, tiny_named

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2-test.txt"
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},  # low enough to bend the logits
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
}
# Types whose end, from the last layer on, is of many kinds: scaled, bent, fed by several streams, with tokens mixed in.
ENDS = ["llama", "gemma2", "gemma3n_text", "gemma4_text", "inkling2_text", "hy_v4", "deepseek_v4", "qwen4_exp_text"]
ENDS += ["xlnet", "mamba", "recurrent_gemma", "prophetnet", "bloom", "granite", "opt", "cohere"]
DAMPED = Recipe((0, 1, 2, 1, 2, 3, 4, 5, 5), (1, 1, 1, 1, 0.5, 1, 1, 1, 0.5))


def build(kind: str) -> Any:
    return tiny_model(kind, **SETTINGS.get(kind, {}))


def small_chunks(monkeypatch: pytest.MonkeyPatch, positions: int = 5) -> None:
    """Logits of no more than so many positions at once."""
    monkeypatch.setattr("david.scoring.likelihood._LOGITS_BYTES", 4 * VOCABULARY * positions)


def trace(model: Any) -> Callable[[], None]:
    """A check that a model's weights, configuration, modules and hooks are what they are now."""

    def now() -> tuple[Any, ...]:
        modules = [
            (name, id(module), list(module._forward_hooks), list(module._forward_pre_hooks))
            for name, module in model.named_modules()
        ]
        return model.config.to_dict(), modules

    before, weights = now(), {name: weight.clone() for name, weight in model.state_dict().items()}

    def unchanged() -> None:
        assert now() == before
        assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())

    return unchanged


@torch.no_grad()
def by_hand(model: Any, corpus: Corpus, first: int) -> list[float]:
    """The NLL of each window from position `first` on, a token at a time and in float64."""
    sums = []
    for window in corpus.windows:
        log_probabilities = model(input_ids=window[None], use_cache=False).logits[0].double().log_softmax(dim=-1)
        sums.append(-sum(float(log_probabilities[t - 1, window[t]]) for t in range(first, len(window))))
    return sums


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("convention", "first"), [("window", 1), ("llamacpp", 13)])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "opt", "granite", "cohere", "mixtral", "mamba"])
def test_perplexity_is_that_of_a_plain_loop(kind: str, convention: Any, first: int, batch: int) -> None:
    model, corpus = build(kind), random_corpus()
    score = perplexity(model, corpus, convention=convention, batch=batch)
    expected = by_hand(model, corpus, first)
    assert score.window_nll == pytest.approx(expected, rel=1e-6)
    assert score.window_tokens == (24 - first,) * 4
    assert score.tokens == 4 * (24 - first)
    assert score.nll == pytest.approx(sum(expected) / score.tokens, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(sum(expected) / score.tokens), rel=1e-6)
    assert (score.documents, score.convention) == ((0, 1, 2, 3), convention)


@pytest.mark.parametrize(("window", "scored"), [(4, 1), (5, 2), (8, 3), (9, 4), (128, 63)])
def test_llamacpp_scores_the_second_half(window: int, scored: int, tiny: Any) -> None:
    corpus = random_corpus(1, window)
    score = perplexity(tiny, corpus, convention="llamacpp")
    assert score.window_tokens == (scored,)
    assert score.window_nll == pytest.approx(by_hand(tiny, corpus, window - scored), rel=1e-6)


def test_a_window_of_two_scores_its_second_token(tiny: Any) -> None:
    corpus = random_corpus(3, 2)
    score = perplexity(tiny, corpus)
    assert score.window_tokens == (1, 1, 1)
    assert score.window_nll == pytest.approx(by_hand(tiny, corpus, 1), rel=1e-6)


def test_a_sling_and_a_view_are_scored_as_they_stand(tiny: Any) -> None:
    corpus = random_corpus()
    base = perplexity(tiny, corpus).window_nll
    seen = perplexity(view(tiny, DAMPED), corpus).window_nll
    with slung(tiny, DAMPED):
        assert perplexity(tiny, corpus).window_nll == pytest.approx(by_hand(tiny, corpus, 1), rel=1e-6)
        assert perplexity(tiny, corpus).window_nll == seen
    assert seen != pytest.approx(base, rel=1e-3)
    assert perplexity(tiny, corpus).window_nll == base


def test_a_score_sums_over_tokens_not_over_windows() -> None:
    score = Score(window_nll=(2.0, 6.0), window_tokens=(1, 3), documents=(0, 0), convention="window")
    assert (score.tokens, score.nll, score.perplexity) == (4, 2.0, math.exp(2.0))


# ---- logits in chunks


@pytest.mark.parametrize("recipe", [None, DAMPED], ids=["base", "slung"])
@pytest.mark.parametrize("kind", ENDS)
def test_logits_in_chunks_give_the_same_score(
    kind: str, recipe: Recipe | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, corpus = build(kind), random_corpus(3)
    if recipe and kind == "xlnet":  # which takes no scales
        recipe = Recipe(recipe.repeat_map)
    with slung(model, recipe) if recipe else nullcontext():
        whole = perplexity(model, corpus)
        unchanged = trace(model)
        small_chunks(monkeypatch)
        assert perplexity(model, corpus).window_nll == pytest.approx(whole.window_nll, rel=1e-6)
        assert perplexity(model, corpus, batch=2).window_nll == pytest.approx(whole.window_nll, rel=1e-6)
        halves = perplexity(model, corpus, convention="llamacpp").window_nll
        unchanged()
    assert halves == pytest.approx(by_hand(view(model, recipe) if recipe else model, corpus, 13), rel=1e-6)
    monkeypatch.undo()
    if recipe is None:
        assert perplexity(model, corpus).window_nll == whole.window_nll


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NOT_BUILT][1::2])  # every second one
def test_logits_in_chunks_give_the_same_score_for_every_type(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = tiny_named(kind), random_corpus(2)
    if not is_known(model):
        pytest.skip("not slung, so scored whole")
    whole = perplexity(model, corpus)
    unchanged = trace(model)
    small_chunks(monkeypatch)
    assert perplexity(model, corpus).window_nll == pytest.approx(whole.window_nll, rel=1e-5)
    unchanged()


def test_no_more_logits_are_made_at_once_than_memory_is_given(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    tiny.lm_head.register_forward_hook(lambda _module, _args, logits: made.append(logits[..., 0].numel()))
    small_chunks(monkeypatch, positions=10)
    for batch in (1, 2):
        made.clear()
        perplexity(tiny, random_corpus(2), batch=batch)
        assert max(made) == 10


def test_an_end_that_reads_more_than_the_last_hidden_state_is_given_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "COUPLED", frozenset())  # as if it were not known of this type
    model, corpus = tiny_named("inkling2_text"), random_corpus(2)  # its end weighs the outputs of earlier layers
    whole = perplexity(model, corpus).window_nll
    small_chunks(monkeypatch)
    assert perplexity(model, corpus).window_nll == whole
    monkeypatch.setattr("david.scoring.likelihood._END_SPREAD", math.inf)  # a look at the last token is what tells
    assert perplexity(model, corpus).window_nll != pytest.approx(whole, rel=1e-3)


def test_a_type_david_does_not_know_is_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    model, corpus = tiny_named("hrm_text"), random_corpus(2)
    assert not is_known(model)
    assert perplexity(model, corpus).window_nll == pytest.approx(by_hand(model, corpus, 1), rel=1e-6)


@pytest.mark.parametrize("recipe", [None, DAMPED], ids=["base", "slung"])
@pytest.mark.parametrize(("where", "call"), [("layer", 1), ("lm_head", 1), ("lm_head", 3)])
def test_a_forward_that_raises_leaves_the_model_as_it_was(
    where: str, call: int, recipe: Recipe | None, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = random_corpus(2)
    small_chunks(monkeypatch)
    with slung(tiny, recipe) if recipe else nullcontext():
        expected = perplexity(tiny, corpus)
        unchanged = trace(tiny)
        calls = []

        def fail(*_args: Any) -> None:
            calls.append(1)
            if len(calls) == call:
                raise RuntimeError("out of memory")

        module = tiny.lm_head if where == "lm_head" else find(tiny).layers[3]
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            perplexity(tiny, corpus)
        handle.remove()
        unchanged()
        assert perplexity(tiny, corpus) == expected


@pytest.mark.parametrize("chunked", [False, True])
def test_no_forward_uses_the_cache(chunked: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        small_chunks(monkeypatch)
    asked, given = [], []
    tiny.register_forward_pre_hook(lambda _m, _args, kwargs: asked.append(kwargs.get("use_cache")), with_kwargs=True)
    tiny.model.layers[0].register_forward_pre_hook(
        lambda _m, _args, kwargs: given.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    perplexity(tiny, random_corpus(2))
    assert set(asked) == {False}
    assert set(given) == {None}


# ---- what is a score and what is not


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_nan_is_an_error_that_names_the_window(
    batch: int, chunked: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunked:
        small_chunks(monkeypatch)
    corpus = random_corpus(4, highest=90)
    corpus.windows[2, 5] = 95
    tiny.get_input_embeddings().weight.data[95] = math.nan
    with pytest.raises(ScoreError, match=r"^the NLL of window 2 is not a number"):
        perplexity(tiny, corpus, batch=batch)
    assert math.isfinite(perplexity(tiny, corpus.take(2)).nll)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_infinite_nll_is_a_score(chunked: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        small_chunks(monkeypatch)
    corpus = random_corpus(2, highest=90)
    corpus.windows[1, 7] = 95

    def never_95(_module: nn.Module, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([95]), -math.inf)

    tiny.lm_head.register_forward_hook(never_95)
    score = perplexity(tiny, corpus)
    assert math.isfinite(score.window_nll[0])
    assert score.window_nll[1] == math.inf
    assert (score.nll, score.perplexity) == (math.inf, math.inf)


def test_a_perplexity_beyond_float_is_infinite() -> None:
    assert Score((1e6,), (10,), (0,), "window").perplexity == math.inf


def test_dropout_is_refused(tiny: Any) -> None:
    tiny.train()
    with pytest.raises(ScoreError, match=r"training mode.*model\.eval\(\)"):
        perplexity(tiny, random_corpus())
    assert tiny.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_window_is_no_longer_than_the_model_takes(kind: str) -> None:
    model = build(kind)
    assert perplexity(model, random_corpus(1, 128)).tokens == 127
    with pytest.raises(ScoreError, match=r"windows of 129 tokens are longer than the model takes \(128 positions\)"):
        perplexity(model, random_corpus(1, 129))


def test_a_token_of_another_vocabulary_is_refused(tiny: Any) -> None:
    corpus = random_corpus()
    corpus.windows[3, 20] = VOCABULARY - 1
    assert math.isfinite(perplexity(tiny, corpus).nll)
    corpus.windows[3, 20] = VOCABULARY
    with pytest.raises(ScoreError, match=f"token {VOCABULARY} is not in the model's vocabulary of {VOCABULARY}"):
        perplexity(tiny, corpus)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"convention": "best"}, "unknown convention 'best': expected window, llamacpp, strided, rolling"),
        ({"convention": "strided"}, "convention strided cuts a text in its own way, but the corpus has consecutive"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"batch": -2}, "batch must be at least 1; got -2"),
    ],
)
def test_an_option_that_is_none_is_refused(options: dict[str, Any], says: str, tiny: Any) -> None:
    with pytest.raises(ScoreError, match=says):
        perplexity(tiny, random_corpus(), **options)


def test_llamacpp_needs_a_second_half(tiny: Any) -> None:
    with pytest.raises(ScoreError, match="convention 'llamacpp' needs windows of at least"):
        perplexity(tiny, random_corpus(window=2), convention="llamacpp")


# ---- figures from outside


@pytest.fixture
def wikitext(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    if not WIKITEXT.is_file():
        pytest.skip("needs wikitext2-test.txt in shared/data beside the repository")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    corpus = Corpus.load(WIKITEXT, demo[1], window=512, bos=False)
    assert corpus.sha256.startswith("173c87a53759e020")
    return corpus


def test_the_llamacpp_convention_agrees_with_llamacpp(demo: Any, wikitext: Corpus) -> None:
    score = perplexity(demo[0], wikitext.take(2), convention="llamacpp")
    assert score.window_tokens == (255, 255)
    running = [math.exp(sum(score.window_nll[:k]) / sum(score.window_tokens[:k])) for k in (1, 2)]
    assert running == pytest.approx([12.9544, 21.3722], abs=1e-3)


@pytest.mark.slow
def test_the_window_convention_gives_the_published_figure(demo: Any, wikitext: Corpus) -> None:
    score = perplexity(demo[0], wikitext.take(20), batch=2)
    assert score.tokens == 20 * 511
    assert score.perplexity == pytest.approx(35.2, abs=0.05)


def hook(model: Any) -> None:
    for layer in model.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))


def compile_layers(model: Any) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager")


def offload(model: Any) -> None:
    cpu_offload(model, execution_device="cpu")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "change",
    [hook, compile_layers, offload],
)
def test_a_hooked_compiled_or_offloaded_base_has_the_score_of_the_plain_one(
    change: Any, chunked: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = random_corpus(2)
    expected = perplexity(tiny, corpus).window_nll
    change(tiny)
    if chunked:
        small_chunks(monkeypatch)
    assert perplexity(tiny, corpus).window_nll == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_of_completions_each_token_counts_behind_what_comes_before_it(batch: int, tiny: Any) -> None:
    corpus = of_completions()
    score = perplexity(tiny, corpus, batch=batch)
    for row, (window, mask) in enumerate(zip(corpus.windows, corpus.scored, strict=True)):
        last = int(mask.nonzero().max())
        with torch.no_grad():  # the prompt and the completion alone, without what fills the window
            logits = tiny(window[None, : last + 1], use_cache=False).logits[0].double()
        chances = torch.log_softmax(logits, dim=-1)
        nll = -sum(chances[i - 1, window[i]].item() for i in range(last + 1) if mask[i])
        assert score.window_nll[row] == pytest.approx(nll, rel=1e-5)
    assert score.window_tokens == (2, 3, 4, 5)
    assert score.convention == "completion"
    assert score.documents == (0, 1, 2, 3)


def test_what_fills_a_window_does_not_count(tiny: Any) -> None:
    corpus = of_completions()
    other = corpus.windows.clone()
    for row, mask in enumerate(corpus.scored):
        other[row, int(mask.nonzero().max()) + 1 :] = 0
    assert perplexity(tiny, dataclasses.replace(corpus, windows=other)) == perplexity(tiny, corpus)


def test_completions_are_scored_whole(tiny: Any) -> None:
    with pytest.raises(ScoreError, match="convention of its own, completion; got 'llamacpp': leave convention out"):
        perplexity(tiny, of_completions(), convention="llamacpp")


# ---- strided, rolling, bytes, multiple choice


def text_corpus(tmp_path: Path, texts: list[str], **options: Any) -> Corpus:
    return Corpus.load(write_rows(tmp_path / "texts.jsonl", texts), byte_tokenizer(), **options)


@pytest.fixture
def of_bytes() -> Any:
    """A model with a token for each byte."""
    return tiny_model("llama", vocab_size=300)


def nll_by_hand(model: Any, read: list[int], scored: list[int]) -> float:
    """The NLL of tokens behind others, in float64 from the logits on."""
    with torch.no_grad():
        logits = model(torch.tensor([read + scored]), use_cache=False).logits[0].double()
    chances = torch.log_softmax(logits, dim=-1)
    return -sum(chances[len(read) - 1 + i, token].item() for i, token in enumerate(scored))


def test_the_strided_score_is_that_of_the_transformers_guide(tmp_path: Path, of_bytes: Any) -> None:
    text = "A sliding window gives each token more to go by than windows that follow one another."
    corpus = text_corpus(tmp_path, [text], window=16, stride=5)
    tokens = byte_tokenizer()(text)["input_ids"]
    expected = [nll_by_hand(of_bytes, tokens[b : e - n], tokens[e - n : e]) for b, e, n in of_guide(len(text), 16, 5)]
    for batch in (1, 4):
        score = perplexity(of_bytes, corpus, batch=batch)
        assert score.window_nll == pytest.approx(expected, rel=1e-5)
    assert (score.tokens, score.convention) == (len(text) - 1, "strided 5")
    assert score.nll == pytest.approx(sum(expected) / (len(text) - 1), rel=1e-5)


def test_the_rolling_score_and_its_bits_a_byte_are_those_of_lm_eval(tmp_path: Path, of_bytes: Any) -> None:
    texts = ["späte Äpfel", "a", "a text that is longer than a window"]
    score = perplexity(of_bytes, text_corpus(tmp_path, texts, window=12, rolling=True))
    nll = 0.0
    for text in texts:
        for read, scored in of_lm_eval(byte_tokenizer()(text)["input_ids"], BOS, 11):
            nll += nll_by_hand(of_bytes, read[: len(read) - len(scored) + 1], scored)
    assert sum(score.window_nll) == pytest.approx(nll, rel=1e-5)
    nbytes = sum(len(text.encode()) for text in texts)
    assert (score.tokens, score.convention) == (nbytes, "rolling")
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / nbytes, rel=1e-5)


def test_bits_a_byte_are_not_told_where_bytes_are_not_known(tiny: Any, tmp_path: Path, of_bytes: Any) -> None:
    assert math.isnan(perplexity(tiny, random_corpus()).bits_per_byte)
    plain = text_corpus(tmp_path, ["some text that fills a window or two"], window=12)
    assert perplexity(of_bytes, plain).bits_per_byte > 0
    assert math.isnan(perplexity(of_bytes, plain, convention="llamacpp").bits_per_byte)


@pytest.mark.parametrize("batch", [1, 4])
def test_multiple_choice_goes_by_the_mean_log_probability_of_a_character(
    batch: int, tmp_path: Path, of_bytes: Any
) -> None:
    score = multiple_choice(of_bytes, choice_corpus(tmp_path), batch=batch)
    encode = byte_tokenizer()
    nll, right = [], []
    for row in QUESTIONS:
        read = encode(row["q"])["input_ids"]
        likely = [-nll_by_hand(of_bytes, read, encode(f" {a}")["input_ids"]) / len(a) for a in row["a"]]
        nll.append(math.log(sum(map(math.exp, likely))) - likely[row["right"]])
        right.append(likely.index(max(likely)) == row["right"])
    assert score.window_nll == pytest.approx(nll, rel=1e-4)
    assert score.right == tuple(right)
    assert score.accuracy == sum(right) / 3
    assert (score.window_tokens, score.documents, score.convention) == ((1, 1, 1), (0, 1, 2), "multiple choice")
    assert score.nll == pytest.approx(sum(nll) / 3, rel=1e-4)


def test_answers_that_are_impossible_make_an_infinite_score_no_crash(tmp_path: Path) -> None:
    corpus = choice_corpus(tmp_path)
    nll = [math.inf] * 3 + [1.0, math.inf] + [math.inf, 1.0, 1.0, 1.0]
    plain = Score(tuple(nll), (1,) * 9, corpus.documents, "multiple choice")
    score = by_question(plain, corpus)
    assert score.window_nll[:2] == (math.inf, math.inf)
    assert score.window_nll[2] == pytest.approx(math.log(3))
    assert score.right == (True, False, False)  # the first of equals, as numpy's argmax in lm-eval


def test_questions_and_texts_want_their_own_objective(tmp_path: Path, of_bytes: Any) -> None:
    with pytest.raises(ScoreError, match="score it by multiple_choice"):
        perplexity(of_bytes, choice_corpus(tmp_path))
    with pytest.raises(ScoreError, match="load it with gold"):
        multiple_choice(of_bytes, random_corpus())
