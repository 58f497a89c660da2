"""Each way to hold a model's weights, through each thing that David does with one: exact, or refused with the reason.

    python experiments/loading/ways_of_loading.py [WAY ...] [--out FOLDER] [--models llama …]

Prints a line for each way and model as it is done; with --out the table as results.csv.
"""

import csv
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository
from david import Corpus, David, Recipe, export, load_model, perplexity, search
from david.chat.generation import Sampling, TextGenerator
from david.engine.engine import score_recipes
from david.errors import DavidError
from david.models.demo import demo_folder
from david.models.fingerprints import fingerprint
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth
from david.sling.stacked_copy import stacked
from david.sling.verify import check_model
from david.storage.trial_attributes import RECIPE
from experiments.ways.ways import far, parsed_options
from tests.helpers.compressed import save_compressed
from tests.helpers.word_tokenizer import save_tokenizer
from tests.tiny_models import tiny_named

MODELS = ("llama", "gemma3_text", "mixtral", "qwen3")
ROUNDING = 1e-4  # of the spread of logits, and of an NLL: what the order of a sum may change
HALF = 2e-2  # the same where weights or products are in half precision
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True)
class Way:
    """A way to hold weights: the folder that is loaded, made of a plain one, and the options."""

    name: str
    store: Callable[[Path, Path], None] | None = None  # from the plain folder into an empty one
    options: dict[str, Any] = field(default_factory=dict)
    allowed: float = ROUNDING


def stored_by_transformers(plain: Path, folder: Path, *, quantize: str) -> None:
    model, tokenizer = load_model(plain, device="cpu", quantize=quantize)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stored_compressed(plain: Path, folder: Path, *, scheme: str) -> None:
    model, tokenizer = load_model(plain, device="cpu")
    save_compressed(model, scheme, folder)
    tokenizer.save_pretrained(folder)


def on_disk(plain: Path) -> dict[str, Any]:
    """Half of the weights on disk."""
    size = sum(path.stat().st_size for path in plain.glob("*.safetensors"))
    folder = plain.parent / "offloaded"  # for weights that transformers stores otherwise than it holds them
    return {"device": None, "device_map": "auto", "max_memory": {"cpu": size // 2}, "offload_folder": folder}


WAYS = (
    Way("float32"),
    Way("bfloat16", options={"dtype": "bfloat16"}, allowed=HALF),
    Way("half of it on disk"),
    *(Way(f"{name}, while loading", options={"quantize": name}, allowed=HALF) for name in ("4bit", "8bit", "int8")),
    *(
        Way(f"{name}, stored", partial(stored_by_transformers, quantize=name), allowed=HALF)
        for name in ("4bit", "8bit", "int8")
    ),
    *(
        Way(f"compressed-tensors {scheme}", partial(stored_compressed, scheme=scheme), allowed=HALF)
        for scheme in ("W4A16", "W8A16", "W8A8", "FP8_DYNAMIC")
    ),
)


def recipe_for(n_layers: int) -> Recipe:
    """A block again, a layer left out, and a visit damped."""
    half = n_layers // 2
    layers = [*range(half + 1), *range(half - 1, n_layers - 2), n_layers - 1]
    return Recipe(layers, [1.0] * (half + 1) + [0.5] + [1.0] * (len(layers) - half - 2))


def check(model: Any, *_: Any) -> float:
    certificate = check_model(model, recipe=recipe_for(base_depth(model)))
    wrong = [finding for finding in certificate.findings if finding.passed is False]
    if wrong:
        raise AssertionError(f"{wrong[0].recipe}, {wrong[0].claim}: {wrong[0].difference} {wrong[0].reason}")
    compared = [f for f in certificate.findings if f.claim.endswith(("= stacked", "= layer by layer"))]
    return max(finding.difference or 0.0 for finding in compared)


def score(model: Any, copied: Any, corpus: Corpus, *_: Any) -> float:
    with David.slung(model, recipe_for(base_depth(model))):
        return abs(perplexity(model, corpus).nll - perplexity(copied, corpus).nll)


def scan(model: Any, _copied: Any, corpus: Corpus, *_: Any) -> float:
    recipes = all_blocks(base_depth(model), 2)[:12]
    scores = score_recipes(model, recipes, corpus)
    return max(
        abs(one.nll - perplexity(stacked(model, recipe), corpus, batch=len(corpus)).nll)
        for recipe, one in list(zip(recipes, scores, strict=True))[:: 6 if base_depth(model) > 10 else 3]
    )


def search_best(model: Any, _copied: Any, corpus: Corpus, *_: Any) -> float:
    study = search(model, corpus, held_out=None, n_trials=3, progress=False, baseline=0)
    last = study.get_trials()[-1]
    recipe = Recipe.of(last.user_attrs[RECIPE])
    return abs(last.value - perplexity(stacked(model, recipe), corpus, batch=len(corpus)).nll)


def generate(model: Any, copied: Any, corpus: Corpus, *_: Any) -> float:
    tokens = corpus.windows[:1, :10]

    def logits(of: Any) -> Tensor:
        out = of.generate(input_ids=tokens, **GREEDY, output_logits=True, return_dict_in_generate=True)
        return torch.stack(out.logits).double()

    with David.slung(model, recipe_for(base_depth(model))):
        return far(logits(model), logits(copied))


def chat(model: Any, copied: Any, corpus: Corpus, tokenizer: Any, _folder: Path) -> float:
    """Two answers with a kept cache, as `david chat` gives them: the same tokens as the copy's, greedily."""
    generator = TextGenerator("slung", recipe_for(base_depth(model)), model)
    prompt = corpus.windows[0, :10].tolist()
    greedy = Sampling(max_new_tokens=4, temperature=0)
    first = "".join(generator.write(tokenizer, prompt, greedy))
    longer = prompt + tokenizer(first, add_special_tokens=False).input_ids + prompt[:3]
    second = "".join(generator.write(tokenizer, longer, greedy))
    options = GREEDY | {"max_new_tokens": 4, "eos_token_id": tokenizer.eos_token_id}
    right = copied.generate(input_ids=torch.tensor([longer]), **options)[0, len(longer) :]
    return 0.0 if second.strip() == tokenizer.decode(right, skip_special_tokens=True).strip() else float("inf")


def write_stacked(model: Any, _copied: Any, corpus: Corpus, tokenizer: Any, folder: Path) -> float:
    plain = Recipe(recipe_for(base_depth(model)).repeat_map)
    written = export(model, plain, folder / "stacked", tokenizer=tokenizer)
    again, _ = load_model(written, device="cpu")
    return abs(perplexity(again, corpus).nll - perplexity(stacked(model, plain), corpus).nll)


COLUMNS: dict[str, Callable[..., float]] = {
    "check": check,
    "score": score,
    "scan": scan,
    "search": search_best,
    "generate": generate,
    "chat": chat,
    "export": write_stacked,
}


def plain_folder(name: str, place: Path) -> Path:
    """The folder of a model in float32, with a tokenizer."""
    if name == "demo":
        return demo_folder()
    tiny_named(name).save_pretrained(place / "plain")
    return save_tokenizer(place / "plain")


def corpus_for(name: str, tokenizer: Any, place: Path) -> Corpus:
    """Two short windows of text."""
    if name == "demo":
        return Corpus.load(tokenizer=tokenizer, window=32).take(2)
    path = place / "text.txt"
    path.write_text(" ".join(f"w{3 + i * 7 % 90}" for i in range(200)), encoding="utf-8")
    return Corpus.load(path, tokenizer=tokenizer, window=16).take(2)


def run(way: Way, name: str) -> dict[str, str]:
    """A line of the table: in each column the largest difference, `refused: …`, `base fails: …` or `WRONG: …`."""
    row = {"way": way.name, "model": name}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(scratch)
        plain = folder = plain_folder(name, place)
        try:
            if way.store is not None:
                folder = place / "stored"
                folder.mkdir()
                way.store(plain, folder)
            held = on_disk(plain) if way.name == "half of it on disk" else way.options
            model, tokenizer = load_model(folder, **({"device": "cpu"} | held))
            corpus = corpus_for(name, tokenizer, place)
            reference = load_model(folder, device="cpu")[0] if "device_map" in held else model
            copied = stacked(reference, recipe_for(base_depth(model)))
            before, base = fingerprint(model), perplexity(model, corpus).nll
        except Exception as error:  # transformers and each quantisation have their own
            return row | dict.fromkeys(COLUMNS, f"base fails: {_word(error).replace(scratch, '…')}")
        if reference is not model and abs(perplexity(reference, corpus).nll - base) > way.allowed:
            return row | dict.fromkeys(COLUMNS, "WRONG: the base is not the same")
        for column, compare in COLUMNS.items():
            if reference is not model and column in ("scan", "search"):  # stacked copies are of the one in memory
                compare = partial(_against, reference, compare)
            row[column] = _outcome(partial(compare, model, copied, corpus, tokenizer, place), way.allowed)
            if perplexity(model, corpus).nll != base or fingerprint(model) != before:
                row[column] = "WRONG: the base is not what it was"
    return row


def _against(
    reference: Any, compare: Callable[..., float], model: Any, copied: Any, corpus: Corpus, *rest: Any
) -> float:
    """Scores of a model whose layers are spread, beside those of the same model in memory."""
    recipes = all_blocks(base_depth(model), 2)[:12]
    ours, theirs = score_recipes(model, recipes, corpus), score_recipes(reference, recipes, corpus)
    apart = max(abs(one.nll - other.nll) for one, other in zip(ours, theirs, strict=True))
    return max(apart, compare(reference, copied, corpus, *rest))


def _outcome(compare: Callable[[], float], allowed: float) -> str:
    try:
        apart = compare()
    except DavidError as error:
        return f"refused: {_word(error)}"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {_word(error)}"
    return f"{apart:.0e}" if apart <= allowed else f"WRONG: {apart:.0e}"


def _word(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def table(models: list[str], ways: list[str]) -> Iterator[dict[str, str]]:
    for name in models:
        for way in WAYS:
            if not ways or way.name in ways:
                yield run(way, name)


def main() -> None:
    options = parsed_options(__doc__ or "", MODELS)
    quiet()
    start, rows = time.monotonic(), []
    for row in table(options.models, options.ways):
        rows.append(row)
        print(" | ".join(value[:60] for value in row.values()), flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")
    if options.out:
        with (options.out / "results.csv").open("w", newline="", encoding="utf-8") as file:
            written = csv.DictWriter(file, ["way", "model", *COLUMNS], lineterminator="\n")
            written.writeheader()
            written.writerows(rows)
    sys.exit(any(value.startswith("WRONG") for row in rows for value in row.values()))


def quiet() -> None:
    """Silence bars and what the libraries log for each product."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with suppress(ImportError):
        from loguru import logger

        logger.remove()


if __name__ == "__main__":
    main()
