"""What to ask: the questions of a data file's rows, their answers left out."""

from __future__ import annotations

from collections.abc import Mapping

from fitune.data.examples import Message
from fitune.data.read.files import Rows
from fitune.data.read.forms.cells import say
from fitune.data.read.recognise import RecognisedForm, forms_of, recognise
from fitune.errors import DataError

ALONE = ("text", "question")  # columns that ask by themselves
OPEN = "?"  # stands where the answer would be


def questions(rows: Rows, system: str | None = None) -> list[list[Message]]:
    """Each row as the conversation that asks: every form of training, with or without answers, or a column of text.

    Args:
        system: system prompt for rows that bring none.

    Raises:
        DataError: other columns, or a row with nothing to ask.
    """
    columns = set(rows.columns)
    asking = [
        form
        for form in forms_of("rows")
        if form.conversation is not None and set(form.needs) - {form.answer_column} <= columns
    ]
    asking = [form for form in asking if set(form.needs) <= columns] or asking
    alone = next((name for name in ALONE if name in columns), None)
    if alone and not asking:
        return [_plain(row, alone, number, system) for row, number in zip(rows.rows, rows.numbers, strict=True)]
    answers = {form.answer_column for form in asking if form.answer_column is not None}
    form = recognise([*rows.columns, *sorted(answers - columns)])
    return [
        _asked({**row, **dict.fromkeys(answers, OPEN)}, form, system, number)
        for row, number in zip(rows.rows, rows.numbers, strict=True)
    ]


def _plain(row: Mapping[str, object], column: str, number: int, system: str | None) -> list[Message]:
    """One message with the row's text."""
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"row {number}: {column} is {text!r:.60}; there is nothing to ask")
    head = [say("system", system)] if system else []
    return [*head, say("user", text)]


def _asked(row: Mapping[str, object], form: RecognisedForm, system: str | None, number: int) -> list[Message]:
    """The row's conversation up to its last question."""
    messages = form.to_messages(row, system, number)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"row {number} has no prompt: it contains only answers")
    return messages
