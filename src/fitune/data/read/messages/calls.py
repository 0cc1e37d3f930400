"""Tool calls and tools, as OpenAI, ShareGPT and Hermes write them → OpenAI's form with arguments as objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fitune.data.read.cell_types import as_json, is_empty
from fitune.data.read.json_text import BadJson, loads
from fitune.errors import DataError, did_you_mean

Object = dict[str, object]
CALL_KEYS = ("name", "arguments", "parameters")
OUTER_KEYS = ("id", "type", "function", "index", *CALL_KEYS)
HERMES = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


def parsed(value: object, what: str) -> object:
    """A value that may stand there as JSON text.

    Raises:
        DataError: text that is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except BadJson as error:
        raise DataError(f"{what} is no JSON ({error.reason}): {value:.60}") from error


def read_calls(value: object, where: str) -> list[Object]:
    """Calls: one, or a list of them, as JSON text or as they are.

    Raises:
        DataError: no object, no name, arguments that are no object, or a key that is not read.
    """
    value = parsed(value, f"{where}: a tool call")
    calls = value if isinstance(value, list) else [value]
    return [_call(parsed(call, f"{where}: a tool call"), where) for call in calls]


def _call(call: object, where: str) -> Object:
    if not isinstance(call, Mapping):
        raise DataError(f"{where}: a tool call is {call!r:.60}; expected an object with name and arguments")
    outer = {key: value for key, value in call.items() if not is_empty(value)}
    function = parsed(outer.get("function", outer), f"{where}: a tool call's function")
    if isinstance(function, str):
        function = {**outer, "name": function}
    if not isinstance(function, Mapping):
        raise DataError(
            f"{where}: a tool call's function is {function!r:.60}; expected an object with name and arguments"
        )
    inner = {key: value for key, value in function.items() if not is_empty(value)}
    _known(outer, OUTER_KEYS, where)
    _known(inner, CALL_KEYS if function is not outer else OUTER_KEYS, where)
    if outer.get("type", "function") != "function":
        raise DataError(f"{where}: a tool call of type {outer['type']!r}; only calls of functions are trained")
    name = inner.get("name")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f'{where}: a tool call has no name; write {{"name": …, "arguments": {{…}}}}')
    arguments = _arguments(inner.get("arguments", inner.get("parameters")), name, where)
    made: Object = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if "id" in outer:
        made = {"type": "function", "id": _id(outer["id"], where), "function": made["function"]}
    as_json(made, f"{where}: the call of {name}")
    return made


def _arguments(value: object, name: str, where: str) -> Object:
    """Arguments as an object; a call without any has none."""
    if is_empty(value) or value == "":
        return {}
    value = parsed(value, f"{where}: the arguments of the call of {name}")
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: the arguments of the call of {name} are {value!r:.60}, no JSON object; write {{"key": value}}'
        )
    return value


def _id(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: the id of a tool call is {value!r:.60}; expected text")
    return value


def _known(found: Mapping[str, object], keys: tuple[str, ...], where: str) -> None:
    if unknown := next((key for key in found if key not in keys), None):
        raise DataError(
            f'{where}: a tool call has the key "{unknown}", which is not read{did_you_mean(unknown, keys)}; '
            "it has name and arguments, and may have an id"
        )


def read_tools(value: object, where: str) -> tuple[Object, ...]:
    """The tools of a row: a list, a single one, or either as JSON text; bare functions get OpenAI's frame.

    Raises:
        DataError: no object, or no name.
    """
    if is_empty(value) or (isinstance(value, str) and not value.strip()):
        return ()
    value = parsed(value, f"{where}: tools")
    tools = value if isinstance(value, list) else [value]
    return tuple(_tool(parsed(tool, f"{where}: a tool"), where) for tool in tools if not is_empty(tool))


def _tool(tool: object, where: str) -> Object:
    if not isinstance(tool, dict):
        raise DataError(f"{where}: a tool is {tool!r:.60}; expected an object with name and parameters")
    function = tool.get("function", tool)
    if tool.get("type", "function") != "function" and "function" not in tool and "name" not in tool:
        raise DataError(f"{where}: a tool of type {tool['type']!r}; only functions are trained")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(f'{where}: a tool has no name; write {{"name": …, "description": …, "parameters": {{…}}}}')
    as_json(tool, f"{where}: the tool {function['name']}")
    if "function" in tool:
        return {"type": "function", **tool}
    return {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}


def calls_in_text(content: str, where: str) -> tuple[str, list[Object]]:
    """An answer's text without the calls at its end, and these, where Hermes' marks hold them.

    Raises:
        DataError: a mark without its other, a call that is none, or text behind a call.
    """
    if "<tool_call>" not in content:
        return content, []
    begin = content.index("<tool_call>")
    calls = list(_marked(content[begin:], where))
    return content[:begin].rstrip(), calls


def _marked(text: str, where: str) -> Iterator[Object]:
    at = 0
    for found in HERMES.finditer(text):
        if text[at : found.start()].strip():
            break
        at = found.end()
        yield from read_calls(found.group(1).strip(), where)
    if rest := text[at:].strip():
        raise DataError(
            f"{where}: an answer has {rest[:40]!r} where a call or its end should be; a call stands in "
            "<tool_call>…</tool_call> at the end of the answer"
        )


def results_in_text(content: str) -> list[str]:
    """The results that a text holds in Hermes' marks and in nothing else; the text itself where it is no such."""
    text = content.strip()
    return RESULT.findall(text) if text and not RESULT.sub("", text) else [content]
