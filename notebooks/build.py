"""Run the scripts beside this file, and keep what they show as notebooks.

python notebooks/build.py [1_first_sling …]
"""

import argparse
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def made(script: Path) -> nbformat.NotebookNode:
    """The notebook that a script says, not yet run."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same at each run, so that a new one shows only what has changed
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a folder."""
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def kept(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars and the time of day, which differ at each run."""
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" and not is_bar(output)]
    return notebook


def is_bar(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a widget's: it is nothing without its kernel."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[path.stem for path in sorted(HERE.glob("[0-9]_*.py"))])
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = kept(run(made(HERE / f"{name}.py"), Path(folder)))
        nbformat.write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}: {(HERE / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
