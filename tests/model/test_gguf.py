"""GGUF files: the model that they were written of, bit for bit, or refused with the name of the key or tensor."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

from david import David, load_model
from david.checkpoint import export
from david.errors import ModelError, SlingError
from david.gguf import blocks
from david.gguf.architectures import ARCHITECTURES as READ
from david.gguf.blocks import unpack
from david.models.describe import token_costs
from david.models.fingerprints import fingerprint
from david.sling.verify import check_model
from tests.helpers.gguf_files import ARCHITECTURES, quantized_as_stored, write_gguf
from tests.tiny_models import tiny_model

TOKENS = torch.arange(3, 90)[None]
_WHOLE = {"layer_types": None, "use_sliding_window": False}
_EXPERTS = _WHOLE | {"decoder_sparse_step": 1, "mlp_only_layers": []}
# What llama.cpp's code has without a key, where the tiny models are irregular.
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma2": {"layer_types": None},
    "gemma3": {"layer_types": None},
    "gpt-oss": {"layer_types": None, "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0}},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "qwen2": _WHOLE,
    "qwen2moe": _EXPERTS,
    "qwen3": _WHOLE,
    "qwen35": {"layer_types": None},
    "qwen35moe": {"layer_types": None},
    "qwen3moe": _EXPERTS | {"norm_topk_prob": True},
    "starcoder2": {"sliding_window": None},
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
LINEAR_ROTATION = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
YARN_ROTATION = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
LOCAL = {"rope_type": "default", "rope_theta": 20_000.0}
# Architecture, settings of the model, and the keys that say them besides those of every file.
SAID: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {"rope_parameters": LINEAR_ROTATION}, LINEAR) for name in ("llama", "qwen2", "qwen3", "starcoder2")),
    ("llama", {"rope_parameters": LINEAR_ROTATION}, {"rope.scale_linear": 4.0}),
    *((name, {"rope_parameters": YARN_ROTATION}, YARN) for name in ("llama", "qwen2", "qwen3", "qwen3moe")),
    ("gpt-oss", {"rope_parameters": YARN_ROTATION | {"truncate": False}}, YARN),
    ("llama", {"rope_parameters": YARN_ROTATION | {"beta_fast": 8.0, "beta_slow": 2.0}},
     YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}),
    ("llama", {"rope_parameters": YARN_ROTATION | {"attention_factor": 0.5 * (0.1 * math.log(4) + 1)}},
     YARN | {"rope.scaling.attn_factor": 0.5}),
    ("gemma3", {"rope_parameters": {"full_attention": LINEAR_ROTATION, "sliding_attention": LOCAL}},
     LINEAR | {"rope.freq_base_swa": 20_000.0}),
    ("gemma3", {"layer_types": ["sliding_attention", "full_attention"] * 3}, {"attention.sliding_window_pattern": 2}),
    ("gemma3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 4},
     {"attention.sliding_window_pattern": [False] * 2 + [True] * 4}),
    ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    *((name, {"attention_bias": True}, {}) for name in ("gemma2", "gemma3", "nemotron", "qwen3", "qwen3moe")),
    *((name, {"head_dim": 16}, {"attention.key_length": 16, "attention.value_length": 16})
      for name in ("llama", "qwen2", "qwen3", "phi3", "starcoder2")),
    ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16}, {}),
    ("falcon", {"bias": True}, {}),
    ("lfm2", {"conv_bias": True}, {}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}, {}),
    ("phi3", {"sliding_window": None}, {"attention.sliding_window": 0}),
    ("qwen3moe", {"norm_topk_prob": False}, {"expert_weights_norm": False}),
    ("qwen35", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
                                    "mrope_section": [2, 1, 1], "mrope_interleaved": True}},
     {"rope.dimension_sections": [2, 1, 1, 0]}),
    ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True}, {"use_parallel_residual": True}),
    ("starcoder2", {"use_bias": False}, {}),
]  # fmt: skip
# Architecture, keys and tensors of a file, and the name that its refusal says.
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("llama", {"attention.sliding_window": 6}, {}, "llama.attention.sliding_window"),
    ("qwen2", {"attention.sliding_window": 6}, {}, "qwen2.attention.sliding_window"),
    ("llama", {"attention.value_length": 4}, {}, "llama.attention.value_length"),
    ("llama", {"attention.scale": 0.5}, {}, "llama.attention.scale"),
    ("llama", {"block_count": 5}, {}, "more layers than llama.block_count says (5), such as blk.5."),
    ("llama", {"block_count": 7}, {}, "lacks the tensor blk.6."),
    ("llama", {"block_count": None}, {}, "llama.block_count is missing"),
    ("llama", {"expert_count": 8}, {}, "llama.expert_count"),
    ("llama", {"feed_forward_length": [48] * 5 + [64]}, {}, "llama.feed_forward_length"),
    ("llama", {"no_such_key": 1}, {}, "llama.no_such_key"),
    ("llama", {"logit_scale": 2.0}, {}, "llama.logit_scale"),
    ("llama", {"rope.dimension_count": 4}, {}, "llama.rope.dimension_count"),
    ("llama", {"rope.scaling.type": "longrope"}, {}, "llama.rope.scaling.type"),
    ("llama", YARN | {"rope.scaling.yarn_ext_factor": 0.5}, {}, "llama.rope.scaling.yarn_ext_factor"),
    ("llama", {"vocab_size": 98}, {}, "llama.vocab_size"),
    ("llama", {}, {"rope_freqs.weight": np.array([1, 2, 1, 2], np.float32)}, "rope_freqs.weight"),
    ("llama", {}, {"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_long.weight"),
    ("llama", {}, {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, "blk.0.attn_q_norm.weight"),
    ("llama", {}, {"blk.1.ffn_up.weight": None}, "lacks the tensor blk.1.ffn_up.weight"),
    ("llama", {}, {"blk.1.ffn_up.weight": np.ones((40, 32), np.float32)}, "blk.1.ffn_up.weight has the shape [40, 32]"),
    ("falcon", {"attention.head_count_kv": 2}, {}, "falcon.attention.head_count_kv"),
    ("gpt2", {"rope.freq_base": 1e4}, {}, "gpt2.rope.freq_base"),
    ("phi3", LINEAR, {}, "phi3.rope.scaling.type"),
    ("qwen2", {}, {"blk.0.attn_output.bias": np.ones(32, np.float32)}, "blk.0.attn_output.bias"),
    ("stablelm", {"attention.key_length": 16}, {}, "stablelm.attention.key_length"),
]


def model_of(architecture: str, **settings: Any) -> Any:
    """A tiny model as a file can say it, whose norms are stored without rounding, as they are or one larger."""
    model = tiny_model(ARCHITECTURES[architecture][0], **SETTINGS.get(architecture, {}) | settings)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = (parameter.data * 1024).round() / 1024
        elif name.endswith("bias"):  # zero after the start
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def assert_same(path: Path, model: Any) -> None:
    loaded, _ = load_model(path, device="cpu")
    for name, weight in model.state_dict().items():
        if not name.endswith("A_log"):  # Mamba's is stored as its exponential
            assert torch.equal(loaded.state_dict()[name], weight), name
    with torch.no_grad():
        model.load_state_dict(loaded.state_dict())
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def cases(rows: list[Any]) -> list[Any]:
    """Rows that begin with an architecture; those of three by default, the others among the long tests."""
    quick = ("gemma3", "gpt2", "llama")
    return [pytest.param(*row, marks=[] if row[0] in quick else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize("architecture", cases([(name,) for name in sorted(ARCHITECTURES)]))
def test_a_file_of_each_architecture_is_the_model_that_it_was_written_of(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    assert_same(write_gguf(model, tmp_path / "x.gguf", architecture), model)


@pytest.mark.parametrize(
    ("architecture", "settings", "keys"), cases(SAID), ids=[f"{name}-{list(one)}" for name, one, _ in SAID]
)
def test_what_the_keys_and_tensors_say_is_computed(
    architecture: str, settings: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(architecture, **settings)
    assert_same(write_gguf(model, tmp_path / "x.gguf", architecture, keys=keys), model)


@pytest.mark.parametrize(
    ("architecture", "keys", "tensors", "said"), cases(REFUSED), ids=[said for *_, said in REFUSED]
)
def test_what_transformers_cannot_compute_is_refused_by_its_name(
    architecture: str, keys: dict[str, Any], tensors: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write_gguf(model_of(architecture), tmp_path / "x.gguf", architecture, keys=keys, tensors=tensors)
    with pytest.raises(ModelError) as caught:
        load_model(path, device="cpu")
    assert said in str(caught.value)


def test_each_architecture_that_transformers_reads_is_read_or_refused_on_purpose() -> None:
    """If this fails, transformers reads more architectures, or keeps its table elsewhere: look what has changed."""
    theirs = {*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"}
    ours = {*READ, *(architecture.model_type for architecture in READ.values())}
    assert theirs - ours == {"deci", "gemma4", "mistral", "t5", "umt5"}
    assert READ.keys() == ARCHITECTURES.keys()


def test_layers_that_predict_tokens_ahead_are_left_out(tmp_path: Path) -> None:
    model = model_of("qwen35")
    keys = {"block_count": 7, "nextn_predict_layers": 1}
    ahead = {"blk.6.nextn.eh_proj.weight": np.ones((32, 64), np.float32)}
    assert_same(write_gguf(model, tmp_path / "x.gguf", "qwen35", keys=keys, tensors=ahead), model)


def test_an_architecture_that_is_not_read_is_refused_by_its_name(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(write_gguf(tiny, path).read_bytes().replace(b"llama", b"maram"))
    with pytest.raises(ModelError, match=r"its architecture 'maram' is not read from GGUF: expected one of bloom, "):
        load_model(path)


def test_a_part_of_a_split_file_is_refused(tiny: Any, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "x.gguf", whole_keys={"split.count": 2})
    with pytest.raises(ModelError, match=r"split\.count"):
        load_model(path)


# ---- rotations that tensors say


@pytest.mark.parametrize(("theta", "factor"), [(500_000.0, 8.0), (500_000.0, 32.0), (10_000.0, 8.0)])
def test_the_frequencies_of_llama_3_are_divided(theta: float, factor: float, tmp_path: Path) -> None:
    rotation = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rotation |= {"original_max_position_embeddings": 8192, "rope_theta": theta}
    model = model_of("llama", head_dim=32, max_position_embeddings=131_072, rope_parameters=rotation)
    divisors = []
    for i in range(0, 32, 2):  # as convert_hf_to_gguf.py writes them
        wave = 2 * math.pi * theta ** (i / 32)
        smooth = (8192 / wave - 1) / (4 - 1)
        divisors.append(1.0 if wave < 2048 else factor if wave > 8192 else 1 / ((1 - smooth) / factor + smooth))
    freqs = {"rope_freqs.weight": np.array(divisors, np.float32)}
    path = write_gguf(model, tmp_path / "x.gguf", keys={"attention.key_length": 32}, tensors=freqs)
    assert_same(path, model)


def test_the_factors_of_phi_3_are_used(tmp_path: Path) -> None:
    long, short = [1.5, 2.0, 3.0, 4.5], [1.0, 1.25, 1.5, 2.0]
    rotation = {"rope_type": "longrope", "long_factor": long, "short_factor": short, "rope_theta": 10_000.0}
    rotation |= {"attention_factor": 1.25, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0}
    model = model_of("phi3", rope_parameters=rotation, original_max_position_embeddings=64)
    keys = {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 64}
    tensors = {"rope_factors_long.weight": np.array(long, np.float32)}
    tensors["rope_factors_short.weight"] = np.array(short, np.float32)
    assert_same(write_gguf(model, tmp_path / "x.gguf", "phi3", keys=keys, tensors=tensors), model)


# ---- biases that are not all there, types of weights


def test_a_bias_that_the_file_leaves_out_is_zero(tmp_path: Path) -> None:
    model = model_of("llama", attention_bias=True)
    left_out = {}
    for layer, block in enumerate(model.model.layers):
        torch.nn.init.zeros_(block.self_attn.o_proj.bias)
        left_out[f"blk.{layer}.attn_output.bias"] = None
    assert_same(write_gguf(model, tmp_path / "x.gguf", tensors=left_out), model)


KINDS = [gguf.GGMLQuantizationType[name] for name in ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")]
KINDS += [gguf.GGMLQuantizationType[name] for name in ("TQ1_0", "TQ2_0")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_of_each_type_are_those_that_the_package_gguf_dequantises(kind: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64} if kind.name.startswith("TQ") else {}
    model = model_of("llama", num_hidden_layers=2, **sizes)
    path = write_gguf(model, tmp_path / "x.gguf", kind=kind)
    with torch.no_grad():
        quantized_as_stored(model, "llama", kind)
    assert_same(path, model)


# ---- blocks that are kept


def stored(path: Path, **options: Any) -> Any:
    return load_model(path, quantize="stored", **{"device": "cpu"} | options)[0]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


UNKEPT = ("llama", "mamba", "qwen35", "qwen35moe")
BLOCKS = [("llama", kind) for kind in KINDS if not kind.name.startswith("TQ")]
BLOCKS += [(name, gguf.GGMLQuantizationType.Q4_1) for name in sorted(ARCHITECTURES) if name not in UNKEPT]


@pytest.mark.parametrize(("architecture", "kind"), cases(BLOCKS), ids=lambda value: getattr(value, "name", value))
def test_blocks_that_are_kept_compute_what_dequantised_ones_do(architecture: str, kind: Any, tmp_path: Path) -> None:
    path = write_gguf(model_of(architecture), tmp_path / "x.gguf", architecture, kind=kind)
    plain, _ = load_model(path, device="cpu")
    kept = stored(path)
    assert torch.equal(logits(kept), logits(plain))
    assert fingerprint(kept) == fingerprint(plain)
    assert token_costs(kept) == token_costs(plain)
    assert type(kept) is type(plain)
    assert kept.config.to_dict() == plain.config.to_dict()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks transformers
def test_models_in_blocks_are_slung_checked_and_adapted(tmp_path: Path) -> None:
    path = write_gguf(model_of("llama"), tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
    plain, _ = load_model(path, device="cpu")
    kept = stored(path)
    weights = sum(parameter.nbytes for parameter in kept.parameters())
    assert weights < path.stat().st_size
    expected = logits(David.sling(plain, "0:4, 2:6"))
    assert torch.equal(logits(David.view(kept, "0:4, 2:6")), expected)
    assert torch.equal(logits(David.sling(kept, "0:4, 2:6")), expected)
    assert sum(parameter.nbytes for parameter in kept.parameters()) == weights
    assert fingerprint(kept) == fingerprint(plain)
    assert check_model(David.reset(kept), recipe="0:4, 2:6").passed
    tuned = peft.get_peft_model(kept, peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
    assert torch.equal(logits(tuned), logits(David.reset(plain)))
    tuned(TOKENS, labels=TOKENS).loss.backward()
    assert all(weight.grad is not None for name, weight in tuned.named_parameters() if "lora" in name)


def test_blocks_that_are_kept_are_computed_with_in_bfloat16(tmp_path: Path) -> None:
    path = write_gguf(model_of("llama"), tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    plain, _ = load_model(path, device="cpu", dtype="bfloat16")
    kept = stored(path, dtype="bfloat16")
    assert kept.dtype == torch.bfloat16
    assert torch.equal(logits(kept), logits(plain))


def test_a_large_matrix_is_unpacked_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(model_of("llama", attention_bias=True), tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    kept, sizes = stored(path), []

    def counted(content: Any, *further: Any) -> Any:
        sizes.append(content.shape[0] * 32)
        return unpack(content, *further)

    right = logits(kept)
    monkeypatch.setattr(blocks, "_PART", 512)
    monkeypatch.setattr(blocks, "unpack", counted)
    assert torch.allclose(logits(kept), right, atol=1e-5)
    assert max(size for size in sizes if size != TOKENS.numel() * 32) <= 512


def test_a_stacked_export_of_blocks_is_refused(tmp_path: Path) -> None:
    kept = stored(write_gguf(model_of("llama"), tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q8_0))
    with pytest.raises(SlingError, match="quantised"):
        export(kept, "0:4, 2:6", tmp_path / "out")


def test_a_model_that_reads_its_weights_itself_is_not_kept_in_blocks(tmp_path: Path) -> None:
    path = write_gguf(model_of("mamba"), tmp_path / "x.gguf", "mamba", kind=gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(ModelError, match="leave --quantize stored out"):
        stored(path)


def test_a_note_says_which_weights_are_not_kept_in_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(model_of("qwen3moe"), tmp_path / "x.gguf", "qwen3moe", kind=gguf.GGMLQuantizationType.Q4_1)
    capsys.readouterr()
    stored(path)
    said = capsys.readouterr().err
    assert "of the weights are dequantised, such as model.layers.0.mlp.experts.gate_up_proj" in said


def test_a_device_map_spreads_dequantised_weights_and_blocks(tmp_path: Path) -> None:
    path = write_gguf(model_of("llama"), tmp_path / "x.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    right = logits(load_model(path, device="cpu")[0])
    places: dict[str, Any] = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    places |= {f"model.layers.{layer}": "cpu" for layer in range(6)}
    assert torch.equal(logits(stored(path, device=None, device_map=places)), right)
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    folder = {"device_map": places, "offload_folder": tmp_path / "disk"}
    assert torch.equal(logits(load_model(path, **folder)[0]), right)
    with pytest.raises(ModelError, match="blocks cannot lie on disk"):
        load_model(path, quantize="stored", **folder)


def test_settings_go_over_those_of_the_file(tmp_path: Path) -> None:
    path = write_gguf(model_of("llama"), tmp_path / "x.gguf")
    model, _ = load_model(path, device="cpu", rms_norm_eps=0.5, attn_implementation="eager")
    assert (model.config.rms_norm_eps, model.model.norm.variance_epsilon) == (0.5, 0.5)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match=r"more layers than llama.block_count says \(4\)"):
        load_model(path, num_hidden_layers=4)


def test_only_gguf_files_are_held_as_stored(tiny: Any, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="--quantize stored is for GGUF files"):
        load_model(tmp_path, quantize="stored")


def test_transformers_unpacks_in_torch_what_the_package_gguf_dequantises() -> None:
    """If this fails, what `david.gguf.blocks` imports of transformers has changed; gguf unpacks then, more slowly."""
    assert {"Q4_K", "Q6_K", "Q8_0"} <= {gguf.GGMLQuantizationType(kind).name for kind in blocks._IN_TORCH}
    generator = np.random.default_rng(0)
    for kind in map(gguf.GGMLQuantizationType, blocks._IN_TORCH):
        _, width = gguf.GGML_QUANT_SIZES[kind]
        content = generator.integers(0, 256, (64, 4 * width), dtype=np.uint8)
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(content, kind)
        unpacked = unpack(torch.from_numpy(content), kind, torch.float32).numpy()
        assert np.array_equal(unpacked, expected, equal_nan=True), kind
