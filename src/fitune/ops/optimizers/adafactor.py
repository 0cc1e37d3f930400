"""Adafactor (arXiv 1804.04235) by transformers: a row and a column of a matrix in place of its second moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fitune.ops.optimizers.optimizer import Optimizer, Shape, States, count_of

if TYPE_CHECKING:
    import torch
    from torch import nn

ROOT_MEAN_SQUARE = 4  # of the weights, an fp32 number


def _states(shape: Shape, itemsize: int) -> States:
    factors = (shape[:-1], (*shape[:-2], shape[-1])) if len(shape) > 1 else (shape,)
    return States((*(itemsize * count_of(factor) for factor in factors), ROOT_MEAN_SQUARE))


def _made(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=rate, scale_parameter=False, relative_step=False)


ADAFACTOR = Optimizer(
    name="adafactor",
    help="Adafactor (arXiv 1804.04235), a row and a column of states a matrix",
    library="transformers",
    optim="adafactor",
    states=_states,
    runs_on_meta=True,
    step_bytes=48,
    make=_made,
)
