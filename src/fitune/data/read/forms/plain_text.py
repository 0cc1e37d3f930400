"""Plain text, a piece a row; a .txt file is read as one with a piece a line."""

from __future__ import annotations

from fitune.data.read.forms.cells import Cells
from fitune.data.read.forms.data_form import DataForm


def _text(row: Cells) -> str:
    return row.text("text")


TEXT = DataForm(
    name="text",
    needs=("text",),
    kinds=("rows", "text"),
    loss_on="all",
    text=_text,
    example={"text": "The birch canoe slid on the smooth planks."},
)
