"""What to ask: the questions of a data file's rows, their answers left out."""

from __future__ import annotations

from typing import Any

from fitune.data.read.files import Rows
from fitune.data.read.forms import recognise, to_example
from fitune.errors import DataError

# What is asked, in each form; and the column of answers beside it, which a file of questions may lack.
ASKED = {"messages", "conversations", "prompt", "instruction"}
ANSWERS = {"prompt": "completion", "instruction": "output"}
ALONE = ("text", "question")
OPEN = "?"


def questions(rows: Rows, system: str | None = None) -> list[list[dict[str, str]]]:
    """Each row as the conversation that asks: every form of training, with or without answers, or a column of text.

    Args:
        system: system prompt for rows that bring none.

    Raises:
        DataError: other columns, or a row with nothing to ask.
    """
    columns = set(rows.columns)
    alone = next((name for name in ALONE if name in columns), None)
    if alone and not columns & ASKED:
        return [_plain(row, alone, number, system) for row, number in zip(rows.rows, rows.numbers, strict=True)]
    added = {answer for asked, answer in ANSWERS.items() if asked in columns}
    form = recognise([*rows.columns, *sorted(added - columns)])
    return [
        _asked({**row, **dict.fromkeys(added, OPEN)}, form, system, number)
        for row, number in zip(rows.rows, rows.numbers, strict=True)
    ]


def _plain(row: dict[str, Any], column: str, number: int, system: str | None) -> list[dict[str, str]]:
    """One message with the row's text."""
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"row {number}: {column} is {text!r:.60}; there is nothing to ask")
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def _asked(row: dict[str, Any], form: Any, system: str | None, number: int) -> list[dict[str, str]]:
    """The row's conversation up to its last question; a conversation that ends with a question is one already."""
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = row.get(name)
        if form.name == name and isinstance(turns, list) and not _ends_with_answer(turns):
            row = {**row, name: [*turns, {role: "assistant", content: OPEN}]}
    example = to_example(row, form, system, number)
    messages = list(example.messages or ())
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"row {number} has nothing to ask: it holds answers only")
    return messages


def _ends_with_answer(turns: list[Any]) -> bool:
    last = turns[-1] if turns and isinstance(turns[-1], dict) else {}
    return (last.get("role") or last.get("from")) in ("assistant", "gpt", "bot", "model")
