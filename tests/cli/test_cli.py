"""The command, end to end on a tiny saved model: what each part prints and writes, and one line for what is wrong."""

import json
import math
import os
import random
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import datasets
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.scoring.corpus import Corpus
from david.scoring.objectives import multiple_choice, perplexity
from david.sling import locate, remap
from david.sling.in_place import view
from david.sling.stacked_copy import stacked
from tests.helpers.command import CHOICES, ON_DATA, SCORE, SEARCH, WINDOW, Run
from tests.tiny_models import VOCABULARY

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = {"path.png", "history.png", "depth.png"}
FILES = {"study.db", "trials.csv", "leaderboard.csv", "front.csv", "best.json", "report.html"} | PLOTS
COMMANDS = ["search", "scan", "profile", "report", "score", "compare", "explain", "convert", "check", "export"]
COMMANDS += ["generate", "chat"]


@pytest.fixture
def model(place: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(place / "model").eval()


@pytest.fixture
def corpus(place: Path) -> Corpus:
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    return Corpus.load(place / "data.txt", tokenizer, window=WINDOW)


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    monkeypatch.setattr(remap, "INDICES", ())
    code, text, _ = run("check model")
    assert (code, text.startswith("FAILED: slinging")) == (1, True)
    code, printed, _ = run("check model --json")
    assert (code, json.loads(printed)["passed"]) == (1, False)


def test_a_type_that_no_proof_was_made_for_is_proved_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "PROVED", frozenset())
    code, _, err = run(f"score {ON_DATA} --windows 1", "--recipe", "0:4, 2:6")
    assert (code, "LlamaForCausalLM is new here: proving first" in err) == (0, True)
    monkeypatch.setattr(remap, "INDICES", ())
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
    for k, line in enumerate(("export --model model ours.json", "export --model model")):
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


def test_the_console_script_exits_with_1_and_a_line(place: Path) -> None:
    script = [sys.executable, "-c", "from david.cli.app import main; main()", "explain", "0:x"]
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
    for line in ("explain theirs.json --model model", "convert theirs.json --model model"):  # no weights are loaded
        code, _, err = run(line)
        assert (code, err) == (0, "note: the recipe was made on other weights (theirs) than those of model\n")


@pytest.mark.parametrize(
    "line", ["check {}", "score {} --data data.txt --window 16 --windows 1", "explain 0,0 --model {}"]
)
def test_layers_that_the_configuration_leaves_out_are_told(line: str, run: Run, place: Path) -> None:
    shutil.copytree(place / "model", place / "deep", dirs_exist_ok=True)
    config = json.loads((place / "deep" / "config.json").read_text())
    (place / "deep" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    code, _, err = run(line.format("deep"))
    assert code == 0
    assert err.count("note: the weights of deep are not all used: 18 tensors of layers 4–5 (the depth is the conf") == 1


PROBLEMS = "--data problems.jsonl --prompt-column q --column a --group-column problem --window 16"


def test_a_column_of_groups_names_what_the_interval_counts_once(run: Run, place: Path) -> None:
    numbers = random.Random(2)
    rows = [
        {"q": f"w{3 + i} w{20 + numbers.randrange(9)}", "a": f"w{40 + numbers.randrange(9)}", "problem": f"p{i % 5}"}
        for i in range(15)
    ]
    (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, err = run(f"score model {PROBLEMS} --windows 15 --recipe 0:6,3:6 --json")
    assert code == 0, err
    found = json.loads(printed)
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    corpus = Corpus.load(place / "problems.jsonl", tokenizer, prompt="q", column="a", window=16)
    base, slung = perplexity(model, corpus), perplexity(view(model, Recipe.parse("0:6, 3:6")), corpus)
    by_problem = np.array(slung.window_nll).reshape(3, 5).sum(0) - np.array(base.window_nll).reshape(3, 5).sum(0)
    half = stats.t.ppf(0.975, 4) * by_problem.std(ddof=1) / math.sqrt(5) / 3  # three tokens of each problem
    mean = by_problem.sum() / 15
    assert found["recipe"]["interval95"] == pytest.approx([mean - half, mean + half], abs=1e-5)

    options = "--windows 4 --held-out 6 --trials 3 --top 1 --baseline 0 --out grouped"
    code, printed, err = run(f"search model {PROBLEMS} {options}")
    assert code == 0, err
    stored = optuna.load_study(study_name="david", storage=f"sqlite:///{place}/grouped/study.db").user_attrs
    searched = set(stored["david"]["search_documents"])
    held_out = {name for key, score in stored.items() if key.startswith("held_out:") for name in score["documents"]}
    groups = {f"group {number}" for number in range(5)}
    assert searched <= groups
    assert held_out <= groups
    assert not searched & held_out
    assert "The held-out part is of" in (place / "grouped" / "report.html").read_text()
    assert "the held-out part is of" in printed
