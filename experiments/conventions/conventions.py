"""Do the figures agree with those that others publish? Each convention beside the tool or the text it comes from."""

import argparse
import json
import math
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers.utils import logging

from david import Corpus, load_model, multiple_choice, perplexity

CHARACTERS, QUESTIONS = 12_000, 40
WINDOW, STRIDE = 256, 100


def guide(model: Any, tokens: torch.Tensor) -> tuple[float, int]:
    """The NLL and the scored tokens by the loop of the transformers perplexity guide, `tokens` `[1, N]`."""
    nll, scored, before = 0.0, 0, 0
    for begin in range(0, tokens.shape[1], STRIDE):
        end = min(begin + WINDOW, tokens.shape[1])
        inputs = tokens[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss
        some = int((targets[:, 1:] != -100).sum())
        nll, scored, before = nll + float(loss) * some, scored + some, end
        if end == tokens.shape[1]:
            break
    return nll, scored


def main() -> None:
    """Score by both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="any text, such as WikiText-2's")
    parser.add_argument("--questions", type=Path, required=True, help="HellaSwag as JSON lines: ctx, endings, label")
    parser.add_argument("--out", type=Path, help="a folder for results.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW - 1, batch_size=1)
    text = given.text.read_text(encoding="utf-8")[:CHARACTERS]
    rows = [json.loads(line) for line in given.questions.read_text(encoding="utf-8").splitlines()[:QUESTIONS]]
    with TemporaryDirectory() as folder:
        part = Path(folder) / "part.txt"
        part.write_text(text, encoding="utf-8")
        strided = perplexity(model, Corpus.load(part, tokenizer, window=WINDOW, stride=STRIDE))
        rolling = perplexity(model, Corpus.load(part, tokenizer, window=WINDOW, rolling=True))
    asked = Corpus.load(given.questions, tokenizer, window=WINDOW, prompt="ctx", column="endings", gold="label")
    choice = multiple_choice(model, asked.take(QUESTIONS))

    nll, scored = guide(model, tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"])
    [rolled] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    pairs = [(row["ctx"], f" {ending}") for row in rows for ending in row["endings"]]
    told = iter(lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True))
    right = [
        max(range(len(row["endings"])), key=lambda i, likely=likely: likely[i]) == int(row["label"])
        for row in rows
        for likely in [[next(told)[0] / len(ending) for ending in row["endings"]]]
    ]
    lines = [
        "| convention | beside | scored | David | the other | difference |",
        "| :--- | :--- | ---: | ---: | ---: | ---: |",
        row_of("strided, NLL", "the transformers guide's loop", scored, strided.nll, nll / scored),
        row_of("rolling, NLL", "lm-eval", rolling.tokens, rolling.nll, -rolled / rolling.tokens),
        row_of(
            "rolling, bits a byte",
            "lm-eval",
            rolling.tokens,
            rolling.bits_per_byte,
            -rolled / len(text.encode()) / math.log(2),
        ),
        row_of("multiple choice, accuracy", "lm-eval's acc_norm", len(right), choice.accuracy, sum(right) / len(right)),
    ]
    assert strided.tokens == scored
    assert list(choice.right) == right
    found = "\n".join(lines) + f"\n\nlm-eval {version('lm_eval')}, transformers {version('transformers')}, float32.\n"
    print(found, end="")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.md").write_text(found, encoding="utf-8")


def row_of(name: str, other: str, scored: int, mine: float, its: float) -> str:
    """A line of the table."""
    return f"| {name} | {other} | {scored:,} | {mine:.6f} | {its:.6f} | {mine - its:+.1e} |"


if __name__ == "__main__":
    main()
