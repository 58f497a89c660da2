# %% [markdown]
# # 2 · A map of a model
#
# Before searching, look: which layers matter, which can be skipped, which bear being run again? This notebook draws the
# base layer by layer, then scans every short block.

# %%
import matplotlib.pyplot as plt

from david import Corpus, load_model, plot, search, space, table
from david.profile import profile

model, tokenizer = load_model("demo", device="cpu")
corpus = Corpus.load(tokenizer=tokenizer, window=64)
windows, others = corpus.hold_out(4, 8)
windows, others

# %% [markdown]
# ## What each layer does
#
# `influence` is how far a layer turns the hidden state (1 − cos). `repeat` and `skip` are what running the layer twice, or
# not at all, adds to the NLL, in nats a token: above 0 is worse.

# %%
found = profile(model, windows)
found.layers.round(3).sort_values("skip").head(5)

# %%
figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6), layout="constrained")
_ = plot.influence(found.layers, above)
_ = plot.profile(found.layers, below)
# %% [markdown]
# Two things to see. The first layer cannot be left out: all that follows is built on it. And a layer that is cheap to skip is
# not one that is good to repeat; the two bars tell different stories.
#
# `distances` compares the states *between* layers: the angle from before layer i to before layer j, in half turns. Where it is
# small, leaving out the block (i, j) changes little. Depth pruning cuts there.

# %%
blocks_of_four = {i: found.distances.loc[i, i + 4] for i in range(26)}
nearest = min(blocks_of_four, key=blocks_of_four.get)
print(f"layers {nearest} to {nearest + 3} turn the state least: by {blocks_of_four[nearest]:.3f} half turns")

# %% [markdown]
# ## Every short block, twice
#
# A scan runs each block (i, j) of up to two layers a second time. The recipes share most of their visits, and David makes each
# distinct visit once.

# %%
study = search(
    model,
    windows,
    space=space.Block(max_length=2),
    held_out=others,
    n_trials=60,
    queue=space.all_blocks(30, 2),
    sampler="random",
)
grid = table.blocks(study)
_ = plot.blocks(grid)
# %% [markdown]
# Rows are where a block starts, columns where it ends. Red costs, blue helps, on these four windows. The circle is the lowest of
# 59 blocks, and the lowest of 59 is low by luck, too: the leaderboard measures the best five again, on windows of other documents.

# %%
table.leaderboard(study)[
    ["rank", "recipe", "search_nll", "held_out_nll", "nll_difference", "low95", "high95", "verdict"]
].round(4)

# %% [markdown]
# Read `verdict` before `rank`. Notebook 3 takes this table apart.
