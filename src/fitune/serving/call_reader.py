"""Tool calls in the text of an answer, read by what the chat template writes for a call that it is given.

In: a renderer, the tools, an answer's raw text. Out: the content before the calls, and the calls in OpenAI's form. Two kinds
of templates are read: those that write arguments as JSON (the name inside, or before it), and those that write each argument
between marks of its own, which a probe finds out. No family is known by name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from fitune.data.examples import Message
from fitune.data.render.renderer import Renderer
from fitune.errors import DataError

NAME, KEYS, VALUES, SAID = "probename", ("keyone", "keytwo"), ("valueone", "valuetwo"), "SAIDTEXT"
_TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {key: {"type": "string", "description": ""} for key in KEYS}},
    },
}


@dataclass(frozen=True)
class ToolCall:
    """The name of a tool and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CallReader:
    """How one template writes calls.

    `opener` stands between an answer's content and its calls. Arguments are JSON unless `pattern` and `argument` find a call
    and its arguments between marks, `python` says that calls are written as Python's, or `quote` is what stands for the
    quotation marks of an object whose keys have none.
    """

    opener: str
    pattern: re.Pattern[str] | None = None
    argument: re.Pattern[str] | None = None
    python: bool = False
    quote: str = ""

    @classmethod
    def of(cls, renderer: Renderer) -> CallReader | None:
        """Probe the template; None where it shows no calls."""
        call: Any = {
            "type": "function",
            "id": "call00001",
            "function": {"name": NAME, "arguments": dict(zip(KEYS, VALUES, strict=True))},
        }
        asked: list[Message] = [
            {"role": "user", "content": "ASKEDTEXT"},
            {"role": "assistant", "content": SAID, "tool_calls": [call]},
        ]
        try:
            text = renderer.text_of(asked, tools=[_TOOL])
        except DataError:
            return None
        shown = text[text.rfind(SAID) + len(SAID) :] if SAID in text else ""
        if NAME not in shown:  # some write what is said behind the calls
            shown = text[text.rfind("ASKEDTEXT") + len("ASKEDTEXT") :].replace(SAID, "")
        if NAME not in shown or VALUES[1] not in shown:
            return None
        first = shown.index(NAME)
        if any(KEYS[0] in json.dumps(value) for value, _, _ in _objects(shown)):
            begins = min(shown.find("{") if "{" in shown else first, first)
            return cls(shown[:begins].strip().rstrip("[").strip())
        opener = shown[:first].strip()
        if _python_call(shown[first:]) is not None:
            return cls(opener.rstrip("[").strip(), python=True)
        return cls._between_marks(shown, opener)

    @classmethod
    def _between_marks(cls, shown: str, opener: str) -> CallReader | None:
        """`<name>` … `<key>` … `<value>` … with the texts that the template puts between them."""
        named = shown.rindex(NAME)  # where the name stands twice, arguments follow the second
        shown = shown[shown.rfind("\n", 0, named) + 1 :]
        pieces = re.split("|".join((NAME, *KEYS, *VALUES)), shown)
        if len(pieces) != 6:
            return None
        before, to_key, to_value, between, again, after = pieces
        if to_value != again:
            return None
        quote = to_value[1:]
        if to_key == "{" and to_value[:1] == ":" and quote and between == f"{quote},":
            return cls(opener, quote=quote)
        opens = _common_end(to_key, between)
        closes, name_ends = between[: len(between) - len(opens)], to_key[: len(to_key) - len(opens)]
        call_ends = after.removeprefix(closes).strip().split("\n")[0] or "$"
        argument = re.compile(f"{_loose(opens)}(.+?){_loose(to_value)}(.*?){_loose(closes)}", re.DOTALL)
        ends = re.escape(call_ends) if call_ends != "$" else "$"
        call = re.compile(f"{_loose(before)}([^\\s<>]+){_loose(name_ends)}(.*?)(?:{ends}|$)", re.DOTALL)
        return cls(opener.split("\n")[0], call, argument)

    def read(self, raw: str, tools: Sequence[dict[str, Any]]) -> tuple[str, list[ToolCall]]:
        """Content and calls of an answer's raw text; text whose calls name no tool of these is content as it stands."""
        known = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
        calls = list(self._calls(raw, known))
        if not calls:
            return raw, []
        at = raw.find(self.opener) if self.opener else -1
        if at < 0:
            at = min((place for place in (raw.find("{"), raw.find(calls[0].name)) if place >= 0), default=0)
        return raw[:at], calls

    def _calls(self, raw: str, known: dict[str, Any]) -> Iterator[ToolCall]:
        if self.pattern:
            return self._by_marks(raw, known)
        if self.python:
            return _by_python(raw, known)
        return self._by_json(_quoted(raw, self.quote) if self.quote else raw, known)

    @staticmethod
    def _by_json(raw: str, known: dict[str, Any]) -> Iterator[ToolCall]:
        """Objects with a name and arguments; or arguments alone, behind the name of a tool."""
        end = 0
        for value, start, stop in _objects(raw):
            before, end = raw[end:start], stop
            inner = value.get("function")
            named = inner if isinstance(inner, dict) else value
            name = named.get("name")
            arguments = named.get("arguments", named.get("parameters"))
            if isinstance(arguments, str):
                arguments = next((found for found, _, _ in _objects(arguments)), None)
            if isinstance(name, str) and name in known and isinstance(arguments, dict):
                yield ToolCall(name, arguments)
                continue
            said = max(known, key=lambda tool: before.rfind(tool), default="")
            if said and said in before:
                yield ToolCall(said, value)

    def _by_marks(self, raw: str, known: dict[str, Any]) -> Iterator[ToolCall]:
        assert self.pattern is not None and self.argument is not None
        for name, inside in self.pattern.findall(raw):
            if name in known:
                types = known[name].get("properties", {})
                found = self.argument.findall(inside)
                yield ToolCall(name, {key.strip(): _typed(value, types.get(key.strip(), {})) for key, value in found})


def _by_python(raw: str, known: dict[str, Any]) -> Iterator[ToolCall]:
    """`name(key='value', …)`."""
    end = 0
    for found in re.finditer(r"([\w.-]+)\(", raw):
        if found.start() < end or found[1] not in known:
            continue
        if (call := _python_call(raw[found.start() :])) is not None:
            arguments, length = call
            end = found.start() + length
            yield ToolCall(found[1], arguments)


def _python_call(text: str) -> tuple[dict[str, Any], int] | None:
    """Keyword arguments of the call that a text begins with, and its length; None where it is none."""
    for found in re.finditer(r"\)", text):
        try:
            tree = ast.parse(text[: found.end()], mode="eval").body
            if isinstance(tree, ast.Call) and not tree.args:
                return {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}, found.end()
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def _quoted(text: str, quote: str) -> str:
    """An object with marks for its quotes, and keys without any, as JSON."""
    pieces = text.split(quote)
    keys = [re.sub(r"([{,]\s*)([\w-]+)\s*:", r'\1"\2":', piece) for piece in pieces[::2]]
    values = [json.dumps(piece) for piece in pieces[1::2]]
    return "".join(one for pair in zip_longest(keys, values, fillvalue="") for one in pair)


def _typed(text: str, schema: dict[str, Any]) -> Any:
    """An argument's text by its schema: text where text is asked, else the JSON value that it is."""
    text = text.strip("\n")
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """JSON objects in a text, with where they begin and end."""
    decoder, at = json.JSONDecoder(), 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
        except ValueError:
            at = start + 1
            continue
        yield value, start, at


def _loose(text: str) -> str:
    """A pattern for a text, blanks in it as they come."""
    parts = [re.escape(part) for part in text.split()]
    return r"\s*".join(["", *parts, ""]) if parts else r"\s*"


def _common_end(one: str, other: str) -> str:
    """The longest text with which both end."""
    length = next((at for at in range(min(len(one), len(other))) if one[-1 - at] != other[-1 - at]), None)
    length = min(len(one), len(other)) if length is None else length
    shared = one[len(one) - length :]
    # From where a mark begins: `>` may be the end of the name's mark and of the argument's alike.
    begins = next((at for at, sign in enumerate(shared) if sign in "\n<["), 0)
    return shared[begins:]
