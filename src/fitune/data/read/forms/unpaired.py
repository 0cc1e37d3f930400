"""Single answers with a judgement: wanted or not."""

from __future__ import annotations

from fitune.data.examples import Judged
from fitune.data.read.forms.cells import Cells, say
from fitune.data.read.forms.data_form import DataForm
from fitune.errors import DataError


def _judged(row: Cells) -> Judged:
    prompt, completion = row.side("prompt", "user"), row.side("completion", "assistant")
    return Judged(
        prompt=tuple(prompt), completion=tuple(completion), desirable=row.flag("label"), row_number=row.number
    )


def _judged_talk(row: Cells) -> Judged:
    """A conversation, of which the last answer is judged."""
    talk = row.messages("messages")
    if talk[-1]["role"] != "assistant" or len(talk) == 1:
        raise DataError(f"{row.where}: messages must end with the answer that is judged, behind what was asked")
    return Judged(prompt=tuple(talk[:-1]), completion=(talk[-1],), desirable=row.flag("label"), row_number=row.number)


UNPAIRED = DataForm(
    name="unpaired",
    needs=("prompt", "completion", "label"),
    may_have=("system", "tools"),
    kinds=("judged",),
    judged=_judged,
    example={"prompt": "The pig eats.", "completion": "Ethay igpay eatsway.", "label": True},
)
UNPAIRED_MESSAGES = DataForm(
    name="unpaired_messages",
    needs=("messages", "label"),
    may_have=("system", "tools"),
    kinds=("judged",),
    fits=lambda row: isinstance(row.get("label"), bool),
    judged=_judged_talk,
    example={
        "messages": [say("user", "The pig eats."), say("assistant", "Ethay igpay eatsway.")],
        "label": True,
    },
)
