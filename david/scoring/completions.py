"""Prompts with completions, and multiple-choice questions: rows of a table that are a window each.

Only the completion (the answer) of a window is scored. `cut_completions` and `cut_questions` cut the rows that
`sources.open_rows` has opened.
"""

import re
import reprlib
import string
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from david.errors import CorpusError
from david.scoring.conventions import COMPLETION, MULTIPLE_CHOICE
from david.scoring.sources import Rows, TextRecord
from david.scoring.tokens import Tokenizer
from david.scoring.windows import CutOptions, TokenWindows
from david.support.text import brief


@dataclass(frozen=True)
class Choice:
    """An answer to a multiple-choice question.

    Attributes:
        right: Whether it is the right one.
        length: Its characters.
    """

    right: bool
    length: int


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: a prompt, its answers, and the number of the right one, from 0 on."""

    prompt: str
    answers: tuple[str, ...]
    right: int


def cut_completions(
    tokenizer: Tokenizer, rows: Rows, prompt: str, completion: str, options: CutOptions, record: TextRecord
) -> TokenWindows:
    """Make a window of each row: its prompt, a space where the two would touch, and its completion.

    Args:
        tokenizer: The tokenizer of the model.
        rows: The rows of the source.
        prompt: The column of prompts.
        completion: The column of completions.
        options: The longest window, its leading token, and the name of the data.
        record: Where the text of each row is recorded.

    Raises:
        CorpusError: A completion has no token, or does not fit a window.
    """

    def pairs() -> Iterator[tuple[int, str, str]]:
        for number, row in enumerate(zip(rows.texts(prompt), rows.texts(completion), strict=True)):
            pair = _joined(*row)
            record.add(number, "".join(pair))
            yield number, *pair

    return _cut_pairs(tokenizer, pairs(), options, COMPLETION)


def cut_questions(
    tokenizer: Tokenizer, rows: Rows, prompt: str, answers: str, gold: str, options: CutOptions, record: TextRecord
) -> tuple[TokenWindows, tuple[Choice, ...]]:
    """Make a window of each answer to each question, behind the question's prompt.

    Args:
        tokenizer: The tokenizer of the model.
        rows: The rows of the source.
        prompt: The column of prompts.
        answers: The column of answers (see `questions_of`).
        gold: The column of right answers.
        options: The longest window, its leading token, and the name of the data.
        record: Where the text of each question is recorded.

    Returns:
        The windows, and the answer that each window ends with.

    Raises:
        CorpusError: A question cannot be read, or an answer does not fit a window.
    """
    choices = []

    def pairs() -> Iterator[tuple[int, str, str]]:
        for number, question in enumerate(questions_of(rows, prompt, answers, gold)):
            record.add(number, "\n".join((question.prompt, *question.answers)))
            for place, answer in enumerate(question.answers):
                choices.append(Choice(place == question.right, len(answer)))
                yield number, *_joined(question.prompt, answer)

    cut = _cut_pairs(tokenizer, pairs(), options, MULTIPLE_CHOICE)
    return cut, tuple(choices[: len(cut.windows)])


def questions_of(rows: Rows, prompt: str, answers: str, gold: str) -> Iterator[Question]:
    """Yield the multiple-choice questions of a source's rows.

    Args:
        rows: The rows of the source.
        prompt: The column of prompts.
        answers: The column of answers: a list of two or more texts, or `{"text": [...], "label": [...]}` as ARC has
            it on the Hub.
        gold: The column of right answers: the number of one from 0 on, or its label. Without labels these are A, B, …

    Raises:
        CorpusError: A row holds something else.
    """
    values = zip(rows.texts(prompt), rows.columns[answers], rows.columns[gold], strict=True)
    for row, (text, choices, right) in enumerate(values, start=rows.first):
        texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (choices, None)
        if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
            raise CorpusError(
                f"row {row} of {rows.source}: {answers} must hold a list of two or more texts; "
                f"got {reprlib.repr(choices)}"
            )
        own_labels = labels if isinstance(labels, list) and len(labels) == len(texts) else []
        names = [str(label) for label in own_labels or string.ascii_uppercase[: len(texts)]]
        number = None if own_labels else _whole_number(right)
        place = names.index(str(right)) if str(right) in names else number
        if place is None or not 0 <= place < len(texts):
            raise CorpusError(
                f"row {row} of {rows.source}: {gold} must be {'' if own_labels else f'0 … {len(texts) - 1} or '}one of "
                f"{', '.join(names)}; got {reprlib.repr(right)}"
            )
        yield Question(text, tuple(texts), place)


def _whole_number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | str) and re.fullmatch(r"\d{1,9}", brief(value).strip("'")) else None


def _joined(prompt: str, completion: str) -> tuple[str, str]:
    """Return a prompt and its completion, with a space between them where they would touch."""
    touch = not (prompt[-1:].isspace() or completion[:1].isspace())
    return prompt, " " * touch + completion


def _cut_pairs(
    tokenizer: Tokenizer, pairs: Iterator[tuple[int, str, str]], options: CutOptions, label: str
) -> TokenWindows:
    """Return a window for each document's number, prompt and completion, padded with zeros to the longest of all.

    The beginning of a row that is too long is cut off. White space between prompt and completion belongs to the
    completion, as in lm-eval: most tokenizers put it before a word.
    """
    window, lead = options.window, [] if options.lead is None else [options.lead]
    rows, sizes, documents, longest = [], [], [], 0
    for number, text, completion in pairs:
        is_taken = options.most is None or number < options.most
        if not is_taken and longest == window:
            break  # before that, a longer row may follow
        prompt = text.rstrip()
        answer = text[len(prompt) :] + completion
        tokens = tokenizer(prompt + answer, add_special_tokens=False, verbose=False)["input_ids"]
        n_scored = len(tokens) - len(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        n_scored *= bool(completion.strip())
        if not 0 < n_scored <= window - 1 or len(lead) + len(tokens) < 2:
            raise CorpusError(
                f"row {number} of {options.source}: its completion has {max(n_scored, 0)} tokens; expected "
                f"1 … {window - 1} and one to read before them: take a longer window or other rows"
            )
        row = np.array([*lead, *tokens[-(window - len(lead)) :]], dtype=np.int64)
        longest = max(longest, len(row))
        if is_taken:
            rows.append((row, n_scored))
            sizes.append(len(answer.encode()))
            documents.append(number)
    deque(pairs, maxlen=0)  # what is left is only recorded
    windows = np.zeros((len(rows), longest), dtype=np.int64)  # nothing that is scored reads what lies behind it
    scored = np.zeros((len(rows), longest), dtype=bool)
    for place, (row, n_scored) in enumerate(rows):
        windows[place, : len(row)] = row
        scored[place, max(1, len(row) - n_scored) : len(row)] = True
    return TokenWindows(
        windows=windows,
        scored=scored,
        starts=tuple(range(0, longest * len(rows), longest)),
        documents=tuple(documents),
        last_documents=tuple(documents),
        window_bytes=tuple(sizes),
        label=label,
    )
