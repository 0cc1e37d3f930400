r"""Preferences: a prompt, a better answer and a worse one.

The prompt may stand in a column of its own (text or messages), or be what the two sides have in common. Where they
part: in messages, at the first message that differs; in text, by the turns of Anthropic's form
("\n\nHuman: … \n\nAssistant: …"), or else at the last blank before the first character that differs.
"""

from __future__ import annotations

import re

from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.rows import Pair
from fitune.errors import DataError

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


def _pair(row: Cells) -> Pair:
    better, worse, asked = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if isinstance(better, list) != isinstance(worse, list):
        raise DataError(
            f"{row.where}: chosen is {type(better).__name__} and rejected {type(worse).__name__}; use the same type for both"
        )
    sides = [_answer(row, "chosen"), _answer(row, "rejected")]
    prompt = row.side("prompt", "user") if asked is not None else []
    if isinstance(better, list):
        prompt, sides = _split_messages(prompt, sides, row.where)
    elif asked is None:
        prompt, sides = _split_text(str(better), str(worse), row.where)
    if any(said[-1]["role"] != "assistant" for said in sides):
        raise DataError(
            f"{row.where}: one side ends with a message of {sides[0][-1]['role']}; both must end with an answer"
        )
    return Pair(tuple(prompt), tuple(sides[0]), tuple(sides[1]), row.number)


def _answer(row: Cells, column: str) -> Messages:
    """A side as it stands: messages, or text as one answer; a blank one is for the check to find."""
    value = row.get(column)
    return [say("assistant", value)] if isinstance(value, str) else row.side(column, "assistant")


def _split_messages(prompt: Messages, sides: list[Messages], where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are conversations, or answers alone."""
    if all(said[0]["role"] == "assistant" for said in sides):
        if not prompt:
            raise DataError(f"{where} has no prompt: both sides begin with an answer, and there is no prompt column")
        return prompt, sides
    same = 0
    while all(same < len(said) - 1 for said in sides) and sides[0][same] == sides[1][same]:
        same += 1
    common = sides[0][:same]
    if not common:
        raise DataError(f"{where}: chosen and rejected have no first message in common, so there is no prompt")
    plain = [message for message in common if message["role"] != "system"]
    if prompt and [message for message in prompt if message["role"] != "system"] not in (plain, plain[: len(prompt)]):
        raise DataError(
            f"{where}: the prompt column ({prompt[-1]['content'][:40]!r}) is not what chosen and rejected begin with "
            f"({plain[0]['content'][:40]!r})"
        )
    return common, [said[same:] for said in sides]


def _split_text(better: str, worse: str, where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are whole texts."""
    if "\n\nAssistant:" in better and "\n\nAssistant:" in worse:
        return _split_messages([], [_turns(text) for text in (better, worse)], where)
    same = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
    )
    blank = max(better.rfind(mark, 0, same) for mark in " \n\t") + 1
    prompt = better[:blank].strip()
    if not prompt:
        raise DataError(
            f"{where} has no prompt: chosen and rejected have no beginning in common "
            f"({better[:30]!r}, {worse[:30]!r}); add a prompt column"
        )
    return (
        [say("user", prompt)],
        [[say("assistant", text[blank:])] for text in (better, worse)],
    )


def _turns(text: str) -> Messages:
    r"""Messages of a text in Anthropic's form (hh-rlhf): "\n\nHuman: … \n\nAssistant: …"."""
    pieces = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [say(roles[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


PREFERENCE = DataForm(
    name="preference",
    needs=("chosen", "rejected"),
    may_have=("prompt", "system"),
    kinds=("pairs",),
    pair=_pair,
    example={"prompt": "The pig eats.", "chosen": "Ethay igpay eatsway.", "rejected": "Ethay pig eatsway."},
)
