"""The pairs of one optimizer step → forward passes of a bounded size, a pair never torn apart.

In: the pairs that the sampler drew for a step. Out: lists that hold each of them once.
Knows nothing of models. As with packs of rows, which pairs meet in a step is the sampler's choice alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fitune.data.token_rows import PairRow, TokenRow

AnyPair = TypeVar("AnyPair", bound=PairRow | TokenRow)
"""A pair, or a row that is compared with none."""


def pair_passes(pairs: Sequence[AnyPair], max_tokens: int, share: bool) -> list[list[AnyPair]]:
    """Pairs of a step dealt out to forward passes of at most ``max_tokens`` computed tokens, a longer pair alone.

    Pairs come longest first into the fullest pass that has room, so that passes are few.
    """
    passes: list[list[AnyPair]] = []
    filled: list[int] = []
    sizes = [pair_tokens(pair, share) for pair in pairs]
    for index in sorted(range(len(pairs)), key=lambda index: (-sizes[index], index)):
        room = [place for place, used in enumerate(filled) if used + sizes[index] <= max_tokens]
        if room:
            place = max(room, key=filled.__getitem__)
            passes[place].append(pairs[index])
            filled[place] += sizes[index]
        else:
            passes.append([pairs[index]])
            filled.append(sizes[index])
    return passes


def pair_tokens(pair: PairRow | TokenRow, share: bool) -> int:
    """Tokens that a pair costs in a pack."""
    return pair.packed_tokens if share else pair.num_tokens
