"""Tokens of many rows in a few arrays: `TokenPiece`, and `TokenRows`, which gives them out row by row.

The arrays may be mapped from files of the token cache; a `TokenRow` is then a view into the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from fitune.data.token_rows import TokenRow


@dataclass(frozen=True, eq=False)
class TokenPiece:
    """Rows behind each other. N tokens, R rows.

    Attributes:
        ids: N token ids (int32).
        trained: N marks of the tokens that are targets (bool).
        ends: R places behind the last token of each row (int64).
        sources: R places of the rendered rows that the rows come from (int64).
    """

    ids: np.ndarray
    trained: np.ndarray
    ends: np.ndarray
    sources: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """R places of the first token of each row."""
        return np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1]])


class TokenRows(Sequence[TokenRow]):
    """Rows of some pieces, made when asked for.

    Args:
        pieces: the tokens.
        numbers: row numbers of all rows of the pieces.
        places: which of these rows it holds; None takes all.
        limit: tokens at which a row is cut.
    """

    def __init__(
        self,
        pieces: Sequence[TokenPiece],
        numbers: np.ndarray,
        places: np.ndarray | None = None,
        limit: int | None = None,
    ):
        self._pieces, self._numbers, self._limit = pieces, numbers, limit
        self._ends = np.cumsum([len(piece.ends) for piece in pieces])
        self._places = np.arange(len(numbers)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self._row(place) for place in self._places[index].tolist()]
        return self._row(int(self._places[index]))

    def __iter__(self) -> Iterator[TokenRow]:
        return (self._row(place) for place in self._places.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"TokenRows({list(self)})"

    def _row(self, place: int) -> TokenRow:
        at = int(np.searchsorted(self._ends, place, side="right"))
        piece = self._pieces[at]
        local = place - (int(self._ends[at - 1]) if at else 0)
        start, end = int(piece.ends[local - 1]) if local else 0, int(piece.ends[local])
        end = end if self._limit is None else min(end, start + self._limit)
        return TokenRow(piece.ids[start:end], piece.trained[start:end], int(self._numbers[place]))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        whole = np.concatenate([piece.ends - piece.starts for piece in self._pieces])[self._places]
        return whole if self._limit is None else np.minimum(whole, self._limit)
