"""The stacked checkpoint: read back by plain transformers it is the sling, or it was refused before."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from safetensors import safe_open
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import david
from david import David, Recipe
from david.checkpoint import export_stacked as export_module
from david.checkpoint import round_trip_check
from david.checkpoint.export_stacked import export
from david.errors import DavidError, RecipeError, SearchError, SlingError
from david.models.fingerprints import fingerprint
from david.recipe.base_model import Base
from david.recipe.schema import Convention, Data, Measurement
from david.sling.stacked_copy import stacked
from tests.tiny_models import NOT_BUILT, TYPES, VARIANTS, VOCABULARY, tiny_model, tiny_named, tiny_options

TOKENS = torch.arange(14).unsqueeze(0) * 5 + 3  # [1, T]
REPEAT, SKIP = "0:4, 2:6", "0:2, 3:6"
FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors.index.json", "recipe.json"}
FILES |= {"recipe.png"}
SHARD = 40_000  # bytes: less than most of these models' layers have

# A map for each type: one that its configuration can say.
EXACT = {
    "llama-tied": "0:4, 2:6, 1",
    "gemma3_text": "0:4, 5, 2:6",
    "gemma3": "0:4, 2:6",
    "mixtral": "0:3, 1:6",
    "qwen3_5_text": "1:4, 2, 0:6",
    "lfm2": "0:4, 2:6",
    "gpt2": "0:4, 2:6",
    "gemma4_text": "0:2, 0:6, 4:6",
    "jamba": "0:4, 2:6",  # attention at visits 1 and 7: each six, no longer each four
    "deepseek_v2": "1:6, 3",
    "deepseek_v3": "2:6",
    "glm4_moe": "0, 0:6",
    "dots1": "0:2, 0:6",
    "afmoe": "1:6",
    "lfm2_moe": "0, 0, 1:6",
    "gpt_neo": "0:2, 0:4",
    "ctrl": "0:4, 2:6",
    "big_bird": "0:4, 2:6",
    "gpt_neox_japanese": "0:3, 0:6",
    "qwen3": "0, 0",  # no sliding layer, and no mask for one
    "cohere_compass_text": "2, 2, 1:3",  # no layer of full attention, and no frequencies for one
    "zamba2": "0:3, 2:6",
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Neither bars nor transformers' advice."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.logging.set_verbosity(level)


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False, **options).logits


def generated(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(TOKENS, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences, torch.stack(out.logits)


def own_memory(model: Any) -> Any:
    """Weights read from a file lie anywhere in memory, where some kernels sum in another order: put them evenly."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def read(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return own_memory(model.eval())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by its name in the files."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # no dictionary
                assert name not in found
                found[name] = file.get_tensor(name)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is promised


@pytest.mark.parametrize("name", EXACT)
def test_plain_transformers_reads_back_the_sling(name: str, tmp_path: Path) -> None:
    model, recipe = tiny_named(name), Recipe.parse(EXACT[name])
    before = {key: (tensor, tensor.clone()) for key, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    assert export(model, recipe, tmp_path / "out", max_shard_size=SHARD) == tmp_path / "out"
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, then) for tensor, then in before.values())
    again, copied = read(tmp_path / "out"), stacked(model, recipe)
    assert type(again) is type(model)
    assert not hasattr(model, "_david_base")
    assert torch.equal(logits(again), logits(own_memory(copied)))
    with David.slung(model, recipe):
        assert torch.equal(logits(again), logits(model))
        for mine, its in zip(generated(again), generated(model), strict=True):
            assert torch.equal(mine, its)
    copied.save_pretrained(tmp_path / "copied", max_shard_size=SHARD)
    mine, its = tensors(tmp_path / "out"), tensors(tmp_path / "copied")
    if name == "zamba2":  # in the copy the blocks that layers share are not shared
        its = {key: tensor for key, tensor in its.items() if key in mine}
    assert same(mine, its)
    assert json.loads((tmp_path / "out/config.json").read_text()).keys() >= {"architectures", "dtype", "model_type"}


def test_jamba_is_refused_for_a_map_that_its_pattern_cannot_say_and_works_for_one_that_it_can(tmp_path: Path) -> None:
    model = tiny_named("jamba")
    with pytest.raises(SlingError) as told:
        export(model, "0:2, 1, 0:6", tmp_path / "out")
    assert str(told.value) == (
        "visit 2 would be a JambaMambaDecoderLayer where the recipe has a JambaAttentionDecoderLayer: a JambaConfig "
        "cannot say so. The recipe itself runs without a checkpoint: david generate --recipe"
    )
    assert left(tmp_path) == []
    periodic = Recipe.parse("0:6, 2:6, 2:4")  # attention at 1 and 5, experts at 1, 3 and 5: each four layers on
    export(model, periodic, tmp_path / "out")
    assert torch.equal(logits(read(tmp_path / "out")), logits(own_memory(stacked(model, periodic))))


@pytest.mark.parametrize(
    ("name", "settings", "recipe", "told"),
    [
        (
            "ernie4_5_moe",
            {"moe_layer_start_index": 2, "moe_layer_end_index": 4, "moe_layer_interval": 1},
            "1:4, 5",
            {"moe_layer_start_index": 1, "moe_layer_end_index": 2},
        ),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "0, 0:3", {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3]}),
        ("glm4_moe", {"first_k_dense_replace": 2}, "2:6", {"first_k_dense_replace": 0}),
    ],
)
def test_a_number_that_says_which_layers_are_of_a_kind_is_that_of_the_visits(
    name: str, settings: dict[str, Any], recipe: str, told: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(name, **settings)
    before = model.config.to_dict()
    export(model, recipe, tmp_path / "out")
    assert model.config.to_dict() == before
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: config[key] for key in told} == told
    assert torch.equal(logits(read(tmp_path / "out")), logits(own_memory(stacked(model, Recipe.parse(recipe)))))


@pytest.mark.parametrize(("name", "recipe"), [("deepseek_v3", "0:6, 1"), ("glm4_moe", "2, 0:6")])
def test_dense_layers_behind_sparse_ones_are_refused(name: str, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(SlingError, match=r"visit \d would have mlp = \w+ where the recipe has \w+: .* cannot say so"):
        export(tiny_named(name), recipe, tmp_path / "out")


def test_experts_are_written_one_by_one_as_on_the_hub(tmp_path: Path) -> None:
    export(tiny_named("mixtral"), REPEAT, tmp_path / "out", max_shard_size=SHARD)
    names = tensors(tmp_path / "out").keys()
    assert {f"model.layers.7.block_sparse_moe.experts.{i}.w{k}.weight" for i in range(4) for k in (1, 2, 3)} <= names
    assert not any("gate_up_proj" in name for name in names)


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma3n_text-unshared", "gemma4_text"])
def test_embeddings_that_are_packed_for_the_layers_are_written_in_the_map_s_order(name: str, tmp_path: Path) -> None:
    model, recipe = tiny_named(name), Recipe.parse("1, 0:6")
    export(model, recipe, tmp_path / "out")
    again = read(tmp_path / "out")
    old, new = (its.model.embed_tokens_per_layer.weight.unflatten(1, (-1, 8)) for its in (model, again))
    assert torch.equal(new, old[:, list(recipe.repeat_map)])
    with David.slung(model, recipe):
        assert torch.equal(logits(again), logits(own_memory(model)))


@pytest.mark.parametrize("limit", [1, 3_000, 20_000, "30KB", "1MiB", "5GB"])
def test_a_shard_is_no_larger_than_it_may_be_unless_it_holds_a_single_tensor(limit: int | str, tmp_path: Path) -> None:
    folder = export(tiny_named("llama-tied"), REPEAT, tmp_path / "out", max_shard_size=limit)
    most = {"30KB": 30_000, "1MiB": 2**20, "5GB": 5 * 10**9}.get(limit, limit)  # type: ignore[call-overload]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            inside = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
        assert len(inside) == 1 or sum(inside.values()) <= most
        found |= dict.fromkeys(inside, path.name)
    assert index["weight_map"] == found
    number = len(set(found.values()))
    assert sorted(set(found.values())) == [f"model-{k + 1:05}-of-{number:05}.safetensors" for k in range(number)]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(folder).values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors(folder).values())
    assert "lm_head.weight" not in found


def test_a_slung_model_is_exported_from_its_base_and_stays_slung(tiny: Any, tmp_path: Path) -> None:
    David.sling(tiny, "0:6, 1:5*0.5")
    before = logits(tiny)
    export(tiny, REPEAT, tmp_path / "out")
    assert torch.equal(logits(tiny), before)
    David.reset(tiny)
    assert torch.equal(logits(read(tmp_path / "out")), logits(own_memory(stacked(tiny, Recipe.parse(REPEAT)))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3", "mamba2"])
def test_a_model_of_half_precision_comes_back_with_every_tensor_of_its_type(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_named(name).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).eval()
    export(model, REPEAT, tmp_path / "out", max_shard_size=SHARD)
    again = read(tmp_path / "out")
    assert again.dtype == dtype
    copied = stacked(model, Recipe.parse(REPEAT))
    assert same(again.state_dict(), copied.state_dict())
    assert torch.equal(logits(again), logits(own_memory(copied)))
    assert '"float32"' not in (tmp_path / "out/config.json").read_text()


@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "gemma4_text"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_offloaded_base_is_exported_tensor_by_tensor(name: str, how: str, tmp_path: Path) -> None:
    model, recipe = tiny_named(name), Recipe.parse("1, 0:6")
    export(model, recipe, tmp_path / "plain", max_shard_size=SHARD)
    if how == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk":
        disk_offload(model, tmp_path / "offloaded", execution_device=torch.device("cpu"))
    else:  # as `from_pretrained` spreads a model that is larger than memory
        model.save_pretrained(tmp_path / "base")
        parts = [path for path, _ in model.model.named_children() if path != "layers"]
        places = dict.fromkeys(["lm_head", *(f"model.{part}" for part in parts), "model.layers.0"], "cpu")
        places |= {f"model.layers.{k}": "disk" for k in range(1, 6)}
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", device_map=places, offload_folder=tmp_path / "offloaded"
        )
        assert any(weight.is_meta for weight in model.parameters())
    assert how == "map" or all(weight.is_meta for weight in model.parameters())
    export(model, recipe, tmp_path / "out", max_shard_size=SHARD)
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "plain"))
    assert (tmp_path / "out/config.json").read_text() == (tmp_path / "plain/config.json").read_text()


def test_the_demo_model_is_exported_exactly(demo: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = demo
    folder = export(model, "0:12, 8:30", tmp_path / "out", tokenizer=tokenizer, max_shard_size="200MB")
    text = tokenizer("The capital of France is", return_tensors="pt").input_ids
    again, read_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad(), David.slung(model, "0:12, 8:30"):
        assert torch.equal(own_memory(again)(text).logits, model(text).logits)
    assert read_tokenizer.get_vocab() == tokenizer.get_vocab()
    card = (folder / "README.md").read_text()
    assert "SmolLM2-135M-Instruct (David's `demo`)" in card
    assert 'load_model("recipe.json")' in card
    assert "base_model:" not in card


def test_both_ways_to_call_it_and_every_kind_of_recipe(tiny: Any, tmp_path: Path) -> None:
    assert david.export is export_module.export
    recipe = Recipe.parse(REPEAT)
    recipe.save(tmp_path / "six.json")
    wrote = [
        export(tiny, given, tmp_path / f"out{k}")
        for k, given in enumerate((recipe, REPEAT, tmp_path / "six.json", list(recipe.repeat_map)))
    ]
    assert all(same(tensors(wrote[0]), tensors(folder)) for folder in wrote[1:])


# ---- what is in the folder


@pytest.fixture
def local(tmp_path: Path) -> tuple[Any, Any]:
    """A model and its tokenizer that were loaded from a folder of this machine."""
    tiny_model("gemma3").save_pretrained(tmp_path / "secret-place")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(tmp_path / "secret-place")
    return david.load_model(tmp_path / "secret-place", device="cpu")


def test_the_folder_holds_what_a_checkpoint_needs_and_no_path(local: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = local
    folder = export(model, REPEAT, tmp_path / "out", tokenizer=tokenizer)
    assert FILES | {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.suffix in (".json", ".md"):
            assert "secret-place" not in path.read_text()
            assert str(tmp_path) not in path.read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert config["dtype"] == "float32"
    assert config["text_config"]["num_hidden_layers"] == 8
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_recipe_is_written_with_its_base_filled_in(tiny: Any, tmp_path: Path) -> None:
    recipe = Recipe.from_blocks(6, [(1, 4, 2)])
    told = Recipe.load(export(tiny, recipe, tmp_path / "out") / "recipe.json")
    assert told == recipe
    assert told.written_as == recipe.written_as
    assert told.base == Base(
        model=None, revision=None, architecture="LlamaForCausalLM", num_layers=6, fingerprint=fingerprint(tiny)
    )
    assert told.made_with is not None
    assert told.made_with.transformers == transformers.__version__
    assert torch.equal(logits(David.view(tiny, told)), logits(David.view(tiny, recipe)))


def test_the_card_names_a_base_of_the_hub_the_map_and_the_way_without_this_checkpoint(
    tiny: Any, tmp_path: Path
) -> None:
    tiny.config._name_or_path, tiny.config._commit_hash = "someone/a-llama", "0123abc"
    folder = export(tiny, REPEAT, tmp_path / "out")
    card = (folder / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert front is not None
    assert "base_model: someone/a-llama\n" in front[1]
    assert "- david" in front[1]
    recipe = Recipe.parse(REPEAT)
    for part in (str(list(recipe.repeat_map)), REPEAT, recipe.picture, "# someone/a-llama, ", "0123abc"):
        assert part in card
    assert 'load_model("recipe.json")' in card
    assert f"transformers {transformers.__version__}" in card
    assert "AutoModelForCausalLM" in card
    told = Recipe.load(folder / "recipe.json").base
    assert told is not None
    assert (told.model, told.revision) == ("someone/a-llama", "0123abc")
    assert "someone" not in (folder / "config.json").read_text()


def test_a_base_that_only_the_recipe_knows_by_its_name_on_the_hub_is_named_too(tiny: Any, tmp_path: Path) -> None:
    tiny.config._name_or_path = str(tmp_path)
    known = Base(model="someone/a-llama", revision="77", num_layers=6, fingerprint=fingerprint(tiny))
    export(tiny, Recipe((0, 1, 1, 2, 3, 4, 5), base=known), tmp_path / "out")
    assert "base_model: someone/a-llama\n" in (tmp_path / "out/README.md").read_text()
    other = known.model_copy(update={"fingerprint": "sha256:00"})
    export(tiny, Recipe((0, 1, 1, 2, 3, 4, 5), base=other), tmp_path / "out2")
    assert "someone" not in (tmp_path / "out2/README.md").read_text()


def test_a_class_that_the_automatic_one_does_not_give_is_named_in_the_card(tmp_path: Path) -> None:
    model = tiny_named("musicgen")
    folder = export(model, REPEAT, tmp_path / "out")
    assert "import MusicgenForCausalLM" in (folder / "README.md").read_text()
    copied = own_memory(stacked(model, Recipe.parse(REPEAT)))
    assert torch.equal(logits(read(folder, type(model))), logits(copied))


def test_a_generation_configuration_that_transformers_would_not_save_is_kept_as_it_is(
    tiny: Any, tmp_path: Path
) -> None:
    tiny.generation_config.temperature = 0.5  # without sampling
    folder = export(tiny, REPEAT, tmp_path / "out")
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.5


def test_what_was_run_before_leaves_no_trace(tmp_path: Path) -> None:
    """Rotary embeddings that grow with the longest text, and RWKV's note that it is in evaluation."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    for name, model in (
        ("dynamic", tiny_model("llama", rope_parameters=rope, max_position_embeddings=8)),
        ("rwkv", tiny_named("rwkv")),
    ):
        logits(model)
        folder = export(model, REPEAT, tmp_path / name)
        with David.slung(model, REPEAT):
            assert torch.equal(logits(read(folder)), logits(own_memory(model)))


def test_a_link_to_an_empty_folder_is_that_folder(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert export(tiny, REPEAT, tmp_path / "link") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/config.json").is_file()


# ---- what is refused


def _quantised(model: Any) -> None:
    model.hf_quantizer = object()


def _integers(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj
    weight.weight = nn.Parameter(weight.weight.data.to(torch.int8), requires_grad=False)


def _cast(model: Any) -> None:
    model.to(torch.bfloat16)


def _mixed(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.to(torch.float64)


def _adapter(model: Any) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))


def _tied_in_words_alone(model: Any) -> None:
    model.config.tie_word_embeddings = True


def _another_epsilon(model: Any) -> None:
    model.model.layers[3].input_layernorm.variance_epsilon = 0.1


def _another_module(model: Any) -> None:
    model.model.layers[3].mlp.act_fn = nn.ReLU()


REFUSED: dict[str, tuple[str, Callable[[Any], None] | None, str]] = {
    "scales": ("0:4, 2:6*0.5", None, "no place for scales: visit 4 has scale 0.5, and 3 more have theirs"),
    "one scale": ("0:4, 2*-1", None, "visit 4 has scale -1. The recipe itself runs"),
    "a layer that is not there": ("0:9", None, "layer 8 is out of range: the base has 6 layers"),
    "quantised": (REPEAT, _quantised, "the weights are quantised (object)"),
    "integers": (REPEAT, _integers, "model.layers.1.mlp.up_proj.weight is not made of plain floating-point numbers"),
    "adapter": (REPEAT, _adapter, "merge it first"),
    "cast, buffers and all": (REPEAT, _cast, "inv_freq would be built with other values than it has here"),
    "two dtypes": (REPEAT, _mixed, "is torch.float64 here and would be read back as torch.float32"),
    "tied in words alone": (REPEAT, _tied_in_words_alone, "would be read back as one tensor, and are two here"),
    "an epsilon of its own": (REPEAT, _another_epsilon, "visit 3 would have input_layernorm.variance_epsilon = 1e-06"),
    "a module of its own": (REPEAT, _another_module, "visit 3 would have mlp.act_fn = SiLUActivation where the recipe"),
}


@pytest.mark.parametrize(("recipe", "change", "says"), [pytest.param(*row, id=name) for name, row in REFUSED.items()])
def test_what_cannot_be_right_is_refused_before_anything_is_written(
    recipe: str, change: Callable[[Any], None] | None, says: str, tiny: Any, tmp_path: Path
) -> None:
    if change is not None:
        change(tiny)
    with pytest.raises((SlingError, RecipeError)) as told:
        export(tiny, recipe, tmp_path / "out")
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert left(tmp_path) == []


def test_a_recipe_for_another_depth_and_a_model_that_is_none_are_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="made for a base of 7 layers"):
        export(tiny, Recipe((0, 1), base=Base(num_layers=7)), tmp_path / "out")
    with pytest.raises(SlingError, match="expected a transformers model"):
        export(nn.Linear(2, 2), REPEAT, tmp_path / "out")  # type: ignore[arg-type]
    assert left(tmp_path) == []


def test_a_configuration_that_reads_back_as_another_type_is_refused(tmp_path: Path) -> None:
    model = tiny_named("mistral")
    model.config.layer_types = ["full_attention"] * 6
    with pytest.raises(SlingError, match="its MistralConfig would be read back as a MinistralConfig"):
        export(model, REPEAT, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize("thing", [None, "demo", 5, nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(thing: Any, tmp_path: Path) -> None:
    with pytest.raises(SlingError, match="expected a transformers model"):
        export(thing, REPEAT, tmp_path / "stacked")


def test_what_is_no_tokenizer_is_refused_before_anything_is_written(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(DavidError, match="expected a tokenizer"):
        export(tiny, REPEAT, tmp_path / "stacked", tokenizer="demo")
    assert left(tmp_path) == []


def test_the_folder_in_which_the_command_runs_is_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", tmp_path, tmp_path.parent, "x" * 300):
        with pytest.raises(SearchError):
            export(tiny, REPEAT, place)


def test_scores_of_other_weights_do_not_go_with_a_checkpoint(tiny: Any, tmp_path: Path) -> None:
    convention, data = Convention(name="window", window=8, bos=False), Data(source="words", sha256="0")
    told = {
        "metric": "perplexity",
        "value": 20.1,
        "base": 20.3,
        "nll_difference": -0.01,
        "tokens": 16,
        "held_out": True,
    }
    scored = Measurement(**told, convention=convention, data=data)
    mine = Recipe.parse(REPEAT)
    for print_, kept in ((fingerprint(tiny), (scored,)), ("sha256:0", ())):
        base = Base(model="org/other", architecture="LlamaForCausalLM", num_layers=6, fingerprint=print_)
        folder = export(tiny, replace(mine, base=base, scores=(scored,)), tmp_path / print_[-4:].replace(":", ""))
        assert Recipe.load(folder / "recipe.json").scores == kept


def test_a_vocabulary_that_was_resized_is_exported(tiny: Any, tmp_path: Path) -> None:
    tiny.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    with David.slung(tiny, REPEAT):
        assert torch.equal(logits(read(export(tiny, REPEAT, tmp_path / "stacked"))), logits(own_memory(tiny)))


@pytest.mark.parametrize("size", ["", "big", "-5GB", 0, "5XB", "GB"])
def test_a_shard_size_that_is_none_is_refused(size: Any, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(DavidError, match="expected a number of bytes, or text such as '5GB'"):
        export(tiny, REPEAT, tmp_path / "out", max_shard_size=size)


def test_a_folder_is_new_or_empty(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("all of it")
    with pytest.raises(SearchError, match="full is not empty"):
        export(tiny, REPEAT, tmp_path / "full")
    with pytest.raises(SearchError, match=r"thesis.txt is a file"):
        export(tiny, REPEAT, tmp_path / "full/thesis.txt")
    assert (tmp_path / "full/thesis.txt").read_text() == "all of it"
    (tmp_path / "empty").mkdir()
    for place in ("empty", "some/where/new"):
        assert (export(tiny, REPEAT, tmp_path / place) / "config.json").is_file()
    assert left(tmp_path) == ["empty", "full", "some"]


def test_too_little_room_is_told_with_numbers(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 12_345)
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _place: free)
    with pytest.raises(SearchError, match=r"out needs 1\.\d MB, and 12\.3 kB are free there"):
        export(tiny, REPEAT, tmp_path / "out")
    assert left(tmp_path) == []


# ---- that the checks are needed: without them a wrong checkpoint is written


@pytest.mark.parametrize("name", ["gpt2-layer-scaling", "diffllama", "minicpm3", "gpt_oss"])
def test_without_the_structural_check_a_wrong_checkpoint_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = tiny_named(name), Recipe.parse(REPEAT)
    if name == "gpt_oss":  # one layer sees less than its configuration says
        model.model.layers[2].self_attn.scaling *= 2
    with pytest.raises(SlingError, match=r"visit \d would have"):
        export(model, recipe, tmp_path / "out")
    monkeypatch.setattr(round_trip_check, "_compare_modules", lambda *_: None)
    export(model, recipe, tmp_path / "out")
    assert not torch.allclose(logits(read(tmp_path / "out")), logits(own_memory(stacked(model, recipe))), atol=1e-3)


def test_without_the_check_of_ties_two_tensors_come_back_as_one(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tied_in_words_alone(tiny)
    before = logits(David.view(tiny, REPEAT))
    monkeypatch.setattr(round_trip_check, "_check_ties", lambda _weights, built: set(built.all_tied_weights_keys))
    export(tiny, REPEAT, tmp_path / "out")
    assert not torch.allclose(logits(read(tmp_path / "out")), before, atol=1e-3)


def test_without_the_check_of_padding_a_row_comes_back_as_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_named("youtu")
    with pytest.raises(SlingError, match="has values for the padding token, 0, which transformers sets to zero"):
        export(model, REPEAT, tmp_path / "out")
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 0
    export(model, REPEAT, tmp_path / "zero")
    assert torch.equal(logits(read(tmp_path / "zero")), logits(own_memory(stacked(model, Recipe.parse(REPEAT)))))
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 1
    monkeypatch.setattr(round_trip_check, "_check_padding", lambda *_: None)
    export(model, REPEAT, tmp_path / "out")
    assert not torch.allclose(
        logits(read(tmp_path / "out")), logits(own_memory(stacked(model, Recipe.parse(REPEAT)))), atol=1e-3
    )


# ---- what is cut off


@pytest.mark.parametrize("error", [RuntimeError("lightning"), KeyboardInterrupt(), OSError(28, "No space left")])
@pytest.mark.parametrize("parent", ["", "new/"])
def test_an_export_that_fails_half_way_leaves_nothing(
    error: BaseException, parent: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote = []
    write = export_module.save_file

    def failing(*args: Any, **options: Any) -> None:
        assert not list(tmp_path.rglob("config.json")), "what makes a folder look whole comes last"
        if len(wrote) == 2:
            raise error
        wrote.append(write(*args, **options))

    monkeypatch.setattr(export_module, "save_file", failing)
    told = SearchError if isinstance(error, OSError) else type(error)
    with pytest.raises(told, match="could not be written: .*No space left" if told is SearchError else None):
        export(tiny, REPEAT, tmp_path / f"{parent}out", max_shard_size=SHARD)
    assert len(wrote) == 2
    assert left(tmp_path) == []
    monkeypatch.undo()
    export(tiny, REPEAT, tmp_path / f"{parent}out", max_shard_size=SHARD)


KILLED = """
import sys, time
from tests.tiny_models import tiny_model
from david.checkpoint import export_stacked as checkpoint
write = checkpoint.save_file
def slow(*args, **options):
    write(*args, **options)
    print("wrote", flush=True)
    time.sleep(0.2)
checkpoint.save_file = slow
checkpoint.export(tiny_model("llama"), "0:4, 2:6", sys.argv[1], max_shard_size=1)
"""


def in_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_that_looks_whole(tiny: Any, tmp_path: Path) -> None:
    with in_python(KILLED, str(tmp_path / "out")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wrote\n"
        assert process.stdout.readline() == "wrote\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".out-")
    assert {path.suffix for path in hidden.iterdir()} == {".safetensors"}
    with pytest.raises(ValueError, match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(hidden)
    export(tiny, REPEAT, tmp_path / "out")  # the same again works, beside what is left
    assert torch.equal(logits(read(tmp_path / "out")), logits(own_memory(stacked(tiny, Recipe.parse(REPEAT)))))


MEASURED = """
import re, sys
from pathlib import Path
from david import export, load_model
def memory(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
model, _ = load_model("demo", device="cpu")
export(model, "0:2", sys.argv[1] + "-first", max_shard_size="50MB")
sum(float(p.sum()) for p in model.parameters())
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = memory("VmRSS")
twice = [layer for layer in range(30) for _ in range(2)]  # the second of each is copied, since it is in the same shard
export(model, twice, sys.argv[1], max_shard_size="50MB")
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="a peak of memory that Linux alone gives")
def test_memory_holds_a_shard_beside_the_base(demo: tuple[Any, Any], tmp_path: Path) -> None:
    with in_python(MEASURED, str(tmp_path / "out")) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert size > 900e6
    assert int(out.splitlines()[-1]) < 50e6 + 25e6


# ---- many types


@pytest.mark.slow
def test_every_third_type_is_exported_exactly_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Counter[str]] = {"identity": Counter(), "repeat": Counter(), "skip": Counter()}
    wrong = []
    names = [name for name in (*TYPES, *VARIANTS) if name not in NOT_BUILT][::3]  # all: experiments/architectures
    for name in names:
        model = own_memory(tiny_named(name))
        for kind, recipe in (("identity", "0:6"), ("repeat", REPEAT), ("skip", SKIP)):
            folder = tmp_path / f"{name}-{kind}"
            try:
                export(model, recipe, folder, max_shard_size=SHARD)
            except SlingError as error:
                wrong += [f"{name}: {error}"] if "\n" in str(error) else []
                found[kind]["refused"] += 1
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                automatic = "AutoModelForCausalLM" in (folder / "README.md").read_text()
                again = read(folder, AutoModelForCausalLM if automatic else type(model))
                with David.slung(model, recipe):
                    equal = torch.equal(logits(again, **tiny_options(name)), logits(model, **tiny_options(name)))
            found[kind]["equal" if equal else "wrong"] += 1
            wrong += [] if equal else [f"{name} {kind}"]
    with capsys.disabled():
        print("\n" + "; ".join(f"{kind}: {dict(counted)}" for kind, counted in found.items()))
    assert not wrong
    assert found["repeat"]["equal"] >= 0.85 * len(names)
    assert found["skip"]["equal"] >= 0.8 * len(names)
