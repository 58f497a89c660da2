"""Open notebooks in a real JupyterLab in a headless browser, run each from top to bottom, and look.

    pip install -c constraints.txt -e ".[notebooks,browser]"
    python experiments/jupyter/lab.py [gallery] [NOTEBOOK …] [--out FOLDER]

Needs Chromium and its driver. Left out, the notebooks are the gallery of `gallery.py` and all in `notebooks/`. An error
or a warning in a cell, a cell that does not end, a slider that moves nothing: each ends with a line and exit code 1.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from gallery import gallery
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

HERE = Path(__file__).parent
GALLERY = Path("gallery")
NOTEBOOKS = HERE.parents[1] / "notebooks"
QUIET = """
--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-extensions --hide-scrollbars
--window-size=1180,1400
"""
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is on the page
}
SEEN = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"
MOST_BYTES = 150_000  # of a picture


class FailedError(Exception):
    """What a person who looks would call broken."""


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs: where, and the folder that it serves."""

    url: str
    token: str
    folder: Path


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab on a free port, with settings and files of its own, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served, own = folder / "served", folder / "own"
    served.mkdir()
    for name, values in SETTINGS.items():
        path = own / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    found = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), served)
    command = f"""{sys.executable} -m jupyterlab --no-browser --allow-root --port {port} --ServerApp.port_retries=0
        --IdentityProvider.token={found.token} --LabApp.expose_app_in_browser=True --ServerApp.root_dir={served}"""
    kept = {"JUPYTER_CONFIG_DIR": own / "config", "JUPYTERLAB_SETTINGS_DIR": own / "lab"}
    kept |= {"JUPYTERLAB_WORKSPACES_DIR": own / "workspaces", "JUPYTER_RUNTIME_DIR": own / "runtime"}
    environment = os.environ | {name: str(path) for name, path in kept.items()}
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command.split(), env=environment, stdout=log, stderr=log)
        try:
            until(lambda: answers(found) or (server.poll() is not None), "JupyterLab starts", 120)
            if server.poll() is not None:
                raise FailedError(f"JupyterLab does not start: {(folder / 'lab.log').read_text()[-2000:]}")
            yield found
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def answers(server: Lab) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/api?token={server.token}", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A headless Chromium that reaches this machine alone."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise FailedError("no browser: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for argument in (*QUIET.split(), rules, f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(60)
    try:
        yield opened
    finally:
        opened.quit()


def until(holds: Callable[[], Any], what: str, seconds: float) -> Any:
    """What `holds` gives once it is true; `FailedError` where that takes too long."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(WebDriverException):
            if found := holds():
                return found
        if time.monotonic() > end:
            raise FailedError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.3)


# A notebook in JupyterLab


def not_run(path: Path) -> nbformat.NotebookNode:
    """A notebook without what it has shown before, which could be taken for what it shows now."""
    if path == GALLERY:
        return gallery()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


CELLS = """
const panel = window.jupyterapp.shell.currentWidget;
if (!panel || !panel.content || !panel.content.widgets) return null;
return panel.content.widgets.filter(cell => cell.model.type === "code").map(cell => ({
  state: cell.model.executionState, count: cell.model.executionCount, source: cell.model.sharedModel.getSource(),
  outputs: cell.model.outputs.toJSON()}));
"""
READY = """
const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
if (!panel || !panel.sessionContext || !panel.sessionContext.isReady) return false;
const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
return Boolean(kernel && kernel.status === "idle" && kernel.connectionStatus === "connected");
"""
COMMAND = (
    "const [name, given, done] = arguments; window.jupyterapp.commands.execute(name, given).then(() => done(true));"
)


def open_notebook(page: Any, server: Lab, name: str) -> None:
    """Open a notebook, and wait for its kernel."""
    page.get(f"{server.url}/lab/workspaces/{Path(name).stem}/tree/{name}?token={server.token}&reset")
    until(lambda: page.execute_script(READY), f"{name} has a kernel", 120)
    page.execute_async_script(COMMAND, "application:toggle-left-area", {})


def run_all(page: Any, name: str, seconds: float) -> list[dict[str, Any]]:
    """Run all cells as its menu does; its code cells with their outputs, once each has ended."""
    cells = page.execute_script(CELLS)
    page.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")  # ends when the cells do

    def ended() -> list[dict[str, Any]] | None:
        now: list[dict[str, Any]] = page.execute_script(CELLS)
        broken = next((o for cell in now for o in cell["outputs"] if o["output_type"] == "error"), None)
        if broken is not None:
            raise FailedError(f"{name}: {broken['ename']}: {broken['evalue']}")
        order = [cell["count"] for cell in now]
        is_whole = order == list(range(1, len(cells) + 1)) and page.execute_script(READY)
        return now if is_whole and all(cell["state"] == "idle" for cell in now) else None

    found: list[dict[str, Any]] = until(ended, f"{name} has run", seconds)
    warned = [
        o["text"] for cell in found for o in cell["outputs"] if o.get("name") == "stderr" and "arning" in str(o["text"])
    ]
    if warned:
        raise FailedError(f"{name} warns: {warned[0]}")
    return found


def set_theme(page: Any, theme: str) -> None:
    page.execute_async_script(COMMAND, "apputils:change-theme", {"theme": THEMES[theme]})
    light = json.dumps(theme == "light")
    until(lambda: page.execute_script("return document.body.dataset.jpThemeLight") == light, f"it is {theme}", 60)
    time.sleep(1.0)  # its style sheet is there; what it draws comes after


# Looking


def picture(page: Any, selector: str, path: Path, *, clip: str | None = None, at: str = "start") -> None:
    """A picture of the last such element; `FailedError` where its file is too large to be kept.

    With a `clip`, of that element, scrolled to where the other begins, or, `at` its end, to where it ends.
    """
    element = page.find_elements(By.CSS_SELECTOR, selector)[-1]
    page.execute_script("arguments[0].scrollIntoView({block: arguments[1]})", element, at)
    time.sleep(0.5)
    seen = element if clip is None else page.find_elements(By.CSS_SELECTOR, clip)[-1]
    image = Image.open(BytesIO(seen.screenshot_as_png)).convert("RGB")
    few = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)  # true within 5
    few.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise FailedError(f"{path.name} has {path.stat().st_size:,} bytes")


def move_slider(page: Any, seconds: float) -> tuple[str, str]:
    """Move the slider of the strength by the keys of the keyboard; the perplexity shown before and after.

    `FailedError` where it does not change, or the panel does not come to rest again.
    """
    panel = until(lambda: page.find_elements(By.CSS_SELECTOR, ".david-slider"), "there is a panel", 60)[-1]

    def shown() -> str:
        return str(panel.find_element(By.CSS_SELECTOR, ".david-perplexity").text)

    def at_rest() -> bool:
        return not panel.find_elements(By.CSS_SELECTOR, ".david-state") and bool(shown())

    until(at_rest, "the panel rests", seconds)
    before = shown()
    handle = panel.find_elements(By.CSS_SELECTOR, ".noUi-handle")[-1]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    handle.click()
    for _ in range(6):
        handle.send_keys(Keys.ARROW_RIGHT)
    until(lambda: panel.find_elements(By.CSS_SELECTOR, ".david-state"), "the panel works", seconds)
    until(at_rest, "the panel rests again", seconds)
    if shown() == before:
        raise FailedError(f"the slider was moved, and the panel still shows a perplexity of {before}")
    return before, shown()


def has_bar(cell: dict[str, Any]) -> bool:
    """Whether a cell shows a widget, and no bar of text."""
    drawn = any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell["outputs"])
    return drawn and not any("%|" in str(output.get("text")) for output in cell["outputs"])


def look_at_gallery(page: Any, cells: list[dict[str, Any]], out: Path, seconds: float) -> None:
    """The gallery's own questions, and its pictures in both themes."""
    for cell in cells:
        if "search(" in cell["source"] and not has_bar(cell):
            raise FailedError("a search in a notebook has no notebook bar")
    before, after = move_slider(page, seconds)
    print(f"the slider was moved by keys: perplexity {before} → {after}")
    for theme in THEMES:
        set_theme(page, theme)
        picture(page, ".jp-Cell:nth-child(2)", out / f"recipes_{theme}.png", clip=SEEN)
        picture(page, ".jp-Cell:has(.progress-bar, .widget-hprogress)", out / f"bars_{theme}.png")
        picture(page, ".david.cell", out / f"study_{theme}.png", clip=SEEN)
        picture(page, ".david.cell section:has(.plots)", out / f"plots_{theme}.png", clip=SEEN)
        picture(page, ".david-slider", out / f"slider_{theme}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="notebooks to run; left out, the gallery and all of ours"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for pictures")
    parser.add_argument("--seconds", type=float, default=600, help="the time that a notebook may take")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    paths = given.notebooks or [GALLERY, *sorted(NOTEBOOKS.glob("*.ipynb"))]
    for path in paths:
        if path != GALLERY and not path.is_file():
            raise FailedError(f"there is no notebook {path}")
    with tempfile.TemporaryDirectory() as name, lab(Path(name)) as server, browser(Path(name)) as page:
        for path in paths:
            nbformat.write(not_run(path), server.folder / f"{path.stem}.ipynb")
            start = time.monotonic()
            open_notebook(page, server, f"{path.stem}.ipynb")
            cells = run_all(page, path.stem, given.seconds)
            print(f"{path.stem}: {len(cells)} cells run in {time.monotonic() - start:.0f} s", flush=True)
            if path == GALLERY:
                look_at_gallery(page, cells, given.out, given.seconds)
                continue
            for theme in THEMES:
                set_theme(page, theme)
                picture(page, ".jp-Cell", given.out / f"{path.stem}_{theme}.png", clip=SEEN, at="end")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # JupyterLab and the browser end too
    try:
        main()
    except FailedError as failed:
        sys.exit(f"failed: {failed}")
