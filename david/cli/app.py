"""The command `david`: every command in its place, and errors as lines.

Heavy modules are imported in the commands that need them, so that help and results open in a blink.
"""

import sys
from contextlib import redirect_stderr
from typing import TextIO, cast

import typer

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
    app.command()(_command)


def main() -> None:
    """Run the command; what David raises on purpose is one line and exit code 1."""
    with redirect_stderr(cast(TextIO, UnfailingStream(sys.stderr))):
        try:
            app()
        except DavidError as error:
            sys.stderr.write(f"error: {plain(str(error))}\n")
            sys.exit(1)
