"""The README's Python prints what the README says it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+\.\d+")


def test_the_lines_of_python_print_what_the_readme_says(tmp_path: Path) -> None:
    code, printed = re.search(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", README, re.DOTALL).groups()  # type: ignore[union-attr]
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    assert NUMBER.sub("#", ran.stdout) == NUMBER.sub("#", printed)
    # Python's help topics differ a little from version to version, and so do their perplexities.
    found, stated = (list(map(float, NUMBER.findall(text))) for text in (ran.stdout, printed))
    assert found == pytest.approx(stated, rel=0.2)
