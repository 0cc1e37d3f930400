"""The rows of an optimizer step → a part for each rank, so that all of them finish together.

In: rows, the number of ranks. Out: for each rank the places of its rows, ascending. Every rank finds the same parts.
Knows nothing of models or processes. What a row costs is its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitune.data.packing.bins import Mode, fresh_tokens
from fitune.data.packing.tree import Row, needed_tokens


def deal(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Things of the given costs to ``parts``: the dearest first, each to the part that has least so far."""
    dealt: list[list[int]] = [[] for _ in range(parts)]
    held = [0] * parts
    for place in sorted(range(len(costs)), key=lambda at: -costs[at]):
        least = min(range(parts), key=lambda part: (held[part], len(dealt[part])))
        dealt[least].append(place)
        held[least] += costs[place]
    return [sorted(part) for part in dealt]


def deal_rows(rows: Sequence[Row], parts: int, mode: Mode) -> list[list[int]]:
    """Rows to ``parts``; with mode tree, rows that share a prefix stay together where that costs no time."""
    if mode != "tree":
        return deal([len(needed_tokens(row)) for row in rows], parts)
    ordered = sorted(range(len(rows)), key=lambda at: tuple(rows[at].input_ids))
    heads = [needed_tokens(rows[at]) for at in ordered]
    wholes, fresh = [len(head) for head in heads], fresh_tokens(heads)
    low, high = max(wholes, default=0), sum(wholes)
    while low < high:  # the least that the fullest part can have
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(wholes, fresh, middle)) <= parts else (middle + 1, high)
    ends = _cut(wholes, fresh, low)
    starts = [0, *ends[:-1]]
    dealt = [sorted(ordered[start:end]) for start, end in zip(starts, ends, strict=True)]
    return [*dealt, *([] for _ in range(parts - len(dealt)))]


def _cut(wholes: Sequence[int], fresh: Sequence[int], limit: int) -> list[int]:
    """Ends of the fewest neighbouring parts of at most ``limit`` computed tokens; a part's first row is computed whole."""
    ends: list[int] = []
    filled = 0
    for place, (whole, new) in enumerate(zip(wholes, fresh, strict=True)):
        if place and filled + new > limit:
            ends.append(place)
            filled = 0
        filled += new if filled else whole
    return [*ends, len(wholes)]
