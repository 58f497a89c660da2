"""The command `david`: `main` runs it, and prints David's errors as one line.

Heavy modules are imported within the commands that need them, so that `--help` and `report` start fast.
"""

import sys
from contextlib import redirect_stderr
from typing import TextIO, cast

import typer

from david.cli.option_groups import expand_groups
from david.cli.recipes import check, convert, explain, export
from david.cli.scores import compare, score
from david.cli.studies import profile, report, scan, search
from david.cli.talk import chat, generate
from david.errors import DavidError
from david.support.console import UnfailingStream
from david.support.text import plain

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rearrange the layers of a language model by reference, score it, search for better ones.",
)

for _command in (
    search,
    scan,
    profile,
    report,
    score,
    compare,
    explain,
    convert,
    check,
    export,
    generate,
    chat,
):
    app.command()(expand_groups(_command))


def main() -> None:
    """Run the command; a `DavidError` becomes one line on stderr and exit code 1."""
    with redirect_stderr(cast(TextIO, UnfailingStream(sys.stderr))):
        try:
            app()
        except DavidError as error:
            sys.stderr.write(f"error: {plain(str(error))}\n")
            sys.exit(1)
