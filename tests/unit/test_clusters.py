"""The job files for clusters start a command that exists, with options that it has."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from david.cli.app import app

FOLDER = Path(__file__).parents[2] / "experiments" / "workers"


def of_slurm() -> list[str]:
    text = (FOLDER / "slurm.sh").read_text(encoding="utf-8").replace("\\\n", "")
    return shlex.split(text[text.index("srun ") :].removeprefix("srun "))


def of_kubernetes() -> list[str]:
    [worker] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"][
        "containers"
    ]
    return [*worker["command"], *worker["args"]]


@pytest.mark.parametrize("command", [of_slurm(), of_kubernetes()], ids=["slurm", "kubernetes"])
def test_a_job_starts_a_search_that_can_be_joined(command: list[str]) -> None:
    program, name, *arguments = command
    assert program == "david"
    group: Any = typer.main.get_command(app)
    found = group.commands[name].make_context(name, arguments)
    assert found.params["storage"].startswith("postgresql://")
    assert found.params["held_out"] is not None


def test_the_batch_script_is_one_that_a_shell_reads() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
