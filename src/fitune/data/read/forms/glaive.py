"""Glaive's function calling data: functions in the system text, and a conversation in one text with calls in marks."""

from __future__ import annotations

import re

from fitune.data.read.forms.cells import Cells, Messages
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.json_text import BadJson, values
from fitune.errors import DataError

TURN = re.compile(r"(?:^|\n+)(USER|ASSISTANT|FUNCTION RESPONSE):[ ]?")
SPEAKERS = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
CALL = re.compile(r"<functioncall>\s*(\{.*\})\s*$", re.DOTALL)
QUOTED = re.compile(r'\{\s*"name":\s*"([^"]*)",\s*"arguments":\s*\'(.*)\'\s*\}', re.DOTALL)
FRAME = re.compile(r"You are a helpful assistant,? with (no )?access to (external|the following) functions\.")


def _unpacked(row: Cells) -> dict[str, object]:
    """The row as messages and tools."""
    system, tools = _functions(row.text("system").removeprefix("SYSTEM:").strip(), row.where)
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": [*head, *_turns(row.text("chat"), row.where)], "tools": tools}


def _functions(text: str, where: str) -> tuple[str, list[object]]:
    """The system text without the functions and the sentence that introduces them, and the functions."""
    begin = text.find("{")
    prompt = text if begin < 0 else text[:begin]
    try:
        functions = [] if begin < 0 else [value for _, value in values(text[begin:])]
    except BadJson as error:
        raise DataError(f"{where}: the functions in system are no JSON objects ({error.reason})") from error
    bare = FRAME.sub("", prompt).replace("Use them if required -", "").strip()
    return bare, functions


def _turns(text: str, where: str) -> list[dict[str, object]]:
    pieces = TURN.split(text.strip())
    if pieces[0].strip() or len(pieces) < 3:
        raise DataError(f"{where}: chat begins with {text.strip()[:40]!r}; expected USER: or ASSISTANT:")
    said = zip(pieces[1::2], pieces[2::2], strict=True)
    return [_turn(SPEAKERS[who], words.replace("<|endoftext|>", "").strip(), where) for who, words in said]


def _turn(role: str, words: str, where: str) -> dict[str, object]:
    if role != "assistant" or "<functioncall>" not in words:
        return {"role": role, "content": words}
    found = CALL.search(words)
    if found is None:
        raise DataError(f"{where}: <functioncall> is not followed by a call alone: {words:.80}")
    quoted = QUOTED.fullmatch(found.group(1))
    call: object = found.group(1)
    if quoted is not None:
        call = {"name": quoted.group(1), "arguments": quoted.group(2).replace("\\'", "'")}
    return {"role": role, "content": words[: found.start()].strip(), "tool_calls": [call]}


def _conversation(row: Cells) -> Messages:
    return row.messages("messages")


GLAIVE = DataForm(
    name="glaive",
    needs=("system", "chat"),
    kinds=("rows", "prompts"),
    unpack=_unpacked,
    conversation=_conversation,
    example={
        "system": 'SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n{"name": '
        '"weather", "parameters": {"type": "object"}}',
        "chat": 'USER: Rain?\n\n\nASSISTANT: <functioncall> {"name": "weather", "arguments": \'{}\'} <|endoftext|>',
    },
)
