"""Threads: a model runs one recipe at a time, and views on the same weights run side by side."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ContinuousBatchingConfig, GenerationConfig

from david import David, Recipe, perplexity, score_recipes
from david.errors import SlingError
from david.scoring.corpus import Corpus
from david.sling.in_place import running_base
from david.sling.stacked_copy import stacked
from tests.helpers.corpora import random_corpus
from tests.tiny_models import tiny_config, tiny_model

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
MAPS = ["0:4, 2:6", "0, 3, 2, 1, 4:6", "0:3, 3*0.5, 4:6", "1:6", "0:6, 0:6", "0:2, 1*-0.3, 2:6"]
OTHER_THREAD = r"in use in another thread \(other\).* David\.view\(model, recipe\)$"


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


@contextmanager
def in_other_thread(work: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Run `work(pause)` in a thread; the block of the `with` runs while that thread is within `pause()`."""
    paused, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def pause() -> None:
        paused.set()
        assert go_on.wait(60)

    def run() -> None:
        try:
            work(pause)
        except BaseException as error:
            errors.append(error)
        finally:
            paused.set()

    thread = threading.Thread(target=run, name="other")
    thread.start()
    assert paused.wait(60)
    assert thread.is_alive(), errors
    try:
        yield
    finally:
        go_on.set()
        thread.join()
    assert not errors


def within_slung(model: Any, pause: Callable[[], None]) -> None:
    with David.slung(model, MAPS[0]):
        pause()
        pause()


def within_base(model: Any, pause: Callable[[], None]) -> None:
    with running_base(model):
        pause()


def within_scoring(model: Any, pause: Callable[[], None]) -> None:
    def pause_at_the_end(*_: Any) -> None:
        if len(model.model.layers) == 1 and threading.current_thread().name == "other":  # a stand-in for all layers
            pause()

    handle = model.model.norm.register_forward_pre_hook(pause_at_the_end)
    try:
        score_recipes(model, [Recipe.parse(text) for text in MAPS], random_corpus(12))
    finally:
        handle.remove()


@pytest.mark.parametrize("work", [within_slung, within_base, within_scoring])
def test_a_model_in_use_in_another_thread_is_refused_and_its_views_are_right(tiny: Any, work: Any) -> None:
    base, right = logits(tiny), {text: logits(stacked(tiny, Recipe.parse(text))) for text in MAPS}
    layers, depth = list(tiny.model.layers), tiny.config.num_hidden_layers
    with in_other_thread(lambda pause: work(tiny, pause)):
        for change in (
            lambda: David.sling(tiny, MAPS[1]),
            lambda: David.sling(tiny.model, MAPS[1]),  # the same layers by another handle
            lambda: David.reset(tiny),
            lambda: David.slung(tiny, MAPS[1]).__enter__(),
            lambda: score_recipes(tiny, [Recipe.parse(MAPS[1])], random_corpus(2)),
        ):
            with pytest.raises(SlingError, match=OTHER_THREAD):
                change()
        for text, expected in right.items():
            view = David.view(tiny, text)
            assert torch.equal(logits(view), expected)
            with David.slung(view, "0:6"):
                assert torch.equal(logits(view), base)
    assert [*map(id, tiny.model.layers)] == [*map(id, layers)]
    assert tiny.config.num_hidden_layers == depth
    assert torch.equal(logits(tiny), base)
    with David.slung(tiny, MAPS[1]):
        assert torch.equal(logits(tiny), right[MAPS[1]])


def test_a_thread_that_has_ended_within_slung_keeps_nobody_out(tiny: Any) -> None:
    entered = David.slung(tiny, MAPS[0])
    thread = threading.Thread(target=entered.__enter__)
    thread.start()
    thread.join()
    assert torch.equal(logits(David.reset(tiny)), logits(tiny))
    entered.__exit__(None, None, None)


@pytest.fixture
def corpus() -> Corpus:
    return random_corpus(3)


def nll_of_recipes(model: Any, corpus: Corpus) -> dict[str, float]:
    """The NLL of each recipe on deep copies with really stacked layers."""
    return {text: perplexity(stacked(model, Recipe.parse(text)), corpus).nll for text in MAPS}


def optimized(objective: Callable[[str], float], n_jobs: int) -> list[tuple[str, float]]:
    """The recipes and values of a plain Optuna study of 24 trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(
        lambda trial: objective(trial.suggest_categorical("recipe", MAPS)),
        n_trials=24,
        n_jobs=n_jobs,
        catch=SlingError,
    )
    return [(trial.params["recipe"], trial.value) for trial in study.trials if trial.value is not None]


def test_views_give_the_values_of_one_thread_under_n_jobs(tiny: Any, corpus: Corpus) -> None:
    right = nll_of_recipes(tiny, corpus)
    values = optimized(lambda text: perplexity(David.view(tiny, text), corpus).nll, n_jobs=4)
    assert len(values) == 24
    assert all(value == right[text] for text, value in values)


def test_slung_under_n_jobs_gives_no_wrong_value(tiny: Any, corpus: Corpus) -> None:
    right, base = nll_of_recipes(tiny, corpus), logits(tiny)

    def objective(text: str) -> float:
        with David.slung(tiny, text):
            return perplexity(tiny, corpus).nll

    assert all(value == right[text] for text, value in optimized(objective, n_jobs=2))
    assert len(tiny.model.layers) == tiny.config.num_hidden_layers == 6
    assert torch.equal(logits(tiny), base)


def test_views_are_right_while_another_thread_slings(tiny: Any) -> None:
    right, stop = {text: logits(stacked(tiny, Recipe.parse(text))) for text in MAPS}, threading.Event()

    def sling_on() -> None:
        while not stop.is_set():
            for text in MAPS:
                with David.slung(tiny, text):
                    assert torch.equal(logits(tiny), right[text])

    def view(text: str) -> bool:
        return torch.equal(logits(David.view(tiny, text)), right[text])

    with ThreadPoolExecutor(3) as pool:
        slings = pool.submit(sling_on)
        try:
            assert all(pool.map(view, MAPS * 5))
        finally:
            stop.set()
        slings.result()


class _AfterFirstCopy(TorchDispatchMode):
    """Does something once, as soon as new frequencies have been written in place: what another thread might do then."""

    def __init__(self, shape: torch.Size, work: Callable[[], object]) -> None:
        super().__init__()
        self.shape, self.work, self.done = shape, work, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.ops.aten.copy_.default and args[0].shape == self.shape and not self.done:
            self.done = True
            self.work()
        return result


def with_rope(name: str, kind: str) -> Any:
    """A tiny model whose rotary frequencies change behind 16 tokens."""
    own = {"rope_type": kind, "original_max_position_embeddings": 16, "factor": 4.0}
    if kind == "longrope":
        size = 4  # half a head
        own |= {"short_factor": [1.0] * size, "long_factor": [3.0] * size, "short_mscale": 1.0, "long_mscale": 1.2}
    parameters = tiny_config(name).rope_parameters
    nested = any(isinstance(value, dict) for value in parameters.values())
    rope = {layers: value | own for layers, value in parameters.items()} if nested else parameters | own
    phi = {"original_max_position_embeddings": 16} if name == "phi3" else {}
    return tiny_model(name, rope_parameters=rope, max_position_embeddings=32, **phi)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3", "minicpm3", "deepseek_v4"])
def test_views_switch_longrope_each_for_itself(name: str) -> None:
    model = with_rope(name, "longrope")
    view, short, long = David.view(model, "0:6"), TOKENS[:, :10], torch.cat([TOKENS, TOKENS, TOKENS], dim=1)
    right = logits(model, short)
    frequencies = next(buffer for key, buffer in model.named_buffers() if key.endswith("inv_freq"))
    with _AfterFirstCopy(frequencies.shape, lambda: logits(view, long)) as other:
        assert torch.equal(logits(model, short), right)
    assert other.done
    assert (logits(view, long)[:, :10] - right).abs().max() > 0.01  # the long text has other frequencies
    assert torch.equal(logits(view, short), right)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "minicpm3"])
def test_a_view_changes_no_buffer_of_the_base(name: str, kind: str) -> None:
    model = with_rope(name, kind)
    before = {key: (id(buffer), buffer._version) for key, buffer in model.named_buffers()}
    for view in (David.view(model, "0:6"), David.view(model, "0:4, 2:6")):
        for length in (10, 40, 20):
            logits(view, torch.arange(length)[None] + 3)
    assert {key: (id(buffer), buffer._version) for key, buffer in model.named_buffers()} == before


def test_a_view_grows_a_table_of_positions_of_its_own() -> None:
    model = tiny_model("xglm", max_position_embeddings=16)
    view, long = David.view(model, "0:6"), torch.cat([TOKENS] * 3, dim=1)
    table = model.model.embed_positions.weights
    assert torch.equal(logits(view, long), logits(copy.deepcopy(model), long))
    assert model.model.embed_positions.weights is table  # another thread may be between its length and its rows
    assert len(table) == 18


def test_a_bare_sling_over_the_recipe_of_another_thread_warns(tiny: Any) -> None:
    def sling_and_wait(pause: Callable[[], None]) -> None:
        David.sling(tiny, MAPS[0])
        pause()

    for change in (lambda: David.sling(tiny.model, MAPS[1]), lambda: David.reset(tiny)):
        with in_other_thread(sling_and_wait):
            with pytest.warns(UserWarning, match=r"another thread \(other\).* David\.view\(model, recipe\)$"):
                change()
            David.sling(tiny, MAPS[1])  # over this thread's own recipe, or the base
            David.reset(tiny)
    in_other = threading.Thread(target=David.sling, args=(tiny, MAPS[0]))
    in_other.start()
    in_other.join()
    David.reset(tiny)  # of a thread that has ended


PROMPTS = [[3, 8, 13, 18], [5, 9, 22]]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
BATCHING: dict[str, Any] = {
    "generation_config": GenerationConfig(eos_token_id=-1, **GREEDY),
    "continuous_batching_config": ContinuousBatchingConfig(
        num_blocks=4, page_size=16, max_batch_tokens=32, max_requests_per_batch=4, use_cuda_graph=False
    ),
}


def batches(model: Any) -> list[list[int]]:
    answers = model.generate_batch(PROMPTS, persistent_manager=True, progress_bar=False, warmup=False, **BATCHING)
    return [answer.generated_tokens for answer in answers.values()]


def one_by_one(model: Any, recipe: str) -> list[list[int]]:
    copied = stacked(model, Recipe.parse(recipe))
    rows = [copied.generate(torch.tensor([row]), eos_token_id=None, **GREEDY)[0, len(row) :] for row in PROMPTS]
    return [row.tolist() for row in rows]


@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(lambda model: model, id="outer", marks=pytest.mark.slow),
        pytest.param(lambda model: model.model, id="inner"),
    ],
)
def test_batches_of_a_persistent_manager_follow_a_sling_and_a_view(handle: Any) -> None:
    model = tiny_model("llama")
    base, deeper = one_by_one(model, "0:6"), one_by_one(model, MAPS[0])
    assert batches(model) == base
    assert batches(David.view(model, MAPS[0])) == deeper
    David.sling(handle(model), MAPS[0])
    assert batches(model) == deeper
    David.reset(handle(model))
    assert batches(model) == base


def test_a_model_that_serves_batches_is_not_slung() -> None:
    model = tiny_model("llama")
    base, deeper = one_by_one(model, "0:6"), one_by_one(model, MAPS[0])
    with model.continuous_batching_context_manager(warmup=False, **BATCHING) as manager:
        for handle in (model, model.model):
            with pytest.raises(SlingError, match=r"a manager of continuous batching.*manager\.stop\(\)"):
                David.sling(handle, MAPS[0])
        assert batches(David.view(model, MAPS[0])) == deeper
        requests = [manager.add_request(prompt, max_new_tokens=5, eos_token_id=-1) for prompt in PROMPTS]
        results = [manager.get_result(timeout=60) for _ in PROMPTS]
        answers = {result.request_id: result.generated_tokens for result in results}
        assert [answers[request] for request in requests] == base
    assert batches(David.sling(model, MAPS[0])) == deeper
