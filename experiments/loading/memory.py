"""Peak resident memory of loading the demo model and reading a few tokens, over its weights on disk.

    python experiments/loading/memory.py [--before FOLDER] [--out FOLDER]

Each way runs in a process of its own; what the process holds before it loads is taken off. `--before` is another
checkout of David, measured in turn on the ways that it has. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository

MEASURED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
from david import load_model

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

start = peak()
model, _ = load_model({source!r}, {options})
loaded = peak()
with torch.no_grad():
    model(torch.arange(3, 35)[None])
print("peaks", loaded - start, peak() - start)
"""


def weight_bytes(folder: Path) -> int:
    files = folder.glob("*.safetensors") if folder.is_dir() else [folder]
    return sum(path.stat().st_size for path in files)


def measure(checkout: Path, source: Path, options: str) -> tuple[int, int] | str:
    """The peaks after loading and after reading, in bytes over those before; or the error."""
    code = MEASURED.format(source=str(source), options=options)
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("peaks")), "")
    if not line:
        return (done.stderr.strip().splitlines() or ["no word"])[-1][:80]
    _, loaded, read = line.split()
    return int(loaded), int(read)


def folders(place: Path) -> dict[str, tuple[Path, str]]:
    """By name, the folder to load and the options."""
    import logging

    import torch
    import transformers

    from david import load_model

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    model, tokenizer = load_model("demo", device="cpu")

    def save(name: str, of: object, **options: object) -> Path:
        of.save_pretrained(place / name, **options)  # type: ignore[attr-defined]
        tokenizer.save_pretrained(place / name)
        return place / name

    whole = save("float32", model)
    size = weight_bytes(whole)
    plain = {
        "float32": (whole, 'device="cpu"'),
        "float32, 20 shards": (save("shards", model, max_shard_size=f"{size // 20 // 1000}KB"), 'device="cpu"'),
        "half of it on disk": (whole, f'device_map="auto", max_memory={{"cpu": {size // 2}}}'),
    }
    quantized = {
        f"{way}, stored": (save(way, load_model("demo", device="cpu", quantize=way)[0]), 'device="cpu"')
        for way in ("4bit", "8bit", "int8")
    }
    half = save("bfloat16", model.to(torch.bfloat16))
    return plain | {"bfloat16": (half, 'device="cpu"')} | quantized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of David")
    parser.add_argument("--out", type=Path, help="a folder for memory.md")
    given = parser.parse_args()
    here = Path(__file__).parents[2]
    checkouts = {"now": here} | ({} if given.before is None else {"before": given.before})
    heads = [f"{name}: {what}" for name in checkouts for what in ("loaded", "after a read")]
    rows = [f"| way | on disk, MB | {' | '.join(heads)} |", f"|---|{'---|' * (1 + len(heads))}"]
    with tempfile.TemporaryDirectory() as scratch:
        for name, (source, options) in folders(Path(scratch)).items():
            size = weight_bytes(source)
            cells = []
            for checkout in checkouts.values():
                found = measure(checkout, source, options)
                if isinstance(found, str):
                    cells += [found, ""]
                else:
                    cells += [f"{part / 1e6:.0f} MB, {part / size:.2f}" for part in found]
            rows.append(f"| {name} | {size / 1e6:.0f} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    if given.out:
        (given.out / "memory.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
