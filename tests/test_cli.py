"""The command, end to end on a tiny saved model: what each part prints and writes, and one line for what is wrong."""

import json
import logging
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import datasets
import optuna
import pandas as pd
import pytest
import torch
import transformers
from tiny_models import VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from david import cli, layers
from david.corpus import Corpus
from david.origin import Base
from david.recipe import Recipe
from david.score import multiple_choice, perplexity
from david.sling import view
from david.stack import stacked

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = {"path.png", "history.png", "depth.png"}
FILES = {"study.db", "trials.csv", "leaderboard.csv", "front.csv", "best.json", "report.html"} | PLOTS
WINDOW = 16
ON_DATA = "model --data data.txt --window 16"
SEARCH = f"search {ON_DATA} --windows 3 --held-out 4 --top 2 --out run"
COMMANDS = ["search", "scan", "profile", "score", "check", "explain", "export", "generate", "report"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of six layers and words for tokens, and a text of 1,200 of them."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(folder / "model")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(folder / "model")
    numbers = random.Random(0)
    (folder / "data.txt").write_text(" ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(1200)))
    Recipe.from_blocks(6, [(1, 4, 2, 0.5)]).save(folder / "six.json")
    Recipe.from_blocks(7, [(1, 4, 2)]).save(folder / "seven.json")
    (folder / "broken.json").write_text('{"format": "david.recipe", "version": 1, "repeat_map": [0, "one"]}')
    (folder / "half.json").write_text('{"format": "david.recipe", "ver')
    rows = [{"q": "w1 w2", "a": ["w3", "w4 w5"], "right": i % 2} for i in range(12)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text('{"q": "w1 w2 w3", "a": "w4 w5"}\n{"q": "w6 w7", "a": "w8"}\n')
    (folder / "table.jsonl").write_text('{"said": "w1 w2"}\n')
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command as its console script does; its exit code, what it printed, and what it said."""
    monkeypatch.chdir(place)

    def call(line: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["david", *line.split(), *more])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def _levels_as_before() -> Iterator[None]:
    """The command quietens others' loggers."""
    levels = transformers.logging.get_verbosity(), optuna.logging.get_verbosity(), logging.getLogger("datasets").level
    yield
    transformers.logging.set_verbosity(levels[0])
    optuna.logging.set_verbosity(levels[1])
    logging.getLogger("datasets").setLevel(levels[2])


@pytest.fixture
def model(place: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(place / "model").eval()


@pytest.fixture
def corpus(place: Path) -> Corpus:
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    return Corpus.load(place / "data.txt", tokenizer, window=WINDOW)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# ---- what is promised


def test_search_leaves_a_run_and_the_same_call_goes_on_where_it_stopped(
    run: Run, place: Path, model: Any, corpus: Corpus
) -> None:
    code, out, err = run(f"{SEARCH} --trials 4")
    folder = place / "run"
    assert code == 0, err
    assert {path.name for path in folder.iterdir()} - {"blocks.png"} == FILES
    assert all((folder / plot).read_bytes().startswith(PNG) for plot in PLOTS)
    trials, board = pd.read_csv(folder / "trials.csv"), pd.read_csv(folder / "leaderboard.csv")
    assert trials["duplicate_of"].isna().sum() == 4
    searched, held_out = corpus.hold_out(3, 4)
    assert trials["nll"][0] == pytest.approx(perplexity(model, searched).nll)
    best = Recipe.load(folder / "best.json")
    assert best.base is not None
    assert best.base.model == "model"
    assert str(best) == board[board["recipe"] != "base"]["recipe"].iloc[0]
    copied = stacked(model, best)
    stated = [math.log(score.value) for score in best.scores]
    assert stated == pytest.approx([perplexity(copied, data).nll for data in (searched, held_out)], abs=1e-5)
    assert f"{best.scores[1].value:.3f}" in out
    assert "on held-out windows" in out
    assert all(name in out for name in FILES)

    code, again, _ = run(f"{SEARCH} --trials 4")
    assert (code, again) == (0, out)
    assert pd.read_csv(folder / "trials.csv").equals(trials)

    code, _, _ = run(f"{SEARCH} --trials 6")
    more = pd.read_csv(folder / "trials.csv")
    assert code == 0
    assert more["duplicate_of"].isna().sum() == 6
    assert more["recipe"].head(len(trials)).tolist() == trials["recipe"].tolist()
    assert more["nll"].head(len(trials)).tolist() == trials["nll"].tolist()

    # report writes the same again elsewhere, and prints it as text or JSON
    code, printed, _ = run("report run --top 2 --out elsewhere")
    assert code == 0
    assert {path.name for path in (place / "elsewhere").iterdir()} - {"blocks.png"} == FILES - {"study.db"}
    for table in ("trials.csv", "leaderboard.csv"):
        assert (place / "elsewhere" / table).read_text() == (folder / table).read_text()
    code, as_json, _ = run("report --storage sqlite:///run/study.db --study david --out elsewhere --top 2 --json")
    found = json.loads(as_json)
    board = pd.read_csv(folder / "leaderboard.csv")
    assert [row["recipe"] for row in found["leaderboard"]] == board["recipe"].tolist()
    assert [row["held_out_nll"] for row in found["leaderboard"]] == pytest.approx(board["held_out_nll"].tolist())
    assert found["verdict"] in printed


def test_search_takes_a_space_with_scales_a_sampler_and_a_convention(run: Run, place: Path) -> None:
    options = "--space block --scales 0.1:0.5 --max-length 2 --sampler random --seed 3 --convention llamacpp --trials 3"
    code, _, err = run(f"{SEARCH.replace('--out run', '--out options')} {options} --study mine")
    assert code == 0, err
    best = Recipe.load(place / "options" / "best.json")
    assert best.search is not None
    assert (best.search.study, best.search.sampler, best.search.seed) == ("mine", "RandomSampler", 3)
    assert best.search.space == "block"
    assert len(best) <= 6 + 2
    assert set(best.scales) - {1.0} <= {0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5}
    assert {score.convention.name for score in best.scores} == {"llamacpp"}
    assert [score.tokens for score in best.scores] == [3 * 7, 4 * 7]


@pytest.mark.parametrize(
    ("space", "options", "deepest"),
    [
        ("blocks", "--max-visits 7", 7),
        ("windows", "--max-length 4 --scales -0.5:1.5 --max-visits 8", 8),
        ("ratios", "--max-visits 9", 9),
        ("visits", "--scales 1:2", 12),
        ("removal", "--max-length 2 --scales 0:1.5", 6),
    ],
)
def test_search_takes_every_space_and_a_cap_on_depth(
    space: str, options: str, deepest: int, run: Run, place: Path
) -> None:
    name = f"run-{space}"
    code, _, err = run(f"{SEARCH.replace('--out run', f'--out {name}')} --space {space} {options} --trials 4")
    assert code == 0, err
    trials = pd.read_csv(place / name / "trials.csv")
    best = Recipe.load(place / name / "best.json")
    assert best.search is not None
    assert best.search.space == space
    assert trials["recipe"][0] == "0:6"
    assert max(len(Recipe.parse(recipe)) for recipe in trials["recipe"]) <= deepest


def test_search_keeps_its_study_in_a_storage_of_ones_own(run: Run, place: Path) -> None:
    code, _, err = run(f"{SEARCH} --out elsewhere2 --storage sqlite:///mine.db --study one --trials 2")
    assert code == 0, err
    assert {path.name for path in (place / "elsewhere2").iterdir()} - {"blocks.png"} == FILES - {"study.db"}
    assert len(optuna.load_study(study_name="one", storage=f"sqlite:///{place / 'mine.db'}").trials) >= 2


def test_scan_scores_every_block_up_to_a_length_as_a_heatmap(run: Run, place: Path, model: Any, corpus: Corpus) -> None:
    code, _, err = run(f"scan {ON_DATA} --windows 2 --held-out 2 --max-length 2 --out scan")
    assert code == 0, err
    assert {path.name for path in (place / "scan").iterdir()} == FILES | {"blocks.png"}
    assert (place / "scan" / "blocks.png").read_bytes().startswith(PNG)
    trials = pd.read_csv(place / "scan" / "trials.csv")
    base = list(range(6))
    blocks = {(i, j): tuple(base[:j] + base[i:]) for i in range(6) for j in (i + 1, i + 2) if j <= 6}
    assert trials["duplicate_of"].isna().all()
    assert sorted(Recipe.parse(recipe).repeat_map for recipe in trials["recipe"]) == sorted(
        [tuple(base), *blocks.values()]
    )
    searched = corpus.take(2)
    base_nll = perplexity(model, searched).nll
    for row in trials.itertuples():
        nll = perplexity(view(model, Recipe.parse(row.recipe)), searched).nll
        assert row.nll == pytest.approx(nll)
        assert row.nll_difference == pytest.approx(nll - base_nll)


def test_search_by_a_strategy_takes_its_start_and_its_warm_start(run: Run, place: Path) -> None:
    line = SEARCH.replace("--out run", "--out refined")
    code, _, err = run(f"{line} --strategy refine --trials 5 --start", "0:6, 5")
    assert code == 0, err
    trials = pd.read_csv(place / "refined" / "trials.csv")
    assert trials["recipe"].tolist()[:2] == ["0:6", "0:6, 5"]
    assert (trials["state"] == "complete").sum() == 5
    code, _, err = run(f"{line.replace('refined', 'warm')} --warm-start --trials 14")
    assert code == 0, err
    trials = pd.read_csv(place / "warm" / "trials.csv")
    assert trials["visits"].tolist()[1:13] == [7] * 6 + [5] * 6  # each layer twice, then each left out
    assert trials["recipe"].tolist()[7:13] == ["1:6", "0, 2:6", "0:2, 3:6", "0:3, 4:6", "0:4, 5", "0:5"]


def test_profile_tells_of_each_layer_in_a_table_and_plots(run: Run, place: Path, model: Any, corpus: Corpus) -> None:
    line = f"profile {ON_DATA} --windows 2 --out profile"
    code, printed, err = run(line)
    assert code == 0, err
    assert printed.splitlines()[0].split() == ["layer", "influence", "repeat", "skip"]
    written = {"profile.csv", "distances.csv", "profile.png", "influence.png"}
    assert {path.name for path in (place / "profile").iterdir()} == written
    table = pd.read_csv(place / "profile" / "profile.csv")
    found = perplexity(view(model, Recipe([0, 1, 3, 4, 5])), corpus.take(2)).nll - perplexity(model, corpus.take(2)).nll
    assert table["skip"][2] == pytest.approx(found, abs=1e-5)
    code, printed, _ = run(f"{line} --json")
    assert code == 0
    assert [row["skip"] for row in json.loads(printed)["layers"]] == pytest.approx(table["skip"].tolist())


def test_a_dry_run_says_what_a_scan_would_cost_and_scores_nothing(run: Run, place: Path) -> None:
    line = f"scan {ON_DATA} --windows 5 --held-out 2 --max-length 6 --dry-run --out dry"
    code, printed, err = run(line)
    assert code == 0, err
    visits = sum((6 - i) ** 2 for i in range(6)) + 6
    assert "recipes   22, on 5 windows in batches of 5" in printed
    assert (
        f"visits    {visits} distinct a batch, {6 + sum(6 + j - i for i in range(6) for j in range(i + 1, 7))} "
        in printed
    )
    assert printed.splitlines()[-1].startswith("time      about ")
    code, printed, _ = run(f"{line} --memory-budget 9KB --json")
    found = json.loads(printed)
    assert code == 0
    assert (found["cost"]["visits"], found["batches"], found["loads"], found["reason"]) == (visits, 5, 0, None)
    assert found["seconds"] > 0
    assert not (place / "dry").exists()


def test_a_scan_in_batches_within_a_budget_that_races_has_the_same_best(run: Run, place: Path) -> None:
    line = f"scan {ON_DATA} --windows 8 --held-out 2 --max-length 2"
    boards = []
    for folder, options in {"plain": "", "raced": "--pruner race --batch 7 --memory-budget 8KB"}.items():
        code, _, err = run(f"{line} --top 1 --out {folder} {options}")
        assert code == 0, err
        boards.append(pd.read_csv(place / folder / "leaderboard.csv"))
    plain, raced = boards
    assert raced["recipe"].tolist() == plain["recipe"].tolist()
    assert raced["held_out_nll"].tolist() == pytest.approx(plain["held_out_nll"].tolist(), rel=1e-6)


def test_score_gives_the_base_and_a_recipe_beside_it(run: Run, place: Path, model: Any, corpus: Corpus) -> None:
    code, printed, err = run(f"score {ON_DATA} --windows 5 --recipe six.json --json")
    assert code == 0, err
    found = json.loads(printed)
    recipe = Recipe.load(place / "six.json")
    base, slung = perplexity(model, corpus.take(5)), perplexity(stacked(model, recipe), corpus.take(5))
    assert found["base"]["nll"] == pytest.approx(base.nll)
    assert found["base"]["perplexity"] == pytest.approx(math.exp(base.nll))
    assert found["recipe"]["nll"] == pytest.approx(slung.nll, abs=1e-5)
    assert found["recipe"]["nll_difference"] == pytest.approx(slung.nll - base.nll, abs=1e-5)
    assert Recipe.parse(found["recipe"]["map"]) == recipe
    assert (found["tokens"], found["data"]["windows"]) == (75, "0:5")
    assert found["convention"] == {"name": "window", "window": 16, "bos": False}

    code, text, _ = run(f"score {ON_DATA} --windows 5 --recipe six.json")
    assert code == 0
    assert f"{found['base']['perplexity']:.4f}" in text
    assert f"{found['recipe']['perplexity']:.4f}" in text
    code, text, _ = run(f"score {ON_DATA} --windows 5")
    assert (code, "recipe" in text) == (0, False)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_score_reads_a_slice_and_a_column_of_a_table(name: str, run: Run, place: Path, model: Any) -> None:
    numbers = random.Random(1)
    rows = [" ".join(f"w{numbers.randrange(3, VOCABULARY)}" for _ in range(40)) for _ in range(4)]
    table = datasets.Dataset.from_dict({"said": rows})
    write = table.to_parquet if name.endswith("parquet") else table.to_json
    write(place / name)
    line = f"score model --data {name} --window 40 --windows 2 --column said --json"
    code, printed, err = run(line, "--slice", "train[1:3]")
    assert code == 0, err
    tokens = torch.tensor([[int(word[1:]) for word in row.split()] for row in rows[1:3]])
    expected = perplexity(model, Corpus(tokens, (0, 1), source="", slice=None, sha256="", bos=False))
    assert json.loads(printed)["base"]["nll"] == pytest.approx(expected.nll)


def test_explain_tells_a_path_and_its_costs(run: Run) -> None:
    code, text, _ = run("explain --model model", "0:4, 2:6")
    assert code == 0
    assert "8 on a base of 6 layers (+33.3% depth)" in text
    code, printed, _ = run("explain --json --model model", "0:4, 2:6")
    found = json.loads(printed)
    assert (found["visits"], found["base_layers"], found["skipped"]) == (8, 6, [])
    assert found["extra_kv_cache"] == pytest.approx(1 / 3)
    assert found["kv_bytes_per_token"] == 8 * 2 * 2 * 8 * 4  # visits, keys and values, heads, dimensions, bytes
    code, printed, _ = run("explain --json --model model", "--ratios", "0:0.5, 0.2:1")
    assert json.loads(printed)["recipe"] == str(Recipe.from_ratios(6, [(0, 0.5), (0.2, 1)]))
    code, text, _ = run("explain six.json")
    assert (code, "scale 0.5" in text) == (0, True)


def test_check_prints_a_certificate(run: Run) -> None:
    code, text, err = run("check model")
    assert code == 0, err
    assert text.startswith("PASSED: slinging LlamaForCausalLM (llama), 6 layers, float32 on cpu")
    code, printed, _ = run("check model --json")
    assert (code, json.loads(printed)["passed"]) == (0, True)


def test_check_exits_with_1_where_anything_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_INDICES", ())
    code, text, _ = run("check model")
    assert (code, text.startswith("FAILED: slinging")) == (1, True)
    code, printed, _ = run("check model --json")
    assert (code, json.loads(printed)["passed"]) == (1, False)


def test_a_type_that_no_proof_was_made_for_is_proved_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PROVED", frozenset())
    code, _, err = run(f"score {ON_DATA} --windows 1", "--recipe", "0:4, 2:6")
    assert (code, "LlamaForCausalLM is new here: proving first" in err) == (0, True)
    monkeypatch.setattr(layers, "_INDICES", ())
    code, out, err = run(f"score {ON_DATA} --windows 1", "--recipe", "0:4, 2:6")
    assert (code, out) == (1, "")
    assert (
        "LlamaForCausalLM (llama) is refused: it does not sling exactly (a block again, cached = stacked: FAILED" in err
    )


def test_generate_writes_on_as_the_base_and_as_a_recipe(run: Run, model: Any) -> None:
    def greedy(writer: Any) -> str:
        ids = torch.tensor([[5, 6, 7]])
        for _ in range(5):
            ids = torch.cat([ids, writer(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        return " ".join(f"w{token}" for token in ids[0].tolist())

    recipe = Recipe.parse("0:4, 2:6*0.5")
    expected = [greedy(model), greedy(stacked(model, recipe))]
    assert expected[0] != expected[1]
    for options, text in zip(([], ["--recipe", str(recipe)]), expected, strict=True):
        code, printed, err = run("generate model --max-new-tokens 5", "--prompt", "w5 w6 w7", *options)
        assert code == 0, err
        assert printed.strip() == text


def test_sampled_text_follows_the_seed(run: Run) -> None:
    def text(seed: int) -> str:
        return run(f"generate model --max-new-tokens 8 --temperature 1 --seed {seed}", "--prompt", "w5 w6")[1]

    assert text(1) == text(1)
    assert len({text(1), text(2), text(3)}) > 1


def test_export_writes_a_checkpoint_that_is_the_recipe_and_says_where(run: Run, place: Path, model: Any) -> None:
    recipe = Recipe.parse("0:4, 2:6")
    tokens = torch.arange(12).unsqueeze(0)
    ours = Recipe(recipe.repeat_map, base=Base(model="model", num_layers=6))
    ours.save(place / "ours.json")
    for k, line in enumerate(("export ours.json", "export --model model")):
        code, printed, err = run(line, *([str(recipe)] if k else []), f"stacked{k}", "--max-shard-size", "50KB")
        assert code == 0, err
        assert re.fullmatch(rf"stacked{k}: 8 layers, \d+\.\d kB\n", printed)
        assert "writing" in err
        again = AutoModelForCausalLM.from_pretrained(place / f"stacked{k}")
        with torch.no_grad():
            assert torch.allclose(again(tokens).logits, stacked(model, recipe)(tokens).logits, atol=1e-5)
        assert AutoTokenizer.from_pretrained(place / f"stacked{k}").get_vocab()["w5"] == 5
        assert Recipe.load(place / f"stacked{k}" / "recipe.json") == recipe


def test_score_of_prompts_and_completions_counts_the_completions(run: Run, place: Path) -> None:
    line = "score model --data pairs.jsonl --prompt-column q --column a --window 16 --windows 2 --json"
    code, printed, err = run(line)
    assert code == 0, err
    found = json.loads(printed)
    assert (found["tokens"], found["convention"]["name"]) == (3, "completion")


@pytest.mark.parametrize(("options", "name"), [("", "strided 8"), ("--stride 5", "strided 5")])
def test_score_by_strided_windows(options: str, name: str, run: Run, place: Path) -> None:
    line = f"score {ON_DATA} --windows 4 --convention strided {options}"
    code, printed, err = run(f"{line} --json")
    assert code == 0, err
    found = json.loads(printed)
    assert found["convention"]["name"] == name
    assert found["base"]["bits_per_byte"] > 0
    _, printed, _ = run(line)
    assert f"scored by convention {name}" in printed
    assert f"{found['base']['bits_per_byte']:.4f} bits a byte" in printed


CHOICES = "--data choices.jsonl --prompt-column q --column a --gold-column right --window 16"


def test_score_of_multiple_choice_tells_accuracy(run: Run, place: Path) -> None:
    code, printed, err = run(f"score model {CHOICES} --windows 5 --recipe 0:6,3:6 --json")
    assert code == 0, err
    found = json.loads(printed)
    assert found["tokens"] == 5
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    options = {"prompt": "q", "column": "a", "gold": "right", "window": 16}
    corpus = Corpus.load(place / "choices.jsonl", tokenizer, **options).take(5)
    score = multiple_choice(model, corpus)
    assert found["base"] == pytest.approx({"nll": score.nll, "accuracy": score.accuracy})
    _, printed, _ = run(f"score model {CHOICES} --windows 5 --recipe 0:6,3:6")
    assert "5 questions scored by convention multiple choice" in printed
    assert f"accuracy {found['recipe']['accuracy']:.1%}" in printed


def test_search_of_multiple_choice_and_depth_judges_the_front(run: Run, place: Path) -> None:
    line = f"search model {CHOICES} --windows 4 --held-out 4 --space removal --also visits --trials 5 --out both"
    code, printed, err = run(line)
    assert code == 0, err
    assert "held-out acc" in printed
    assert {"report.html", "depth.png"} <= {path.name for path in (place / "both").iterdir()}
    code, _, err = run(line.replace(" --also visits", ""))
    assert code == 1
    assert "must minimise one value, the NLL; it has 2" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, run: Run) -> None:
    code, text, _ = run(f"{command} --help")
    assert code == 0
    assert f"Example: david {command}" in text


def test_the_bare_command_names_every_command(run: Run) -> None:
    _, text, _ = run("--help")
    assert all(command in text for command in COMMANDS)


# ---- what is wrong


SCORE = f"score {ON_DATA} --windows 2"
WRONG = {
    "unknown model": ("score ./nowhere", [], "no such model: './nowhere'"),
    "a model that the Hub cannot give": ("score no-such-model", [], "no-such-model cannot be loaded"),
    "folder without a model": ("score empty", [], "empty holds no model"),
    "missing data file": ("score model --data gone.txt", [], "no such file: gone.txt"),
    "data of an unknown kind": ("score model --data model/model.safetensors", [], "expected a file that ends in"),
    "recipe for another number of layers": (f"{SCORE} --recipe seven.json", [], "layer 6 is out of range"),
    "layer out of range": (SCORE, ["--recipe", "0:6, 9"], "layer 9 is out of range: the base has 6 layers"),
    "layer out of range to generate": ("generate model --recipe 0:9", [], "layer 8 is out of range"),
    "layer out of range to explain": ("explain --model model 0:9", [], "layer 8 is out of range"),
    "unreadable recipe": (SCORE, ["--recipe", "0:x"], "cannot read '0:x'"),
    "missing recipe": (f"{SCORE} --recipe gone.json", [], "cannot read recipe gone.json"),
    "broken recipe": (f"{SCORE} --recipe broken.json", [], "broken.json: not a valid david.recipe version 1"),
    "half a recipe": ("explain half.json", [], "half.json: not a valid david.recipe version 1"),
    "ratio above 1": (f"{SCORE} --ratios 0:1.5", [], "0 ≤ start ≤ end ≤ 1; got (0.0, 1.5)"),
    "ratio that goes down": (f"{SCORE} --ratios 0.5:0.2", [], "0 ≤ start ≤ end ≤ 1"),
    "ratio that is none": (f"{SCORE} --ratios half", [], "cannot read --ratios 'half': expected low:high"),
    "recipe and ratios": ("explain --model model 0:6 --ratios 0:1", [], "give a recipe or --ratios, one of the two"),
    "recipe and ratios to score": (f"{SCORE} --recipe 0:6 --ratios 0:1", [], "one of the two"),
    "neither recipe nor ratios": ("explain", [], "give a recipe or --ratios, one of the two"),
    "window longer than the model takes": ("score model --data data.txt --window 200 --windows 2", [], "128 positions"),
    "unknown dtype": (f"{SCORE} --dtype int4", [], "unknown dtype 'int4': expected float32"),
    "unknown device": (f"{SCORE} --device abacus", [], "unknown device 'abacus'"),
    "bad slice": (f"{SCORE} --slice 5:2", [], "cannot read the slice '5:2'"),
    "slice beyond the data": (f"{SCORE} --slice [:5]", [], "reaches row 5, but data.txt has 1 rows"),
    "missing column": (f"{SCORE} --data table.jsonl --column words", [], "no column 'words': it has said"),
    "too few windows": ("score model --data data.txt --window 16 --windows 99", [], "take(99) of a corpus of 75"),
    "text too short": ("score model --data data.txt --window 2000", [], "1200 tokens, too few for one window"),
    "BOS of a tokenizer without": (f"{SCORE} --bos", [], "needs a tokenizer with a BOS token"),
    "a stride without strided windows": (f"{SCORE} --stride 4", [], "add --convention strided"),
    "a stride of a window": (f"{SCORE} --convention strided --stride 16", [], "a stride must be 1 … 15"),
    "gold without a prompt": (f"{SCORE} --gold-column right", [], "name the column of prompts too"),
    "a convention of questions": (
        f"score model {CHOICES} --convention llamacpp",
        [],
        "leave --convention llamacpp out",
    ),
    "strided questions": (f"score model {CHOICES} --convention strided", [], "give one of prompt, stride and rolling"),
    "too few questions": (f"score model {CHOICES} --windows 99", [], "take(99) of a corpus of 12 questions"),
    "also and a race": (f"{SEARCH} --also visits --pruner race --out new", [], "recipes race by their NLL alone"),
    "rolling windows without a BOS": (f"{SCORE} --convention rolling", [], "error: rolling windows need a tokenizer"),
    "empty prompt": ("generate model --prompt", [""], "the prompt is empty"),
    "chat without a template": ("generate model --chat", [], "no chat template"),
    "report without a run": ("report empty", [], "empty holds no run: expected a study.db"),
    "report of nothing": ("report", [], "give a run's folder or a storage URL"),
    "search, unknown model": ("search ./nowhere --out new", [], "no such model: './nowhere'"),
    "search, missing data file": ("search model --data gone.txt --out new", [], "no such file: gone.txt"),
    "search, too few windows": (f"{SEARCH} --windows 90 --out new", [], "cannot split 75 windows"),
    "search, unknown strategy": (f"{SEARCH} --strategy climb --out new", [], "unknown strategy 'climb': expected scan"),
    "search, a start without refine": (f"{SEARCH} --out new --start 0:6", [], "add --strategy refine"),
    "search, a start that does not fit": (f"{SEARCH} --out new --strategy refine --start", ["0:9"], "out of range"),
    "profile, too few windows": ("profile model --data data.txt --window 16 --windows 99 --out new", [], "take(99)"),
    "profile, folder that is a file": (f"profile {ON_DATA} --out data.txt", [], "the output folder data.txt cannot be"),
    "search, unknown space": (
        f"{SEARCH} --space best --out new",
        [],
        "unknown space 'best': expected block, blocks, win",
    ),
    "search, option of another space": (
        f"{SEARCH} --space visits --max-length 3 --out new",
        [],
        "the space visits has no max_length: leave it out",
    ),
    "search, scales below one step": (f"{SEARCH} --scales 0:0.01 --out new", [], "a multiple of 0.05 apart"),
    "search, unknown dtype": (f"{SEARCH} --dtype int4 --out new", [], "unknown dtype 'int4'"),
    "search, unknown device": (f"{SEARCH} --device abacus --out new", [], "unknown device 'abacus'"),
    "search, scales that are none": (f"{SEARCH} --scales half --out new", [], "cannot read --scales 'half'"),
    "search, scales that go down": (f"{SEARCH} --scales 2:1 --out new", [], "scales must be a range (low, high)"),
    "search, missing column": (f"{SEARCH} --data table.jsonl --out new", [], "no column 'text': it has said"),
    "search, folder that is a file": (f"{SEARCH} --out data.txt", [], "the output folder data.txt cannot be"),
    "search, folder in a file": (f"{SEARCH} --out data.txt/new", [], "the output folder data.txt/new cannot be"),
    "scan, folder that is a file": (f"scan {ON_DATA} --out data.txt", [], "the output folder data.txt cannot be"),
    "scan, too few windows": (f"scan {ON_DATA} --windows 90 --out new", [], "cannot split 75 windows"),
    "search, window longer than the model takes": (
        "search model --data data.txt --window 200 --windows 2 --held-out 2 --out new",
        [],
        "128 positions",
    ),
    "scan, window longer than the model takes": (
        "scan model --data data.txt --window 200 --windows 2 --held-out 2 --out new",
        [],
        "128 positions",
    ),
    "search, unknown sampler": (f"{SEARCH} --sampler best --out new", [], "unknown sampler 'best'"),
    "search, unknown storage": (f"{SEARCH} --storage no://x --out new", [], "storage no://x cannot be used"),
    "export without a base": ("export 0:4 new", [], "the recipe does not name its base: say which with --model"),
    "export, recipe file without a base": ("export seven.json new", [], "say which with --model"),
    "export of scales": ("export six.json new --model model", [], "a checkpoint has no place for scales: visit 4"),
    "export, unreadable recipe": ("export 0:x new --model model", [], "cannot read '0:x'"),
    "export, layer out of range": ("export 0:9 new --model model", [], "layer 8 is out of range"),
    "export, recipe for another number of layers": ("export seven.json new --model model", [], "out of range"),
    "export, unknown model": ("export 0:4 new --model ./nowhere", [], "no such model: './nowhere'"),
    "export into a folder in use": ("export 0:4 model --model model", [], "model is not empty"),
    "export into a file": ("export 0:4 data.txt --model model", [], "data.txt is a file"),
    "export into a folder in a file": ("export 0:4 data.txt/new --model model", [], "data.txt"),
    "export, shards of no size": ("export 0:4 new --model model --max-shard-size big", [], "the shard size 'big'"),
    "export, unknown dtype": ("export 0:4 new --model model --dtype int4", [], "unknown dtype 'int4'"),
    "report of a storage that is not there": (
        "report --storage sqlite:///gone.db --out new",
        [],
        "sqlite:///gone.db cannot be used: there is no file gone.db",
    ),
}


@pytest.mark.parametrize(
    ("line", "more", "says"),
    [pytest.param(*row, id=name) for name, row in WRONG.items()],
)
def test_wrong_input_is_told_in_a_line_and_leaves_nothing_behind(
    line: str, more: list[str], says: str, run: Run, place: Path
) -> None:
    before = contents(place)
    code, out, err = run(line, *more)
    after = contents(place)
    for name in sorted(set(after) - set(before), reverse=True):  # so that one failure is one failure
        (place / name).rmdir() if (place / name).is_dir() else (place / name).unlink()
    said = [part for part in err.replace("\r", "\n").splitlines() if part.strip() and "Loading weights" not in part]
    assert said[-1].startswith("error: ")
    assert says in said[-1]
    assert said[:-1] == (["nothing here is called no-such-model: asking the Hub"] if "no-such" in line else [])
    assert (code, out) == (1, "")
    assert after == before


def test_the_console_script_exits_with_1_and_a_line(place: Path) -> None:
    script = [sys.executable, "-c", "from david.cli import main; main()", "explain", "0:x"]
    found = run_process(script, cwd=place, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("error: cannot read '0:x'")
    assert found.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_ends_no_search(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, open(os.open("/dev/full", os.O_WRONLY), "w", buffering=1) as log:
        patch.setattr(sys, "stderr", log)
        code, _, _ = run(f"search {ON_DATA} --windows 3 --held-out 3 --trials 3 --out full")
        with suppress(OSError):
            log.close()
    assert code == 0
    assert (place / "full" / "report.html").is_file()


@pytest.mark.parametrize(
    "line", ["score model --windows 0", "score model --convention best", "search model --trials none", "sing", ""]
)
def test_an_option_that_cannot_be_parsed_is_a_usage_error(line: str, run: Run) -> None:
    code, _, err = run(line)
    assert code == 2
    assert "Traceback" not in err


def test_a_recipe_made_on_other_weights_is_told_and_run(run: Run, place: Path) -> None:
    base = Base(model="theirs", num_layers=6, fingerprint="sha256:00")
    Recipe((0, 1, 1, 2, 3, 4, 5), base=base).save(place / "theirs.json")
    code, printed, err = run(f"{SCORE} --recipe theirs.json")
    assert code == 0
    assert "made on other weights (theirs)" in err
    assert "recipe  perplexity" in printed
