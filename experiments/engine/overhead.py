"""What does the engine cost beside the same visits and ends, called bare?"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from printed import table, write
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from david import Corpus, load_model
from david.engine.engine import Engine
from david.engine.prefix_tree import ROOT, PrefixTree
from david.recipe.blocks import all_blocks
from david.sling.in_place import base_depth

WINDOW = 128
GROUP = 31  # recipes that either way scores before it is the other's turn


def bare(model: Any, tree: PrefixTree, tokens: Tensor) -> dict[int, float]:
    """The NLL at each end: the layers of a Llama, its norm and its head, called by hand in the tree's own order."""
    inner, found = model.model, {}
    embedded = inner.embed_tokens(tokens)  # [B, T, D]
    angles = inner.rotary_emb(embedded, torch.arange(tokens.shape[1])[None])
    states, left = {ROOT: embedded}, tree.child_counts(order := tree.depth_first_order())
    for node in order:
        parent = tree.parents[node]
        state = states[parent]
        left[parent] -= 1
        if not left[parent]:
            del states[parent]
        if tree.is_end(node):
            logits = model.lm_head(inner.norm(state))[:, :-1]
            pairs = zip(logits, tokens[:, 1:], strict=True)  # one window after the other, which is quicker
            found[node] = float(sum(torch.nn.functional.cross_entropy(*pair, reduction="sum") for pair in pairs))
        else:
            states[node] = inner.layers[tree.layers[node]](state, attention_mask=None, position_embeddings=angles)
    return found


def main() -> None:
    """Time both in turn, group by group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--groups", type=int, default=15, help=f"of {GROUP} recipes each, at most 15 (default: %(default)s)"
    )
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[1, 4], help="windows of 128 tokens at once (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="a folder for overhead.md")
    given = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model("demo", dtype="float32", device="cpu")
    recipes = all_blocks(base_depth(model))
    random.Random(0).shuffle(recipes)
    rows = []
    for windows in given.windows:
        corpus = Corpus.load(tokenizer=tokenizer, window=WINDOW).take(windows)
        engine = Engine(model, corpus)
        ours = theirs = visits = ends = 0.0
        for start in tqdm(range(0, given.groups * GROUP, GROUP), desc=f"{windows} windows", unit="group"):
            group = recipes[start : start + GROUP]
            tree = PrefixTree.of(group, base_depth(model))
            seconds = {}
            for way in ("engine", "bare") if start // GROUP % 2 else ("bare", "engine"):
                begin = time.perf_counter()
                if way == "engine":
                    scores = engine.outcomes(group)
                else:
                    with torch.inference_mode():
                        found = bare(model, tree, corpus.windows)
                seconds[way] = time.perf_counter() - begin
            for score, end in zip(scores, tree.ends, strict=True):
                assert abs(score.nll * score.tokens / found[end] - 1) < 1e-5, "the two ways do not tell the same"
            ours, theirs = ours + seconds["engine"], theirs + seconds["bare"]
            visits, ends = visits + tree.cost.visits, ends + tree.cost.ends
        rows.append(
            {
                "windows": f"{windows}",
                "visits": f"{visits:,.0f}",
                "ends": f"{ends:,.0f}",
                "engine, s": f"{ours:.1f}",
                "bare, s": f"{theirs:.1f}",
                "engine / bare": f"{ours / theirs:.3f}",
            }
        )
    write(table(rows), given.out, "overhead.md")


if __name__ == "__main__":
    main()
