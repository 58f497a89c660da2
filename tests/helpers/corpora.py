"""Tokenizers, data files and corpora for tests: small, and without a download."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from david.scoring.corpus import Corpus
from david.sling.locate import find
from tests.tiny_models import VOCABULARY

BOS = 0


def byte_tokenizer(*, leads_with_bos: bool = False, has_bos: bool = True) -> PreTrainedTokenizerFast:
    """A token for each byte, so that a position in the tokens is a position in an ASCII text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={"<s>": BOS} | {c: i + 1 for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if leads_with_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>" if has_bos else None)


class SlowTokenizer:
    """The same tokens from a tokenizer that has no offsets, as the slow ones of transformers."""

    is_fast = False
    bos_token_id = BOS
    eos_token_id = None

    def __call__(self, text: str, **options: Any) -> Any:
        if options.get("return_offsets_mapping"):
            raise NotImplementedError("slow tokenizers have no offsets")
        return byte_tokenizer()(text, **options)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_rows(path: Path, rows: list[Any], column: str = "text") -> Path:
    match path.suffix:
        case ".jsonl":
            write(path, "".join(json.dumps({column: row}) + "\n" for row in rows))
        case ".json":
            write(path, json.dumps([{column: row} for row in rows]))
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([[column], *([row] for row in rows)])
        case ".parquet":
            datasets.Dataset.from_dict({column: rows}).to_parquet(path)
    return path


def pairs(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    return write(tmp_path / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def of_guide(n_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """The loop of the transformers perplexity guide: a window's begin and end, and how many tokens it scores."""
    before = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + window, n_tokens)
        yield begin, end, end - before - (begin == 0)  # its shift of labels takes the first token away
        before = end
        if end == n_tokens:
            break


def of_lm_eval(tokens: list[int], prefix: int, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """lm-eval's get_rolling_token_windows with a context of one token: what is read, and what is scored behind it."""
    first = min(longest, len(tokens))
    yield [prefix, *tokens[: first - 1]], tokens[:first]
    done = first
    while done < len(tokens):
        some = min(len(tokens) - done, longest)
        end = done + some
        yield tokens[end - longest - 1 : end - 1], tokens[end - some : end]
        done = end


# ---- multiple choice

QUESTIONS: list[dict[str, Any]] = [
    {"q": "sky?", "a": ["blue", "red", "green"], "right": 0},
    {"q": "two and two", "a": ["five", "four"], "right": 1},
    {"q": "last letter", "a": ["a", "y", "z", "q"], "right": 2},
]


def random_corpus(n_windows: int = 4, window: int = 24, highest: int = VOCABULARY) -> Corpus:
    numbers = torch.Generator().manual_seed(1)
    windows = torch.randint(3, highest, (n_windows, window), generator=numbers)
    return Corpus(windows, tuple(range(n_windows)), source="random", slice=None, sha256="", bos=False)


def of_completions(number: int = 4) -> Corpus:
    """Windows of 12 tokens, each with a completion of its own length, and what fills the window behind it."""
    tokens = torch.randint(3, VOCABULARY, (number, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(number, 12, dtype=torch.bool)
    for row in range(number):
        mask[row, 4 + row : 6 + 2 * row] = True
    return Corpus(
        tokens,
        tuple(range(number)),
        source="pairs",
        slice=None,
        sha256="c0",
        bos=False,
        scored=mask,
        convention="completion",
    )


def choice_corpus(tmp_path: Path, questions: list[dict[str, Any]] = QUESTIONS) -> Corpus:
    file = pairs(tmp_path, questions)
    return Corpus.load(file, byte_tokenizer(), window=32, prompt="q", column="a", gold="right")


STATE = 16 * 32 * 4  # bytes of the hidden state of a window of 16 tokens


def windows(number: int) -> Corpus:
    tokens = torch.randint(3, VOCABULARY, (number, 16), generator=torch.Generator().manual_seed(2))
    return Corpus(tokens, (0,) * number, source="random", slice=None, sha256="", bos=False)


def standing(model: Any) -> tuple[Any, ...]:
    """What a model is: its layers, its configuration and what it says."""
    layers = list(map(id, find(model).layers))
    return layers, model.config.to_dict(), model(torch.arange(3, 20)[None], use_cache=False).logits.tolist()


HEAD = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}\ntest_split: test\n"
FILES = {
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: gold\ndoc_to_choice: a\n"
    "metric_list: [{metric: acc_norm}, {metric: acc}, {metric: brier_score}]\n",
    "last": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{t}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{t}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n",
    "written": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{t}}'\n"
    "generation_kwargs: {until: ['|'], max_gen_toks: 3, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "filter_list: [{name: whole, filter: [{function: take_first}]},"
    " {name: first, filter: [{function: regex, regex_pattern: '^(\\w+)'}, {function: take_first}]}]\n",
}
