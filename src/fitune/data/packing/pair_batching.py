"""The pairs of one optimizer step → forward passes of a bounded size, a pair never torn apart.

In: the pairs that the sampler drew for a step. Out: lists that hold each of them once.
Knows nothing of models. As with packs of rows, which pairs meet in a step is the sampler's choice alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitune.data.rows import PairRow


def pair_passes(pairs: Sequence[PairRow], max_tokens: int, share: bool) -> list[list[PairRow]]:
    """Pairs of a step dealt out to forward passes of at most ``max_tokens`` computed tokens, a longer pair alone.

    Pairs come longest first into the fullest pass that has room, so that passes are few.
    """
    passes: list[list[PairRow]] = []
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


def pair_tokens(pair: PairRow, share: bool) -> int:
    """Tokens that a pair costs in a pack."""
    return pair.packed_tokens if share else pair.num_tokens
