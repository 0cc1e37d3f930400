r"""Preferences: a prompt, a better answer and a worse one.

The prompt may stand in a column of its own (text or messages), or be what the two sides have in common. Where they
part: in messages, at the first message that differs; in text, by the turns of Anthropic's form
("\n\nHuman: … \n\nAssistant: …"), or else at the last blank before the first character that differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitune.data.examples import Message, Pair
from fitune.data.read.forms.alpaca import instruction
from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.transcript import is_transcript, turns
from fitune.errors import DataError

ASKED = ("prompt", "question", "query")  # a question by itself, as text or as messages
TALKED = {"conversations": ("from", "value"), "messages": ("role", "content")}


def _pair(row: Cells) -> Pair:
    prompt, sides = _prompt(row), [_answer(row, "chosen"), _answer(row, "rejected")]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        kinds = ["text" if isinstance(side, str) else "messages" for side in sides]
        raise DataError(f"{row.where}: chosen is {kinds[0]} and rejected {kinds[1]}; use the same type for both")
    better, worse = sides
    if isinstance(better, str) and isinstance(worse, str):
        prompt, answers = _of_texts(prompt, better, worse, row.where)
    else:
        prompt, answers = _split_messages(prompt, [list(better), list(worse)], row.where)  # type: ignore[arg-type]
    if wrong := next((said[-1]["role"] for said in answers if said[-1]["role"] != "assistant"), None):
        raise DataError(f"{row.where}: one side ends with a message of {wrong}; both must end with an answer")
    return Pair(prompt=tuple(prompt), chosen=tuple(answers[0]), rejected=tuple(answers[1]), row_number=row.number)


def _prompt(row: Cells) -> Messages:
    """The prompt of its own column; none where the sides hold it."""
    for column in ASKED:
        if row.get(column) is not None:
            return row.side(column, "user")
    for column, keys in TALKED.items():
        if row.get(column) is not None:
            return row.messages(column, *keys)
    return instruction(row) if row.get("instruction") is not None else []


def _answer(row: Cells, column: str) -> str | Messages:
    """A side as it stands: a text, which may be blank (the check finds it), or messages."""
    value = row.get(column)
    if isinstance(value, str) and not value.strip():
        return value
    side = row.side(column, "assistant")
    return value if isinstance(value, str) and side == [say("assistant", value)] else side


def _of_texts(prompt: Messages, better: str, worse: str, where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are texts: answers alone, or the prompt too."""
    texts = (better, worse)
    if all(is_transcript(text) for text in texts):
        return _split_messages(prompt, [turns(text) for text in texts], where)
    if prompt:
        return prompt, [[say("assistant", text)] for text in texts]
    return _split_text(better, worse, where)


def _split_messages(prompt: Messages, sides: list[Messages], where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are conversations, or answers alone."""
    if any(not said for said in sides):
        raise DataError(f"{where}: chosen or rejected holds no turn")
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
    plain = _bare(common)
    if prompt and _bare(prompt) not in (plain, plain[: len(_bare(prompt))]):
        raise DataError(
            f"{where}: the prompt column ({prompt[-1]['content'][:40]!r}) is not what chosen and rejected begin with "
            f"({common[0]['content'][:40]!r})"
        )
    systems = [message["content"] for message in (*prompt[:1], common[0]) if message["role"] == "system"]
    if len(set(systems)) > 1:
        raise DataError(f"{where}: the prompt column and the sides begin with different system messages; keep one")
    head = [message for message in prompt[:1] if message["role"] == "system" and common[0]["role"] != "system"]
    return [*head, *common], [said[same:] for said in sides]


def _bare(messages: Sequence[Message]) -> list[Message]:
    """The messages without a system prompt."""
    return [message for message in messages if message["role"] != "system"]


def _split_text(better: str, worse: str, where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are whole texts."""
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


PREFERENCE = DataForm(
    name="preference",
    needs=("chosen", "rejected"),
    may_have=(*ASKED, *TALKED, "instruction", "input", "history", "system", "tools"),
    kinds=("pairs",),
    pair=_pair,
    example={"prompt": "The pig eats.", "chosen": "Ethay igpay eatsway.", "rejected": "Ethay pig eatsway."},
)
