"""Rows of tokens: `TokenRow`, alone or in a `PairRow`, a `JudgedRow` or a `PromptRow`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fitune.data.examples import Message


class TokenRow:
    """Tokens of a row. `trained[i]` says that token i is a target: the model learns to say it after tokens 0…i-1.

    Five bytes a token are kept, often as a view into the tokens of the whole data set; the tuples are made when asked for.
    """

    __slots__ = ("_ids", "_trained", "row_number")

    def __init__(self, input_ids: Sequence[int] | np.ndarray, trained: Sequence[bool] | np.ndarray, row_number: int):
        self._ids = np.asarray(input_ids, dtype=np.int32)
        self._trained = np.asarray(trained, dtype=bool)
        self.row_number = row_number

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Token ids."""
        return tuple(self._ids.tolist())

    @property
    def trained(self) -> tuple[bool, ...]:
        """Which tokens are targets."""
        return tuple(self._trained.tolist())

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (int32) and targets (bool), not to be written to."""
        return self._ids, self._trained

    @property
    def num_trained(self) -> int:
        """Targets that count in the loss; the first token of a row has nothing before it and never does."""
        return int(np.count_nonzero(self._trained[1:]))

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return len(self._ids)

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """The row itself, as `PairRow.rows` gives both of a pair."""
        return (self,)

    @property
    def packed_tokens(self) -> int:
        """Tokens that a pack computes of the row alone."""
        return self.num_tokens

    def cut(self, length: int) -> TokenRow:
        """The first ``length`` tokens."""
        return TokenRow(self._ids[:length], self._trained[:length], self.row_number)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenRow)
            and self.row_number == other.row_number
            and np.array_equal(self._ids, other._ids)
            and np.array_equal(self._trained, other._trained)
        )

    def __hash__(self) -> int:
        return hash((self.row_number, self._ids.tobytes()))

    def __repr__(self) -> str:
        return f"TokenRow({self.input_ids}, {self.trained}, {self.row_number})"


@dataclass(frozen=True)
class PairRow:
    """A preference: the same prompt with the better and the worse answer. Only the answers are trained.

    Both rows end with the last token of the answer (its end token, where the template writes one).
    """

    chosen: TokenRow
    rejected: TokenRow
    row_number: int

    @property
    def rows(self) -> tuple[TokenRow, TokenRow]:
        """Both rows, the better one first."""
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        """Tokens of both rows, the prompt counted twice."""
        return self.chosen.num_tokens + self.rejected.num_tokens

    @property
    def packed_tokens(self) -> int:
        """Tokens of the pair when what its rows share at their start is counted once."""
        pairs = enumerate(zip(self.chosen.input_ids, self.rejected.input_ids, strict=False))
        shorter = min(self.chosen.num_tokens, self.rejected.num_tokens)
        return self.num_tokens - next((at for at, (one, other) in pairs if one != other), shorter)

    @property
    def num_trained(self) -> int:
        """Tokens of both answers."""
        return self.chosen.num_trained + self.rejected.num_trained


class JudgedRow(TokenRow):
    """A prompt with an answer that is wanted or not. Only the answer is trained.

    `mismatched` is the prompt with an answer to another prompt, which is only measured.
    """

    __slots__ = ("desirable", "mismatched")

    def __init__(self, row: TokenRow, desirable: bool, mismatched: TokenRow):
        super().__init__(*row.arrays, row.row_number)
        self.desirable = desirable
        self.mismatched = mismatched


@dataclass(frozen=True)
class PromptRow:
    """A prompt to answer: its tokens with the generation prompt behind them, as in chat.

    `reference` is the answer that the file holds, or None; `columns` are the file's other columns, for rewards.
    """

    input_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    reference: str | None
    columns: Mapping[str, object]
    row_number: int
    num_trained: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.input_ids)
