"""The frozen objects that a row passes through: `Example` → `Rendered` → `TokenRow`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A row in fitune's own form: a conversation (role and content a message) or plain text.

    `row_number` is the line of a JSON Lines or text file, or the 1-based position in any other.
    """

    messages: tuple[dict[str, str], ...] | None
    text: str | None
    row_number: int


@dataclass(frozen=True)
class Rendered:
    """The text of a row, and which characters of it are trained: half-open spans in order."""

    text: str
    spans: tuple[tuple[int, int], ...]
    row_number: int


@dataclass(frozen=True)
class TokenRow:
    """Tokens of a row. `trained[i]` says that token i is a target: the model learns to say it after tokens 0…i-1."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    row_number: int

    @property
    def num_trained(self) -> int:
        """Targets that count in the loss; the first token of a row has nothing before it and never does."""
        return sum(self.trained[1:])
