"""The rows of a whole optimizer step → what this rank takes of them.

In: rows as the sampler drew them, the same on every rank. Out: a batch of this rank's micro-batches and the step's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from fitune.distributed import ranks

OWN, SIZE, ROWS, AT = "own", "size", "rows", "at"


class Dealt(TypedDict):
    """own: this rank's micro-batches, none where it has no rows; size: tokens of the whole step, and what its loss is
    divided by; rows: of the whole step; at: the places of each rank's rows among them."""

    own: list[Any]
    size: tuple[int, int]
    rows: list[Any]
    at: list[list[int]]


@dataclass(frozen=True)
class DealtCollate:
    """Rows of a step → `Dealt`."""

    deal: Callable[[Sequence[Any]], list[list[int]]]
    collate: Callable[[Sequence[Any]], Mapping[str, object]]
    size: Callable[[Sequence[Any]], tuple[int, int]]
    at_once: int | None
    """Rows of a micro-batch; None makes one of all rows that this rank has."""

    def __call__(self, rows: Sequence[Any]) -> Dealt:
        at = self.deal(rows)
        own = [rows[place] for place in at[ranks.rank()]]
        step = self.at_once or max(len(own), 1)
        batches = [self.collate(own[first : first + step]) for first in range(0, len(own), step)]
        return {"own": batches, "size": self.size(rows), "rows": list(rows), "at": at}


def dealt(batch: object) -> Dealt:
    """A batch that a `DealtCollate` has made."""
    return cast(Dealt, batch)
