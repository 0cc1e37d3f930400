"""A question and its answer under the names that data sets give them, each a text or a list of messages."""

from __future__ import annotations

from functools import partial

from fitune.data.read.forms.cells import Cells, Messages
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.conversation import continued


def _conversation(row: Cells, asked: str, answer: str) -> Messages:
    return continued([*row.history(), *row.side(asked, "user")], row.side(answer, "assistant"), row.where)


def _form(asked: str, answer: str) -> DataForm:
    """The form of two columns, named after them."""
    return DataForm(
        name=f"{asked}_{answer}",
        needs=(asked, answer),
        may_have=("history", "system", "tools"),
        kinds=("rows", "prompts"),
        answer_column=answer,
        loss_on="completion",
        conversation=partial(_conversation, asked=asked, answer=answer),
        example={asked: "What is Pig Latin for pig?", answer: "Igpay."},
    )


QUESTION_ANSWER, QUERY_RESPONSE, INPUT_OUTPUT = (
    _form("question", "answer"),
    _form("query", "response"),
    _form("input", "output"),
)
