"""Do other tools mean what David reads and writes? Their own merges, adapters and parsers, held against it."""

import argparse
import ast
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from david import David, Recipe, load_model
from david.errors import RecipeError
from david.models.describe import describe_base
from david.notation import formats
from david.recipe.base_model import Base
from experiments.engine.rivals import environment
from tests.tiny_models import N_LAYERS, tiny_config, tiny_model

TOLERANCE = 1e-5  # between logits, whose largest are around 6 (Cohere's: 0.4)
TOKENS = torch.arange(3, 40)[None]
MERGED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "cohere2")
ADAPTED = ("llama", "mistral", "gemma", "cohere", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text", "lfm2")
RECIPES = {
    "a block again": "0:4, 2:6",
    "skips, and back": "0, 2:5, 4, 1, 5",
    "as deep as the base": "0:3, 2:5",
    "strength 0": "0:4, 2:4*0.0, 4:6",
    "strength 0.5": "0:4, 2:4*0.5, 4:6",
    "strength −1": "0:4, 2:4*-1.0, 4:6",
}
PLAIN = ("a block again", "skips, and back", "as deep as the base")

# What mergekit-yaml does, for every configuration in one process; an error of one is kept, and the next is run.
MERGE = """
import json, sys
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
errors = {}
for name, (text, out) in json.load(open(sys.argv[1])).items():
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, MergeOptions(quiet=True))
    except Exception as error:
        errors[name] = "no config.json: " + " ".join(str(error).split()).split("ValueError: ")[-1]
json.dump(errors, open(sys.argv[2], "w"))
"""


class Row(NamedTuple):
    """A recipe run by another tool: the largest difference of its logits from the sling's, or what stopped it."""

    model: str
    recipe: str
    found: float | str
    completed: float | None = None  # mergekit's weights, with a configuration that follows the map


def slung_logits(model: Any, recipe: Recipe) -> torch.Tensor:
    with David.slung(model, recipe), torch.inference_mode():
        return model(TOKENS, use_cache=False).logits


def apart(model: Any, wanted: torch.Tensor) -> float:
    with torch.inference_mode():
        return (model(input_ids=TOKENS, use_cache=False).logits - wanted).abs().max().item()


def merges(python: Path, work: Path, kinds: Sequence[str] = MERGED) -> list[Row]:
    """Every recipe that can be written as a merge, merged by mergekit and loaded by plain transformers."""
    models = {kind: tiny_model(kind) for kind in kinds}
    jobs: dict[str, tuple[str, str]] = {}
    rows: list[Row] = []
    for kind, model in models.items():
        model.save_pretrained(work / kind)
        for name, text in RECIPES.items():
            recipe = replace(Recipe.parse(text), base=describe_base(model))
            try:
                written = formats.write(recipe, "mergekit", model=str(work / kind))
            except RecipeError:
                rows.append(Row(kind, name, "refused"))
                continue
            read = formats.read(written, architecture=type(model).__name__, n_layers=N_LAYERS)
            assert read == recipe, f"{written} is read as {read}"
            jobs[f"{kind}/{name}"] = written, str(work / f"merge-{len(jobs)}")
    # What David refuses, written by hand, to show why.
    for kind in [kind for kind in ("llama", "gemma3_text") if kind in models]:
        recipe = replace(
            Recipe.parse(RECIPES["strength 0.5"]), base=Base(num_layers=N_LAYERS, architecture="Cohere2ForCausalLM")
        )
        jobs[f"{kind}/strength 0.5 by hand"] = (
            formats.write(recipe, "mergekit", model=str(work / kind)),
            str(work / f"merge-{len(jobs)}"),
        )
    asked, answer = work / "jobs.json", work / "errors.json"
    asked.write_text(json.dumps(jobs))
    done = subprocess.run([python, "-c", MERGE, asked, answer], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    errors = json.loads(answer.read_text())
    for name, (_, out) in jobs.items():
        kind, what = name.split("/")
        text = RECIPES[what.removesuffix(" by hand")]
        rows.append(merged(models[kind], kind, what, Recipe.parse(text), Path(out), errors.get(name)))
    order = [(kind, name) for kind in kinds for name in (*RECIPES, "strength 0.5 by hand")]
    return sorted(rows, key=lambda row: order.index((row.model, row.recipe)))


def merged(model: Any, kind: str, what: str, recipe: Recipe, out: Path, error: str | None) -> Row:
    """A merge as mergekit left it, and with its configuration made to follow the map."""
    wanted = slung_logits(model, replace(recipe, base=describe_base(model)))
    found: float | str
    if error is not None:
        found = error
    else:
        found = apart(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), wanted)
    settings = model.config.to_dict()
    settings["num_hidden_layers"] = len(recipe)
    if settings.get("layer_types"):
        settings["layer_types"] = [settings["layer_types"][layer] for layer in recipe.repeat_map]
    (out / "config.json").write_text(json.dumps(settings))
    completed = apart(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), wanted)
    return Row(kind, what, found, completed)


def adapters(kinds: Sequence[str] = ADAPTED) -> list[Row]:
    """Every plain recipe as PEFT's layer_replication, with a fresh adapter, which changes nothing by itself."""
    from peft import LoraConfig, get_peft_model

    rows = []
    for kind in kinds:
        for name in PLAIN:
            model = tiny_model(kind)
            recipe = replace(Recipe.parse(RECIPES[name]), base=describe_base(model))
            wanted = slung_logits(model, recipe)
            written = json.loads(formats.write(recipe, "peft"))
            config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **written)
            assert formats.read(json.dumps(config.to_dict(), default=str), "peft") == recipe
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    adapted = get_peft_model(model, config).eval()
                    found: float | str = apart(adapted, wanted)
                except IndexError as error:
                    found = f"IndexError: {error}"
            rows.append(Row(kind, name, found))
    return rows


def layer_scan(programs: Path, work: Path) -> dict[str, Any]:
    """The results file of a real scan, whose first ten configurations are read, and whose own export is too."""
    _, tokenizer = load_model("demo", device="cpu")
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    samples = [{"prompt": f"Rate this from 0 to 9, number {number}: "} for number in range(2)]
    (work / "probe.json").write_text(json.dumps({"name": "digits", "scoring": "digits", "samples": samples}))
    command = [str(programs / "layer-scan"), "scan", "--model", "model", "--probe", "custom", "--custom-probe"]
    command += ["probe.json", "--min-block", "1", "--dtype", "float32", "--top-k", "10", "--output", "scan"]
    done = subprocess.run(
        [*command, "--export-mergekit", "merge.yaml"], cwd=work, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-2000:])
    text = (work / "scan" / "results.json").read_text()
    found = json.loads(text)
    for rank, told in enumerate(found["top_configs"], start=1):
        recipe = formats.read(text, rank=rank)
        assert recipe == Recipe.from_blocks(N_LAYERS, [(told["i"], told["j"], 2)]), told
        assert len(recipe) == told["effective_depth"]
    assert formats.read(work / "merge.yaml", n_layers=N_LAYERS) == formats.read(text)
    return found


def part_of(path: Path, name: str) -> Any:
    """The statement of a source file that defines or assigns a name; the file itself is not run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return node
    raise SystemExit(f"{path} has no {name}: is it the version that README.md names?")


def ran(node: Any, **names: Any) -> dict[str, Any]:
    """The names that there are after a statement of another's source."""
    exec(compile(ast.Module([node], []), "source", "exec"), names)
    return names


def random_maps(how_many: int) -> Iterator[tuple[Recipe, int]]:
    numbers = random.Random(0)
    for _ in range(how_many):
        depth = numbers.randrange(3, 40)
        visits: list[int] = []
        for _ in range(numbers.randrange(1, 6)):
            start, stop = numbers.randrange(depth), numbers.randrange(depth)
            visits += range(start, stop + 1) if start <= stop else range(start, stop - 1, -1)
        yield Recipe(tuple(visits), base=Base(num_layers=depth)), depth


def parsers(sources: Path, how_many: int = 2000) -> dict[str, str]:
    """What the tools' own parsers make of what David writes, and David of what they take; the count for each."""
    v3 = ran(part_of(sources / "exllamav3/exllamav3/util/misc.py", "parse_int_list"), re=re)["parse_int_list"]
    v2 = ran(part_of(sources / "exllamav2/exllamav2/model_init.py", "parse_tuple_list"), ast=ast, argparse=argparse)[
        "parse_tuple_list"
    ]
    arranged = part_of(sources / "exllamav2/exllamav2/model.py", "layer_arrangement")
    decisions = part_of(sources / "dr-llm/train.py", "layer_decisions")
    rys = module_of(sources / "RYS/src/core/layer_config.py", "src.core.layer_config")
    common = module_of(sources / "RYS/hf_export/common.py", "hf_export.common")

    def as_exllamav2(text: str) -> list[int]:
        intervals = ran(arranged, config=SimpleNamespace(repeats=v2(text)))["layer_arrangement"]
        return [layer for interval in intervals for layer in interval]

    counts: Counter[str] = Counter()
    for recipe, depth in random_maps(how_many):
        wanted = list(recipe.repeat_map)
        assert v3(formats.write(recipe, "exllamav3"), min_value=0, max_value=depth - 1) == wanted
        assert as_exllamav2(formats.write(recipe, "exllamav2")) == wanted
        assert rys.normalize_to_layers(depth, formats.write(recipe, "rys")) == wanted
        entry = common.build_exported_config(
            {},
            layer_indices=recipe.repeat_map,
            source_num_layers=depth,
            source_repo_id=None,
            spec_text=formats.write(recipe, "rys"),
            text_layer_prefix="",
        )
        assert json.loads(json.dumps(entry)) == json.loads(formats.write(recipe, "rys_relayer"))
        counts.update(("exllamav3", "exllamav2", "rys", "rys_relayer"))
        rising = [layer for layer in sorted(wanted) if wanted.count(layer) <= 2]
        if rising:
            model = SimpleNamespace(model=SimpleNamespace(layers=range(depth)))
            told = ran(decisions, layer_config=rising, model=model)["layer_decisions"]
            assert json.loads(formats.write(Recipe(tuple(rising), base=recipe.base), "drllm")) == told
            counts.update(("drllm",))
    for text, depth in random_specs(how_many):
        theirs: dict[str, Callable[[str], list[int]]] = {
            "exllamav3": lambda spec, n=depth: v3(spec, min_value=0, max_value=n - 1),
            "exllamav2": as_exllamav2,
            "rys": lambda spec, n=depth: rys.normalize_to_layers(n, spec),
        }
        counts.update(name for name, parse in theirs.items() if read_alike(parse, text[name], name, depth))
    unrun = "no forward pass, which needs CUDA"
    told = {name: f"{count:,} specs by its own parser; {unrun}" for name, count in counts.items()}
    told["drllm"] = f"{counts['drllm']:,} vectors by its own line of train.py; no forward pass, which needs its routers"
    told["rys_relayer"] = f"{counts['rys_relayer']:,} entries that its own export made; nothing of RYS reads them"
    return told


def read_alike(theirs: Callable[[str], list[int]], text: str, name: str, depth: int) -> bool:
    """Whether David reads a spec: as the visits that the tool makes of it, never as others; else it is refused."""
    try:
        found = list(formats.read(text, name, n_layers=depth).repeat_map)
    except RecipeError:
        return False
    assert found == theirs(text), f"{name}: {text} is {theirs(text)}, and was read as {found}"
    return True


def random_specs(how_many: int) -> Iterator[tuple[dict[str, str], int]]:
    numbers = random.Random(1)
    for _ in range(how_many):
        depth = numbers.randrange(3, 40)
        pairs = [(numbers.randrange(depth), numbers.randrange(1, depth + 1)) for _ in range(numbers.randrange(1, 4))]
        ends = [numbers.choice((f"{a}..{b - 1}", f"..{b - 1}", f"{a}..", "..", f"{a}")) for a, b in pairs]
        steps = [numbers.choice((f"({a}, {b})", f"({b},)", f"({b}, {a}, -1)", f"({a}, {b}, 2)")) for a, b in pairs]
        blocks = numbers.choice(("blocks:", "")) + ";".join(f"{a},{b}" for a, b in pairs)
        yield {"exllamav3": ", ".join(ends), "exllamav2": f"[{', '.join(steps)}]", "rys": blocks}, depth


def module_of(path: Path, name: str) -> Any:
    """A module of RYS, by its own name, under which its others import it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for above in ("src", "src.core"):
        sys.modules.setdefault(above, type(sys)(above))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shown(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.0e}" if value else "0"


def equality(rows: Sequence[Row], head: Sequence[str]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        values = [shown(row.found)] + ([shown(row.completed)] if len(head) == 4 else [])
        lines.append("| " + " | ".join([row.model, row.recipe, *values]) + " |")
    return "\n".join(lines)


def able(name: str) -> tuple[str, str, str]:
    """Whether David reads and writes a language, and what it refuses to write, each found by trying."""
    base = Base(num_layers=8, model="owner/name", architecture="LlamaForCausalLM")
    tries = {
        "strengths": ((0, 1, 2), (1.0, 0.5, 1.0)),
        "going back": ((0, 1, 0, 7), None),
        "downwards": ((3, 2, 1, 7), None),
        "skips": ((0, 2, 7), None),
        "three times": ((0, 1, 1, 1, 7), None),
    }
    plain = Recipe(tuple(range(8)), base=base)
    try:
        text = formats.write(plain, name)
        writes = "yes"
    except RecipeError:
        return "yes", "no", "all"
    assert formats.read(text, name, n_layers=8) == plain
    refused = []
    for what, (repeat_map, scales) in tries.items():
        recipe = Recipe(repeat_map, scales, base=base)  # type: ignore[arg-type]
        try:
            assert formats.read(formats.write(recipe, name), name, n_layers=8) == recipe
        except RecipeError:
            refused.append(what)
    return "yes", writes, ", ".join(refused) or "–"


def languages(checked: dict[str, str]) -> str:
    lines = [
        "| language | reads | writes | checked against the tool itself | refuses to write |",
        "|---|---|---|---|---|",
    ]
    for name in formats.FORMATS:
        reads, writes, refused = able(name)
        lines.append(f"| {name} | {reads} | {writes} | {checked.get(name, 'not in this run')} | {refused} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sources", type=Path, metavar="FOLDER", help="clones of the repositories that README.md names"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep and reuse the environments (4 GB) there")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write results.md and layer-scan.json there as well")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    own = "David's own"
    checked = {"david": own, "notation": own}
    with tempfile.TemporaryDirectory(prefix="david-notation-", ignore_cleanup_errors=True) as temporary:
        here = Path(temporary)
        environments = (arguments.work or here).resolve()
        environments.mkdir(parents=True, exist_ok=True)
        merge_rows = merges(environment("mergekit", environments) / "python", here)
        adapter_rows = adapters()
        scanned = layer_scan(environment("layer-scan", environments), here)
    if arguments.sources:
        checked |= parsers(arguments.sources.resolve())
    compared = [row.completed for row in merge_rows if "by hand" not in row.recipe and row.completed is not None]
    equal = sum(value <= TOLERANCE for value in compared)
    checked["mergekit"] = (
        f"the weights of {equal} of {len(compared)} merges equal to 1e-5; its configuration: see below"
    )
    runs = [row.found for row in adapter_rows if not isinstance(row.found, str)]
    equal = sum(value <= TOLERANCE for value in runs)
    wrong, raised = len(runs) - equal, len(adapter_rows) - len(runs)
    checked["peft"] = f"{equal} of {len(adapter_rows)} models equal to 1e-5, {wrong} wrong, {raised} raise: see below"
    checked["layer-scan"] = f"{len(scanned['top_configs'])} results of a real scan, and its own mergekit export"
    versions = f"mergekit 0.1.5, PEFT {version('peft')}, layer-scan 0.2.2, transformers {version('transformers')}"
    text = f"""{languages(checked)}

{versions}; tiny random models of {N_LAYERS} layers in float32. The largest difference of
a logit from the slung model's:

## mergekit

{equality(merge_rows, ("model", "recipe", "as mergekit leaves it", "its weights, layer_types following the map"))}

## PEFT

{equality(adapter_rows, ("model", "recipe", "layer_replication"))}
"""
    print(text)
    if arguments.out:
        (arguments.out / "results.md").write_text(text, encoding="utf-8")
        (arguments.out / "layer-scan.json").write_text(json.dumps(scanned, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
