"""What the scripts of this folder print: where it was measured, and tables that are written to a file as well."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch


def setting() -> str:
    """Machine and versions, as the last line of a table's file."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("torch", "transformers"))
    return f"{processor}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}."


def table(rows: list[dict[str, str]]) -> str:
    """Rows as Markdown; the columns are those of the first."""
    lines = [list(rows[0]), ["---:"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(text: str, out: Path | None, name: str) -> None:
    """Print a text, and keep it in a folder."""
    whole = f"{text.strip()}\n\n{setting()}\n"
    print(whole, end="")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(whole, encoding="utf-8")
