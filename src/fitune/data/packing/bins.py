"""The rows of one optimizer step → packs: trees of a bounded size, no padding.

In: the rows that the sampler drew for a step, in any order. Out: a few `Tree`s that hold each of them once.
Knows nothing of models. Which rows meet in a step is the sampler's random choice alone, the same with and without
packing, so losses per step equal those of the padded path and no row is favoured; packing only decides which rows of
the step share a forward pass, and that changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from fitune.data.packing.tree import Row, Tree, build_tree, common_prefix, needed_tokens

Mode = Literal["tree", "rows", "off"]
"""tree: shared prefixes are computed once, nothing is padded. rows: side by side, nothing is padded. off: padded."""


def pack_rows(rows: Sequence[Row], max_tokens: int, share: bool = True) -> list[Tree]:
    """Packs of at most ``max_tokens`` computed tokens, as few and as even as greedy filling makes them.

    Rows are laid in the order of their token ids, where neighbours share the longest prefixes, and cut into packs when
    the next row's new tokens no longer fit an even share. Without sharing they are laid longest first.

    Args:
        rows: rows of one optimizer step.
        max_tokens: limit of a pack in computed tokens; a single longer row gets a pack of its own.
        share: compute shared prefixes once.
    """
    if not rows:
        return []
    if not share:
        return [build_tree(pack, share=False) for pack in _fill_even(rows, max_tokens)]
    ordered = sorted(rows, key=lambda row: tuple(row.input_ids))
    heads = [needed_tokens(row) for row in ordered]
    news = fresh_tokens(heads)
    fewest = -(-sum(news) // max_tokens)
    even = min(max_tokens, -(-sum(news) // fewest) + max(map(len, heads)) // 2)
    packs: list[list[Row]] = [[]]
    filled = 0
    for row, head, fresh in zip(ordered, heads, news, strict=True):
        if packs[-1] and filled + fresh > even:
            packs.append([])
            filled = 0
        # The first row of a pack pays its whole length: what it shares with the pack before is computed again.
        filled += fresh if packs[-1] else len(head)
        packs[-1].append(row)
    return [build_tree(pack) for pack in packs]


def fresh_tokens(heads: Sequence[Sequence[int]]) -> list[int]:
    """New tokens that each of the sorted rows' tokens brings after its neighbour's."""
    return [len(head) - common_prefix(previous, head) for previous, head in pairwise([(), *heads])]


def _fill_even(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Longest row first into the emptiest pack that still has room; a new pack where none has."""
    packs: list[list[Row]] = []
    filled: list[int] = []
    lengths = [len(needed_tokens(row)) for row in rows]
    fewest = -(-sum(lengths) // max_tokens)
    for length, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: -pair[0]):
        emptiest = min(range(len(packs)), key=filled.__getitem__, default=None)
        if len(packs) < fewest or emptiest is None or filled[emptiest] + length > max_tokens:
            packs.append([row])
            filled.append(length)
        else:
            packs[emptiest].append(row)
            filled[emptiest] += length
    return packs
