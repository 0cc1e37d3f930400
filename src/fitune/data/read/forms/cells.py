"""The cells of a row, read strictly: a value is the text or the messages that its column asks for, or a fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fitune.errors import DataError

Messages = list[dict[str, str]]
# ShareGPT's names of roles, beside the usual ones.
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Cells:
    """A row by its form's own column names; `columns` holds the file's name for those that it names otherwise."""

    row: Mapping[str, Any]
    columns: Mapping[str, str]
    number: int

    @property
    def where(self) -> str:
        """The row, for a fault."""
        return f"row {self.number}"

    def get(self, column: str) -> Any:
        """The value, or None."""
        return self.row.get(self.columns.get(column, column))

    def text(self, column: str) -> str:
        """A text that is there and not blank."""
        value = self.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{self.where} has no {column}: it is {'missing' if value is None else 'blank'}")
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {column} is {value!r:.60} ({type(value).__name__}); expected text")
        return value

    def side(self, column: str, role: str) -> Messages:
        """A prompt or a completion: a text, said by `role`, or a list of messages."""
        if isinstance(self.get(column), list):
            return self.messages(column)
        return [say(role, self.text(column))]

    def messages(self, column: str, role_key: str = "role", content_key: str = "content") -> Messages:
        """A list of messages, each with a role and a text."""
        value = self.get(column)
        if not isinstance(value, list) or not value:
            raise DataError(f"{self.where}: {column} is {value!r:.60}; expected a list of messages")
        return [self._message(message, role_key, content_key) for message in value]

    def _message(self, message: Any, role_key: str, content_key: str) -> dict[str, str]:
        if not isinstance(message, dict):
            raise DataError(
                f"{self.where}: a message is {message!r:.60}; expected an object with {role_key} and {content_key}"
            )
        role = message.get(role_key, message.get("role", message.get("from")))
        content = message.get(content_key, message.get("content", message.get("value")))
        if not isinstance(role, str) or not role.strip():
            raise DataError(f"{self.where}: a message has no {role_key}; its keys are {', '.join(message)}")
        if not isinstance(content, str):
            raise DataError(f"{self.where}: the {content_key} of a {role} message is {content!r:.60}; expected text")
        return say(ROLES.get(role, role), content)


def say(role: str, content: str) -> dict[str, str]:
    """A message."""
    return {"role": role, "content": content}
