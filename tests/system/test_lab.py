"""A real JupyterLab in a headless browser: what David shows in a cell, and the slider moved by keys."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

HOME = Path(__file__).parents[2] / "experiments" / "jupyter"
THEMES = ("dark", "light")
PICTURES = [f"{what}_{theme}.png" for what in ("bars", "plots", "recipes", "slider", "study") for theme in THEMES]
NOTEBOOKS = sorted((HOME.parents[1] / "notebooks").glob("*.ipynb"))

MISSING = [name for name in ("jupyterlab", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [] if shutil.which("chromedriver") else ["chromedriver"]
NEEDS_BROWSER = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.mark.slow
@NEEDS_BROWSER
def test_jupyterlab_runs_the_gallery_and_its_slider_moves(tmp_path: Path) -> None:
    command = [sys.executable, HOME / "lab.py", "gallery", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "the slider was moved by keys: perplexity " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES


@pytest.mark.slow
@NEEDS_BROWSER
def test_jupyterlab_runs_a_notebook_of_ours_from_top_to_bottom(tmp_path: Path) -> None:
    command = [sys.executable, HOME / "lab.py", NOTEBOOKS[0], "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NOTEBOOKS[0].stem}_{theme}.png" for theme in THEMES]


@pytest.mark.slow
@NEEDS_BROWSER
@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("1 / 0", "failed: broken: ZeroDivisionError: division by zero"),
        ("import warnings; warnings.warn('of this')", "failed: broken warns: .*UserWarning: of this"),
        ("import time; time.sleep(100)", "failed: waited 5 s in vain until broken has run"),
    ],
)
def test_a_notebook_that_fails_warns_or_does_not_end_is_told(tmp_path: Path, cell: str, says: str) -> None:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    command = [sys.executable, HOME / "lab.py", tmp_path / "broken.ipynb", "--out", tmp_path, "--seconds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert re.search(says, done.stderr, re.DOTALL), done.stderr


def test_the_committed_pictures_are_there_and_small() -> None:
    found = {path.name: path.stat().st_size for path in HOME.glob("*.png")}
    wanted = [*PICTURES, *(f"{path.stem}_{theme}.png" for path in NOTEBOOKS for theme in THEMES)]
    assert sorted(found) == sorted(wanted)
    assert max(found.values()) <= 150_000
    for name in wanted:
        with Image.open(HOME / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20, name
