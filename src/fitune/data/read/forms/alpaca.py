"""Stanford Alpaca's columns: an instruction, the input it is about (may be empty), the output; `output` as a ranked list."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from fitune.data.examples import Pair
from fitune.data.read.forms.cells import Cells, Messages, is_ranking, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.conversation import continued
from fitune.errors import DataError


def instruction(row: Cells) -> Messages:
    """The question of a row, earlier turns before it."""
    asked = row.text("instruction")
    if (extra := row.maybe("input")).strip():
        asked = f"{asked}\n\n{extra}"
    return [*row.history(), say("user", asked)]


def _conversation(row: Cells) -> Messages:
    return continued(instruction(row), row.side("output", "assistant"), row.where)


def _pair(row: Cells) -> Pair:
    ranked = row.get("output")
    if not is_ranking(ranked) or len(ranked) > 2:
        raise DataError(f"{row.where}: output is {ranked!r:.60}; expected a ranked list of answers, the best one first")
    better, worse = ([say("assistant", text)] for text in ranked[:2])
    return Pair(prompt=tuple(instruction(row)), chosen=tuple(better), rejected=tuple(worse), row_number=row.number)


def _every_two(row: Mapping[str, object]) -> list[Mapping[str, object]]:
    """A row for every two of its answers."""
    answers = row.get("output")
    if not isinstance(answers, list) or not is_ranking(answers):
        return [row]
    return [{**row, "output": list(two)} for two in combinations(answers, 2)]


ALPACA = DataForm(
    name="alpaca",
    needs=("instruction", "output"),
    may_have=("input", "history", "system", "tools"),
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
RANKED = DataForm(
    name="ranked",
    needs=("instruction", "output"),
    may_have=("input", "history", "system", "tools"),
    kinds=("pairs",),
    fits=lambda row: is_ranking(row.get("output")),
    spread=_every_two,
    pair=_pair,
    example={"instruction": "Translate: The pig eats.", "output": ["Ethay igpay eatsway.", "Ethay pig eatsway."]},
)
