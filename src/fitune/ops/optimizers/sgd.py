"""SGD by torch, without momentum: no states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fitune.ops.optimizers.optimizer import Optimizer, Shape, States

if TYPE_CHECKING:
    import torch
    from torch import nn


def _no_states(shape: Shape, itemsize: int) -> States:
    return States()


def _made(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(parameters, lr=rate)


SGD = Optimizer(
    name="sgd",
    help="plain SGD, no states",
    library="torch",
    optim="sgd",
    states=_no_states,
    step_bytes=12,
    make=_made,
)
