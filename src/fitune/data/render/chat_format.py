"""What a chat template does, found by rendering probes: how it shows reasoning and tools, and what ends an answer.

In: a function that renders messages. Out: a frozen `ChatFormat`. No family is known by name: a template published tomorrow
is probed like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitune.data.examples import Message
from fitune.data.render.time_limit import TemplateTooSlow
from fitune.errors import DataError

Render = Callable[..., str]

# Keys under which templates look for the reasoning of an answer.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Names of the template argument that turns thinking on or off; a template ignores those that it does not know.
THINKING_SWITCHES = ("enable_thinking", "thinking")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ASKED, REASONED, SAID = "ASKEDTEXT", "REASONEDTEXT", "SAIDTEXT"
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "A key."}}},
    },
}
_CALL = {"type": "function", "id": "call00001", "function": {"name": "probe_tool", "arguments": {"key": "VALUE"}}}
_CALLS: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}


def inline_reasoning(reasoning: str, content: str) -> str:
    """Reasoning and answer in one text, as thinking models write them."""
    return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n\n{content}"


@dataclass(frozen=True)
class ChatFormat:
    """What one template does with one tokenizer.

    Attributes:
        reasoning_key: the key under which it shows the reasoning of the last answer; None where it knows none.
        inline: it shows a `<think>` block that stands in the content (only asked where `reasoning_key` is None).
        hybrid: the generation prompt depends on whether thinking is asked for.
        shows_tools: it shows the tools that may be called.
        arguments_as_text: it wants the arguments of a call as JSON text, not as an object.
        content_as_parts: it shows contents that are lists of parts, and no plain text.
        tail: what it writes behind the last answer of a conversation.
        end: the end tokens of an answer: how `tail` begins, or, where the template leaves the end to the next turn
            (GLM: `<|user|>`), the special token that opens that turn.
        call_end: the special token that opens a tool's result, where nothing else ends an answer that calls tools.
        stops: the tokens that end an answer, plain or with calls.
        opening: what an answer without reasoning begins with, before its content.
        thought_opening: what reasoning begins with.
        between: what stands between reasoning and content of an answer.
    """

    reasoning_key: str | None = None
    inline: bool = True
    hybrid: bool = False
    shows_tools: bool = False
    arguments_as_text: bool = False
    content_as_parts: bool = False
    tail: str = ""
    end: str = ""
    call_end: str = ""
    stops: tuple[str, ...] = ()
    opening: str = ""
    thought_opening: str = ""
    between: str = f"\n{THINK_CLOSE}\n\n"

    @property
    def shows_reasoning(self) -> bool:
        """Whether reasoning can be given to it at all."""
        return self.reasoning_key is not None or self.inline

    def adapt(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as this template reads them."""
        return [self._adapted(message) for message in messages]

    def _adapted(self, message: Message) -> dict[str, Any]:
        shown: dict[str, Any] = dict(message)
        reasoning = shown.pop("reasoning_content", None)
        if reasoning and self.reasoning_key:
            shown[self.reasoning_key] = reasoning
        elif reasoning and self.inline:
            shown["content"] = inline_reasoning(reasoning, shown["content"])
        if calls := shown.get("tool_calls"):
            shown["tool_calls"] = [self._call(call) for call in calls]
        if self.content_as_parts:
            shown["content"] = [{"type": "text", "text": shown["content"]}]
        return shown

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        if not self.arguments_as_text:
            return dict(call)
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def probe_format(render: Render, special_texts: Sequence[str]) -> ChatFormat:
    """What the template behind ``render`` does.

    Args:
        render: (adapted messages, generation prompt, tools, thinking) → text; raises DataError where the template refuses.
        special_texts: texts of the tokenizer's special tokens.
    """
    asked: Message = {"role": "user", "content": ASKED}
    said: Message = {"role": "assistant", "content": SAID}
    found = ChatFormat()
    plain = _tried(render, [asked, said])
    if (plain is None or SAID not in plain) and SAID in (
        _tried(render, replace(found, content_as_parts=True).adapt([asked, said])) or ""
    ):
        found = replace(found, content_as_parts=True)
    thinks: Message = {**said, "reasoning_content": REASONED}
    prompts = [_tried(render, found.adapt([asked]), True, (), thinking) or "" for thinking in (True, False)]
    found = replace(found, hybrid=prompts[0] != prompts[1])
    keys = (key for key in REASONING_KEYS if _shows_reasoning(render, replace(found, reasoning_key=key), asked, thinks))
    found = replace(found, reasoning_key=next(keys, None))
    if found.reasoning_key is None:
        # A template that knows thinking, and not by these marks, has marks of its own: these would be plain text to it.
        usual = not found.hybrid or any(THINK_OPEN in prompt for prompt in prompts)
        found = replace(found, inline=usual and _shows_reasoning(render, found, asked, thinks))
    found = _with_tools(render, found, asked, special_texts)
    found = _with_end(render, found, [asked, said], special_texts)
    found = replace(found, stops=_stops(render, found, asked, special_texts))
    return _with_openings(render, found, [asked, said], [asked, thinks], prompts)


def _with_openings(
    render: Render, found: ChatFormat, plain: Sequence[Message], thinks: Sequence[Message], prompts: Sequence[str]
) -> ChatFormat:
    """What stands before the content of an answer, without and with reasoning."""
    asked_to_think, asked_plainly = prompts
    shown = _tried(render, found.adapt(thinks), False, (), True) or ""
    if found.shows_reasoning and REASONED in shown and SAID in shown:
        at = shown.rindex(REASONED)
        found = replace(found, between=shown[at + len(REASONED) : shown.rindex(SAID)])
        if shown.startswith(asked_to_think):
            found = replace(found, thought_opening=shown[len(asked_to_think) : at])
    bare = _tried(render, found.adapt(plain), False, (), False) or ""
    if bare.startswith(asked_plainly) and SAID in bare:
        found = replace(found, opening=bare[len(asked_plainly) : bare.rindex(SAID)])
    return found


def _shows_reasoning(render: Render, found: ChatFormat, asked: Message, thinks: Message) -> bool:
    text = _tried(render, found.adapt([asked, thinks]), False, (), True) or ""
    return REASONED in text and SAID in text


def _with_tools(render: Render, found: ChatFormat, asked: Message, special_texts: Sequence[str]) -> ChatFormat:
    """How tools are shown, and calls."""
    found = replace(found, shows_tools="probe_tool" in (_tried(render, found.adapt([asked]), True, (TOOL,)) or ""))
    calls = _CALLS
    text = _tried(render, found.adapt([asked, calls]), False, (TOOL,))
    if text is None or "{'key'" in text:
        as_text = replace(found, arguments_as_text=True)
        if "VALUE" in (_tried(render, as_text.adapt([asked, calls]), False, (TOOL,)) or ""):
            found = as_text
    result: Message = {"role": "tool", "content": "RESULT", "tool_call_id": "call00001", "name": "probe_tool"}
    alone = _tried(render, found.adapt([asked, calls]), False, (TOOL,)) or ""
    more = _tried(render, found.adapt([asked, calls, result]), False, (TOOL,)) or ""
    if alone and more.startswith(alone.rstrip()):
        return replace(found, call_end=_first_special(more[len(alone.rstrip()) :], special_texts))
    return found


def _with_end(render: Render, found: ChatFormat, turns: Sequence[Message], special_texts: Sequence[str]) -> ChatFormat:
    """What ends a plain answer."""
    text = _tried(render, found.adapt(turns)) or ""
    if SAID not in text:
        return found
    tail = text[text.rindex(SAID) + len(SAID) :]
    if end := leading_specials(tail, special_texts):
        return replace(found, tail=tail, end=end)
    more = _tried(render, found.adapt([*turns, {"role": "user", "content": "NEXTASKED"}])) or ""
    following = more[more.rindex(SAID) + len(SAID) :] if SAID in more else ""
    return replace(found, tail=tail, end=_first_special(following, special_texts))


def _stops(render: Render, found: ChatFormat, asked: Message, special_texts: Sequence[str]) -> tuple[str, ...]:
    """The last token of each way to end an answer."""
    called = _tried(render, found.adapt([asked, _CALLS]), False, (TOOL,)) or "" if found.shows_tools else ""
    after_call = leading_specials(called[closing_run(called, special_texts) :], special_texts) or found.call_end
    ends = [found.end, after_call if called else ""]
    tokens = (next((one for one in special_texts if end.endswith(one)), "") for end in ends if end)
    return tuple(dict.fromkeys(token for token in tokens if token))


def _first_special(text: str, special_texts: Sequence[str]) -> str:
    """The special token that a text begins with, the blanks before it included; "" where it begins with none."""
    begin = len(text) - len(text.lstrip())
    first = next((one for one in special_texts if one and text.startswith(one, begin)), "")
    return text[:begin] + first if first else ""


def leading_specials(text: str, special_texts: Sequence[str]) -> str:
    """The special tokens that a text begins with, blanks before the first one included; "" where it begins with none.

    Args:
        special_texts: longest first.
    """
    at = len(text) - len(text.lstrip())
    begin = at
    while token := next((one for one in special_texts if one and text.startswith(one, at)), None):
        at += len(token)
    return text[:at] if at > begin else ""


def closing_run(text: str, special_texts: Sequence[str]) -> int:
    """Where the run of special tokens and blanks at the end of a text begins."""
    at = len(text)
    while True:
        bare = len(text[:at].rstrip())
        token = next((one for one in special_texts if one and text.endswith(one, 0, bare)), None)
        if token is None:
            return bare
        at = bare - len(token)


def _tried(render: Render, messages: Sequence[Any], *asked: Any) -> str | None:
    """The rendering, or None where the template refuses. One that was stopped for its time would take it at each probe."""
    try:
        return render(list(messages), *asked)
    except DataError as error:
        if isinstance(error, TemplateTooSlow) or isinstance(error.__cause__, TimeoutError):
            raise
        return None
