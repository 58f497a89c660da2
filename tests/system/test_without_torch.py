"""`tests/unit` and `tests/report` need no torch: here they are imported without it; CI runs the former so."""

from tests.helpers.source_tree import in_fresh_python


def test_their_modules_load_without_torch() -> None:
    code = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {"torch", "transformers", "accelerate", "datasets"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
import pytest
print(int(pytest.main(["--collect-only", "-qq", "-n0", "-p", "no:cacheprovider", "tests/unit", "tests/report"])))
"""
    assert in_fresh_python(code).splitlines()[-1] == "0"
