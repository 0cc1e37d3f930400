"""Tokens of one answer → text as it grows: reasoning, content, and at its end the calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fitune.data.render.answer import split_answer
from fitune.data.render.renderer import Renderer
from fitune.evaluation.generation import opens_thought, read_answer
from fitune.serving.call_reader import CallReader, ToolCall

# A token may end in the middle of a letter; decoding shows this sign until the rest has come.
BROKEN = "�"


@dataclass(frozen=True)
class TextDelta:
    """What has been added since the last delta."""

    reasoning: str = ""
    content: str = ""


@dataclass(frozen=True)
class FinishedReply:
    """The whole answer; `reason` is stop, length or tool_calls, as in OpenAI's answers."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    reason: str
    rest: TextDelta


@dataclass
class Reply:
    """One answer as it is generated.

    Args:
        stop: texts that end the answer, themselves left out.
        tools: what may be called; with tools the content is told at the end, since calls begin as text does.
        plain: the prompt was text to go on from: no reasoning, no calls.
    """

    renderer: Renderer
    prompt: Sequence[int]
    stop: Sequence[str] = ()
    tools: Sequence[dict[str, Any]] = ()
    calls: CallReader | None = None
    plain: bool = False
    ids: list[int] = field(default_factory=list)
    told: TextDelta = field(default_factory=TextDelta)
    cut: bool = False

    def add(self, token: int) -> TextDelta:
        """What can be told now."""
        self.ids.append(token)
        reasoning, content = self._read()
        if self.tools and self.calls:
            content = ""
        content, self.cut = _until(content, self.stop)
        return self._tell(reasoning, content if self.cut else _without_begun(content, self.stop))

    def finish(self) -> FinishedReply:
        """The whole answer, and what was not told of it yet."""
        said = read_answer(self.ids, () if self.plain else list(self.prompt), self.renderer)
        if self.plain:
            reasoning, content = "", self._plain_text()
        else:
            reasoning, content = said.reasoning, said.text
        calls: list[ToolCall] = []
        if self.tools and self.calls:
            before, calls = self.calls.read(said.raw, self.tools)
            if calls:
                content = self._split(before)[1]
        content, cut = _until(content, self.stop)
        reason = "tool_calls" if calls else "stop" if said.stopped or cut else "length"
        rest = self._tell(reasoning, content)
        return FinishedReply(reasoning=reasoning, content=content, calls=tuple(calls), reason=reason, rest=rest)

    def _read(self) -> tuple[str, str]:
        """Reasoning and content so far, without what may yet turn out to be a mark."""
        if self.plain:
            return "", self._plain_text().rstrip(BROKEN)
        stops = set(self.renderer.stop_ids)
        raw = self.renderer.tokenizer.decode([token for token in self.ids if token not in stops]).rstrip(BROKEN)
        chat_format = self.renderer.chat_format
        opening = chat_format.thought_opening.strip()
        if opening and opening.startswith(raw.strip()) and raw.strip() != opening:
            return "", ""
        reasoning, content = self._split(raw)
        marks = [mark for mark in (chat_format.between.strip(), chat_format.opening.strip()) if mark]
        return (_without_begun(reasoning, marks), "") if not content else (reasoning, _without_begun(content, marks))

    @cached_property
    def _opened(self) -> bool:
        return opens_thought(self.prompt, self.renderer)

    def _split(self, raw: str) -> tuple[str, str]:
        said = split_answer(raw, self.renderer.chat_format, self.renderer.special_texts, self._opened)
        return said.reasoning, said.content

    def _plain_text(self) -> str:
        return self.renderer.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _tell(self, reasoning: str, content: str) -> TextDelta:
        """The difference to what was told; nothing where the text is no continuation of it."""
        told = self.told
        more = TextDelta(_added(told.reasoning, reasoning), _added(told.content, content))
        self.told = TextDelta(told.reasoning + more.reasoning, told.content + more.content)
        return more


def _added(told: str, text: str) -> str:
    return text[len(told) :] if text.startswith(told) else ""


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    places = [text.find(mark) for mark in stop if mark in text]
    return (text[: min(places)], True) if places else (text, False)


def _without_begun(text: str, marks: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a mark."""
    longest = max(
        (length for mark in marks for length in range(1, len(mark)) if text.endswith(mark[:length])), default=0
    )
    return text[: len(text) - longest]
