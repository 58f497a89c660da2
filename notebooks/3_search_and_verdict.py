# %% [markdown]
# # 3 · A search, and how to read its verdict
#
# A search tries many recipes on a few windows of text. One of them will look good. Is it? This notebook runs a small search on
# the demo model and reads what it says, line by line.

# %%
from david import Corpus, load_model, page, plot, report, search, table

model, tokenizer = load_model("demo", device="cpu")
corpus = Corpus.load(tokenizer=tokenizer, window=64)
windows, held_out = corpus.hold_out(6, 16)
print(f"search on {windows}\njudge by {held_out}\ntokens in both: {windows.shared_tokens(held_out)}")

# %% [markdown]
# The two parts come from different documents, and no token is in both. The search never sees the second.
#
# ## Search
#
# The space is up to three blocks, each run again at some strength. The base is always trial 0. Twenty recipes are few: this is to
# show how it reads, not to find much.

# %%
from david.space import Blocks

study = search(model, windows, space=Blocks(scales=(0.1, 1.0)), held_out=held_out, n_trials=20, seed=0, out="run")

# %% [markdown]
# ## The leaderboard

# %%
board = table.leaderboard(study)
columns = [
    "rank",
    "recipe",
    "visits",
    "search_perplexity",
    "held_out_perplexity",
    "nll_difference",
    "low95",
    "high95",
    "verdict",
]
board[columns].round(4)

# %% [markdown]
# - `search_perplexity` is what a recipe was chosen by. It flatters: of twenty numbers that differ by chance, the lowest was picked.
# - `held_out_perplexity` is measured once, on windows that nothing was chosen by. Recipes are ranked by it.
# - `nll_difference` is recipe minus base on those windows, in nats a token. Below 0 is better.
# - `low95 … high95` is its paired 95% interval: the same windows, so what makes a text hard is the same for both, and each document counts
#   once. It is widened for the number of finalists: five chances to be lucky need wider doubt.
# - `verdict` is *better* where the whole interval lies below 0, *worse* where above, else *not told apart*; screen and page say **inconclusive**: these windows cannot say.
#   That is not "as good as". It is "measure more, or let it be".

# %%
print(report.verdict(board))
print(report.looks(study))

# %% [markdown]
# ## How much of the best is luck?

# %%
luck = table.luck(study)
print(f"the best recipe on the search windows: {luck.best:+.4f} nats a token")
print(f"the best of as many recipes no better than the base: {luck.typical:+.4f} in the median draw")
print(f"luck alone goes as low in {luck.chance:.0%} of draws")

# %% [markdown]
# And one more check: is it *this* recipe, or would any of its depth do? Random recipes as deep as the best were measured beside it.

# %%
print(report.baseline(study))

# %% [markdown]
# ## Pictures

# %%
_ = plot.history(table.trials(study))
# %%
_ = plot.depth(table.trials(study), front=table.front(table.trials(study)))
# %% [markdown]
# The line is the Pareto front: the lowest NLL that so many visits have bought, on the search windows. Every visit costs compute and
# cache for each token that the model will ever write, so a recipe far to the right has to earn it.
#
# ## All of it as a page
#
# `page.show(study)` shows the whole study in a cell. `out="run"` left it in a folder too: tables, plots, `best.json`, and `report.html`, one
# page that needs nothing else and can be sent as it is.

# %%
import os

print(*sorted(os.listdir("run")))
page.show(study, top=2)

# %% [markdown]
# Running the same search again with the same folder goes on where it stopped: ask for more trials, and more are made. To judge more
# finely, take more held-out windows (`corpus.hold_out(12, 64)`) before you take more trials.
