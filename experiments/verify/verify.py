"""Score a recipe file again with code that shares nothing with David: really stacked layers, plain transformers.

    python experiments/verify/verify.py run/best.json --model FOLDER [--text FILE]

FOLDER holds the base as `save_pretrained` writes it. Prints, for each score in the file, the NLL it states and the one
found here, in nats a token; exits with 1 where they differ by more than 1e-4.
"""

import argparse
import copy
import hashlib
import importlib
import json
import math
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4


class Damped(nn.Module):
    """A layer at a strength: h + s · (layer(h) − h)."""

    def __init__(self, layer, scale):
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, hidden, *args, **kwargs):
        return hidden + self.scale * (self.layer(hidden, *args, **kwargs) - hidden)


def stack(base, repeat_map, scales):
    """A deep copy of a Llama-like model whose layers are those of the map, each with weights of its own."""
    model = copy.deepcopy(base)
    layers = [copy.deepcopy(base.model.layers[layer]) for layer in repeat_map]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    model.model.layers = nn.ModuleList(
        layer if scale == 1 else Damped(layer, scale) for layer, scale in zip(layers, scales, strict=True)
    )
    model.config.num_hidden_layers = len(layers)
    return model


def numbers(windows):
    """The numbers that half-open ranges such as "7, 3, 20:22" stand for."""
    for part in windows.split(","):
        start, _, stop = part.partition(":")
        yield from range(int(start), int(stop or int(start) + 1))


def mean_nll(model, tokens, score):
    """Mean NLL in nats of the tokens that a score of convention `window` says it scored."""
    length = score["convention"]["window"]
    total, count = 0.0, 0
    for number in numbers(score["data"]["windows"]):
        row = torch.tensor(tokens[number * length : (number + 1) * length])[None]
        with torch.no_grad():
            logits = model(row, use_cache=False).logits[0, :-1]
        log_probabilities = torch.log_softmax(logits.double(), dim=-1)
        total -= log_probabilities.gather(1, row[0, 1:, None]).sum().item()
        count += length - 1
    assert count == score["tokens"], (count, score["tokens"])
    return total / count


def verify(document, base, tokenizer, text):
    """(held out, stated NLL, NLL found here) of each score in a recipe file; `text` is what the scores are of."""
    model = stack(base, document["repeat_map"], document["scales"])
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = []
    for score in document["scores"]:
        assert score["convention"]["name"] == "window"
        assert not score["convention"]["bos"]
        found = hashlib.sha256(text.encode()).hexdigest()
        assert found == score["data"]["sha256"], f"another text: {found}"
        rows.append((score["held_out"], math.log(score["value"]), mean_nll(model, tokens, score)))
    return rows


def built_in_text():
    """The help topics of this Python, as David's default corpus joins them."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", required=True, help="the base's folder")
    parser.add_argument("--text", type=Path, help="the text file that was scored; left out, Python's help topics")
    options = parser.parse_args()
    document = json.loads(options.recipe.read_text())
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = built_in_text() if options.text is None else options.text.read_text(encoding="utf-8")
    print("| windows | NLL stated | NLL found | difference |\n|---|---|---|---|")
    worst = 0.0
    for held_out, stated, found in verify(document, base, tokenizer, text):
        print(f"| {'held-out' if held_out else 'search'} | {stated:.6f} | {found:.6f} | {found - stated:+.1e} |")
        worst = max(worst, abs(found - stated))
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
