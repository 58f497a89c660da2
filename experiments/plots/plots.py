"""Every plot and picture that David draws, at 30 and at 80 layers, on one sheet a depth: to be looked at."""

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.image import imread

sys.path.append(str(Path(__file__).parents[2]))  # the root of the repository

from david.recipe.recipe import Recipe
from david.report.page import page
from david.storage.studies import open_existing
from tests.helpers.demo_stand_in import furnish_cache

SEARCH = "search demo --scales 0.1:1.5 --trials 60 --windows 6 --held-out 12 --also visits --out search"
SCAN = "scan demo --max-length {longest} --windows 2 --out scan"
PROFILE = "profile demo --windows 2 --out profile"
PICTURES = [
    "0:{n}",
    "0:{third}, {sixth}:{n}",
    "{all}",
    "0:{third}, {sixth}:{third}*0.2, {sixth}:{third}*-0.5, {third}:{n}",
]
BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]


def pictures(n: int) -> list[Recipe]:
    """The base, a block again, 4 times the whole depth, and visits of several strengths."""
    parts = {"n": n, "third": n // 3, "sixth": n // 6, "all": ", ".join([f"0:{n}"] * 4)}
    return [Recipe.parse(text.format(**parts)) for text in PICTURES]


def shot(source: Path, out: Path, browser: str, size: tuple[int, int]) -> Path:
    """A picture of a page, as a browser shows it."""
    with tempfile.TemporaryDirectory() as profile:
        look = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", f"--screenshot={out}"]
        subprocess.run([browser, *BROWSER, *look, source.as_uri()], check=True, capture_output=True)
    return out


def make(n: int, place: Path, browser: str | None) -> list[Path]:
    """Make all that is drawn of a tiny random model of n layers, by the command itself; the pictures."""
    own = os.environ | {"DAVID_CACHE": str(furnish_cache(place / "cache", layers=n)), "OMP_NUM_THREADS": "1"}
    for line in (SEARCH, SCAN.format(longest=max(4, n // 20)), PROFILE):
        command = [sys.executable, "-c", "from david.cli.app import main; main()", *line.split()]
        subprocess.run(command, cwd=place, env=own, check=True, capture_output=True)
    found = [path for folder in ("search", "scan", "profile") for path in sorted((place / folder).glob("*.png"))]
    if browser is None:
        return found
    study = open_existing(place / "search", None)
    (place / "page.html").write_text(page(study), encoding="utf-8")
    svg = "".join(f"<p>{recipe._repr_html_()}</p>" for recipe in pictures(n))
    for name, colours in (("light", "background: white"), ("dark", "background: #111; color: #ddd")):
        (place / f"{name}.html").write_text(f"<meta charset=utf-8><body style='{colours}'>{svg}", encoding="utf-8")
    sizes = {"page": (1200, 2600), "light": (900, 1500), "dark": (900, 1500)}
    shots = [shot(place / f"{name}.html", place / f"{name}.png", browser, size) for name, size in sizes.items()]
    return [*found, *shots]


def sheet(found: list[Path], out: Path, title: str) -> None:
    """All pictures on one sheet."""
    columns = 4
    rows = math.ceil(len(found) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, path in zip(axes.flat, found, strict=False):
        ax.imshow(imread(path))
        ax.set_title(
            f"{path.parent.name}/{path.name}" if path.parent.name in ("search", "scan", "profile") else path.name
        )
    figure.suptitle(title)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[30, 80])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="a folder for the pictures themselves")
    options = parser.parse_args()
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    for n in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            found = make(n, Path(folder), browser)
            sheet(found, options.out / f"{n}.png", f"{n} layers")
            if options.keep is not None:
                shutil.copytree(folder, options.keep / str(n), ignore=shutil.ignore_patterns("cache", "*.db"))
            print(f"{n} layers: {len(found)} pictures, {', '.join(path.name for path in found)}")


if __name__ == "__main__":
    main()
