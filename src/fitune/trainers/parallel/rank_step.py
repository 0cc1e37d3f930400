"""The end of a step that several ranks take: errors, numbers and gradients of all of them, in one exchange.

In: gradients of this rank's rows, each divided by what the whole step trains. Out: their sums, the same on every rank.
A parameter that no rank has a gradient for stays without one, as in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from fitune.console import warn
from fitune.distributed import ranks, together

# Gradients are laid side by side and summed in pieces of this size: a call for each of hundreds of matrices would wait
# hundreds of times.
BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True)
class StepReport:
    """What a rank tells the others of its part of a step; signal: the number of one that asked it to end; measured:
    whatever its trainer reads again."""

    loss: float
    notes: tuple[str, ...]
    signal: int | None
    measured: object


def share_step(values: Sequence[Tensor], mine: StepReport, failure: Exception | None, doing: str) -> list[StepReport]:
    """Sum the gradients of ``values`` over the ranks; returns every rank's report.

    Raises:
        FituneError: on every rank, when one of them has failed.
    """
    told = (together.error_text(failure), mine, [value.grad is not None for value in values])
    every = together.gather(told, doing)
    together.raise_first([text for text, _, _ in every], failure)
    for rank, (_, report, _) in enumerate(every):
        for note in report.notes if rank else ():
            warn(f"rank {rank}: {note}")
    wanted = [any(has[place] for _, _, has in every) for place in range(len(values))]
    sum_gradients([v for v, some in zip(values, wanted, strict=True) if some and not isinstance(v, DTensor)])
    return [report for _, report, _ in every]


def sum_gradients(values: Sequence[Tensor]) -> None:
    """Gradients summed over the ranks, in fp32; where this rank has none, it counts as zeros."""
    for value in values:
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    for bucket in _buckets([value.grad for value in values if value.grad is not None]):
        flat = torch.cat([grad.reshape(-1).float() for grad in bucket])
        distributed.all_reduce(flat)
        for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(summed.view_as(grad))


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, in place."""
    if ranks.size() > 1:
        distributed.all_reduce(value)
    return value


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring gradients in lists of `BUCKET_BYTES` at most; a larger one alone."""
    bucket: list[Tensor] = []
    held = 0
    for grad in grads:
        if bucket and held + 4 * grad.numel() > BUCKET_BYTES:
            yield bucket
            bucket, held = [], 0
        bucket.append(grad)
        held += 4 * grad.numel()
    if bucket:
        yield bucket
