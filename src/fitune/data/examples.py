"""A row of the data in fitune's own form: a conversation or text, a pair, a judged answer; and the text that it becomes.

What tokens make of them is in token_rows.py. No numpy here, so that settings and help can name the forms without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypedDict


class _Said(TypedDict):
    role: str
    content: str


class Message(_Said, total=False):
    """A message as every form of data is read into it, and as templates get it.

    `content` is "" where a message only calls tools. `tool_calls` are in OpenAI's form with the arguments as an object:
    `{"type": "function", "id": …, "function": {"name": …, "arguments": {…}}}` (`id` only where the data has one).
    `tool_call_id` and `name` stand in a tool's result.
    """

    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Example:
    """A row in fitune's own form: a conversation or plain text.

    `row_number` is the line of a JSON Lines or text file, or the 1-based position in any other. `tools` are the JSON
    schemas that the model may call; `untrained` are the places in `messages` of answers that the data marks as not to
    be trained (`weight: 0`, `train: false`, or an answer that is empty). `completion_from` is the place in `messages`
    where the completion begins, for forms that set it apart from the prompt; `begun` counts the characters of that
    message that the prompt has given, where it ends with the beginning of the answer.
    """

    messages: tuple[Message, ...] | None
    text: str | None
    row_number: int
    tools: tuple[dict[str, Any], ...] = ()
    untrained: frozenset[int] = frozenset()
    completion_from: int | None = None
    begun: int = 0


@dataclass(frozen=True)
class Rendered:
    """The text of a row, and which characters of it are trained: half-open spans in order.

    `prompts` are the lengths of the prompts with which chat would ask for the trained answers, one a span; empty where
    what is trained is no answer.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    row_number: int
    prompts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A preference in messages: the prompt, and what follows it on either side."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    row_number: int
    tools: tuple[dict[str, Any], ...] = ()

    def example(self, better: bool) -> Example:
        """One side as a conversation."""
        return Example(
            messages=(*self.prompt, *(self.chosen if better else self.rejected)),
            text=None,
            row_number=self.row_number,
            tools=self.tools,
        )

    @property
    def texts(self) -> tuple[str, str]:
        """What the two sides say."""
        return tuple("\n".join(said["content"] for said in answer) for answer in (self.chosen, self.rejected))  # type: ignore[return-value]


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is wanted, in messages: the prompt, and what follows it."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    row_number: int
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def example(self) -> Example:
        """Prompt and completion as one conversation."""
        return Example(
            messages=(*self.prompt, *self.completion), text=None, row_number=self.row_number, tools=self.tools
        )


def questions_of(examples: Sequence[Example], limit: int) -> list[Example]:
    """The first ``limit`` examples that end with an assistant's answer; plain text asks nothing."""
    asking = (example for example in examples if example.messages and example.messages[-1]["role"] == "assistant")
    return list(islice(asking, limit))
