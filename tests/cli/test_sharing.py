"""Handing a recipe on and receiving one: a recipe where a model is asked for, and the folder that goes to the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from david import David, Recipe, load_model
from david.checkpoint.export_stacked import write_hub_folder
from david.checkpoint.model_card import PICTURE_FILE, StackedCheckpoint, complete_recipe, render_card, without_paths
from david.errors import ModelError, RecipeError, SearchError
from david.models import sources
from david.models.describe import fingerprint
from david.models.load import load_base
from david.models.load_options import LoadOptions
from david.models.sources import recipe_at
from david.models.without_weights import Preview
from david.recipe.base_model import Base
from david.recipe.schema import Convention, Data, Measurement, Origin
from david.sling.in_place import reset
from david.sling.install import is_slung
from david.sling.stacked_copy import stacked
from tests.helpers.command import SCORE, Run, refusal
from tests.tiny_models import tiny_model

TOKENS = torch.arange(12).unsqueeze(0) * 5 + 3  # [1, T]
MAP = (0, 1, 2, 1, 2, 3, 4, 5)
HOSTILE = (
    """</style>'"><script>alert(1)</script>`](http://evil) |\n# Owned\n---\n[x](javascript:alert(1)) <img src=x>"""
)
PNG = b"\x89PNG\r\n\x1a\n"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


@pytest.fixture
def weights(place: Path) -> str:
    return fingerprint(load_model(place / "model", device="cpu")[0])


@pytest.fixture
def demo_is_tiny(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` is the tiny model of `place`."""
    monkeypatch.setattr("david.models.sources.demo_folder", lambda: place / "model")


@pytest.fixture
def of_demo(place: Path, weights: str, demo_is_tiny: None) -> Iterator[Path]:
    """A recipe file that was made on `demo`."""
    path = place / "of-demo.json"
    Recipe(MAP, base=Base(model="demo", num_layers=6, fingerprint=weights)).save(path)
    yield path
    path.unlink()


# ---- a recipe where a model is asked for


def test_a_recipe_loads_the_base_that_it_names_and_slings_it(of_demo: Path, capsys: Any) -> None:
    model, tokenizer = load_model(of_demo, device="cpu")
    assert is_slung(model)
    base, _ = load_model("demo", device="cpu")
    assert torch.equal(logits(model), logits(David.view(base, list(MAP))))
    assert torch.allclose(logits(model), logits(stacked(base, Recipe(MAP))), atol=1e-5)
    assert torch.equal(logits(reset(model)), logits(base))
    assert tokenizer.get_vocab()["w5"] == 5
    assert "other weights" not in capsys.readouterr().err


def test_a_base_of_ones_own_and_a_dtype(of_demo: Path, place: Path, capsys: Any) -> None:
    model, _ = load_model(str(of_demo), base=place / "model", dtype="bfloat16", device="cpu")
    assert is_slung(model)
    assert model.dtype == torch.bfloat16
    assert "other weights" not in capsys.readouterr().err  # the fingerprint is of both
    with pytest.raises(ModelError, match="base= is the base of a recipe, and 'demo' is none: leave it out"):
        load_model("demo", base="demo")


def test_a_base_with_other_weights_is_told_and_slung(of_demo: Path, place: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(place / "model", tmp_path / "other")
    other = tiny_model("llama")
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    model, _ = load_model(of_demo, base=tmp_path / "other", device="cpu")
    assert (
        capsys.readouterr().err.count("note: the recipe was made on other weights (demo); it is run all the same") == 1
    )
    assert is_slung(model)


def test_a_folder_that_holds_a_recipe_alone_is_one(of_demo: Path, place: Path, tmp_path: Path) -> None:
    shutil.copy(of_demo, tmp_path / "recipe.json")
    assert recipe_at(tmp_path) == Recipe(MAP)
    model, _ = load_model(tmp_path, device="cpu")
    assert is_slung(model)
    both = tmp_path / "both"  # as `david export` writes: its layers are stacked already
    shutil.copytree(place / "model", both)
    shutil.copy(of_demo, both / "recipe.json")
    assert recipe_at(both) is None
    assert not is_slung(load_model(both, device="cpu")[0])
    assert [recipe_at(source) for source in ("demo", str(place / "model"), "some.gguf", "a/b/c", "")] == [None] * 5


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (None, "the recipe does not name its base: say which with base="),
        (Base(num_layers=6), "the recipe does not name its base: say which with base="),
        (Base(model="model", num_layers=6), "names a path as its base, 'model': if it is meant, say so with base="),
        (Base(model="/etc", num_layers=6), "names a path as its base, '/etc'"),
        (Base(model="~/x", num_layers=6), "names a path as its base, '~/x'"),
        (Base(model="a/b/c", num_layers=6), "names a path as its base, 'a/b/c'"),
        (Base(model="https://x/y", num_layers=6), "names a path as its base, 'https://x/y'"),
        (Base(model="owner/name", revision="../../x", num_layers=6), "names '../../x' as its base's revision"),
        (Base(model="owner/name", revision="a b", num_layers=6), "names 'a b' as its base's revision"),
        (Base(model="demo", num_layers=7), "made for a base of 7 layers; this one has 6"),
    ],
)
def test_a_base_that_may_not_be_followed_or_does_not_fit_is_refused(
    base: Base | None, says: str, place: Path, demo_is_tiny: None, monkeypatch: pytest.MonkeyPatch, bad: Path
) -> None:
    monkeypatch.chdir(place)
    Recipe(MAP, base=base).save("bad.json")
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_model("bad.json", device="cpu")


def test_the_base_of_a_recipe_is_no_recipe_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_demo: Path
) -> None:
    """Else two repositories that name each other would never end."""
    asked: list[str] = []
    monkeypatch.setattr(sources, "_hub_recipe", lambda name: asked.append(name) or str(of_demo))
    Recipe(MAP, base=Base(model="owner/loop", num_layers=6)).save(tmp_path / "loop.json")
    with pytest.raises(ModelError, match="owner/loop cannot be loaded"):
        load_model(tmp_path / "loop.json")
    assert asked == []


# ---- the Hub


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub for files of a repository: a folder `owner/name` of `root`."""

    def __init__(self, root: Path, seen: list[str], *rest: Any) -> None:
        self.root, self.seen = root, seen
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.seen.append(path)
        match = re.fullmatch(r"(?:/api/models)?/([\w-]+/[\w-]+)/(?:resolve|tree)/(\w+)/([\w.-]+)", path)
        file = self.root / match[1] / match[3] if match else self.root / "none"
        if match is None or not (self.root / match[1]).is_dir():
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif match[2] not in ("main", "f" * 40):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif not file.is_file():
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "f" * 40}, body=body)
        else:
            headers = {"X-Repo-Commit": "f" * 40, "ETag": f'"{file.stat().st_size:x}{len(file.name):x}"'}
            self.reply(200, file.read_bytes(), headers, body=body)

    def reply(self, code: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A Hub on this machine: its address, the folder of its repositories, what it was asked for."""
    seen: list[str] = []
    root = tmp_path / "hub"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, seen))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root, seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_repository_of_the_hub_that_holds_a_recipe_alone_is_run_on_the_base_that_it_names(
    hub: tuple[str, Path, list[str]], place: Path, weights: str, tmp_path: Path
) -> None:
    address, root, seen = hub
    shutil.copytree(place / "model", root / "someone" / "base")
    base = Base(model="someone/base", revision="f" * 40, num_layers=6, fingerprint=weights)
    (root / "another").mkdir()
    write_hub_folder(Recipe(MAP, base=base), root / "another" / "recipe")
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    environment["HF_HUB_DISABLE_XET"] = "1"

    def david(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        code = "from david.cli.app import main; main()"
        line = [sys.executable, "-c", code, *arguments]
        return subprocess.run(line, cwd=tmp_path, env=environment | more, capture_output=True, text=True, check=False)

    line = ("generate", "another/recipe", "--prompt", "w5 w6", "--max-new-tokens", "4", "--json")
    found = david(*line)
    assert found.returncode == 0, found.stderr
    (written,) = json.loads(found.stdout)
    assert (written["recipe"], written["map"]) == ("another/recipe", str(Recipe(MAP)))
    ids = torch.tensor([[5, 6]])
    copied = stacked(load_model(place / "model", device="cpu")[0], Recipe(MAP))
    for _ in range(4):
        ids = torch.cat([ids, copied(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert written["text"].split() == [f"w{token}" for token in ids[0, 2:].tolist()]
    assert "other weights" not in found.stderr
    assert found.stderr.count("nothing here is called another/recipe: asking the Hub") == 1
    assert f"/someone/base/resolve/{'f' * 40}/config.json" in seen  # in the revision that the recipe names
    assert not any(path.startswith("/someone/base/resolve/main/") for path in seen)
    again = david(*line, HF_HUB_OFFLINE="1")  # all of it is kept
    assert (again.returncode, json.loads(again.stdout)[0]["text"]) == (0, written["text"])


def test_what_the_hub_says_of_a_name_decides_what_it_is(monkeypatch: pytest.MonkeyPatch, of_demo: Path) -> None:
    asked: list[str] = []

    def hub_with(*files: str) -> Callable[..., str]:
        def download(name: str, file: str) -> str:
            asked.append(file)
            if file not in files:
                raise EntryNotFoundError(file)
            return str(of_demo)

        return download

    for files, recipe in ((("config.json", "recipe.json"), None), (("recipe.json",), Recipe(MAP)), ((), None)):
        monkeypatch.setattr(sources, "hf_hub_download", hub_with(*files))
        assert recipe_at("owner/name") == recipe
    assert asked == ["config.json", "config.json", "recipe.json", "config.json", "recipe.json"]
    monkeypatch.setattr(sources, "hf_hub_download", lambda *_: 1 / 0)
    assert recipe_at("owner/name") is None  # what is wrong is told where the weights are looked for
    with pytest.raises(ModelError, match="owner/name cannot be loaded"):
        load_model("owner/name")


# ---- the commands


def test_a_command_takes_a_recipe_for_a_model(run: Run, of_demo: Path, place: Path) -> None:
    score = SCORE.replace("model", of_demo.name)
    code, printed, err = run(f"{score} --json")
    assert code == 0, err
    alone = json.loads(printed)
    code, printed, _ = run(f"{SCORE} --json --recipe", of_demo.name)
    beside = json.loads(printed)
    assert alone["recipe"] == beside["recipe"]
    assert alone["base"] == beside["base"]
    code, printed, _ = run(f"{score} --json --recipe six.json")
    assert json.loads(printed)["recipe"]["map"] == str(Recipe.load(place / "six.json"))  # in its place

    code, printed, err = run(f"check {of_demo.name}")
    assert (code, printed.startswith("PASSED")) == (0, True), err
    assert f"the recipe: {Recipe(MAP)}" in printed
    assert re.search(r"^the recipe +cached = stacked +", printed, re.MULTILINE)

    code, printed, err = run(f"explain {of_demo.name} --json --model {of_demo.name}")
    assert code == 0, err
    assert json.loads(printed)["extra_kv_cache"] == pytest.approx(2 / 6)

    code, printed, err = run(f"generate {of_demo.name} --max-new-tokens 2 --json --recipe six.json")
    assert code == 0, err
    assert [one["recipe"] for one in json.loads(printed)] == [of_demo.name, "six.json"]  # beside it

    code, printed, err = run(f"profile {of_demo.name} --data data.txt --window 16 --windows 2 --out bad-profile")
    assert code == 0, err
    assert f"note: {of_demo.name} is a recipe: only its base model is loaded" in err


def test_a_check_of_a_recipe_that_does_not_fit_is_refused(run: Run, place: Path, demo_is_tiny: None, bad: Path) -> None:
    Recipe((0, 9), base=Base(model="demo", num_layers=10)).save(place / "bad.json")
    assert "layer 9 is out of range" in refusal(run, place, "check bad.json")


def test_a_path_that_a_recipe_names_is_not_followed_by_a_command(run: Run, place: Path, bad: Path) -> None:
    Recipe(MAP, base=Base(model="model", num_layers=6)).save(place / "bad.json")
    for command in ("score", "generate", "chat", "check", "profile"):
        said = refusal(run, place, f"{command} bad.json")
        assert "'model': if it is meant, say so with MODEL, and the recipe beside it" in said
    assert "say so with --model" in refusal(run, place, "explain 0:6 --model bad.json")
    Recipe(MAP).save(place / "bad.json")
    assert "say which with --model" in refusal(run, place, "explain 0:6 --model bad.json")


def test_what_a_recipe_says_of_its_base_is_told_in_a_line_that_prints(
    run: Run, place: Path, demo_is_tiny: None, bad: Path
) -> None:
    base = Base(model="x\x1b[2J\n\u202e", num_layers=6, fingerprint="sha256:00")
    Recipe(MAP, base=base).save(place / "bad.json")
    code, _, err = run(f"{SCORE} --recipe bad.json")
    assert code == 0
    assert r"other weights (x\x1b[2J\n\u202e); it is run" in err


# ---- the folder for the Hub


def scored(source: str, **more: Any) -> Measurement:
    told = {"metric": "perplexity", "value": 20.1, "base": 20.3, "nll_difference": -0.0099, "tokens": 16352}
    convention = Convention(name="window", window=512, bos=False)
    data = Data(source=source, slice="test[:200]", sha256="0" * 64)
    return Measurement(**(told | {"held_out": True} | more), convention=convention, data=data)


@pytest.fixture
def full(weights: str) -> Recipe:
    """A recipe with all that a search leaves in it, of a base on the Hub."""
    return Recipe(
        MAP,
        (1, 1, 1, 0.5, 0.5, 1, 1, 1),
        base=Base(model="someone/base", revision="abc1", architecture="LlamaForCausalLM", num_layers=6,
                  fingerprint=weights),
        scores=(
            scored("owner/data", held_out=False),
            scored("/home/me/secret/mine.jsonl", interval95=(-0.0151, -0.0042)),
            scored("C:\\Users\\me\\more.csv", metric="multiple choice", accuracy=0.31, base_accuracy=0.29),
        ),
        search=Origin(study="s", trial=17, space="blocks", sampler="TPESampler", trials=200, seed=0),
    )  # fmt: skip


def test_the_folder_for_the_hub_holds_a_recipe_a_card_and_a_picture(full: Recipe, tmp_path: Path) -> None:
    folder = write_hub_folder(full, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"recipe.json", "README.md", "recipe.png"}
    assert (folder / "recipe.png").read_bytes().startswith(PNG)
    kept = Recipe.load(folder / "recipe.json")
    assert kept == full
    assert kept.base == full.base
    assert [score.data.source for score in kept.scores] == ["owner/data", "mine.jsonl", "more.csv"]
    text = (folder / "README.md").read_text()
    assert not re.search("secret|/home|Users", text + (folder / "recipe.json").read_text())

    loaded = ModelCard(text)  # as huggingface_hub reads it
    assert loaded.data.to_dict() == {
        "base_model": "someone/base",
        "base_model_relation": "adapter",
        "library_name": "david",
        "pipeline_tag": "text-generation",
        "tags": ["david", "frankenmerge", "layer-repetition"],
    }
    assert f"![The recipe's path over the base's layers]({PICTURE_FILE})" in text
    assert 'from david import load_model\n\nmodel, tokenizer = load_model("recipe.json")\n' in text
    assert "\ndavid chat recipe.json\n" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[2][:4] == ["`perplexity`", "`owner/data` `test·:200·`", "of the search", "16,352"]
    assert rows[2][4:] == ["20.3000", "20.1000", "-0.0099", ""]
    assert rows[3][-1] == "-0.0151 … -0.0042"
    assert rows[4][4:6] == ["20.3000 (29.0% right)", "20.1000 (31.0% right)"]
    assert {len(row) for row in rows} == {8}
    assert "Trial 17 of a search of 200 recipes (`blocks`, `TPESampler`)." in text
    assert "revision `abc1`" in text


def test_its_front_matter_takes_the_licence_of_the_demo_and_names_no_path(weights: str, tmp_path: Path) -> None:
    of_demo = Recipe(MAP, base=Base(model="demo", num_layers=6, fingerprint=weights))
    data = ModelCard((write_hub_folder(of_demo, tmp_path / "demo") / "README.md").read_text()).data
    assert (data.license, data.base_model) == ("apache-2.0", None)
    local = Recipe(MAP, base=Base(model="/home/me/model", num_layers=6, fingerprint=weights))
    folder = write_hub_folder(local, tmp_path / "local")
    text = (folder / "README.md").read_text()
    assert ModelCard(text).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "/home/me" not in text + (folder / "recipe.json").read_text()
    assert 'load_model("recipe.json", base="the folder of the base, or its name on the Hub")' in text
    assert "david chat BASE --recipe recipe.json" in text


def test_the_base_in_hand_fills_in_what_the_recipe_does_not_say(tiny: Any, tmp_path: Path) -> None:
    folder = write_hub_folder("0:4, 2:6", tmp_path / "out", model=tiny)
    kept = Recipe.load(folder / "recipe.json")
    assert kept.base is not None
    assert (kept.base.fingerprint, kept.base.architecture) == (fingerprint(tiny), "LlamaForCausalLM")
    with pytest.raises(RecipeError, match="does not say which weights are its base: give the model"):
        write_hub_folder("0:4, 2:6", tmp_path / "more")
    with pytest.raises(RecipeError, match="layer 8 is out of range"):
        write_hub_folder("0:9", tmp_path / "more", model=tiny)
    with pytest.raises(SearchError, match="is not empty"):
        write_hub_folder("0:4, 2:6", tmp_path / "out", model=tiny)
    assert not (tmp_path / "more").exists()


def test_one_text_with_and_without_a_checkpoint(full: Recipe) -> None:
    alone = render_card(without_paths(full))
    with_weights = render_card(without_paths(full), StackedCheckpoint("AutoModelForCausalLM", 5, "float32", "20 bytes"))
    assert ModelCard(with_weights).data.base_model_relation == "merge"
    assert ModelCard(with_weights).data.library_name == "transformers"
    assert "5 values in float32, 20 bytes" in with_weights
    for part in ("## Scores", "load_model(", PICTURE_FILE, full.picture, "| `perplexity` |"):
        assert part in alone
        assert part in with_weights


@pytest.mark.parametrize("base", ["demo", "someone/base", HOSTILE])
def test_a_card_holds_nothing_of_a_strangers_that_a_page_would_act_on(base: str, weights: str, tmp_path: Path) -> None:
    hostile = Recipe(
        MAP,
        base=Base(model=base, revision=HOSTILE, architecture=HOSTILE, num_layers=6, fingerprint=HOSTILE),
        written_as=HOSTILE,
        scores=(scored(HOSTILE, metric=HOSTILE),),
        search=Origin(study=HOSTILE, trial=1, space=HOSTILE, sampler=HOSTILE, strategy=HOSTILE, trials=2, seed=0),
    )
    text = (write_hub_folder(hostile, tmp_path / "out") / "README.md").read_text()
    assert not re.search(r"[<>]|\]\((?!recipe.png\))|^# Owned|javascript:alert\(", text, re.MULTILINE)
    assert all(line.count("`") % 2 == 0 for line in text.splitlines() if not line.startswith("```"))
    assert len(re.findall("^---$", text, re.MULTILINE)) == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {9}
    assert "base_model" not in text


def test_told_leaves_no_path_of_a_score(tiny: Any, full: Recipe) -> None:
    base = full.base.model_copy(update={"fingerprint": fingerprint(tiny)}) if full.base else None
    kept = complete_recipe(tiny, Recipe(MAP, base=base, scores=full.scores))
    assert [score.data.source for score in kept.scores] == ["owner/data", "mine.jsonl", "more.csv"]


def test_told_leaves_scores_out_of_which_nobody_can_tell_on_what_weights(tiny: Any, full: Recipe) -> None:
    for fingerprint_ in (None, "sha256:another"):
        base = full.base.model_copy(update={"fingerprint": fingerprint_}) if full.base else None
        assert complete_recipe(tiny, Recipe(MAP, base=base, scores=full.scores)).scores == ()


def test_export_without_weights_loads_none(
    run: Run, place: Path, of_demo: Path, monkeypatch: pytest.MonkeyPatch, bad: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("david.models.load.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
        code, printed, err = run(f"export {of_demo.name} bad-hub --no-weights")
        assert code == 0, err
        assert printed == "bad-hub: README.md, recipe.json, recipe.png\n"
        assert "name them with --model" in refusal(run, place, "export 0:6,2:6 bad-new --no-weights")
    code, _, err = run("export 0:6,2:6 bad-too --no-weights --model model")
    assert code == 0, err
    code, printed, err = run("generate bad-hub --max-new-tokens 3")  # what was handed on is received
    assert code == 0, err
    assert printed == run(f"generate {of_demo.name} --max-new-tokens 3")[1]


def test_what_a_recipe_is_exported_from_is_the_revision_that_it_names(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recipe(MAP, base=Base(model="someone/base", revision="f" * 40, num_layers=6)).save(tmp_path / "pinned.json")
    asked: list[tuple[str, Any]] = []

    def load_weights(name: str, **options: Any) -> Any:
        asked.append((name, options["revision"]))
        raise ModelError("not here")

    def preview_model(name: str, revision: str | None) -> Preview:
        asked.append((name, revision))
        return Preview(tiny_model("llama"), None)

    monkeypatch.setattr("david.models.load.load_weights", load_weights)
    monkeypatch.setattr("david.models.without_weights.preview_model", preview_model)
    assert run(f"export {tmp_path / 'pinned.json'} stacked")[0] == 1
    assert asked == [("someone/base", "f" * 40)] * 2  # before the weights, and the weights


def test_a_recipes_base_is_loaded_by_itself(of_demo: Path) -> None:
    model, _ = load_base(Recipe.load(of_demo), options=LoadOptions(device="cpu"))
    assert not is_slung(model)


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.1, 0.7), "worse than its base on held-out data: perplexity 58.8, base 38.9"), ((-0.7, -0.1), "better than")],
)
def test_a_receiver_reads_first_whether_the_recipe_was_better(
    interval: tuple[float, float], words: str, run: Run, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(source="words", sha256="0f")
    convention = Convention(name="window", window=8, bos=False)
    score = Measurement(
        metric="perplexity", value=58.8, base=38.9, nll_difference=0.41, interval95=interval, tokens=9, held_out=True,
        convention=convention, data=data,
    )  # fmt: skip
    base = complete_recipe(load_model(place / "model", device="cpu")[0], Recipe(MAP)).base
    sent = Recipe(MAP, base=base, scores=(score,))
    sent.save(place / "sent.json")
    assert run("explain sent.json")[1].startswith(f"verdict     {words}")
    code, _, err = run("generate model --prompt w1 --max-new-tokens 2 --recipe sent.json --device cpu")
    assert code == 0, err
    assert (f"note: sent.json was {words}" in err) == words.startswith("worse")
    load_model(place / "sent.json", base=place / "model", device="cpu")
    assert ("sent.json was worse than its base" in capsys.readouterr().err) == words.startswith("worse")
    first = render_card(sent).split("\n# ", 1)[1].split("\n\n")[1]
    assert first.lower().startswith(f"**{words}")
