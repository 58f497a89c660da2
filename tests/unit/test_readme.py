"""The README and the guides beside the rooms: their links, length and commands."""

import re
import tomllib
from pathlib import Path

import pytest

from david.support.extras import install_hint

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [
    *ROOT.glob("*.md"),
    *(path for ending in ("py", "md", "sh", "yaml", "ipynb") for path in ROOT.glob(f"[a-z]*/**/*.{ending}")),
]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("david/*/README.md"))]


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_guide_links_to_is_there(guide: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", guide.read_text(encoding="utf-8"))
    assert [link for link in links if not (guide.parent / link).exists()] == []


def test_every_room_has_a_guide_that_names_its_files() -> None:
    for room in sorted(path.parent for path in (ROOT / "david").glob("*/__init__.py")):
        guide = (room / "README.md").read_text(encoding="utf-8")
        files = [path.name for path in room.glob("*.py") if path.name != "__init__.py"]
        assert [name for name in files if f"`{name}`" not in guide] == [], room.name
        named = set(re.findall(r"`(\w+\.py)`", guide))
        assert [name for name in sorted(named) if not (room / name).exists()] == [], room.name


def test_the_second_command_is_what_ci_runs() -> None:
    commands = re.findall(r"```\n(python3 -m venv .*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    wanted = commands[1].rsplit("activate && ", 1)[1]
    assert wanted in (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("--quiet ", "")


def test_nothing_offers_to_install_david_from_a_package_index() -> None:
    by_name = re.compile(r"pip install [^\n`]*?(?<![\w/.])david(?:\[|[ '\"`]|$)", re.MULTILINE)
    assert by_name.search("pip install 'david[postgres]'")
    assert by_name.search("pip install -U david")
    texts = [path for path in TEXTS if path.is_file() and path != Path(__file__)]
    assert [str(path) for path in texts if by_name.search(path.read_text(encoding="utf-8"))] == []


def test_every_extra_that_is_offered_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "david").rglob("*.py"))
    in_code = set(re.findall(r"install_hint\(['\"](\w+)['\"]\)", source))
    texts = "".join(path.read_text(encoding="utf-8") for path in TEXTS if path.suffix in (".md", ".yaml", ".sh"))
    in_guides = {
        name for names in re.findall(r"pip install [^\n]*['\"]\.\[([\w,]+)\]", texts) for name in names.split(",")
    }
    assert {"cma", "eval", "grpc", "notebooks", "postgres"} <= in_code
    assert {"postgres", "test"} <= in_guides
    assert in_code | in_guides <= set(extras)
    assert "-c constraints.txt -e '.[cma]' in a clone" in install_hint("cma")
