"""Whole conversations: call turns that belong together joined, an answer begun and its rest too, and the order checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fitune.data.examples import Message
from fitune.data.read.messages.message import BEGUN, COMPLETION, UNTRAINED, Messages
from fitune.errors import DataError


class Marks(NamedTuple):
    """What messages carried beside what templates see: places of answers not to train, of the completion's first message
    (None: no form of a prompt and its completion), and how many characters of that message the prompt has given."""

    untrained: frozenset[int]
    completion: int | None
    begun: int


def with_joined_calls(messages: Messages) -> Messages:
    """The messages; an answer that only calls tools joins the answer before it, as several calls of one turn."""
    joined: Messages = []
    for message in messages:
        before = joined[-1] if joined else None
        calls = message.get("tool_calls")
        alone = bool(calls) and not message["content"] and not message.get("reasoning_content")
        if before is None or before["role"] != "assistant" or not alone or _mark(before) != _mark(message):
            joined.append(message)
            continue
        both = before.copy()
        both["tool_calls"] = [*before.get("tool_calls", ()), *(calls or ())]
        joined[-1] = both
    return joined


def continued(prompt: Messages, completion: Messages, where: str) -> Messages:
    """Prompt and completion as one conversation; a prompt that ends in an answer is that answer's beginning.

    Raises:
        DataError: a beginning that calls tools, or that has reasoning in its text.
    """
    first: dict[str, Any] = {**completion[0], COMPLETION: True}
    if not prompt or prompt[-1]["role"] != "assistant" or first["role"] != "assistant":
        return [*prompt, first, *completion[1:]]  # type: ignore[list-item]
    begun = prompt[-1]
    if begun.get("tool_calls") or first.get("reasoning_content") or "<think>" in begun["content"]:
        raise DataError(
            f"{where}: the prompt ends with an answer that calls tools or thinks, and the completion begins with an "
            "answer; put the whole answer into the completion"
        )
    whole = {**begun, **first, "content": begun["content"] + first["content"], BEGUN: len(begun["content"])}
    return [*prompt[:-1], whole, *completion[1:]]  # type: ignore[list-item]


def taken(messages: Messages) -> tuple[Messages, Marks]:
    """The messages without their marks, and these."""
    keys = {UNTRAINED, COMPLETION, BEGUN}
    if all(keys.isdisjoint(message) for message in messages):
        return messages, Marks(frozenset(), None, 0)
    bare: Messages = list(messages)
    found: list[tuple[int, str, Any]] = []
    for place, message in enumerate(messages):
        if not keys.isdisjoint(message):
            rest: Any = dict(message)
            found += [(place, key, rest.pop(key)) for key in keys & rest.keys()]
            bare[place] = rest
    untrained = frozenset(place for place, key, _ in found if key == UNTRAINED)
    completion = next((place for place, key, _ in found if key == COMPLETION), None)
    return bare, Marks(untrained, completion, next((value for _, key, value in found if key == BEGUN), 0))


def check_order(messages: Sequence[Message], where: str) -> None:
    """Raises DataError for two answers in a row, two system texts at the beginning, or a result without its call."""
    if [message["role"] for message in messages[:2]] == ["system", "system"]:
        raise DataError(f"{where} begins with two system messages; join them, since many templates show one alone")
    open_calls: list[str | None] | None = None  # ids of the calls that may be answered; None where none were made
    for place, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "assistant":
            if place > 1 and messages[place - 2]["role"] == "assistant":
                raise DataError(
                    f"{where}: messages {place - 1} and {place} are both answers; join them, or put what was asked between"
                )
            calls = message.get("tool_calls")
            in_text = message["content"].count("<tool_call>")  # calls that are trained as text
            open_calls = [call.get("id") for call in calls] if calls else [None for _ in range(in_text)] or None
        elif role == "tool":
            open_calls = _answered(open_calls, message.get("tool_call_id"), place, where)
        else:
            open_calls = None


def _answered(open_calls: list[str | None] | None, wanted: str | None, place: int, where: str) -> list[str | None]:
    """The calls still open after a result.

    Raises:
        DataError: there is none for it.
    """
    if not open_calls:
        said = "has no call before it" if open_calls is None else "is one more than there are calls"
        raise DataError(
            f"{where}: message {place} is a tool's result and {said}; put an answer with tool_calls before it"
        )
    known = [call for call in open_calls if call is not None]
    if wanted is not None and known and wanted not in known:
        raise DataError(
            f'{where}: message {place} is the result of call "{wanted}", and the calls before it are {", ".join(known)}'
        )
    left = list(open_calls)
    left.remove(wanted if wanted in left else left[0])
    return left


def _mark(message: Message) -> bool:
    return bool(message.get(UNTRAINED))
