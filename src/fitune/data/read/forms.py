"""Which form a data set has, and its rows in fitune's own form.

A form is recognised from the columns, or named in the settings; `columns` maps the form's names to the file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitune.data.rows import Example
from fitune.errors import DataError, did_you_mean

# form → (columns it needs, columns it may have)
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ()),
    "conversations": (("conversations",), ("system",)),
    "prompt_completion": (("prompt", "completion"), ("system",)),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "text": (("text",), ()),
    "preference": (("chosen", "rejected"), ("prompt", "system")),
    "prompt": (("prompt",), ("system",)),
}
# What a method reads → the forms that hold it, in the order in which they are recognised.
FORMS_OF: dict[str, tuple[str, ...]] = {
    "rows": ("messages", "conversations", "prompt_completion", "alpaca", "text"),
    "pairs": ("preference",),
    "prompts": ("prompt_completion", "messages", "conversations", "alpaca", "prompt"),
}
NEEDS = {
    "pairs": "pairs of a better and a worse answer",
    "prompts": "prompts",
}
PREFERENCE = {"prompt, chosen, rejected": {"chosen", "rejected"}, "prompt, completion, label": {"completion", "label"}}
# ShareGPT's names of roles, beside the usual ones.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Form:
    """A recognised form; `mapping` holds the file's column for each of the form's."""

    name: str
    mapping: Mapping[str, str]

    def get(self, row: Mapping[str, Any], column: str) -> Any:
        """The row's value of one of the form's columns, or None."""
        return row.get(self.mapping.get(column, column))


def recognise(
    columns: Sequence[str], form: str = "auto", mapping: Mapping[str, str] | None = None, kind: str = "rows"
) -> Form:
    """The form that fits the columns.

    Args:
        kind: what the method reads, a key of `FORMS_OF`.

    Raises:
        DataError: none fits, or a preference form, or a mapping to columns that are not there.
    """
    mapping = dict(mapping or {})
    for own, theirs in mapping.items():
        if theirs not in columns:
            raise DataError(
                f'data.columns maps {own} to "{theirs}", which the data does not have{did_you_mean(theirs, columns)}; '
                f"its columns are: {', '.join(columns)}"
            )
        known = {name for needed, optional in FORMS.values() for name in (*needed, *optional)}
        if own not in known:
            raise DataError(f'data.columns has "{own}", which no form uses{did_you_mean(own, known)}')
    present = (set(columns) - set(mapping.values())) | set(mapping)
    for layout, needed in PREFERENCE.items():
        if kind == "rows" and form == "auto" and needed <= present:
            raise DataError(
                f"the columns are those of preference data ({layout}), which sft and lm do not train on; "
                "use method reward or dpo, or for plain fine-tuning map the good answer: data.columns={completion: chosen}"
                if "chosen" in needed
                else f"the columns are those of preference data ({layout}); drop the label column to train on "
                "every completion"
            )
    fitting = [name for name in FORMS_OF[kind] if set(FORMS[name][0]) <= present]
    names = [form] if form != "auto" else fitting
    if form != "auto" and form not in FORMS_OF[kind]:
        raise DataError(
            f"data.form is {form}, and the method needs {NEEDS.get(kind, 'rows with answers')}: "
            f"use {', '.join(FORMS_OF[kind])}, or auto"
        )
    if not names or not set(FORMS[names[0]][0]) <= present:
        wanted = "; ".join(f"{name}: {', '.join(FORMS[name][0])}" for name in FORMS_OF[kind])
        asked = f"data.form is {form}, and" if form != "auto" else "no form is recognised:"
        if kind in NEEDS:
            asked = f"the method needs {NEEDS[kind]}; {asked}"
        raise DataError(
            f"{asked} the data has the columns {', '.join(columns) or '(none)'}. Forms and their columns are {wanted}. "
            "Other names are mapped with data.columns, for example data.columns={prompt: question, completion: answer}"
        )
    return Form(names[0], mapping)


def to_example(row: Mapping[str, Any], form: Form, system: str | None, row_number: int) -> Example:
    """A row as a conversation or as text.

    Raises:
        DataError: a missing or empty prompt, answer or text; a role or a message that is not one.
    """
    where = f"row {row_number}"
    if form.name == "text":
        return Example(None, _words(form.get(row, "text"), where, "text"), row_number)
    messages = conversation(row, form, system, where)
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where} has no answer: its roles are {', '.join(message['role'] for message in messages)}")
    return Example(tuple(messages), None, row_number)


def conversation(row: Mapping[str, Any], form: Form, system: str | None, where: str) -> list[dict[str, str]]:
    """The messages of a row, whatever its form writes them as; a form without answers gives the prompt alone."""
    if form.name == "messages":
        messages = _messages(form.get(row, "messages"), where, "messages", "role", "content")
    elif form.name == "conversations":
        messages = _messages(form.get(row, "conversations"), where, "conversations", "from", "value")
    elif form.name == "alpaca":
        asked = _words(form.get(row, "instruction"), where, "instruction")
        if extra := form.get(row, "input"):
            asked = f"{asked}\n\n{extra}"
        messages = [_say("user", asked), _say("assistant", _words(form.get(row, "output"), where, "output"))]
    else:
        messages = side(form.get(row, "prompt"), where, "prompt", "user")
        if form.name != "prompt":
            messages += side(form.get(row, "completion"), where, "completion", "assistant")
    return with_system(messages, form.get(row, "system") or system)


def with_system(messages: list[dict[str, str]], system: Any) -> list[dict[str, str]]:
    """The messages, a system prompt before them where there is one to add."""
    if system and messages[0]["role"] != "system":
        return [_say("system", str(system)), *messages]
    return messages


def side(value: Any, where: str, column: str, role: str) -> list[dict[str, str]]:
    """A prompt or completion: a string, or a list of messages."""
    if isinstance(value, list):
        return _messages(value, where, column, "role", "content")
    return [_say(role, _words(value, where, column))]


def _messages(value: Any, where: str, column: str, role_key: str, content_key: str) -> list[dict[str, str]]:
    """A list of messages with known roles and text contents."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {column} is {value!r:.60}; a list of messages is needed")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise DataError(f"{where}: a message is {message!r:.60}; an object with {role_key} and {content_key}")
        role = message.get(role_key, message.get("role", message.get("from")))
        content = message.get(content_key, message.get("content", message.get("value")))
        if not isinstance(role, str) or not role.strip():
            raise DataError(f"{where}: a message has no {role_key}; its keys are {', '.join(message)}")
        if not isinstance(content, str):
            raise DataError(f"{where}: the {content_key} of a {role} message is {content!r:.60}; text is needed")
        messages.append(_say(ROLES.get(role, role), content))
    return messages


def _words(value: Any, where: str, column: str) -> str:
    """A text that is there and not blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where} has no {column}: it is {'missing' if value is None else 'blank'}")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} is {value!r:.60} ({type(value).__name__}); text is needed")
    return value


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
