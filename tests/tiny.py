"""Tiny random models, built from configurations, with weights large enough that layers matter."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY = 97
_COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
_COMMON |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny_model(model_type: str, **settings: Any) -> Any:
    """A model of a type of transformers' mapping; `settings` go to its configuration over the common ones."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**(_COMMON | settings))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model.eval()
