"""Single answers with a judgement: wanted or not."""

from __future__ import annotations

from fitune.data.read.forms.cells import Cells
from fitune.data.read.forms.data_form import DataForm
from fitune.data.rows import Judged


def _judged(row: Cells) -> Judged:
    prompt, completion = row.side("prompt", "user"), row.side("completion", "assistant")
    return Judged(tuple(prompt), tuple(completion), row.flag("label"), row.number)


UNPAIRED = DataForm(
    name="unpaired",
    needs=("prompt", "completion", "label"),
    may_have=("system", "tools"),
    kinds=("judged",),
    judged=_judged,
    example={"prompt": "The pig eats.", "completion": "Ethay igpay eatsway.", "label": True},
)
