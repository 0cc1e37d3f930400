"""Prompts of a data file of any form, or of the lines of a text file, as sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitune.data.read.files import read_rows
from fitune.errors import DataError
from fitune.teacher.row_tasks import Source

# Columns that hold what is asked, in this order.
COLUMNS = ("prompt", "instruction", "question", "query", "input", "text")


def read_prompts_of(path: Path) -> list[Source]:
    """One source a row.

    Raises:
        DataError: no such file, or rows without a prompt.
    """
    rows = read_rows(str(path))
    found = [
        Source(text, f"{path.name}, row {number}")
        for row, number in zip(rows.rows, rows.numbers, strict=True)
        if (text := prompt_of(row))
    ]
    if not found:
        raise DataError(
            f"{path} holds no prompts; its columns are {', '.join(rows.columns)}, known are {', '.join(COLUMNS)}"
        )
    return found


def prompt_of(row: Mapping[str, Any]) -> str:
    """What a row asks: its first user message, or one of COLUMNS; "" where there is none."""
    for message in row.get("messages") or row.get("conversations") or ():
        if isinstance(message, dict) and message.get("role", message.get("from")) in ("user", "human"):
            return str(message.get("content", message.get("value")) or "").strip()
    for column in COLUMNS:
        if isinstance(row.get(column), str) and row[column].strip():
            asked = row[column].strip()
            more = row.get("input") if column == "instruction" else None
            return f"{asked}\n\n{more.strip()}" if isinstance(more, str) and more.strip() else asked
    return ""
