"""What a GGUF file takes in memory and in time: dequantised, and kept in the blocks in which it is stored.

Each way of holding runs in a process of its own. Files are random Llamas that the script writes, and those that are
named.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS = 128  # of the forward pass
WAYS = ("dequantised", "in blocks")
MEGABYTE = 1_000_000


def write_random(path: Path, kind_name: str, layers: int, width: int, vocabulary: int) -> None:
    """Write a Llama whose layers all have the same random blocks: what is measured does not depend on values."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[kind_name]
    writer, generator = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    inner = width * 11 // 4 // 256 * 256
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(width // 64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"a{token}" for token in range(vocabulary - 3))])
    writer.add_token_merges(["a b"])

    def blocks(rows: int, columns: int) -> Any:
        return gguf.quantize(generator.standard_normal((rows, columns), np.float32) * columns**-0.5, kind)

    square, up, down = blocks(width, width), blocks(inner, width), blocks(width, inner)
    norm = np.ones(width, np.float32)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", blocks(vocabulary, width), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", norm)
    parts = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    parts |= {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
    for layer in range(layers):
        for name, content in parts.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", content, raw_dtype=kind)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(path: str, way: str, logits_path: str) -> None:
    """Load a file in one way, run it once, and print what it took: seconds of processor, and bytes of memory."""
    import psutil
    import torch

    from david import load_model
    from david.gguf import weights  # imported before the first measurement

    assert weights
    process = psutil.Process()

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, started = process.memory_info().rss, time.process_time()
    model, _ = load_model(path, device="cpu", quantize="stored" if way == "in blocks" else None)
    loaded, resident, loading_peak = time.process_time(), process.memory_info().rss, peak()
    torch.manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, TOKENS))
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    ran = time.process_time()
    torch.save(logits, logits_path)
    print(loaded - started, ran - loaded, resident - before, loading_peak - before, peak() - before)


def rows(path: Path, name: str) -> list[str]:
    """The rows of the table for a file."""
    import torch

    size, lines, kept = path.stat().st_size, [], []
    with tempfile.TemporaryDirectory() as scratch:
        for way in WAYS:
            kept.append(f"{scratch}/{len(kept)}")
            command = [sys.executable, __file__, "--measure", str(path), way, kept[-1]]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            load, run, resident, loading, whole = map(float, printed.split())
            shares = " | ".join(f"{value / size:.2f}" for value in (resident, loading, whole))
            lines.append(f"| {name}, {size / MEGABYTE:.0f} MB | {way} | {shares} | {load:.1f} | {run:.1f} |")
        first, second = (torch.load(file) for file in kept)
    lines[-1] += f" {(first - second).abs().max().item():g} |"
    lines[0] += " |"
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs="*", default=[], help="GGUF files to measure besides the random ones")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--out", help="file for the table")
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    table = [
        "| file | held | after loading / file | peak of loading / file | peak with a pass / file "
        "| s to load | s of a pass | largest difference of logits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for file in args.files:
            table += rows(Path(file), Path(file).stem)
        for kind in ("Q4_0", "Q8_0"):
            path = Path(scratch, f"{kind}.gguf")
            write_random(path, kind, args.layers, args.width, args.vocabulary)
            table += rows(path, f"random Llama, {kind}")
            path.unlink()
    print("\n".join(table))
    if args.out:
        Path(args.out).write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
