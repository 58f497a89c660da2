"""Each notebook is what its script says, and runs from top to bottom."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in HOME.glob("[0-9]_*.py"))
sys.path.append(str(HOME))


@pytest.fixture
def build() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, on import
        import build
    return build


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(HOME / f"{name}.ipynb", as_version=4)


def test_there_are_five_notebooks_each_with_its_script() -> None:
    assert len(NAMES) == 5
    assert sorted(path.stem for path in HOME.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_what_its_script_says_and_shows_what_it_has_run(name: str, build: Any) -> None:
    notebook, script = read(name), build.made(HOME / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code)
    assert (HOME / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(
    name: str, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the tests' own, which shows nothing in a notebook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, at the kernel's start
        ran = build.run(build.made(HOME / f"{name}.py"), tmp_path)
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    for cell in code:
        if re.search(r"\bplot\w*[.(]", cell.source):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    said = [output for cell in code for output in cell.outputs]
    assert not any("Warning" in output.get("text", "") for output in said if output.get("name") == "stderr")
