"""Fuzz a target, guided by coverage: `python -m tests.fuzz TARGET [FOLDER…] [-OPTION=VALUE…]`, as libFuzzer has them.

A case that lets a foreign exception out, or takes a second, is written to a file and ends it.
"""

import sys
import time

import atheris

with atheris.instrument_imports(include=["david"]):
    from tests.fuzz.targets import TARGETS

_SLOW = 1.0  # seconds of its own that a case may take


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"say what to fuzz: python -m tests.fuzz {'|'.join(TARGETS)} [FOLDER…] [-max_total_time=SECONDS]")
    target = TARGETS[sys.argv.pop(1)]

    def timed(data: bytes) -> None:
        start = time.process_time()
        target(data)
        took = time.process_time() - start
        assert took < _SLOW, f"{took:.1f} s"

    atheris.Setup(sys.argv, timed)
    atheris.Fuzz()


main()
