# %% [markdown]
# # 4 · A recipe from a stranger
#
# Someone sends you a `recipe.json`. It is two kilobytes, and claims to make a model you already have better. What does it do, is it
# for your model, is the claim true, and do you like it?
#
# We play the stranger first, quickly.

# %%
from david import Corpus, David, Recipe, load_model, score_recipes, search
from david.space import Block

model, tokenizer = load_model("demo", device="cpu")
windows, others = Corpus.load(tokenizer=tokenizer, window=64).hold_out(4, 8)
search(
    model,
    windows,
    space=Block(max_length=4, scales=(0.1, 0.5)),
    held_out=others,
    n_trials=10,
    baseline=0,
    out="sent",
    progress=False,
)
del model

# %% [markdown]
# ## Read it
#
# A recipe is data: nothing in it is run. What is wrong with one is told in a line.

# %%
recipe = Recipe.load("sent/best.json")
recipe

# %%
from david.models import read_costs
from david.recipe.explain import explain

print(explain(recipe, read_costs("demo")))

# %% [markdown]
# ## What does it claim?

# %%
for score in recipe.scores:
    kind = "held-out" if score.held_out else "search"
    print(
        f"{kind} windows: {score.metric} {score.value:.3f}, base {score.base:.3f}, {score.tokens} tokens of {score.data.source}"
    )
    interval = "{:+.4f} … {:+.4f}".format(*score.interval95) if score.interval95 else "none"
    print(f"   nats a token to the base: {score.nll_difference:+.4f}, 95% interval: {interval}")

# %% [markdown]
# A search score is what the recipe was picked by. Believe the held-out one, and its interval: where that holds 0, nothing was shown.
#
# ## Is it for this model?
#
# The recipe names its base, and carries a fingerprint: a hash of names, shapes and a sample of the values. It is advice, not a lock.
# `load_model` takes the recipe itself, follows a base that is `demo` or on the Hub (never a path that a stranger wrote), tells you where its
# weights are others, and slings it.

# %%
from david.models import fingerprint

model, tokenizer = load_model("sent/best.json", device="cpu")  # the base that it names, slung
print("base:", recipe.base.model, "·", recipe.base.architecture, "·", recipe.base.num_layers, "layers")
print("same weights as the stranger's:", fingerprint(model) == recipe.base.fingerprint)

# %% [markdown]
# ## Is the claim true?
#
# The score tells which windows of which text it was measured on, so you can measure again. Better still: measure on a text of your
# own, one that the stranger cannot have searched on. Here, further windows of the same text stand in for it.

# %%
from david.verdict import paired_difference

David.reset(model)
_, longer = Corpus.load(tokenizer=tokenizer, window=64).hold_out(4, 48)  # the stranger's 8, and 40 more
_, mine = longer.split(8, 40)
print("tokens that the stranger has seen:", mine.shared_tokens(windows) + mine.shared_tokens(others))
base, its = score_recipes(model, [Recipe.identity(30), recipe], mine)
difference = paired_difference(its.window_nll, base.window_nll, base.window_tokens, documents=base.documents)
print(
    f"on {len(mine)} windows: {difference.mean:+.4f} nats a token ({difference.low:+.4f} … {difference.high:+.4f}): {difference.word}"
)

# %% [markdown]
# ## Do you like it?
#
# Perplexity is a cheap gate. Ask it something: a `Chat` holds one conversation, which the base and any number of recipes answer, on one
# set of weights.

# %%
from david.chat import Chat, Sampling

chat = Chat(model, tokenizer, recipes=[recipe], sampling=Sampling(max_new_tokens=24))
for who, answer in chat.compare("Name three animals that can fly.").items():
    print(f"{who}: {answer}")

# %% [markdown]
# In a terminal all of this is one command, `david chat sent/best.json`; in Python `load_model("sent/best.json")`. Both load the base
# that the recipe names, tell you where its weights are others, and sling it.
