"""Every type that reads images or sounds beside text, from a folder, slung on text against a deep copy really stacked.

    python experiments/architectures/multimodal.py [--jobs 2] [--out FOLDER] [NAME ...]

A tiny random model of each type that `AutoModelForMultimodalLM` maps and `AutoModelForCausalLM` does not is saved,
loaded by `load_model`, and judged as `sweep.py` judges a row. With --out the table as multimodal.csv.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import sweep
import torch
import transformers
from transformers import AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from david import load_model
from david.errors import ModelError
from david.sling import architectures
from tests.helpers.word_tokenizer import save_tokenizer
from tests.tiny_models import tiny_config

TYPES = [name for name in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}  # half of a head of eight
MROPE = {"text_config": {"rope_parameters": _ROPE}}
HALF_ROPE = {"text_config": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 0, 1]}}}
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen2_5_omni_thinker"), MROPE),
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "glmga"), MROPE),
    "glm4v_moe": HALF_ROPE,
}


def run(name: str) -> sweep.Row:
    """One row of the table."""
    torch.manual_seed(0)
    try:
        config = tiny_config(name, **SETTINGS.get(name, {}))
        built = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32).eval()
        if (size := sum(parameter.numel() for parameter in built.parameters())) > 3e7:
            return sweep.Row(name, "not built", f"its smallest model has {size:,} weights")
    except Exception as error:  # of any configuration
        return sweep.Row(name, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        built.save_pretrained(folder)
        save_tokenizer(Path(folder))
        try:
            model, _ = load_model(folder, device="cpu")
        except ModelError as error:
            return sweep.Row(name, "not loaded", str(error).removeprefix(folder)[:200])
        if not torch.equal(built(input_ids=sweep.TEXT).logits, model(input_ids=sweep.TEXT).logits):
            return sweep.Row(name, "WRONG", "loaded, it is another model")
        setattr(model, architectures.PROVED_HERE, True)
        row = sweep.Row(name, "exact", text_type=model.config.get_text_config(decoder=True).model_type)
        modes = sweep.modes_of("llama")
        return sweep.judge(row, model, modes, {mode: sweep.reading(model, read) for mode, read in modes.items()})


def attempt(name: str) -> sweep.Row:
    """`run`, with what stops it in the row."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(name)
    except Exception as error:
        return sweep.Row(name, "WRONG", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="types; left out, all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for multimodal.csv")
    options = parser.parse_args()
    rows = []
    for row in sweep.swept(options.names or TYPES, options.jobs, attempt):
        rows.append(row)
        print(f"{row.name:<26} {row.verdict:<10} {row.difference:.0e}  {row.reason[:160]}", flush=True)
    counts = Counter(row.verdict for row in rows)
    print(f"\n{len(rows)} types: {', '.join(f'{verdict} {count}' for verdict, count in sorted(counts.items()))}")
    if options.out:
        sweep.write_rows(options.out / "multimodal.csv", rows)
    sys.exit(any(row.verdict == "WRONG" for row in rows))


if __name__ == "__main__":
    main()
