"""One message of a row, in any of the forms that people bring → a `Message`, or a fault with row and remedy."""

from __future__ import annotations

from collections.abc import Mapping

from fitune.data.examples import Message
from fitune.data.read.cell_types import as_text, checked, is_empty
from fitune.data.read.messages.calls import calls_in_text, read_calls, results_in_text
from fitune.data.read.messages.parts import Parts, are_parts, read_parts
from fitune.data.read.messages.roles import CALL, ROLES, role_of
from fitune.data.read.messages.thoughts import split_thought
from fitune.errors import DataError, did_you_mean

Messages = list[Message]
REASONING = ("reasoning_content", "reasoning", "thinking")
ONLY_FOR = {
    "tool_calls": "assistant", "function_call": "assistant", **dict.fromkeys(REASONING, "assistant"),
    "tool_call_id": "tool",
}  # fmt: skip
WEIGHTS = ("weight", "train", "loss_weight")
KEYS = ("role", "from", "content", "value", "name", *WEIGHTS, *ONLY_FOR)
# What a message carries beside what templates see; `taken` takes it off.
UNTRAINED, COMPLETION, BEGUN = ("(untrained)", "(completion)", "(begun)")


def say(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def looks_like_message(value: object) -> bool:
    """Whether a value is an object with a role and something said."""
    if not isinstance(value, Mapping) or not ("role" in value or "from" in value):
        return False
    return any(key in value for key in ("content", "value", "tool_calls", "function_call"))


def read_message(message: object, where: str, role_key: str = "role", content_key: str = "content") -> Message:
    """A message of a list.

    Args:
        where: the row, for a fault.
        role_key: the key that a fault names where there is no role; `content_key` likewise.

    Raises:
        DataError: no object, an unknown role or key, content that is none, a call that is none.
    """
    if not isinstance(message, Mapping):
        raise DataError(f"{where}: a message is {message!r:.60}; expected an object with {role_key} and {content_key}")
    name, text = message.get(role_key), message.get(content_key)
    if len(message) == 2 and isinstance(name, str) and isinstance(text, str) and ROLES.get(name, CALL) != CALL:
        return say(ROLES[name], checked(text, f"{where}: the {content_key} of a {name} message"))
    given = {key: value for key, value in message.items() if not (is_empty(value) or value in ([], {}, ""))}
    name = _either(given, ("role", "from"), where)
    if name is None or (isinstance(name, str) and not name.strip()):
        raise DataError(f"{where}: a message has no {role_key}; its keys are {', '.join(map(str, message))}")
    role = role_of(name, where)
    _check_keys(given, role, where)
    said = _said(_either(given, ("content", "value"), where), message, role, content_key, where)
    made = say("assistant" if role == CALL else role, said.text)
    beside = given.get("tool_calls", given.get("function_call"))
    if calls := [*said.calls, *(read_calls(beside, where) if beside else ())]:
        made["tool_calls"] = calls
    if thought := _reasoning(given, said.reasoning, where):
        made["reasoning_content"] = thought
    for key in ("name", "tool_call_id"):
        if key in given:
            made[key] = as_text(given[key], f"{where}: the {key} of a message")
    if not _trained(given, made["role"], where):
        made[UNTRAINED] = True  # type: ignore[literal-required]
    return made


def unfolded(message: Message, has_tools: bool, where: str) -> Messages:
    """A message with the reasoning, calls and results that stand in its text at their own places.

    Args:
        has_tools: the row names its tools, so that Hermes' `<tool_call>` and `<tool_response>` are marks of calls and
            results; they are text otherwise.

    Raises:
        DataError: marks that do not match, or reasoning in both places that is not the same.
    """
    if message["role"] == "tool" and has_tools:
        return [_with(message, content=result) for result in results_in_text(message["content"])]
    if message["role"] != "assistant":
        return [message]
    thought, content = split_thought(message["content"], where)
    beside = message.get("reasoning_content", "")
    if thought and beside and thought != beside.strip():
        raise DataError(f"{where}: an answer has reasoning beside its content and other reasoning in it; keep one")
    content, calls = calls_in_text(content, where) if has_tools else (content, [])
    if calls and message.get("tool_calls"):
        raise DataError(f"{where}: an answer has tool_calls and <tool_call> in its content; keep one")
    more = ({"reasoning_content": thought} if thought and not beside else {}) | ({"tool_calls": calls} if calls else {})
    return [_with(message, content=content, **more)]


def _with(message: Message, **changed: object) -> Message:
    return {**message, **changed}  # type: ignore[return-value]


def _either(given: Mapping[str, object], keys: tuple[str, ...], where: str) -> object:
    """The value under one of two names; None where neither is there."""
    found = [given[key] for key in keys if key in given]
    if len(found) > 1 and found[0] != found[1]:
        raise DataError(f"{where}: a message has {' and '.join(keys)}, and they differ; keep one")
    return found[0] if found else None


def _check_keys(given: Mapping[str, object], role: str, where: str) -> None:
    for key in given:
        if key not in KEYS:
            raise DataError(
                f'{where}: a message has the key "{key}", which is not read{did_you_mean(str(key), KEYS)}; take it out of '
                f"the messages, or write what it means with one of {', '.join(KEYS)}"
            )
        if (wanted := ONLY_FOR.get(key, role)) != role:
            raise DataError(f"{where}: {key} in a message of {role}; it belongs to {wanted}; take it out")


def _said(value: object, message: Mapping[str, object], role: str, content_key: str, where: str) -> Parts:
    """Content as text, with the reasoning and the calls that stand in it as parts."""
    what = f"{where}: the {content_key} of a {role} message"
    if role == CALL:
        return Parts(calls=read_calls(value, where))
    if value is None:
        empty = next((message[key] for key in ("content", "value") if key in message), None)
        if role in ("assistant", "tool") or empty == "":
            return Parts()
        raise DataError(f"{what} is {empty!r}; expected text")
    return read_parts(value, role, what, where) if are_parts(value) else Parts(as_text(value, what))


def _reasoning(given: Mapping[str, object], part: str, where: str) -> str:
    """The reasoning beside an answer, or the part of its content."""
    found = {key: given[key] for key in REASONING if key in given} | (
        {"a part of type reasoning": part} if part else {}
    )
    texts: list[str] = []
    for key, value in found.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} is {value!r:.60}; expected text")
        as_text(value, f"{where}: {key}")
        texts.append(value)
    if len(set(texts)) > 1:
        raise DataError(f"{where}: an answer has {' and '.join(found)}, and they differ; keep one")
    thought = texts[0] if texts else ""
    return thought if thought.strip() else ""


def _trained(given: Mapping[str, object], role: str, where: str) -> bool:
    """Whether a message is trained, by `weight` and `train`."""
    said = {key: given[key] for key in WEIGHTS if key in given}
    for key, value in said.items():
        if value not in (0, 1):
            raise DataError(f"{where}: {key} is {value!r:.40}; it is {'true or false' if key == 'train' else '0 or 1'}")
    if len({bool(value) for value in said.values()}) > 1:
        raise DataError(f"{where}: {' and '.join(said)} of a message contradict each other; keep one")
    if role != "assistant":
        if any(said.values()):
            raise DataError(
                f"{where}: {next(iter(said))} of a {role} message says to train it; only answers are trained"
            )
        return True
    return all(said.values())
