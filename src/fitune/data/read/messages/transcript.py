r"""Conversations written as one text in Anthropic's form (hh-rlhf): "\n\nHuman: … \n\nAssistant: …"."""

from __future__ import annotations

import re

from fitune.data.examples import Message

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Whether a text is a conversation: a person begins, and the assistant has a turn, if only its name."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def turns(text: str) -> list[Message]:
    """The turns; an assistant's name at the end, which only asks for the answer, is none."""
    pieces = TURN.split(text.strip())
    found: list[Message] = [
        {"role": SPEAKERS[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    asks = found[-1]["role"] == "assistant" and not found[-1]["content"]
    return found[:-1] if asks else found
