"""Folders as people have them: weights beyond the configuration, models that also see and hear, caches of all kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMultimodalLM

from david import David
from david.errors import ModelError
from david.models.describe import token_costs
from david.models.fingerprints import fingerprint
from david.models.load import load_model
from david.models.without_weights import note_other_stored_weights, read_base, read_costs
from david.recipe.base_model import Base
from david.recipe.recipe import Recipe
from david.sling import architectures
from david.sling.stacked_copy import stacked
from tests.helpers.word_tokenizer import save_tokenizer
from tests.tiny_models import tiny_config, tiny_model

TOKENS = torch.arange(3, 19)[None]  # [1, T]


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return save_tokenizer(folder)


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# ---- weights that the model has no place for


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_layers_beyond_the_configurations_depth_are_named(shard: str, tmp_path: Path, capsys: Any) -> None:
    folder = save(tiny_model("llama", num_hidden_layers=8), tmp_path / "m", max_shard_size=shard)
    change_config(folder, num_hidden_layers=6)
    capsys.readouterr()
    told = (
        f"note: the weights of {folder} are not all used: 18 tensors of layers 6–7 "
        "(the depth is the configuration's: 6 layers, 0 to 5)"
    )
    for read in (read_base, read_costs):
        read(folder)
        assert capsys.readouterr().err.splitlines() == [told]
    model, _ = load_model(folder, device="cpu")
    assert capsys.readouterr().err.count(told) == 1
    assert model.config.num_hidden_layers == 6


def test_other_tensors_without_a_place_are_counted_with_examples(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    folder = save(tiny, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state |= {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(32) for i in range(6)}
    state |= {"model.layers.6.input_layernorm.weight": torch.zeros(32)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, device="cpu")
    err = capsys.readouterr().err
    assert "1 tensor of layer 6 (the depth" in err
    assert "; 6 tensors that the model has no place for: model.layers.0.self_attn.q_proj.bias, " in err


def test_a_whole_folder_gets_no_note(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    folder = save(tiny, tmp_path / "m")
    for read in (read_base, read_costs, load_model):
        read(folder)
    assert "note" not in capsys.readouterr().err


# ---- a recipe's fingerprint against weights that are not loaded


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
def test_a_fingerprint_is_compared_with_stored_weights(kind: str, tmp_path: Path, capsys: Any) -> None:
    settings = {"tie_word_embeddings": True} if kind == "llama-tied" else {}
    model = tiny_model(kind.removesuffix("-tied"), **settings)
    folder = save(model, tmp_path / "m", max_shard_size="20KB")
    capsys.readouterr()
    for hash_, told in (
        (fingerprint(model), ""),
        ("sha256:" + "0" * 64, "made on other weights (theirs) than those of"),
    ):
        recipe = Recipe([0, 1, 1], base=Base(model="theirs", num_layers=6, fingerprint=hash_))
        note_other_stored_weights(recipe, folder)
        err = capsys.readouterr().err
        assert told in err
        assert bool(told) == bool(err)


def test_what_cannot_be_compared_without_loading_is_said(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    folder = save(tiny, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    capsys.readouterr()
    note_other_stored_weights(Recipe([0], base=Base(num_layers=6, fingerprint=fingerprint(tiny))), folder)
    assert f"only loading {folder} would show" in capsys.readouterr().err


# ---- models that also see and hear


_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@pytest.mark.parametrize("kind", ["llava", "mistral3", "paligemma", "qwen2_5_vl"])
def test_a_folder_of_a_model_that_sees_loads_and_slings_exactly_on_text(kind: str, tmp_path: Path) -> None:
    settings = {"text_config": {"rope_parameters": _ROPE}} if kind == "qwen2_5_vl" else {}
    torch.manual_seed(0)
    built = AutoModelForMultimodalLM.from_config(tiny_config(kind, **settings), dtype=torch.float32).eval()
    folder = save(built, tmp_path / "m")
    model, _ = load_model(folder, device="cpu")
    assert torch.equal(logits(model), logits(built))
    if kind == "qwen2_5_vl":  # no proof is kept of its text type: the command makes one on the model in hand
        setattr(model, architectures.PROVED_HERE, True)
    else:
        assert read_base(folder)[0].num_layers == 6
        assert read_costs(folder) == token_costs(model)
    recipe = Recipe([0, 1, 2, 1, 2, 3, 4, 5], [1, 1, 1, 0.5, 1, 1, 1, 1])
    with David.slung(model, recipe):
        slung = logits(model)
    assert torch.equal(slung, logits(stacked(model, recipe)))
    assert not torch.equal(slung, logits(built))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_a_model_that_needs_an_image_or_writes_no_text_is_refused_in_a_line(tmp_path: Path) -> None:
    built = AutoModelForMultimodalLM.from_config(tiny_config("blip"), dtype=torch.float32)
    folder = save(built, tmp_path / "m")
    with pytest.raises(ModelError, match=r"does not run on text alone: .*pixel_values") as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    for read in (load_model, read_costs):
        with pytest.raises(ModelError, match="transformers has no causal language model of its type, 'vit'"):
            read(folder)


# ---- what a cache keeps


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "gemma3n_text", "llama4_text", "lfm2", "mamba2", "glm_moe_dsa", "falcon_h1"]
)
def test_the_bytes_of_a_cache_are_those_of_a_real_one_at_any_length(kind: str) -> None:
    model = tiny_model(kind, **({} if kind == "mamba2" else {"max_position_embeddings": 512}))
    costs, recipe = token_costs(model), Recipe([0, 1, 2, 2, 3, 4, 5])
    for n_tokens in (1, 64, 300):
        assert costs.cache_bytes(range(6), n_tokens) == real_cache_bytes(model, n_tokens)
        with David.slung(model, recipe):
            assert costs.cache_bytes(recipe.repeat_map, n_tokens) == real_cache_bytes(model, n_tokens)


def real_cache_bytes(model: Any, n_tokens: int) -> int:
    with torch.no_grad():
        out = model(torch.arange(n_tokens)[None] % 60 + 3, use_cache=True)
    cache = out.get("past_key_values") or out["cache_params"]
    return sum(tensor_bytes(value) for layer in cache.layers for value in vars(layer).values())


def tensor_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return value.nbytes if isinstance(value, Tensor) and value.dim() else 0
