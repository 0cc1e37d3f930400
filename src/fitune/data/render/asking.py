"""How a model is asked in chat: what training found in its data, kept beside the weights (`chat.json`).

A model trained on answers without reasoning is asked for such answers; one trained on a template without a system role
gets the system prompt as training gave it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from fitune.data.examples import Example, Message

FILE = "chat.json"
# A call of the clock with its format, as templates write it.
CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True)
class Asking:
    """`thinking`: ask for reasoning, for none, or (None) as the template does by itself.

    `system_as_user`: put the system prompt at the head of the first user message. `date`: the day (ISO 8601) that a
    template writes as today's, None for today. `system`: the system prompt that the training rows began with; chat
    begins with it. `split_special_tokens`: texts of special tokens in messages are plain text.
    """

    thinking: bool | None = None
    system_as_user: bool = False
    date: str | None = None
    system: str | None = None
    split_special_tokens: bool = True

    def dated(self, template: str) -> str:
        """The template with `strftime_now` of the kept day.

        transformers hands a template plain values only, so the function is written in front of it, for the formats in it.
        """
        if self.date is None:
            return template
        day = datetime.fromisoformat(self.date)
        formats = sorted({text for _, text in CLOCK.findall(template)})
        cases = "".join(f"{{% if f == {text!r} %}}{day.strftime(text)}{{% endif %}}" for text in formats)
        more = "\n" if template.startswith("\n") else ""  # the line break that Jinja takes away behind a block
        return f"{{% macro strftime_now(f) %}}{cases}{{% endmacro %}}{more}{template}"

    def write(self, folder: Path) -> None:
        """Keep it in a folder of weights."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Asking:
        """What a folder of weights says; the defaults where it says nothing."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        return cls()


AS_THE_TEMPLATE = Asking()


def thinking_of(examples: Iterable[Example]) -> bool | None:
    """Whether the answers of a data set have reasoning: all (True), none (False), or some; None too without answers."""
    found = {
        bool(said.get("reasoning_content"))
        for example in examples
        for said in example.messages or ()
        if said["role"] == "assistant"
    }
    return found.pop() if len(found) == 1 else None


def system_of(examples: Iterable[Example]) -> str | None:
    """The system prompt that all conversations of a data set begin with; None where they differ or have none."""
    found = {
        said["content"] if (said := example.messages[0])["role"] == "system" else None
        for example in examples
        if example.messages
    }
    return found.pop() if len(found) == 1 else None


def system_into_user(messages: Sequence[Message]) -> list[Message]:
    """The messages with a system prompt at the head of the first user message instead of before it."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    for at, said in enumerate(rest):
        if said["role"] == "user":
            folded: Message = {**said, "content": f"{system['content']}\n\n{said['content']}"}
            return [*rest[:at], folded, *rest[at + 1 :]]
    return [{**system, "role": "user"}, *rest]
