"""What a check counts of each row of tokens, as arrays: one number a row, so that millions of rows are counted at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow
from fitune.data.token_table import TokenPiece


@dataclass(frozen=True, eq=False)
class TokenFacts:
    """R numbers each.

    Attributes:
        tokens: length of the row.
        trained: targets, the first token included, which predicts nothing.
        targets: targets that count in the loss, of the tokens within the limit.
        lost: targets beyond the limit.
        ended: an end token is a target.
        double_bos: it begins with two BOS tokens.
        marks_alone: its targets are end tokens and other special tokens alone.
        unknown: tokens that stand for what the tokenizer does not know.
        hashes: of the token ids.
    """

    tokens: np.ndarray
    trained: np.ndarray
    targets: np.ndarray
    lost: np.ndarray
    ended: np.ndarray
    double_bos: np.ndarray
    marks_alone: np.ndarray
    unknown: np.ndarray
    hashes: np.ndarray

    def at(self, places: np.ndarray) -> TokenFacts:
        """Those of some rows."""
        return TokenFacts(**{one.name: getattr(self, one.name)[places] for one in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[TokenFacts]) -> TokenFacts:
        """Those of all parts, in order."""
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})


def unknown_id(renderer: Renderer) -> int | None:
    """The token for what is unknown, where it stands for nothing else."""
    tokenizer, unknown = renderer.tokenizer, renderer.tokenizer.unk_token_id
    others = (*renderer.stop_ids, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return None if unknown in others else unknown


def measure_with(renderer: Renderer, max_length: int | None) -> Callable[[TokenPiece], TokenFacts]:
    """The function that measures the rows of a piece.

    Args:
        max_length: tokens of a row that are taken; None takes all.
    """
    stops = np.asarray(renderer.stop_ids, np.int64)
    marks = np.asarray(sorted({*renderer.tokenizer.all_special_ids, *renderer.stop_ids}), np.int64)
    bos, unknown = renderer.tokenizer.bos_token_id, unknown_id(renderer)

    def measure(piece: TokenPiece) -> TokenFacts:
        ids, trained, starts, ends = piece.ids, piece.trained, piece.starts, piece.ends
        limits = ends if max_length is None else np.minimum(ends, starts + max_length)
        taught = _sums(trained)
        first = trained[np.minimum(starts, max(len(ids) - 1, 0))] & (limits > starts) if len(ids) else starts > 0
        ended, special = _sums(trained & np.isin(ids, stops)), _sums(trained & np.isin(ids, marks))
        unknowns = _sums(ids == unknown) if unknown is not None else np.zeros(len(ids) + 1, np.int64)
        total = taught[ends] - taught[starts]
        return TokenFacts(
            tokens=ends - starts,
            trained=total,
            targets=taught[limits] - taught[starts] - first,
            lost=taught[ends] - taught[limits],
            ended=ended[ends] > ended[starts],
            double_bos=_doubled(ids, starts, ends, bos),
            marks_alone=(total > 0) & (special[ends] - special[starts] == total),
            unknown=unknowns[ends] - unknowns[starts],
            hashes=np.asarray([hash(ids[a:b].tobytes()) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]),
        )

    return measure


def facts_of(rows: Sequence[TokenRow], renderer: Renderer) -> TokenFacts:
    """Those of rows that stand alone."""
    arrays = [row.arrays for row in rows]
    piece = TokenPiece(
        ids=np.concatenate([ids for ids, _ in arrays]),
        trained=np.concatenate([trained for _, trained in arrays]),
        ends=np.cumsum([row.num_tokens for row in rows]),
        sources=np.arange(len(rows)),
    )
    return measure_with(renderer, None)(piece)


def _sums(held: np.ndarray) -> np.ndarray:
    """How many hold before each place, and before the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(held, dtype=np.int64)])


def _doubled(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, bos: int | None) -> np.ndarray:
    """Whether the first two tokens are BOS."""
    if bos is None or len(ids) < 2:
        return np.zeros(len(ends), dtype=bool)
    at = np.minimum(starts, len(ids) - 2)
    return (ends - starts >= 2) & (ids[at] == bos) & (ids[at + 1] == bos)
