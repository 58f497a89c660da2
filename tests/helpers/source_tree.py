"""The package's folder, the names of its modules, and a fresh interpreter beside it."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import david

HOUSE = Path(david.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(david.__path__, "david."))


def in_fresh_python(code: str) -> str:
    """What a new interpreter prints; it runs beside this package, so that it imports the same one."""
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
