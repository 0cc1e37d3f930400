"""Where the attention of a tree pack takes place: which queries meet which keys, in how many batched calls.

In: the paths of a `fitune.data.packing.tree.Tree`. Out: `TreeLayout`, with index tensors on the model's device.
Knows nothing of heads' contents, kernels or models.

Each row that brought new nodes is a unit: its new nodes are queries, its whole path (ancestors first) is keys, and
query j of a unit with `shift` shared ancestors sees keys 0 … shift + j. So no score is computed that no row needs, and
nothing is square in the pack's size. Units of similar size are padded together into groups, one attention call each.

N nodes, U units in a group, Q queries and K keys of a unit (padded to the group's longest).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# What one more attention call costs, in scores: 9 heads of 64 need about 0.1 ms for so many, two cores, bf16.
CALL_SCORES = 6_000
# Grouping is chosen exactly among neighbours in size; beyond so many units per pack it would take longer than it saves.
LARGEST_WINDOW = 64
# FlexAttention's block.
BLOCK = 128


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are attended to in one call."""

    query_nodes: Tensor
    """U·Q node numbers; the places past a unit's end repeat its last node and are dropped afterwards."""
    key_nodes: Tensor
    """U·K node numbers, likewise."""
    shifts: tuple[int, ...]
    """U counts of ancestors that a unit's first query already has before it."""
    num_queries: int
    num_keys: int

    @property
    def num_units(self) -> int:
        return len(self.shifts)

    @property
    def causal(self) -> bool:
        """Whether plain top-left causal masking is right: each unit is a whole row."""
        return not any(self.shifts)

    def visible(self, window: int | None) -> Tensor:
        """Bool mask, 1×Q×K when all shifts are equal, else U×Q×K; ``window`` is a sliding window in tokens."""
        device = self.query_nodes.device
        shifts = self.shifts[:1] if len(set(self.shifts)) == 1 else self.shifts
        # A padded query past the last key sees that key, so that no softmax is over nothing.
        places = torch.tensor(shifts, device=device)[:, None] + torch.arange(self.num_queries, device=device)
        places = places.clamp(max=self.num_keys - 1)[..., None]
        keys = torch.arange(self.num_keys, device=device)
        seen = keys <= places
        return seen if window is None else seen & (keys > places - window)


@dataclass(frozen=True, eq=False)
class TreeLayout:
    """The attention of one pack, shared by all layers; what is derived from it is made once and kept."""

    groups: tuple[Group, ...]
    places: Tensor
    """N: where node n's result lies in the groups' results laid end to end."""
    positions: Tensor
    """N depths."""
    ends: Tensor
    """N exit times."""
    read: Tensor | None = None
    """The nodes whose last hidden states are read, ascending; None is all. A model may leave the others out."""
    kept: dict[Hashable, Tensor | None] = field(default_factory=dict[Hashable, "Tensor | None"])
    """Masks and indices by what they were made for."""
    block_masks: dict[int | None, BlockMask] = field(default_factory=dict[int | None, "BlockMask"])
    """FlexAttention's, by the sliding window."""

    @property
    def num_nodes(self) -> int:
        return len(self.positions)

    @property
    def shares(self) -> bool:
        """Whether some node lies on the path of several units."""
        return not all(group.causal for group in self.groups)

    def block_mask(self, window: int | None) -> BlockMask:
        """FlexAttention's mask of the pack, padded to whole blocks of 128; padded nodes see themselves alone."""
        from torch.nn.attention.flex_attention import create_block_mask

        length = -(-self.num_nodes // BLOCK) * BLOCK
        extra = torch.arange(self.num_nodes, length, device=self.ends.device)
        ends = torch.cat([self.ends, extra + 1])
        positions = torch.cat([self.positions, extra])

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = (key <= query) & (query < ends[key])
            return seen if window is None else seen & (positions[key] > positions[query] - window)

        return create_block_mask(sees, None, None, length, length, device=str(self.ends.device), BLOCK_SIZE=BLOCK)


def make_layout(
    paths: Sequence[np.ndarray],
    owned: Sequence[int],
    positions: np.ndarray,
    ends: np.ndarray,
    device: torch.device | str = "cpu",
) -> TreeLayout:
    """The layout of a tree; arguments as in `fitune.data.packing.tree.Tree`."""
    order = sorted(range(len(paths)), key=lambda unit: (len(paths[unit]) > owned[unit], len(paths[unit]), owned[unit]))
    sizes = [(owned[unit], len(paths[unit])) for unit in order]
    groups: list[Group] = []
    places, laid = np.empty(len(positions), dtype=np.int64), 0
    for start, stop in group_by_size(sizes):
        units = order[start:stop]
        num_queries = max(owned[unit] for unit in units)
        num_keys = max(len(paths[unit]) for unit in units)
        query_nodes = np.stack([_padded(paths[unit][-owned[unit] :], num_queries) for unit in units])
        key_nodes = np.stack([_padded(paths[unit], num_keys) for unit in units])
        for row, unit in enumerate(units):
            places[paths[unit][-owned[unit] :]] = laid + row * num_queries + np.arange(owned[unit])
        laid += len(units) * num_queries
        shifts = tuple(len(paths[unit]) - owned[unit] for unit in units)
        groups.append(
            Group(
                query_nodes=_index(query_nodes, device),
                key_nodes=_index(key_nodes, device),
                shifts=shifts,
                num_queries=num_queries,
                num_keys=num_keys,
            )
        )
    return TreeLayout(
        groups=tuple(groups),
        places=_index(places, device),
        positions=_index(positions, device),
        ends=_index(ends, device),
    )


def group_by_size(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut units, sorted by size, into runs so that padded scores plus the cost of the calls are least.

    Args:
        sizes: (queries, keys) of each unit; whole rows (equal numbers) come before the others and stay apart from
            them, since they need no mask.

    Returns:
        (start, stop) of each run.
    """
    best = [0.0] + [float("inf")] * len(sizes)
    cut = [0] * (len(sizes) + 1)
    for stop in range(1, len(sizes) + 1):
        queries = keys = 0
        for start in range(stop - 1, max(-1, stop - 1 - LARGEST_WINDOW), -1):
            if (sizes[start][0] == sizes[start][1]) != (sizes[stop - 1][0] == sizes[stop - 1][1]):
                break
            queries, keys = max(queries, sizes[start][0]), max(keys, sizes[start][1])
            cost = best[start] + (stop - start) * queries * keys + CALL_SCORES
            if cost < best[stop]:
                best[stop], cut[stop] = cost, start
    runs: list[tuple[int, int]] = []
    stop = len(sizes)
    while stop:
        runs.append((cut[stop], stop))
        stop = cut[stop]
    return runs[::-1]


def _padded(nodes: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([nodes, np.repeat(nodes[-1:], length - len(nodes))])


def _index(numbers: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers).reshape(-1)).to(device)
