"""Answers as OpenAI's clients read them: whole objects, and the chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from uuid import uuid4

from fitune.serving.batch_generation import TokenScore
from fitune.serving.call_reader import ToolCall
from fitune.serving.reply import FinishedReply, TextDelta


class AnswerObjects(Protocol):
    """One answer's objects."""

    def whole(
        self, reply: FinishedReply, scores: Sequence[TokenScore], prompt_tokens: int, new_tokens: int
    ) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def first(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        ...

    def more(self, delta: TextDelta, score: TokenScore | None) -> Iterator[dict[str, Any]]:
        """What a token adds."""
        ...

    def last(
        self, reply: FinishedReply, prompt_tokens: int, new_tokens: int, with_usage: bool
    ) -> Iterator[dict[str, Any]]:
        """What a stream ends with."""
        ...


@dataclass
class _Objects:
    """`model` as the client named it; `tokenizer` for the texts of log probabilities."""

    model: str
    tokenizer: Any
    id: str = field(default_factory=lambda: f"fitune-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    KIND: ClassVar[str] = ""
    CHUNK: ClassVar[str] = ""

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def _chunk(self, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self._object(self.CHUNK, [{"index": 0, "logprobs": None, "finish_reason": None, **choice}], **more)

    def _usage_chunk(self, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        return self._object(self.CHUNK, [], usage=_usage(prompt_tokens, new_tokens))


class ChatObjects(_Objects):
    """Of chat completions."""

    KIND, CHUNK = "chat.completion", "chat.completion.chunk"

    def whole(
        self, reply: FinishedReply, scores: Sequence[TokenScore], prompt_tokens: int, new_tokens: int
    ) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = _calls(reply.calls)
        logprobs = {"content": [self._score(score) for score in scores]} if scores else None
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reply.reason}
        return self._object(self.KIND, [choice], usage=_usage(prompt_tokens, new_tokens))

    def first(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        yield self._chunk({"delta": {"role": "assistant", "content": ""}})

    def more(self, delta: TextDelta, score: TokenScore | None) -> Iterator[dict[str, Any]]:
        """What a token adds; nothing where its text waits for the next one."""
        logprobs = {"content": [self._score(score)]} if score else None
        said = _said(delta)
        if said or logprobs:
            yield self._chunk({"delta": said, "logprobs": logprobs})

    def last(
        self, reply: FinishedReply, prompt_tokens: int, new_tokens: int, with_usage: bool
    ) -> Iterator[dict[str, Any]]:
        """The rest, the calls, why it ended, and how many tokens it was."""
        if said := _said(reply.rest):
            yield self._chunk({"delta": said})
        if reply.calls:
            numbered = [{"index": at, **call} for at, call in enumerate(_calls(reply.calls))]
            yield self._chunk({"delta": {"tool_calls": numbered}})
        yield self._chunk({"delta": {}, "finish_reason": reply.reason})
        if with_usage:
            yield self._usage_chunk(prompt_tokens, new_tokens)

    def _score(self, score: TokenScore) -> dict[str, Any]:
        top = [self._one(token, logprob) for token, logprob in score.top]
        return {**self._one(score.token, score.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        # Part of a letter has no text of its own.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


class TextObjects(_Objects):
    """Of completions."""

    KIND, CHUNK = "text_completion", "text_completion"

    def whole(
        self, reply: FinishedReply, scores: Sequence[TokenScore], prompt_tokens: int, new_tokens: int
    ) -> dict[str, Any]:
        """The text in one piece."""
        logprobs = self._scores(scores) if scores else None
        choice = {"index": 0, "text": reply.content, "logprobs": logprobs, "finish_reason": reply.reason}
        return self._object(self.KIND, [choice], usage=_usage(prompt_tokens, new_tokens))

    def first(self) -> Iterator[dict[str, Any]]:
        """Nothing."""
        yield from ()

    def more(self, delta: TextDelta, score: TokenScore | None) -> Iterator[dict[str, Any]]:
        """What a token adds."""
        if delta.content or score:
            yield self._chunk({"text": delta.content, "logprobs": self._scores([score]) if score else None})

    def last(
        self, reply: FinishedReply, prompt_tokens: int, new_tokens: int, with_usage: bool
    ) -> Iterator[dict[str, Any]]:
        """The rest, and why it ended."""
        yield self._chunk({"text": reply.rest.content, "finish_reason": reply.reason})
        if with_usage:
            yield self._usage_chunk(prompt_tokens, new_tokens)

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        decode = self.tokenizer.decode
        return {
            "tokens": [decode([score.token]) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{decode([token]): logprob for token, logprob in score.top} for score in scores],
        }


def _said(delta: TextDelta) -> dict[str, str]:
    said = {"reasoning_content": delta.reasoning, "content": delta.content}
    return {key: text for key, text in said.items() if text}


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]


def _usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": prompt_tokens + new_tokens}
