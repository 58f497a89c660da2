"""What strangers write, by the hundred thousand: the committed corpus, a fuzzer on it, and files made to hurt."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from david.errors import RecipeError
from david.recipe.recipe import Recipe
from david.recipe.schema import LONGEST
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent
SEEDS = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())
SECONDS = {"recipe": 25, "notation": 20, "languages": 20, "options": 15}
CASES = 300_000
MEGABYTES = 200


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_case_of_the_corpus_lets_no_foreign_exception_out(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris has no wheel for this Python here")
def test_hundreds_of_thousands_of_cases_let_no_foreign_exception_out_and_none_is_slow_or_large(tmp_path: Path) -> None:
    done = {name: fuzzed(name, seconds, tmp_path) for name, seconds in SECONDS.items()}
    print(done)  # -s shows it
    assert sum(cases for cases, _ in done.values()) >= CASES, done
    assert max(megabytes for _, megabytes in done.values()) <= MEGABYTES, done


def fuzzed(name: str, seconds: int, place: Path) -> tuple[int, int]:
    """How many cases a fuzzer has tried on a target, and the megabytes of its process; it stops at the first bad one.

    Linux counts the memory of this process as its own to one that is started from here, but not to one that a shell
    starts in turn.
    """
    (place / name).mkdir()
    options = {
        "dict": CORPUS / "words.dict",
        "max_total_time": seconds,
        "max_len": 4096,
        "timeout": 20,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{place}/",
        "print_final_stats": 1,
    }
    command = [sys.executable, "-m", "tests.fuzz", name, str(place / name), str(CORPUS / name)]
    command += [f"-{option}={value}" for option, value in options.items()]
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    run = subprocess.run(shell + command, cwd=CORPUS.parent.parent, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    told = dict(re.findall(r"stat::(\w+): +(\d+)", run.stderr))
    return int(told["number_of_executed_units"]), int(told["peak_rss_mb"])


HEAD = '{"format": "david.recipe", "version": 1, "repeat_map": '
NASTY = {
    "ten megabytes": (HEAD + "[0]}").ljust(10**7),
    "a million visits": HEAD + "[" + "0," * 10**6 + "0]}",
    "half a million visits": HEAD + "[" + "0," * 490_000 + "0]}",
    "texts for visits": HEAD + "[" + '"",' * 320_000 + "0]}",
    "empty scores": HEAD + '[0], "scores": [' + "{}," * 310_000 + "{}]}",
    "unknown keys": HEAD + "[0]" + "".join(f',"{key:x}":0' for key in range(100_000)) + "}",
    "a long key": HEAD + '[0], "' + "k" * 900_000 + '": 0}',
    "keys for a terminal": HEAD + '[0], "\x1b[31m\\u001b\\n": 0}'.replace("\x1b", "\\u001b"),
    "deep lists": "[" * 900_000,
    "deep objects": '{"a":' * 190_000,
    "digits": HEAD + "[" + "9" * 900_000 + "]}",
    "many digits": HEAD + "[-" + "9" * 4000 + "]}",
    "a scale without end": HEAD + '[0], "scales": [1e999]}',
    "a deep base": HEAD + '[0], "base": {"num_layers": 1000000000000}}',
    "a deep layer": HEAD + "[999999999]}",
    "not a number": HEAD + '[0], "scales": [NaN]}',
    "infinity": HEAD + '[0], "scales": [-Infinity]}',
    "half a letter": HEAD + '[0], "written_as": "\\ud800"}',
    "zero bytes": "\0" * 900_000,
    "no UTF-8": "ÿ" * 900_000,
    "many windows": HEAD
    + '[0], "scores": [{"metric": "", "value": 0, "base": 0, "nll_difference": 0, "tokens": 1, "held_out": true, '
    '"convention": {"name": "", "window": 1, "bos": true}, '
    '"data": {"source": "", "sha256": "", "windows": "0:999999999"}}]}',
}
READ = """
import json, re, sys, time
from pathlib import Path
from david.errors import DavidError
from david.recipe.explain import explain
from david.cli.inputs import parse_recipe
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        str(explain(parse_recipe(str(path), None, None)))
        line = ""
    except DavidError as error:
        line = str(error).replace(sys.argv[1], "")
    found[path.stem] = line, time.process_time() - start
memory = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(json.dumps([found, int(memory[1]) / 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_a_recipe_file_that_is_made_to_hurt_is_refused_in_a_line_a_moment_and_little_memory(tmp_path: Path) -> None:
    for name, text in NASTY.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="latin-1")
    run = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], cwd=CORPUS.parent.parent, capture_output=True)
    assert run.returncode == 0, run.stderr
    found, megabytes = json.loads(run.stdout)
    assert found.keys() == NASTY.keys()
    for name, (line, seconds) in found.items():
        assert line, name
        assert line.isprintable(), line
        assert len(line) < 300, line
        assert seconds < 1, name
    assert megabytes < MEGABYTES


def test_the_deepest_recipe_file_is_read(tmp_path: Path) -> None:
    deepest = Recipe([0, 1] * (LONGEST // 2), [0.1, 1 / 3] * (LONGEST // 2))
    deepest.save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json") == deepest


def test_a_mark_of_the_encoding_before_a_file_is_read_over(tmp_path: Path) -> None:
    Recipe.identity(3).save(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "r.json").read_bytes())
    assert Recipe.load(tmp_path / "r.json") == Recipe.identity(3)


def test_of_a_key_that_comes_twice_the_last_counts_as_in_python() -> None:
    assert Recipe.from_json(HEAD + '[0], "repeat_map": [1]}') == Recipe([1])


def test_windows_of_a_score_are_numbers_and_not_too_many() -> None:
    for windows in ("x", "0:10000000000", "9" * 5000, "0:1000000, 0:1000000"):
        text = NASTY["many windows"].replace("0:999999999", windows)
        with pytest.raises(RecipeError, match=r"data\.windows: .*such as '0:12'"):
            Recipe.from_json(text)
    assert Recipe.from_json(NASTY["many windows"].replace("0:999999999", "7, 3, 20:22")).scores
