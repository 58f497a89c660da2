"""Input as an attacker writes it, or a disk that failed: one clear line, nothing run, nothing opened, nothing lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from david.errors import RecipeError
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST, Data
from david.support.text import plain
from tests.helpers.command import MOST, SCORE, SEARCH, TURNED, Run, contents, cut, furnish, matches, refusal, written
from tests.helpers.gguf_files import write_gguf
from tests.tiny_models import tiny_model

HEAD = '{"format": "david.recipe", "version": 1, "repeat_map": '


# ---- recipes

RECIPES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the document: Invalid JSON: EOF"),
    "truncated": (HEAD + "[0, 1", "the document: Invalid JSON: EOF"),
    "bytes": (b"\xff\xfe\x00", "the document: Invalid JSON"),
    "a list": ("[0, 1]", "the document: Input should be an object"),
    "nested 50,000 deep": (HEAD + "[" * 50_000 + "]" * 50_000 + "}", "recursion limit exceeded"),
    "another format": ('{"format": "evil", "version": 1, "repeat_map": [0]}', "format: Input should be 'david.recipe'"),
    "an unknown version": ('{"format": "david.recipe", "version": 2, "repeat_map": [0]}', "version: Input should be"),
    "a version as text": ('{"format": "david.recipe", "version": "1", "repeat_map": [0]}', "version: Input should be"),
    "an unknown key": (HEAD + '[0], "__class__": "os.system"}', "__class__: Extra inputs are not permitted"),
    "a key that breaks the line": (HEAD + '[0], "a\\nb\\u001b[2J\\u202e": 1}', r"a\nb\x1b[2J\u202e: Extra inputs"),
    "a key of 5,000 letters": (HEAD + f'[0], "{"k" * 5000}": 1}}', "kkk…: Extra inputs are not permitted"),
    "text for a map": (HEAD + '"0:6"}', "repeat_map: Input should be a valid array"),
    "text for a layer": (HEAD + '["0"]}', "repeat_map.0: Input should be a valid integer"),
    "a fraction for a layer": (HEAD + "[0.0]}", "repeat_map.0: Input should be a valid integer"),
    "true for a layer": (HEAD + "[true]}", "repeat_map.0: Input should be a valid integer"),
    "a negative layer": (HEAD + "[-1]}", "a layer must be a whole number from 0 on; got -1"),
    "a layer of 23 digits": (HEAD + "[99999999999999999999999]}", f"a base has at most {LONGEST} layers"),
    "a layer of 5,000 digits": (HEAD + f"[{'9' * 5000}]}}", "Invalid JSON: number out of range"),
    "a base of a billion layers": (
        HEAD + '[0], "base": {"num_layers": 1000000000}}',
        "base.num_layers: ",
    ),
    "text for a scale": (HEAD + '[0], "scales": ["1"]}', "scales.0: Input should be a valid number"),
    "NaN": (HEAD + '[0], "scales": [NaN]}', "scales.0: Input should be a finite number"),
    "infinity": (HEAD + '[0], "scales": [1e999]}', "scales.0: Input should be a finite number"),
    "an empty map": (HEAD + "[]}", "a repeat map needs at least one visit; got an empty one"),
    "scales of another length": (HEAD + '[0, 1], "scales": [1]}', "2 visits, 1 scales"),
    "ten megabytes": (HEAD + f'[0], "written_as": "{"x" * 10_000_000}"}}', ": over 1000000 bytes: not a recipe"),
    "a million visits": (HEAD + f"[{'0,' * 999_999}0]}}", ": over 1000000 bytes: not a recipe"),
    "400,000 visits in a megabyte": (HEAD + f"[{'0,' * 399_999}0]}}", MOST),
}


@pytest.mark.parametrize(("text", "says"), RECIPES.values(), ids=RECIPES)
def test_a_bad_recipe_file_is_told_in_a_line(text: str | bytes, says: str, run: Run, place: Path, bad: Path) -> None:
    bad = bad.with_suffix(".json")
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refusal(run, place, "explain bad.json")
    assert "bad.json" in said
    assert says in said
    assert len(said) < 400


NOTATIONS = {
    "nothing": ("", "cannot read ''"),
    "a billion visits": ("0:999999999", MOST),
    "many long ranges": (", ".join(["0:9999"] * 30), MOST),
    "a scale that is no number": ("0:6*nan", "a scale must be a finite number; got 'nan'"),
    "a scale beyond any": ("0:6*1e999", "a scale must be a finite number; got '1e999'"),
    "another script's digit": ("²", "cannot read '²'"),
    "a screen cleared": ("\x1b[2J", r"cannot read '\x1b[2J'"),
    "turned text": (TURNED + "0:6", r"cannot read '\u202e0:6'"),
    "a device that never ends": ("/dev/zero", "/dev/zero: over 1000000 bytes: not a recipe"),
    "a device that is empty": ("/dev/null", "the document: Invalid JSON: EOF"),
    "a folder": (".", "cannot read recipe .: Is a directory"),
    "a file of another kind": ("data.txt", "data.txt: not a valid david.recipe version 1"),
    "a hundred kilobytes": ("a" * 100_000, "cannot read 'aaaa"),
}


@pytest.mark.parametrize(("text", "says"), NOTATIONS.values(), ids=NOTATIONS)
def test_a_bad_notation_is_told_in_a_line(text: str, says: str, run: Run, place: Path) -> None:
    said = refusal(run, place, "explain", text)
    assert says in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(range(10**12)),  # type: ignore[arg-type]
        lambda: Recipe([0], iter(lambda: 1.0, 2.0)),  # type: ignore[arg-type]  # never ends
        lambda: Recipe.identity(10**9),
        lambda: Recipe.from_blocks(10, [(0, 10, 10**9)]),
        lambda: Recipe.from_ratios(1000, [(0, 1)] * 5000),
    ],
)
def test_a_recipe_too_long_for_anything_is_refused_before_it_fills_the_memory(make: Callable[[], Recipe]) -> None:
    with pytest.raises(RecipeError, match="at most 10000"):
        make()


opened: list[str] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if opened is not None and event in ("open", "os.listdir", "os.scandir", "import", "socket.connect"):
        opened.append(str(args[0]))


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """What Python opens, lists, imports and connects to from here on. (An audit hook cannot be taken off again.)"""
    global opened
    sys.addaudithook(_watch)
    opened = []
    yield opened
    opened = None


def test_nothing_that_a_recipe_names_is_opened(run: Run, place: Path, bad: Path, watched: list[str]) -> None:
    furnish(bad)
    named = str(bad / "model")
    data = Data(source=str(bad / "data.txt"), sha256="00")
    scores = [
        {"metric": "perplexity", "value": 1.0, "base": 1.0, "nll_difference": 0.0, "tokens": 1, "held_out": True}
        | {"convention": {"name": named, "window": 2, "bos": False}, "data": data.model_dump()}
    ]
    search = {"study": f"sqlite:///{bad}/study.db", "trial": 0, "space": named, "sampler": named, "trials": 1}
    recipe = {"base": {"model": named, "num_layers": 6}, "written_as": named, "scores": scores, "search": search}
    (place / "bad.json").write_text(HEAD + f"[0, 1, 2], {json.dumps(recipe)[1:]}")
    watched.clear()
    for line in (
        "explain bad.json",
        f"{SCORE} --recipe bad.json",
        "generate model --max-new-tokens 1 --recipe bad.json",
    ):
        code, _, err = run(line)
        assert code == 0, err
    code, _, err = run("export bad.json new")
    assert code == 1
    assert f"the recipe names a path as its base, {named!r}: if it is meant, say so with --model" in err
    assert [path for path in watched if path.startswith(str(bad) + os.sep)] == []
    assert any(path.endswith("bad.json") for path in watched)  # the hook does see


# ---- models


def altered(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A model folder in which the JSON of a file is another."""

    def alter(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return alter


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return open, ("ran", "w")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def harmless_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    altered("config.json", lambda config: config | {"model_type": "own", "auto_map": auto})(folder)
    (folder / "own.py").write_text("open('ran', 'w').close()\n")


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (
        lambda folder: (folder / "config.json").unlink(),
        "bad holds no model: expected",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights: expected model.safe"),
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("token*")], "bad cannot be loaded: "),
    "weights cut in half": (cut("model.safetensors", 0.5), "model.safetensors is not whole (.*): fetch or copy it"),
    "empty weights": (cut("model.safetensors", 0), "model.safetensors is not whole"),
    "weights of a huge header": (written("model.safetensors", b"\xff" * 99), "model.safetensors is not whole"),
    "weights of another width": (altered("config.json", lambda c: c | {"hidden_size": 64}), "have other shapes than"),
    "a configuration that is no JSON": (written("config.json", "{no"), "config.json is not valid JSON: Expecting"),
    "an empty configuration": (written("config.json", ""), "config.json is not valid JSON: Expecting value"),
    "a configuration of bytes": (written("config.json", b"\xff\x00"), "config.json is not valid JSON: 'utf-8' codec"),
    "a configuration nested deep": (written("config.json", "[" * 100_000), "config.json is not valid JSON: maximum"),
    "null for a configuration": (written("config.json", "null"), "must hold a JSON object, .*; got NoneType"),
    "a configuration of no kind": (altered("config.json", lambda _: {"a": 1}), "bad cannot be loaded: Unrecognized"),
    "text for a width": (altered("config.json", lambda c: c | {"hidden_size": "big"}), "'hidden_size' expected int"),
    "half a layer": (altered("config.json", lambda c: c | {"num_hidden_layers": 2.5}), "'num_hidden_layers' expected"),
    "no layers": (altered("config.json", lambda c: c | {"num_hidden_layers": 0}), "needs at least one layer; got 0"),
    "layers below zero": (altered("config.json", lambda c: c | {"num_hidden_layers": -1}), "of its -1 decoder layers"),
    "layers that are not there": (altered("config.json", lambda c: c | {"num_hidden_layers": 99}), "bad is not whole"),
    "a tokenizer that is no JSON": (written("tokenizer.json", "{"), "bad cannot be loaded: "),
    "an index that is no JSON": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
        "bad cannot be loaded: ",
    ),
    "code of its own": (own_code, "it needs custom code that comes with it .*, which is never run here"),
    "kernels of the Hub": (
        altered("config.json", lambda c: c | {"attn_implementation": "kernels-community/any"}),
        "its config.json names code to fetch and run: take attn_implementation 'kernels-community/any' out",
    ),
    "a pickle that runs": (pickled, r"its weights are a pickle \(pytorch_model.bin\), which is not opened here"),
    "a pickle that is harmless": (harmless_pickle, r"its weights are a pickle \(pytorch_model.bin\), which is not"),
}


@pytest.mark.parametrize(("change", "says"), MODELS.values(), ids=MODELS)
def test_a_bad_model_folder_is_told_in_a_line_and_nothing_of_it_is_run(
    change: Callable[[Path], Any], says: str, run: Run, place: Path, bad: Path
) -> None:
    shutil.copytree(place / "model", bad)
    change(bad)
    assert matches(says, refusal(run, place, "score bad --data data.txt --window 16 --windows 2"))
    assert not (place / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_gguf_file_that_is_cut_short_is_told_in_a_line(share: float, run: Run, place: Path, bad: Path) -> None:
    bad = write_gguf(tiny_model("llama"), bad.with_suffix(".gguf"))
    cut(bad.name, share)(place)
    said = refusal(run, place, "score bad.gguf --data data.txt")
    assert matches(r"bad.gguf cannot be loaded: it is not a whole GGUF file \(.*\): fetch or copy it again", said)


# ---- data and options

DATA: dict[str, tuple[str, bytes, str]] = {
    "an empty text": (".txt", b"", "0 tokens, too few for one window of 16"),
    "a text of blanks": (".txt", b" \n ", "0 tokens, too few for one window of 16"),
    "bytes for a text": (".txt", b"\xff\xfe", "cannot be read as text: 'utf-8' codec"),
    "an empty table": (".jsonl", b"", "cannot be read as json: it has no rows"),
    "half a table": (".jsonl", b'{"text": "w', "cannot be read as json: "),
    "a table nested deep": (".jsonl", b"[" * 100_000, "cannot be read as json: "),
    "numbers for texts": (".jsonl", b'{"text": 3}\n', "row 0 of bad.jsonl must hold text; got int"),
    "a row without text": (
        ".jsonl",
        b'{"text": "w1"}\n{"text": null}\n',
        "row 1 of bad.jsonl must hold text",
    ),
    "rows of nothing": (".jsonl", b'{"text": ""}\n', "0 tokens, too few for one window"),
    "columns that break the line": (
        ".csv",
        b'"a\nb","\x1b[2J"\n1,2\n',
        r"no column 'text': it has a\nb, \x1b[2J",
    ),
    "300 columns": (".csv", ",".join(f"c{i}" for i in range(300)).encode() + b"\n1", "c19 and more; name one of them"),
    "half a parquet": (".parquet", b"PAR1", "cannot be read as parquet: Parquet file size is 4 bytes"),
    "a pickle": (".pkl", pickle.dumps(Evil()), "expected a file that ends in .txt"),
}


@pytest.mark.parametrize(("ending", "data", "says"), DATA.values(), ids=DATA)
def test_bad_data_is_told_in_a_line(ending: str, data: bytes, says: str, run: Run, place: Path, bad: Path) -> None:
    bad.with_suffix(ending).write_bytes(data)
    assert says in refusal(run, place, f"score model --window 16 --windows 2 --data bad{ending}")


OPTIONS = {
    "a slice that goes down": (SCORE, ["--slice", "[90%:10%]"], "is empty: its start must come before its end"),
    "a slice of nothing": (SCORE, ["--slice", ""], "cannot read the slice ''"),
    "a slice beyond 100%": (SCORE, ["--slice", "[:101%]"], "reaches 101% of data.txt"),
    "a slice of 6,000 digits": (SCORE, ["--slice", f"[:{'9' * 6000}]"], "cannot read the slice '[:999"),
    "a window of 20 digits": (f"score model --data data.txt --window {'9' * 20}", [], "too few for one window of 999"),
    "a name that breaks the line": ("score model --data", ["a\nb" + TURNED], r"no such file: a\nb\u202e"),
    "a memory budget beyond any": (SCORE, ["--memory-budget", "1e400GB"], "cannot read --memory-budget '1e400GB'"),
    "a device without values": (f"{SCORE} --device meta", [], "on the device meta weights have no values"),
    "a temperature that divides by nothing": ("generate model --temperature 1e-300", [], "no token can be drawn at"),
    "scales beyond any": (f"{SEARCH} --out new --scales 0:1e308", [], "scales must be a range (low, high)"),
    "scales that are no numbers": (f"{SEARCH} --out new --scales nan:1", [], "scales must be a range (low, high)"),
    "unknown pruner": (f"{SEARCH} --out new --pruner best", [], "unknown pruner 'best': expected race or wilcoxon"),
    "no workers": (f"{SEARCH} --out new --workers 0", [], "--workers must be auto, or 1 to 256; got 0"),
    "too few visits": (f"{SEARCH} --out new --max-visits 3", [], "max_visits must be at least 6, the base's layers"),
    "an output folder that cannot be": (f"{SEARCH} --out /proc/new", [], "the output folder /proc/new cannot be"),
    "a report into a file": ("report run --out data.txt", [], "run holds no run: expected a study.db in it"),
}


@pytest.mark.parametrize(("line", "more", "says"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option_is_told_in_a_line(line: str, more: list[str], says: str, run: Run, place: Path) -> None:
    said = refusal(run, place, line, *more)
    assert says in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("line", "option", "says"),
    [
        (SCORE, "--convention best", "'window'"),
        (SCORE, "--window 1", "greater than or equal to 2"),
        (SCORE, "--windows none", "valid integer"),
        (SCORE, "--stride 0", "greater than or equal to 1"),
        (SEARCH, "--also memory", "'visits'"),
        (SEARCH, "--trials 0", "greater than or equal to 1"),
        (SEARCH, "--seed -1", "greater than or equal to 0"),
        (SEARCH, f"--seed {2**64}", "less than or equal to"),
        (SEARCH, "--held-out 1", "greater than or equal to 2"),
        (SEARCH, "--baseline -1", "greater than or equal to 0"),
        ("generate model", "--temperature nan", "greater than or equal to"),
        ("generate model", "--max-new-tokens 0", "greater than or equal"),
    ],
)
def test_an_option_of_another_kind_is_a_usage_error_that_names_it(
    line: str, option: str, says: str, run: Run, place: Path
) -> None:
    before = contents(place)
    code, out, err = run(f"{line} {option}")
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option.split()[0]}'" in err
    assert says in err
    assert "Traceback" not in err
    assert contents(place) == before


# ---- names


def test_the_console_script_tells_of_hostile_names_in_a_line_that_prints(place: Path) -> None:
    script = [
        sys.executable,
        "-c",
        "from david.cli.app import main; main()",
        "explain",
        "0:6\n\x1b[2J" + TURNED + ".json",
    ]
    found = subprocess.run(script, cwd=place, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "error: cannot read recipe 0:6\\n\\x1b[2J\\u202e.json: No such file or directory\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve “text”, ½ — עברית 汉字", "naïve “text”, ½ — עברית 汉字"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31m\x00\x7f\x9b", r"\x1b[31m\x00\x7f\x9b"),
        ("\u202ecba\u2066\u200f\ufeff\u2028", r"\u202ecba\u2066\u200f\ufeff\u2028"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_plain_text_is_left_and_what_acts_unseen_is_shown(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_base_names_no_path_to_export_from() -> None:
    from david.recipe.base_model import named_base

    assert named_base(Base(model="demo", num_layers=1), "--model") == "demo"
    assert named_base(Base(model="owner/nobody-has-this", num_layers=1), "--model") == "owner/nobody-has-this"
    for path in ("/etc", "tests", "../x", "~/x", "C:\\x", "a/b/c", "https://x/y"):
        with pytest.raises(RecipeError, match="--model"):
            named_base(Base(model=path, num_layers=1), "--model")
