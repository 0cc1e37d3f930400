"""Rows → one tree: tokens that several rows share as a prefix are kept once.

In: token rows (input_ids, trained, row_number). Out: a frozen `Tree` of numpy arrays.
Knows nothing of torch, models or attention kernels.

The rows are sorted by their token ids, so each row shares its longest prefix with its neighbour and the nodes come out
in preorder: a node's number is its entry time, `ends` its exit time, and node q sees node k exactly if
``k <= q < ends[k]`` (the preorder test of ancestry; Tarjan 1972, and trl #7328 for attention).

What follows a row's last trained token predicts nothing, and neither does that token itself: neither is computed.

A node's depth is the position that its token has in its own rows. Whether a token is trained does not hinder sharing:
each row that trains it adds 1 to the weight of the loss entry (node before it, token).

N nodes, E loss entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Bits of a token id; no vocabulary has two thousand million tokens.
TOKEN_BITS = 31


class Row(Protocol):
    """What a row must offer: `fitune.data.render.renderer.TokenRow`, or anything like it."""

    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def trained(self) -> Sequence[bool]: ...
    @property
    def row_number(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Tree:
    """Rows merged by their shared prefixes, in preorder."""

    input_ids: np.ndarray
    """N token ids."""
    positions: np.ndarray
    """N positions: the depth of each node, 0 at a root."""
    ends: np.ndarray
    """N exit times: the nodes below node k, itself included, are k … ends[k] − 1."""
    paths: tuple[np.ndarray, ...]
    """For each row that brought new nodes, in preorder: all its nodes from root to end."""
    owned: tuple[int, ...]
    """How many nodes at the end of each path were new with it. They are consecutive numbers; all of them sum to N."""
    target_nodes: np.ndarray
    """E nodes whose hidden state predicts a trained token, ascending; a node before a branching appears several times."""
    target_ids: np.ndarray
    """E token ids to predict."""
    target_weights: np.ndarray
    """E counts of rows that train this prediction."""
    row_paths: tuple[np.ndarray, ...]
    """For each row, in the order given: all its nodes from root to the last one that is computed."""
    rows: tuple[Row, ...]
    """The rows, in the order given."""
    row_tokens: int
    """Tokens of the rows when counted one by one."""

    @property
    def row_numbers(self) -> tuple[int, ...]:
        """Numbers of the rows, in the order given."""
        return tuple(row.row_number for row in self.rows)

    @property
    def num_nodes(self) -> int:
        """Tokens that are computed."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Trained tokens of the rows when counted one by one."""
        return int(self.target_weights.sum())

    def visible(self) -> np.ndarray:
        """The dense mask N×N (query, key), for models and tests that need one."""
        nodes = np.arange(self.num_nodes)
        return (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] < self.ends[None, :])


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows share at their start."""
    shortest = min(len(first), len(second))
    differ = np.nonzero(np.asarray(first[:shortest]) != np.asarray(second[:shortest]))[0]
    return int(differ[0]) if len(differ) else shortest


def predicting_places(row: Row) -> np.ndarray:
    """Places of a row, ascending, from which a trained token is predicted: each is the one before it."""
    return np.flatnonzero(np.asarray(row.trained[1:]))


def needed_tokens(row: Row) -> Sequence[int]:
    """A row's tokens up to the last one that predicts a trained token; at least the first."""
    places = predicting_places(row)
    return row.input_ids[: places[-1] + 1 if len(places) else 1]


def build_tree(rows: Sequence[Row], share: bool = True, keep_ends: bool = False) -> Tree:
    """The tree of ``rows``.

    Args:
        rows: at least one row, none of them empty.
        share: False keeps the rows side by side without merging anything.
        keep_ends: compute rows to their very end, for methods that read the state of the last token.

    Raises:
        ValueError: no rows, or an empty one.
    """
    if not rows or any(len(row.input_ids) == 0 for row in rows):
        raise ValueError(f"build_tree got {len(rows)} rows, one of them empty or none at all; leave such rows out")
    heads = [row.input_ids if keep_ends else needed_tokens(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: tuple(heads[at])) if share else list(range(len(rows)))
    row_paths = [np.empty(0, dtype=np.int64)] * len(rows)
    paths, owned, ids, positions, predictions = [], [], [], [], []
    path, previous = np.empty(0, dtype=np.int64), ()
    for at in order:
        row, head = rows[at], heads[at]
        places = predicting_places(row)
        shared = common_prefix(previous, head) if share else 0
        fresh = len(head) - shared
        path = np.concatenate([path[:shared], np.arange(len(ids), len(ids) + fresh)])
        if fresh:
            ids.extend(head[shared:])
            positions.extend(range(shared, len(head)))
            paths.append(path)
            owned.append(fresh)
        row_paths[at] = path
        predictions.append(path[places] << TOKEN_BITS | np.asarray(row.input_ids, dtype=np.int64)[places + 1])
        previous = head
    # A node and the token it predicts in one number, which sorts by both.
    entries, weights = np.unique(np.concatenate(predictions), return_counts=True)
    return Tree(
        input_ids=np.asarray(ids, dtype=np.int64),
        positions=np.asarray(positions, dtype=np.int64),
        ends=_exit_times(len(ids), paths),
        paths=tuple(paths),
        owned=tuple(owned),
        target_nodes=entries >> TOKEN_BITS,
        target_ids=entries & (1 << TOKEN_BITS) - 1,
        target_weights=weights.astype(np.int64),
        row_paths=tuple(row_paths),
        rows=tuple(rows),
        row_tokens=sum(len(row.input_ids) for row in rows),
    )


def _exit_times(num_nodes: int, paths: Sequence[np.ndarray]) -> np.ndarray:
    """Exit time of each node: one past the last node of the last path through it."""
    ends = np.zeros(num_nodes, dtype=np.int64)
    for path in paths:
        ends[path] = path[-1] + 1
    return ends
