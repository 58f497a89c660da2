"""Input as a tired person writes it: one clear line, exit code 1, and nothing left behind."""

from pathlib import Path

import pytest

from tests.helpers.command import CHOICES, ON_DATA, SCORE, SEARCH, Run, refusal

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
    "too few windows": (
        "score model --data data.txt --window 16 --windows 99",
        [],
        "--windows 99 is more than data.txt has: 75 windows",
    ),
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
    "strided questions": (f"score model {CHOICES} --convention strided", [], "convention strided cuts a text"),
    "too few questions": (
        f"score model {CHOICES} --windows 99",
        [],
        "--windows 99 is more than choices.jsonl has: 12 questions",
    ),
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
    "profile, too few windows": (
        "profile model --data data.txt --window 16 --windows 99 --out new",
        [],
        "--windows 99 is more",
    ),
    "groups of a text": (f"{SCORE} --group-column title", [], "data.txt is text: groups need a table"),
    "a column of groups that is missing": (
        "score model --data table.jsonl --column said --group-column title --window 2 --windows 1",
        [],
        "no column 'title': it has said",
    ),
    "search, one group": (
        f"search model {CHOICES} --group-column w --windows 2 --held-out 2 --out new",
        [],
        "would be on both sides; the data have 1 document",
    ),
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


@pytest.mark.parametrize(("line", "more", "says"), [pytest.param(*row, id=name) for name, row in WRONG.items()])
def test_wrong_input_is_told_in_a_line_and_leaves_nothing_behind(
    line: str, more: list[str], says: str, run: Run, place: Path
) -> None:
    told = "nothing here is called no-such-model: asking the Hub" if "no-such" in line else ""
    assert says in refusal(run, place, line, *more, told=told)
