"""Read models from GGUF files: keys become a configuration of transformers, tensors its weights."""
