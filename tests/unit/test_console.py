"""Notes go to stderr by one logger, which a program can silence or listen to."""

import contextlib
import io
import logging

import pytest

from david.support.console import say


def test_a_note_is_a_line_that_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("100% of \x1b[2J")
    assert capsys.readouterr() == ("", "100% of \\x1b[2J\n")


def test_a_note_follows_a_redirected_stderr() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        say("here")
    assert stderr.getvalue() == "here\n"


def test_a_program_silences_notes_and_listens_to_them(capsys: pytest.CaptureFixture[str]) -> None:
    logger, heard = logging.getLogger("david"), list[str]()
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(listener)
    before = logger.level
    try:
        say("loud")
        logger.setLevel(logging.WARNING)
        say("silent")
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before)
    assert heard == ["loud"]
    assert capsys.readouterr().err == "loud\n"


def test_a_note_is_printed_once_beside_logging_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        say("once")
    finally:
        root.removeHandler(handler)
    assert (stream.getvalue(), capsys.readouterr().err) == ("", "once\n")
