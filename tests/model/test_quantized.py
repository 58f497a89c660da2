"""Quantised weights: loaded as stored or quantised while loading, slung exactly, and told apart by their files."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from david import David, load_model
from david.cli.options import ModelOptions
from david.errors import ModelError, SlingError
from david.models import load_options
from david.models.describe import weight_type
from david.models.fingerprints import fingerprint
from david.models.load_options import QUANTIZATIONS, STORED, LoadOptions, parse_max_memory
from david.sling.verify import check_model
from tests.helpers.compressed import save_compressed
from tests.helpers.word_tokenizer import save_tokenizer
from tests.tiny_models import tiny_model

TOKENS = torch.arange(3, 19)[None]  # [1, T]
RECIPE = "0:4, 2:6"
WAYS = ("4bit", "8bit", "int8")
SCHEMES = ("W4A16", "W8A16", "W8A8", "FP8_DYNAMIC")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("bitsandbytes")  # tells of a cast at each product
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "plain"
    tiny_model("llama").save_pretrained(path)
    return save_tokenizer(path)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def by_hand(model: Any, layers: list[int]) -> Tensor:
    """The logits of a Llama whose layers are called here one by one."""
    inner = model.model
    with torch.no_grad():
        hidden = inner.embed_tokens(TOKENS)
        positions = torch.arange(TOKENS.shape[1])[None]
        rotary = inner.rotary_emb(hidden, position_ids=positions)
        for layer in layers:
            hidden = inner.layers[layer](
                hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary, use_cache=False
            )
        return model.lm_head(inner.norm(hidden))


def store(folder: Path, way: str, target: Path) -> Path:
    model, _ = load_model(folder, device="cpu", quantize=way)
    model.save_pretrained(target)
    return save_tokenizer(target)


# ---- exact


@pytest.mark.parametrize("way", WAYS)
def test_weights_quantised_while_loading_sling_exactly(way: str, folder: Path) -> None:
    model, _ = load_model(folder, device="cpu", quantize=way)
    base, right = logits(model), by_hand(model, [0, 1, 2, 3, 2, 3, 4, 5])
    assert not torch.equal(base, logits(load_model(folder, device="cpu")[0]))  # they are quantised
    assert torch.equal(logits(David.view(model, RECIPE)), logits(David.sling(model, RECIPE)))
    assert torch.allclose(logits(model), right, atol=1e-5)
    assert torch.equal(logits(David.reset(model)), base)
    certificate = check_model(model, recipe=RECIPE)
    assert certificate.passed
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("way", "told"), [("4bit", "bitsandbytes 4bit"), ("8bit", "bitsandbytes 8bit"), ("int8", "torchao")]
)
def test_a_study_knows_how_its_weights_are_quantised(way: str, told: str, folder: Path, tmp_path: Path) -> None:
    for model in (load_model(folder, device="cpu", quantize=way)[0], load_model(store(folder, way, tmp_path / "m"))[0]):
        assert weight_type(David.sling(model, RECIPE)) == f"float32, quantised: {told}"
    assert weight_type(load_model(folder, device="cpu")[0]) == "float32"


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_checkpoint_loads_as_it_is_stored(way: str, folder: Path, tmp_path: Path) -> None:
    stored = store(folder, way, tmp_path / way)
    model, _ = load_model(stored, device="cpu")
    again = AutoModelForCausalLM.from_pretrained(stored, device_map="cpu")
    assert torch.equal(logits(model), logits(again.eval()))
    assert check_model(model).passed


@pytest.mark.parametrize(
    "scheme", [pytest.param(name, marks=[] if name == "W4A16" else [pytest.mark.slow]) for name in SCHEMES]
)
def test_weights_that_unpack_when_they_first_run_are_shared_by_all_visits(scheme: str, tmp_path: Path) -> None:
    stored = save_tokenizer(save_compressed(tiny_model("llama"), scheme, tmp_path / scheme))
    right = AutoModelForCausalLM.from_pretrained(stored, device_map="cpu").eval()
    base = logits(right)
    expected = by_hand(right, [0, 1, 2, 3, 2, 3, 4, 5])
    for model in (load_model(stored, device="cpu")[0], AutoModelForCausalLM.from_pretrained(stored, device_map="cpu")):
        second = David.view(model.eval(), RECIPE)
        assert torch.allclose(logits(second), expected, atol=1e-5)
        assert torch.equal(logits(model), base)
        assert torch.equal(logits(David.sling(model, RECIPE)), logits(second))
        layers = model.model.layers
        assert layers[2].mlp.up_proj.weight is layers[4].mlp.up_proj.weight
        assert torch.equal(logits(David.reset(model)), base)
        assert check_model(model).passed


def test_a_part_of_a_model_that_has_yet_to_unpack_is_refused(tmp_path: Path) -> None:
    stored = save_compressed(tiny_model("llama"), "W4A16", tmp_path / "packed")
    model = AutoModelForCausalLM.from_pretrained(stored, device_map="cpu").eval()
    with pytest.raises(SlingError, match="packed until the model that was loaded first runs"):
        David.sling(model.model, RECIPE)
    logits(model)
    assert David.sling(model.model, RECIPE).config.num_hidden_layers == 8


# ---- fingerprints


@pytest.mark.parametrize("way", WAYS)
def test_a_fingerprint_is_of_the_files_and_stays(way: str, folder: Path, tmp_path: Path) -> None:
    plain = fingerprint(load_model(folder, device="cpu")[0])
    model, _ = load_model(folder, device="cpu", quantize=way)
    assert fingerprint(model) == plain  # made of the same weights
    stored = store(folder, way, tmp_path / way)
    first, _ = load_model(stored, device="cpu")
    before = fingerprint(first)
    logits(first)
    assert fingerprint(David.sling(first, RECIPE)) == before != plain
    later, _ = load_model(stored, device="cpu")
    logits(later)
    assert fingerprint(later) == before
    own = AutoModelForCausalLM.from_pretrained(stored, device_map="cpu")
    assert fingerprint(own) == before


def test_a_change_of_one_stored_tensor_changes_the_fingerprint(tmp_path: Path) -> None:
    found = set()
    for name in ("one", "two"):
        model = tiny_model("llama")
        if name == "two":
            with torch.no_grad():
                model.model.layers[3].mlp.up_proj.weight.mul_(-1)
        save_tokenizer(save_compressed(model, "W8A16", tmp_path / name))
        found.add(fingerprint(load_model(tmp_path / name, device="cpu")[0]))
    assert len(found) == 2


def test_without_files_a_quantised_model_counts_by_names_and_shapes() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def make(**settings: Any) -> Any:
        model = tiny_model("llama", **settings)
        quantize_(model, Int8WeightOnlyConfig())
        return model

    model = make()
    before = fingerprint(model)
    logits(model)
    assert fingerprint(model) == fingerprint(make()) == before != fingerprint(make(num_hidden_layers=5))


# ---- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "3bit"}, "unknown quantisation '3bit': expected one of 4bit, 8bit, int8"),
        ({"device_map": "everywhere"}, "unknown device map 'everywhere': expected one of auto"),
        ({"device_map": "auto", "device": "cpu"}, "give --device or --device-map, not both"),
        ({"max_memory": "0=1GB"}, "--max-memory (max_memory=) goes with a device map"),
        ({"offload_folder": "there"}, "--offload-folder (offload_folder=) goes with a device map"),
        ({"device_map": "auto", "max_memory": "lots"}, "expected text such as '0=20GB,cpu=60GB'"),
        ({"device_map": "auto", "max_memory": "tpu=1GB"}, "max memory is of devices 0, 1, …, cpu or mps; got 'tpu'"),
        ({"device_map": "auto", "max_memory": "0=1 barrel"}, "cannot read the max memory of device 0"),
        ({"further": {"torch_dtype": "float16"}}, "torch_dtype= is no argument of load_model: give dtype="),
        ({"further": {"trust_remote_code": True}}, "code that comes with a model is never run"),
        ({"quantize": "4bit", "further": {"quantization_config": {}}}, "give quantize= or quantization_config="),
    ],
)
def test_wrong_options_are_told_before_anything_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        LoadOptions(**options).check()
    assert said in str(caught.value)


def test_the_help_names_every_way_to_quantise() -> None:
    option = get_type_hints(ModelOptions, include_extras=True)["quantize"].__metadata__[0]
    assert all(name in option.help for name in (*QUANTIZATIONS, STORED))


def test_a_package_that_is_missing_is_named_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_options, "find_spec", lambda _name: None)
    monkeypatch.setattr("david.models.load.read_config", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(ModelError, match="--quantize 4bit needs the package bitsandbytes: run pip install"):
        load_model(folder, quantize="4bit")


def test_what_is_quantised_already_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    stored = store(folder, "8bit", tmp_path / "m")
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes 8bit\): leave --quantize"):
        load_model(stored, device="cpu", quantize="4bit")


def test_memory_of_devices_is_read_from_text_and_dictionary() -> None:
    assert parse_max_memory("0=20GB,cpu=1.5GiB") == {0: 20 * 10**9, "cpu": 3 * 2**29}
    assert parse_max_memory({"1": 5, "cpu": "1KB"}) == {1: 5, "cpu": 1000}


# ---- spread over devices


def test_layers_that_do_not_fit_stay_on_disk_and_sling_exactly(folder: Path) -> None:
    plain, _ = load_model(folder, device="cpu")
    size = sum(weight.nbytes for weight in plain.parameters())
    model, _ = load_model(folder, device_map="auto", max_memory={"cpu": size // 2})
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    base = logits(plain)
    assert torch.equal(logits(model), base)
    assert torch.equal(logits(David.sling(model, RECIPE)), logits(David.sling(plain, RECIPE)))
    assert torch.equal(logits(David.reset(model)), base)


def test_arguments_of_transformers_pass_through(folder: Path) -> None:
    model, _ = load_model(folder, device="cpu", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
