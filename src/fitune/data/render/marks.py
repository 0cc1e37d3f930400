"""Texts of special tokens that stand in messages: hidden from the template's marks, and encoded as plain text.

In: messages. Out: messages in which each such text is a run of as many characters that no text holds (Unicode keeps them
out of it), so that templates treat it as any other word; and a tokenizer that knows the template's own marks and reads
these runs as the text that they stand for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from tokenizers import Tokenizer

from fitune.data.examples import Example, Message
from fitune.data.render.chat_format import THINK_CLOSE, THINK_OPEN
from fitune.errors import DataError

# Noncharacters begin a run: one that stands for text, and one that names a special token in the second tokenizer.
TEXT, TOKEN = "\ufdd0", "\ufdd1"
FIRST = 0xF0000  # behind them, a private character numbers the token
NEVER = re.compile("(?!)")


@dataclass(frozen=True)
class Marks:
    """The texts that become special tokens, or divide turns, with one tokenizer and one template; longest first."""

    texts: tuple[str, ...]

    @cached_property
    def _known(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.texts))) if self.texts else NEVER

    @cached_property
    def _runs(self) -> dict[str, str]:
        """Run of characters → the mark that it stands for."""
        return {self._run(TEXT, text): text for text in self.texts}

    @cached_property
    def _run_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._runs))) if self._runs else NEVER

    def _run(self, begin: str, text: str) -> str:
        return begin + chr(FIRST + self.texts.index(text)) * (len(text) - 1)

    def first_in(self, example: Example) -> str | None:
        """The first mark that stands in a text of an example, None where there is none."""
        if example.messages is None:
            found = self._known.search(example.text or "")
        else:
            found = next(filter(None, map(self._known.search, _texts(example))), None)
        return found.group() if found else None

    def hidden(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with a run for each mark; those without any as they are.

        Raises:
            DataError: a character that only runs have.
        """
        return [self._hidden_message(message) for message in messages]

    def _hidden_message(self, message: Message) -> Message:
        if len(message) > 2:
            return cast(Message, self._hidden(message))
        content = self._hidden_text(message["content"])
        return message if content is message["content"] else {"role": message["role"], "content": content}

    def hidden_tools(self, tools: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Likewise for the tools that may be called."""
        return cast("list[dict[str, Any]]", self._hidden(tools)) if tools else tools

    def _hidden(self, value: object) -> object:
        if isinstance(value, str):
            return self._hidden_text(value)
        if isinstance(value, Mapping):
            return {key: self._hidden(item) for key, item in value.items()}
        return [self._hidden(item) for item in value] if isinstance(value, list | tuple) else value

    def _hidden_text(self, text: str) -> str:
        if TEXT in text or TOKEN in text:
            raise DataError("a message has U+FDD0 or U+FDD1, which Unicode keeps out of text; take it out of the data")
        if self._known.search(text) is None:
            return text
        return self._known.sub(lambda found: self._run(TEXT, found.group()), text)

    def shown(self, text: str) -> str:
        """A text as it is meant: runs become the marks that they stand for."""
        return self._run_pattern.sub(lambda found: self._runs[found.group()], text) if TEXT in text else text

    def shown_in(self, message: str) -> str:
        """A message for people, runs in it shown, also where Python writes them as escapes."""
        escaped = re.sub(r"\\ufdd0((\\U000f[0-9a-f]{4})+)", lambda found: self._of_escapes(found.group()), message)
        return self.shown(escaped)

    def _of_escapes(self, run: str) -> str:
        return self._runs.get(run.encode().decode("unicode_escape"), "…")

    def for_plain(self, text: str) -> str:
        """A text as `plain_tokenizer` reads it, of the same length: the template's own marks by their second names."""
        return self.shown(self._known.sub(lambda found: self._run(TOKEN, found.group()), text))

    def plain_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with second names for the marks, so that their texts are words like any other."""
        whole = json.loads(tokenizer.to_str())
        second = {text: self._run(TOKEN, text) for text in self.texts}
        for token in whole["added_tokens"]:
            token["content"] = second.get(token["content"], token["content"])
        vocabulary = whole["model"].get("vocab")
        if isinstance(vocabulary, dict):
            whole["model"]["vocab"] = {second.get(text, text): number for text, number in vocabulary.items()}
        elif vocabulary:
            whole["model"]["vocab"] = [[second.get(text, text), *more] for text, *more in vocabulary]
        for key in ("unk_token", "fallback_unk"):
            if whole["model"].get(key) in second:
                whole["model"][key] = second[whole["model"][key]]
        return Tokenizer.from_str(json.dumps(whole))


def marks_of(tokenizer: Any, special_texts: Sequence[str], render: Callable[[], str]) -> Marks:
    """Special tokens, and the other added tokens with which the template divides turns (DeepSeek: `<｜User｜>`).

    Args:
        render: a plain conversation as the template writes it.
    """
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    written = render()
    turns = {text for text in added - set(special_texts) if text in written} - {THINK_OPEN, THINK_CLOSE}
    known = {text for text in {*special_texts, *turns} if len(text) > 1 and not text.isspace()}
    return Marks(tuple(sorted(known, key=lambda text: (-len(text), text))))


def _texts(example: Example) -> Iterator[str]:
    """Every text of a conversation and its tools."""
    for said in example.messages or ():
        yield said["content"]
        if len(said) > 2:
            yield from _in(said.get("reasoning_content", ""))
            yield from _in(said.get("tool_calls", ()))
    yield from _in(example.tools)


def _in(value: object) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _in(item)
