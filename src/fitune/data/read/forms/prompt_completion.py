"""A prompt and its answer, each a text or a list of messages; and prompts alone."""

from __future__ import annotations

from fitune.data.read.forms.cells import Cells, Messages
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.conversation import continued
from fitune.errors import DataError


def _prompt(row: Cells) -> Messages:
    return row.side("prompt", "user")


def _prompt_alone(row: Cells) -> Messages:
    prompt = _prompt(row)
    if prompt[-1]["role"] == "assistant":
        raise DataError(
            f"{row.where}: the prompt ends with an answer; take it out, or put it into a column completion, which is kept "
            "as what the model's answers are compared with"
        )
    return prompt


def _prompt_and_completion(row: Cells) -> Messages:
    return continued(_prompt(row), row.side("completion", "assistant"), row.where)


PROMPT_COMPLETION = DataForm(
    name="prompt_completion",
    needs=("prompt", "completion"),
    may_have=("system", "tools"),
    kinds=("rows", "prompts"),
    first_for=("prompts",),
    answer_column="completion",
    loss_on="completion",
    conversation=_prompt_and_completion,
    example={"prompt": "The pig eats.", "completion": "Ethay igpay eatsway."},
)
PROMPT = DataForm(
    name="prompt",
    needs=("prompt",),
    may_have=("system", "tools"),
    kinds=("prompts",),
    conversation=_prompt_alone,
    example={"prompt": "The pig eats."},
)
