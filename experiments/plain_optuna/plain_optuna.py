"""A search in plain Optuna, its objective written by hand: nothing of David but a view and the score.

    python experiments/plain_optuna/plain_optuna.py [--model demo] [--trials 25] [--windows 4]

The space is an odd one that David does not have: drop one layer, and run another one at some strength a second time.
"""

import argparse

import optuna

from david import Corpus, David, load_model, perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--windows", type=int, default=4, help="windows of 128 tokens to score a trial on")
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)
    corpus = Corpus.load(tokenizer=tokenizer, window=128).take(options.windows)
    n_layers = model.config.num_hidden_layers
    base = perplexity(model, corpus).nll

    def objective(trial: optuna.Trial) -> float:
        dropped = trial.suggest_int("dropped", 0, n_layers - 1)
        again = trial.suggest_int("again", 0, n_layers - 1)
        strength = trial.suggest_float("strength", -0.5, 1.0, step=0.05)
        repeat_map, scales = [], []
        for layer in range(n_layers):
            if layer != dropped:
                repeat_map.append(layer)
                scales.append(1.0)
            if layer == again:
                repeat_map.append(layer)
                scales.append(strength)
        return perplexity(David.view(model, repeat_map_raw=repeat_map, scales=scales), corpus).nll

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=options.trials, show_progress_bar=True)

    print(f"base: NLL {base:.4f} nats a token on {len(corpus)} windows of {corpus.window} tokens\n")
    print("| trial | dropped | again | strength | NLL | minus base |\n|---|---|---|---|---|---|")
    for trial in sorted(study.trials, key=lambda trial: trial.value)[:5]:
        chosen = trial.params
        print(
            f"| {trial.number} | {chosen['dropped']} | {chosen['again']} | {chosen['strength']:+.2f} "
            f"| {trial.value:.4f} | {trial.value - base:+.4f} |"
        )


if __name__ == "__main__":
    main()
