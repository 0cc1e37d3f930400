"""Stanford Alpaca's columns: an instruction, the input it is about (may be empty), the output."""

from __future__ import annotations

from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm


def _conversation(row: Cells) -> Messages:
    asked = row.text("instruction")
    if extra := row.get("input"):
        asked = f"{asked}\n\n{extra}"
    return [say("user", asked), say("assistant", row.text("output"))]


ALPACA = DataForm(
    name="alpaca",
    needs=("instruction", "output"),
    may_have=("input", "system"),
    kinds=("rows", "prompts"),
    answer_column="output",
    loss_on="completion",
    conversation=_conversation,
    example={
        "instruction": "Translate to Pig Latin.",
        "input": "The pig eats.",
        "output": "Ethay igpay eatsway.",
    },
)
