"""A tiny random model in the demo model's place: as deep, read by the same name, in milliseconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny_model

DEMO_LAYERS = 30
_CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


def furnish_cache(folder: Path, *, layers: int = DEMO_LAYERS) -> Path:
    """Fill a folder for `DAVID_CACHE`: the model has bytes for tokens, and reads every text."""
    settings = {"vocab_size": 259, "num_hidden_layers": layers, "max_position_embeddings": 2048}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<|pad|>": 0, "<|begin|>": 1, "<|end|>": 2} | {letter: i for i, letter in enumerate(letters, 3)}
    inner = Tokenizer(models.BPE(words, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>", chat_template=_CHAT
    )
    whole = folder / "demo-smollm2-135m"
    torch.manual_seed(0)
    tiny_model("llama", **settings).save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    return folder
