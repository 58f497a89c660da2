# %% [markdown]
# # 5 · Your own objective, with plain Optuna
#
# You have an Optuna script, a space that David does not know, or a score of your own. Nothing has to be wrapped: take a view inside the
# objective. Here the question is odd on purpose: which *one* layer to drop, and which to run again at what strength, so that the model
# prefers right answers to wrong ones?

# %%
import optuna
import torch

from david import Corpus, David, Recipe, load_model, perplexity, plot, search, table

model, tokenizer = load_model("demo", device="cpu")
n_layers = model.config.num_hidden_layers
optuna.logging.set_verbosity(optuna.logging.WARNING)

# %% [markdown]
# ## A score of your own
#
# Any function of the model will do. This one is the mean margin, in nats, by which the right word beats the wrong one.

# %%
questions = [
    ("The capital of France is", " Paris", " London"),
    ("Two plus two is", " four", " five"),
    ("The opposite of hot is", " cold", " red"),
    ("Grass is", " green", " purple"),
    ("A cat is an", " animal", " engine"),
    ("The sun rises in the", " east", " west"),
]


@torch.inference_mode()
def margin(model):
    total = 0.0
    for prompt, right, wrong in questions:
        inputs = tokenizer(prompt, return_tensors="pt")
        logits = model(**inputs, use_cache=False).logits[0, -1].float().log_softmax(-1)
        total += float(logits[tokenizer.encode(right)[0]] - logits[tokenizer.encode(wrong)[0]])
    return total / len(questions)


print(f"the base prefers the right word by {margin(model):.3f} nats")

# %% [markdown]
# ## The objective
#
# `David.view` returns a second model that runs the recipe on the same weights. It takes a few milliseconds and copies nothing, so the
# objective costs what the score costs. Each trial has a view of its own, so the objective is right under `n_jobs` too. (With one thread,
# `with David.slung(model, recipe):` does as well: it slings the model in place and puts the base back.)


# %%
def recipe_of(dropped, again, strength):
    visits = [(layer, 1.0) for layer in range(n_layers) if layer != dropped]
    at = next((place for place, (layer, _) in enumerate(visits) if layer > again), len(visits))
    visits.insert(at, (again, strength))
    layers, scales = zip(*visits, strict=True)
    return Recipe(layers, scales)


def objective(trial):
    dropped = trial.suggest_int("dropped", 0, n_layers - 1)
    again = trial.suggest_int("again", 0, n_layers - 1)
    strength = trial.suggest_float("strength", -0.5, 1.0, step=0.05)
    return margin(David.view(model, recipe_of(dropped, again, strength)))


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=25)
print(study.best_params, f"{study.best_value:.3f} nats")

# %% [markdown]
# Optuna's own plots work, since this is Optuna's own study.

# %%
import warnings

import matplotlib.pyplot as plt
from optuna.visualization.matplotlib import plot_optimization_history

with warnings.catch_warnings():  # it warns that it is experimental, and sets a style
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    plot_optimization_history(study)
plt.style.use("default")

# %% [markdown]
# Six questions are few, and the best of 25 was picked by them: so far this is luck as much as anything. Does it carry over to plain text?

# %%
corpus = Corpus.load(tokenizer=tokenizer, window=64).take(8)
before = perplexity(model, corpus).perplexity
with David.slung(model, recipe_of(**study.best_params)):
    print(f"perplexity {before:.2f} → {perplexity(model, corpus).perplexity:.2f}")

# %% [markdown]
# It does not: what answers six questions more surely reads plain text far worse. A score of six questions was the wrong thing to search for,
# and only a second score could tell.
#
# ## The honest half, for free
#
# A space is a function `(trial, n_layers) → Recipe`, and an objective a function `(model, corpus) → Score`. Give David the space, and it
# keeps the base as trial 0, leaves duplicates out, shares visits between recipes, and judges the best on windows that were not searched on.


# %%
def space(trial, n_layers):
    dropped = trial.suggest_int("dropped", -1, n_layers - 1)  # −1 drops none
    layers = [layer for layer in range(n_layers) if layer != dropped]
    return Recipe(layers)


windows, held_out = Corpus.load(tokenizer=tokenizer, window=64).hold_out(4, 8)
judged = search(model, windows, space=space, held_out=held_out, study=optuna.create_study(), n_trials=12)
table.leaderboard(judged)[["rank", "recipe", "nll_difference", "low95", "high95", "verdict"]].round(4)

# %%
_ = plot.history(table.trials(judged))
