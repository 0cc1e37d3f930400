"""The order in which training rows are seen: shuffled anew each epoch, by the seed and the epoch's number alone.

Nothing else draws from this order's random numbers, so a resumed run sees the rows that the uninterrupted one
would have seen, and evaluating more often does not change the training.

Rows made of one conversation stay behind each other, so that a step computes once what they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Protocol, TypeVar

import torch
from torch.utils.data import Sampler


class Numbered(Protocol):
    """A row that knows where it came from."""

    @property
    def row_number(self) -> int: ...


Row = TypeVar("Row", bound=Numbered)


def rows_together(rows: Sequence[Numbered]) -> list[int]:
    """How many rows each conversation has, in the order of the rows: neighbours of one row number belong together."""
    return [sum(1 for _ in group) for _, group in groupby(rows, key=lambda row: row.row_number)]


def epoch_order(rows: int | Sequence[int], seed: int, epoch: int) -> list[int]:
    """A permutation of the rows for one epoch.

    Args:
        rows: their number, or the sizes of the groups of neighbours that stay together.
    """
    together = [1] * rows if isinstance(rows, int) else rows
    # Seeds of neighbouring epochs and runs must not meet: (seed 1, epoch 0) is not (seed 0, epoch 1).
    mixed = (seed * 1_000_003 + epoch * 7_919 + 12_345) % (2**63)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(mixed)).tolist()
    ends = list(accumulate(together))
    return [at for group in order for at in range(ends[group] - together[group], ends[group])]


def rows_met(rows: Sequence[Row], steps: int, batch_size: int, seed: int) -> list[Row]:
    """The rows that a run of so many steps will train on, in their own order."""
    a_step = min(batch_size, len(rows))
    if steps * a_step >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(epoch_order(rows_together(rows), seed, 0)[: steps * a_step])]


class ShuffledByEpoch(Sampler[int]):
    """Sampler over `epoch_order`; whoever runs the epochs sets ``epoch``."""

    def __init__(self, rows: Sequence[Numbered], seed: int):
        self.together = rows_together(rows)
        self.num_rows = len(rows)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.together, self.seed, self.epoch))

    def __len__(self) -> int:
        return self.num_rows
