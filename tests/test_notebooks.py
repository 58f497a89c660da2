"""Each notebook runs from top to bottom."""

import warnings
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, on import and at the kernel's start
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(path, as_version=4)
        stored = [cell.get("outputs") for cell in notebook.cells]
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    assert any(stored), "a notebook is committed with its outputs"


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
