"""The cells of a row, typed once: a value is the text, the messages or the tools that its column asks for, or a fault."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from fitune.data.read.cell_types import as_text, is_empty
from fitune.data.read.json_text import BadJson, loads
from fitune.data.read.messages.calls import parsed, read_tools
from fitune.data.read.messages.conversation import with_joined_calls
from fitune.data.read.messages.message import Messages, looks_like_message, read_message, say
from fitune.data.read.messages.transcript import is_transcript, turns
from fitune.data.read.read_facts import Tally
from fitune.errors import DataError

__all__ = ["Cells", "Messages", "say"]

TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Cells:
    """A row by its form's own column names; `columns` holds the file's name for those that it names otherwise.

    `tally` counts what was read, and what was read otherwise than as it stands.
    """

    row: Mapping[str, object]
    columns: Mapping[str, str]
    number: int
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @property
    def where(self) -> str:
        """The row, for a fault."""
        return f"row {self.number}"

    def get(self, column: str) -> object:
        """The value, or None where it is empty or there is none."""
        name = self.columns.get(column, column)
        if name in self.row:
            self.tally.columns.add(name)
        value = self.row.get(name)
        return None if is_empty(value) else value

    def text(self, column: str) -> str:
        """A text that is there and not blank; numbers, objects and lists become text.

        Raises:
            DataError: missing, blank, or no text; a list of messages written as text, which belongs elsewhere.
        """
        value = self.get(column)
        if isinstance(value, str) and self._unpacked(column) is not value:
            raise DataError(
                f"{self.where}: {column} is a list of messages written as text; put it into a column of messages, or map "
                f"it there with --data.columns messages={column}"
            )
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{self.where} has no {column}: it is {'missing' if value is None else 'blank'}")
        return self._as_text(column, value)

    def maybe(self, column: str) -> str:
        """A text, "" where there is none.

        Raises:
            DataError: no text.
        """
        value = self.get(column)
        return "" if value is None else self._as_text(column, value)

    def mapping(self, column: str) -> Mapping[str, object]:
        """An object, as such or as JSON text.

        Raises:
            DataError: anything else.
        """
        value = parsed(self.get(column), f"{self.where}: {column}")
        if not isinstance(value, Mapping):
            raise DataError(f"{self.where}: {column} is {value!r:.60}; expected an object")
        return value

    def flag(self, column: str) -> bool:
        """True or false, as such, as 1 or 0, or as one of these words.

        Raises:
            DataError: anything else.
        """
        value = self.get(column)
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        found = words.get(str(value).strip().lower())
        if found is None:
            raise DataError(f"{self.where}: {column} is {value!r:.60}; expected true or false")
        return found

    def side(self, column: str, role: str) -> Messages:
        """A prompt or an answer: a text, said by `role`, a message, a list of messages, or any of them as JSON text.

        Raises:
            DataError: missing, blank, several texts for one answer, or messages that are none.
        """
        value = self._unpacked(column)
        if looks_like_message(value):
            value = [value]
        if isinstance(value, list) and any(map(looks_like_message, value)):
            return self._messages(value)
        if value == []:
            raise DataError(f"{self.where} has no {column}: it is an empty list")
        if role == "assistant" and is_ranking(value):
            raise DataError(
                f"{self.where}: {column} is a list of {len(value)} texts; a ranked list of answers is trained with method "
                "dpo or reward, and an answer that is a list is written as text"
            )
        text = self.text(column)
        if role == "user" and is_transcript(text):
            self.tally.note(f"{column} is a transcript (Human: … Assistant: …), read as its turns", self.number)
            return turns(text)
        return [say(role, text)]

    def messages(self, column: str, role_key: str = "role", content_key: str = "content") -> Messages:
        """A list of messages, each with a role and a content.

        Raises:
            DataError: no list, an empty one, or a message that is none.
        """
        value = self._unpacked(column)
        if not isinstance(value, list) or not value:
            raise DataError(f"{self.where}: {column} is {value!r:.60}; expected a list of messages")
        return self._messages(value, role_key, content_key)

    def tools(self) -> tuple[dict[str, object], ...]:
        """The tools that the model may call, in OpenAI's form.

        Raises:
            DataError: what is no tool.
        """
        found = [read_tools(self.get(column), self.where) for column in TOOLS]
        if all(found):
            raise DataError(f"{self.where} has {' and '.join(TOOLS)}; keep one")
        return found[0] or found[1]

    def history(self, column: str = "history") -> Messages:
        """Earlier questions and answers: a list of pairs of texts.

        Raises:
            DataError: something else.
        """
        value = self.get(column)
        if value is None or value == "":
            return []
        value = parsed(value, f"{self.where}: {column}")
        if not isinstance(value, list):
            raise DataError(f"{self.where}: {column} is {value!r:.60}; expected a list of pairs [question, answer]")
        found: Messages = []
        for pair in value:
            if not isinstance(pair, list) or len(pair) != 2 or any(is_empty(text) for text in pair):
                raise DataError(f"{self.where}: {column} holds {pair!r:.60}; expected pairs [question, answer]")
            asked, said = (as_text(text, f"{self.where}: {column}") for text in pair)
            found += [say("user", asked), say("assistant", said)]
        return found

    def _messages(self, value: list[object], role_key: str = "role", content_key: str = "content") -> Messages:
        return with_joined_calls([read_message(message, self.where, role_key, content_key) for message in value])

    def _as_text(self, column: str, value: object) -> str:
        if isinstance(value, list | dict):
            self.tally.note(f"{column} holds objects or lists, written as JSON", self.number)
        return as_text(value, f"{self.where}: {column}")

    def _unpacked(self, column: str) -> object:
        """The value; text that is a list of messages as that list."""
        value = self.get(column)
        if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
            return value
        found, kind = _value_in(value)
        said = found if isinstance(found, list) else [found]
        if said and all(map(looks_like_message, said)):
            self.tally.note(f"{column} is a list of messages written as {kind}, read as messages", self.number)
            return said
        if found is None and _speaks_of_roles(value):
            raise DataError(
                f"{self.where}: {column} looks like a list of messages written as text, and is no JSON: {value:.60}; write "
                "it as JSON, for example with json.dumps"
            )
        return value


def is_ranking(value: object) -> TypeGuard[list[str]]:
    """Whether a cell is a list of texts."""
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def _value_in(text: str) -> tuple[object, str]:
    """The value that a text is, as JSON or as Python writes it, and which; None where it is neither."""
    try:
        return loads(text), "JSON text"
    except BadJson:
        pass
    try:
        return ast.literal_eval(text.strip()), "Python text"
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None, ""


def _speaks_of_roles(text: str) -> bool:
    """Whether a text has the keys of messages in quotes."""

    def has(*keys: str) -> bool:
        return any(f"{mark}{key}{mark}:" in text for key in keys for mark in "'\"")

    return text.lstrip().startswith("[") and has("role", "from") and has("content", "value")
