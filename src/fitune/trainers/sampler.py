"""The order in which training rows are seen: shuffled anew each epoch, by the seed and the epoch's number alone.

Nothing else draws from this order's random numbers, so a resumed run sees the rows that the uninterrupted one
would have seen, and evaluating more often does not change the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import Sampler

Row = TypeVar("Row")


def epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(num_rows)`` for one epoch."""
    # Seeds of neighbouring epochs and runs must not meet: (seed 1, epoch 0) is not (seed 0, epoch 1).
    mixed = (seed * 1_000_003 + epoch * 7_919 + 12_345) % (2**63)
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(mixed)).tolist()


def rows_met(rows: Sequence[Row], steps: int, batch_size: int, seed: int) -> list[Row]:
    """The rows that a run of so many steps will train on, in their own order."""
    a_step = min(batch_size, len(rows))
    if steps * a_step >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(epoch_order(len(rows), seed, 0)[: steps * a_step])]


class ShuffledByEpoch(Sampler[int]):
    """Sampler over `epoch_order`; whoever runs the epochs sets ``epoch``."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.num_rows, self.seed, self.epoch))

    def __len__(self) -> int:
        return self.num_rows
